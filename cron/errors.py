"""The errors of the calendar."""


class CronError(ValueError):
    """An expression or a zone is not valid; the message says what is wrong and what to write."""
