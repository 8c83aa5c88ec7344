"""Models: loading, roles (adapters over one base) and heads."""
