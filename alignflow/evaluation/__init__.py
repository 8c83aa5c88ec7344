"""What answers are worth: win rates with intervals, and figures of answers, judges and whole trainings."""
