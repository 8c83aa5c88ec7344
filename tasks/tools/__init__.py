"""What users run besides the stages."""
