"""Time zones by their IANA names, with the rules of the tzdata package, not of the machine.

Server and agents are installed with that package, so that both know the same names and rules. A host's own
/usr/share/zoneinfo may have other names (posixrules, right/…, localtime), or none.
"""

import difflib
import re
from functools import lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from cron.errors import CronError

MAX_NAME = 64
"""Characters of a name that are read. The longest zone has 32."""
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
    """The zones and links of the database, without Factory, which stands for a zone that was not set."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split()) - {"Factory"}


@lru_cache(maxsize=1 << 10)
def _remedy(name: str) -> str:
    """The remedy for an unknown name: the nearest known name, if there is one."""
    wanted = "give an IANA name, for example Europe/Berlin"
    if _OFFSET.fullmatch(name):
        return f" but an offset, which has no daylight saving time: {wanted}"
    near = _nearest(name.lower())
    return f"; did you mean {near}? Otherwise {wanted}" if near else f": {wanted}"


def _nearest(said: str) -> str | None:
    """The zone with this name in another case, or with this last part; for longer names, one with similar spelling."""
    names = sorted(_names())
    known = {name.lower().rpartition("/")[2]: name for name in names} | {name.lower(): name for name in names}
    for same in (said, said.partition("/")[2], said.rpartition("/")[2]):
        if same in known:
            return known[same]
    close = difflib.get_close_matches(said, known, n=1, cutoff=0.75) if len(said) > len("CEST") else ()
    return known[close[0]] if close else None
