"""The frame of every stage: settings, progress, processes, provenance."""
