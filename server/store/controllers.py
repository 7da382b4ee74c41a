"""Statements on the last reports of controllers."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from server.store import batch
from server.store.tables import CONTROLLERS


class ReportRow(NamedTuple):
    """The last report of a controller. `body`: its JSON."""

    name: str
    at: datetime
    body: str


def put_reports(conn: Connection, rows: Sequence[ReportRow]) -> None:
    """Put reports by the names of controllers."""
    batch.put_rows(conn, CONTROLLERS, ReportRow._fields, rows, ())


def delete_reports(conn: Connection, names: Iterable[str]) -> None:
    """Delete the reports of these controllers."""
    batch.delete_rows(conn, CONTROLLERS, "name", list(names))


def all_reports(conn: Connection) -> list[ReportRow]:
    """All reports."""
    return batch.whole(conn, [CONTROLLERS.c[name] for name in ReportRow._fields], ReportRow)
