"""What a user can put right."""


class UserError(Exception):
    """A message for the user: shown on one line, without a traceback, with exit code 2."""
