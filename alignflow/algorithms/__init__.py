"""One file per algorithm: paper and equations, config record, pure loss, step."""
