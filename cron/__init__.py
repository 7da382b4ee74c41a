"""The calendar that server and agents share: cron expressions and time zones, as pure functions without a clock.

`expression` parses an expression, `zones` finds time zones, `due` computes due times, and `periods` the longest time
between them. `windows` are the times of day in which something may begin. `errors` is what they raise.

The grammar of an expression follows crontab(5) of Debian's cron 3.0pl1, with the exceptions below:

    expression = nickname | minute " " hour " " day-of-month " " month " " day-of-week
    nickname   = "@hourly" | "@daily" | "@midnight" | "@weekly" | "@monthly" | "@yearly" | "@annually"
    field      = part *( "," part )
    part       = "*" [ "/" step ] | value [ "/" step ] | value "-" value [ "/" step ]

Any number of blanks separates fields, and may stand at both ends. A blank is a space or a tab; in a Schedule only a
space, by crds/. Nicknames are in lower case.
A `value` is a decimal number: minute 0 to 59, hour 0 to 23, day of month 1 to 31, month 1 to 12, day of week 0 to 7,
both 0 and 7 being Sunday. The first three letters of a month's or weekday's English name, in any case, stand for its
number (sun for 0), in ranges and lists as well. Numbers may have leading zeros. A `step` is a number of 1 or more.

What a part names:

- `*`: every value of the field.
- `a-b`: the values from a to b. a must not be greater than b: 22-2 is written 22-23,0-2, and fri-mon is 5-7,0-1.
- `a-b/s`, `*/s`: of those, the first and each s-th after it. A step longer than the range leaves the first.
- `a/s`: `a-b/s`, where b is the field's last value (Saturday, of days of the week). crontab(5) has no such thing;
  Kubernetes' CronJobs do. 7/s is refused: to step from Sunday on, write 0/s.

A list names what any of its parts names. A day must match its month, and its day of month and day of week: both, where
one of these two fields begins with `*` (as `*/2` does); else either will do.

Several expressions, with "; " between them, are due when any of them is, and once where several are (`parse_all`).

Refused, each with a remedy: `@reboot`, `@every`, `TZ=` and `CRON_TZ=` (a Schedule has spec.timeZone), further
fields for seconds or years, `L W # ? H ~`, what is never due, such as `0 0 30 2 *`, and more than 256 characters.
"""

from cron.due import ON_TIME, Missed, catch_up, due_times, is_due, next_due, spread
from cron.errors import CronError
from cron.expression import Expression, Times, is_several, joined, parse, parse_all
from cron.periods import two_periods
from cron.zones import zone

__all__ = [
    "ON_TIME",
    "CronError",
    "Expression",
    "Missed",
    "Times",
    "catch_up",
    "due_times",
    "is_due",
    "is_several",
    "joined",
    "next_due",
    "parse",
    "parse_all",
    "spread",
    "two_periods",
    "zone",
]
