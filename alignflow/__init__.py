"""The core: tensor maths, algorithms, training loops, models and data. Knows no orchestration."""
