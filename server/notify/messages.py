"""Writes an Alert's messages: one text and one JSON body for all that it tells at a time, within bounds. No I/O.

The JSON body follows Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks), and so does its
signature: HMAC-SHA256 over `ID.TIMESTAMP.BODY`.
"""

import base64
import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from server.notify.decide import Item

MAX_ITEMS = 20
"""The most situations that one message tells one by one; the others are counted."""
MAX_HOSTS = 10
"""The most hosts that are named for a situation."""
MAX_MESSAGE = 1000
"""The most characters of a situation's message."""
MAX_BODY = 128 << 10
"""What no body is longer than, in bytes, with the longest names that there can be."""
TYPE = "lamplighter.alert"


def body(alert: str, severity: str, at: datetime, items: Sequence[Item]) -> str:
    """The JSON of a webhook. `alert`: NAMESPACE/NAME."""
    told = [_item(it) for it in items[:MAX_ITEMS]]
    data = {"alert": alert, "severity": severity, "status": status(items), "items": told}
    written = {"type": TYPE, "timestamp": at, "data": {**data, "more": len(items) - len(told)}}
    return msgspec.json.encode(written).decode()


def status(items: Sequence[Item]) -> str:
    """`firing` as long as the message tells of anything that is wrong, else `resolved`."""
    return "resolved" if all(it.kind == "resolved" for it in items) else "firing"


def _item(item: Item) -> dict[str, Any]:
    kind, namespace, name = item.about
    return {
        "key": f"{'/'.join(item.about)}/{item.reason}",
        "status": item.kind,
        "event": item.event,
        "reason": item.reason,
        "object": {"kind": kind, "namespace": namespace, "name": name},
        "since": item.since,
        "message": clipped(item.message),
        "hosts": item.hosts[:MAX_HOSTS],
        "hostCount": item.count,
    }


def text(alert: str, severity: str, items: Sequence[Mapping[str, Any]], more: int) -> tuple[str, str]:
    """Title and text of a message for people, from the `items` of its body."""
    counts = Counter("resolved" if it["status"] == "resolved" else "firing" for it in items)
    said = ", ".join(f"{counts[it]} {it}" for it in ("firing", "resolved") if counts[it])
    title = f"[{severity}] Lamplighter {alert}: {said}" + (f", {more} more" if more else "")
    lines = [_line(it) for it in items]
    if more:
        lines.append(f"… and {more} more: see `lamplighter status`")
    return title, "\n\n".join(lines)


def _line(item: Mapping[str, Any]) -> str:
    about = item["object"]
    named = "/".join(it for it in (about["namespace"], about["name"]) if it)
    subject = f"{about['kind']} {named}" if named else f"{about['kind']}s"
    hosts = ", ".join(item["hosts"])
    more = item["hostCount"] - len(item["hosts"])
    where = f"\nHosts: {hosts}" + (f" and {more} more" if more > 0 else "") if hosts else ""
    return f"{item['status'].upper()} {item['reason']}: {subject}\n{item['message']}{where}\nSince {item['since']}"


def clipped(message: str) -> str:
    """A message of at most MAX_MESSAGE characters."""
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"


def signature(key: bytes, message_id: str, at: datetime, payload: bytes) -> str:
    """The value of the header webhook-signature."""
    signed = f"{message_id}.{int(at.timestamp())}.".encode() + payload
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
