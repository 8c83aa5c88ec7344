"""Samples responses of a role, with the built-in sampler or with vLLM."""
