"""Measurements: in comparison with TRL, and with the limits of the machine."""
