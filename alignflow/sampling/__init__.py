"""Sample responses of a role: the built-in sampler and its cache, or vLLM."""
