"""Evaluation: win rates with intervals, and figures of answers, judges and trainings."""
