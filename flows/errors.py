"""Errors that a user can cause and correct: one message, no traceback."""


class UserError(Exception):
    """A message for the user: what is wrong and what to do about it."""
