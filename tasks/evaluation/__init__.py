"""What a policy answers to held-out prompts, and what its answers are worth."""
