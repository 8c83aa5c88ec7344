"""``params.yaml``: its sections, reading it, editing it."""
