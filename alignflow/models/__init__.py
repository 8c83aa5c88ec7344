"""Loading models, their roles (adapters over one base) and their heads."""
