"""Responses of a role: the own sampler and its cache, or vLLM."""
