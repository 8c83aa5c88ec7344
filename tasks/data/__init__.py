"""What the stage ``prepare`` and `alignflow data check` share, and how prepared data is read."""
