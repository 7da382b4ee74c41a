"""What the calendar raises."""


class CronError(ValueError):
    """An expression or a zone that cannot be used; the message says what is wrong and what to write."""
