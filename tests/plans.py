"""How databases find the rows that the queue's statements are about: by which indexes."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from server.store import queue
from server.store.queue import Moved, Placed
from server.store.tables import JOBS
from tests.jobqueue import NOON

PAIRS = [("s", "a"), ("", "a")]
CALLS: dict[str, Callable[[Connection], object]] = {
    "settle": lambda conn: queue.settle(conn, ["1"], NOON),
    "first_of_pairs": lambda conn: queue.first_of_pairs(conn, PAIRS),
    "serial_ready": lambda conn: queue.serial_ready(conn, PAIRS),
    "pairs": lambda conn: queue.pairs(conn, PAIRS, 1000),
    "of_pairs": lambda conn: queue.of_pairs(conn, PAIRS),
    "recorded": lambda conn: queue.recorded(conn, [("1", "a", "s", NOON)]),
    "look": lambda conn: queue.look(conn, PAIRS, ["repo"], 1000, 2),
    "ready": lambda conn: queue.ready(conn, ["repo"]),
    "copies": lambda conn: queue.copies(conn, ["repo"]),
    "send": lambda conn: queue.send(conn, ["1"]),
    "rows": lambda conn: queue.rows(conn, ["1"]),
    "lanes_of": lambda conn: queue.lanes_of(conn, ["1"]),
    "of_host": lambda conn: queue.of_host(conn, "a"),
    "with_jobs": lambda conn: queue.with_jobs(conn, ["a"], 10),
    "count_of_host": lambda conn: queue.count_of_host(conn, "a", 10),
    "of_repository": lambda conn: queue.of_repository(conn, "repo"),
    "waiting_lanes": lambda conn: queue.waiting_lanes(conn, "repo"),
    "due": lambda conn: queue.due(conn, NOON),
    "late": lambda conn: queue.late(conn, NOON),
    "next_at": queue.next_at,
    "change_lanes": lambda conn: queue.change_lanes(conn, [("1", "repo/a", "")]),
    "move": lambda conn: queue.move(conn, [Moved("1", "pending", False, False, False, 1, NOON, None, None)]),
    "disconnect_all": lambda conn: queue.disconnect_all(conn, NOON),
    "lost_holders": queue.lost_holders,
    "holders": lambda conn: queue.holders(conn, ["a"]),
    "of_hosts": lambda conn: queue.of_hosts(conn, ["a", "b"]),
    "unplaced": queue.unplaced,
    "place": lambda conn: queue.place(conn, [Placed("1", "repo", NOON, None, False, False, False, False)]),
    "put_forward": lambda conn: queue.put_forward(conn, NOON),
    "begun_after": lambda conn: queue.begun_after(conn, NOON),
    "set_begun": lambda conn: queue.set_begun(conn, [("1", NOON, NOON)]),
    "queued_since": lambda conn: queue.queued_since(conn, NOON),
    "counts": lambda conn: queue.counts(conn, NOON),
    "hanging": lambda conn: queue.hanging(conn, NOON),
    "to_tell": lambda conn: queue.to_tell(conn, "here"),
    "waits": lambda conn: queue.waits(conn, ["1"]),
    "defer": lambda conn: queue.defer(conn, [("1", NOON)]),
    "put_windows_forward": lambda conn: queue.put_windows_forward(conn, ["s"], NOON),
    "passed_by_jobs": lambda conn: queue.passed_by_jobs(conn, [("host a", "a")]),
    "passed_by_hosts": lambda conn: queue.passed_by_hosts(conn, [("schedule s", "s")]),
    "waited_at": lambda conn: queue.waited_at(conn, ["host a"]),
    "held": lambda conn: queue.held(conn, ["host a"], 2),
    "hold_back": lambda conn: queue.hold_back(conn, [("1", "host a")]),
    "claim": lambda conn: queue.claim(conn, ["1"]),
    "claiming": lambda conn: queue.claiming(conn, "s"),
}
"""A call of each statement."""
OF_ALL = {
    "of_repository",
    "disconnect_all",
    "lost_holders",
    "unplaced",
    "put_forward",
    "begun_after",
    "queued_since",
    "counts",
}
"""Those that are about all jobs that are open, wait or run. They are not said for one job, or one host."""
INDEXES = {str(it.name) for it in JOBS.indexes} | {"pk_jobs"}
PARTIAL = {str(it.name) for it in JOBS.indexes if it.dialect_options["postgresql"]["where"] is not None} - {
    "ix_jobs_run"
}
"""Indexes that have none but open jobs, or fewer."""
OF_COPIES = {"ix_jobs_from_lane_ready", "ix_jobs_copies_ready"}
"""Indexes that have none but copies that wait: where there are none, it costs nothing to read all of them."""


def named() -> set[str]:
    """The statements that there are."""
    functions = inspect.getmembers(queue, inspect.isfunction)
    return {name for name, it in functions if it.__module__ == queue.__name__ and not name.startswith("_")}


def said(conn: Connection, call: Callable[[], object]) -> list[tuple[str, Any]]:
    """The statements that a call executes, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: Any, *_more: object) -> None:
        statements.append((statement, parameters))

    sa.event.listen(conn, "before_cursor_execute", note)
    call()
    sa.event.remove(conn, "before_cursor_execute", note)
    assert statements
    return statements


def found_by(conn: Connection, name: str) -> Iterator[str]:
    """How each part of a statement's plans finds jobs that it is not given the key of: by which index, or "all"."""
    for statement, parameters in said(conn, lambda: CALLS[name](conn)):
        yield from (_sqlite if conn.dialect.name == "sqlite" else _postgresql)(conn, statement, parameters)


def _sqlite(conn: Connection, statement: str, parameters: Any) -> Iterator[str]:
    names = {JOBS.name, "front", "held", "run"}  # what the statements call jobs
    for *_, detail in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
        verb, table, *rest = detail.split()
        if verb == "SCAN" and table in names:
            yield rest[-1] if rest else "all"


def _postgresql(conn: Connection, statement: str, parameters: Any) -> Iterator[str]:
    (plan,) = conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    nodes = [plan["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", ())
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] == JOBS.name:
            yield "all"
        elif node.get("Index Name") in INDEXES and "Index Cond" not in node:
            yield node["Index Name"]
