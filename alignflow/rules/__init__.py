"""Rules that reward a response: one file a rule, with the function of its name. ``shared/`` is what several import."""
