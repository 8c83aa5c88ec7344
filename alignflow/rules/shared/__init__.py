"""Code that several rules import."""
