"""Time zones by the names of the IANA database, with the rules of the tzdata package and not of the machine.

Server and agents are installed with that package. So both know the same names, and give them the same rules, whatever
/usr/share/zoneinfo holds on a host: it has names of its own (posixrules, right/…, localtime), or none at all.
"""

import difflib
import re
from functools import lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from cron.errors import CronError

MAX_NAME = 64
"""Characters of a name that are looked at. The longest zone has 32."""
_OFFSET = re.compile(r"(utc|gmt|ut|z)?[-+]?[0-9][0-9:]*", re.IGNORECASE)


@lru_cache(maxsize=1 << 10)
def zone(name: str) -> ZoneInfo:
    """The zone of an IANA name, the same object each time. Raises CronError for any other name."""
    if name not in _names():
        raise CronError(f"{name[:MAX_NAME]!r} is not a time zone{_remedy(name[:MAX_NAME])}")
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as rules:
        return ZoneInfo.from_file(rules, key=name)


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    """The zones and links of the database. Factory is not one to be in: it stands for a clock that nobody has set."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split()) - {"Factory"}


@lru_cache(maxsize=1 << 10)
def _remedy(name: str) -> str:
    """What to write in place of a name: the nearest one, where there is one."""
    wanted = "give an IANA name, for example Europe/Berlin"
    if _OFFSET.fullmatch(name):
        return f" but an offset, which knows no daylight saving time: {wanted}"
    near = _nearest(name.lower())
    return f"; did you mean {near}? Otherwise {wanted}" if near else f": {wanted}"


def _nearest(said: str) -> str | None:
    """The zone with this name in other case, or with this last part; or, of longer names, one that is spelt alike."""
    names = sorted(_names())
    known = {name.lower().rpartition("/")[2]: name for name in names} | {name.lower(): name for name in names}
    for same in (said, said.partition("/")[2], said.rpartition("/")[2]):
        if same in known:
            return known[same]
    close = difflib.get_close_matches(said, known, n=1, cutoff=0.75) if len(said) > len("CEST") else ()
    return known[close[0]] if close else None
