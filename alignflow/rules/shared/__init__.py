"""What several rules import."""
