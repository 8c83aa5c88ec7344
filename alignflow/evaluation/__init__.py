"""Evaluation: win rates with intervals, and statistics of answers, judges and training runs."""
