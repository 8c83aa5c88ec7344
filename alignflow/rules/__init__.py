"""Rules that reward a response: one file per rule, with a function of the same name. Rules import ``shared/``."""
