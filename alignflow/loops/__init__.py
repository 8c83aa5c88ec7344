"""Training loops: how long an algorithm runs, over stored data or over its own samples."""
