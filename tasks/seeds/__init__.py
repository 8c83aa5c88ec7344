"""The comparison over several training seeds."""
