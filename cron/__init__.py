"""The calendar that server and agents share: what a cron expression and a zone mean, as pure functions.

`expression` reads the text, `due` says when it is due, `periods` how far apart that is. Nothing here looks at a clock.
"""

from cron.due import ON_TIME, Missed, catch_up, next_due, spread, zone
from cron.expression import CronError, Expression, parse
from cron.periods import two_periods

__all__ = [
    "ON_TIME",
    "CronError",
    "Expression",
    "Missed",
    "catch_up",
    "next_due",
    "parse",
    "spread",
    "two_periods",
    "zone",
]
