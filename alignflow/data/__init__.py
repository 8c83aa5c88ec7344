"""Reading preferences, and turning text into token batches."""
