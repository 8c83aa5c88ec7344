"""Measurements: side by side with the peer library, and against what the machine can do."""
