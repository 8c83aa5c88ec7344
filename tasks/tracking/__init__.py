"""Records on disk, and their way to MLflow."""
