"""Promise 11: a server hears each piece of news once, in whatever order the others' transactions commit."""

from datetime import timedelta

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from server.store import news
from server.store.news import GAP_S, MAX_GAPS, Gap, Position
from server.store.tables import NEWS
from tests.jobqueue import NOON, in_memory


@given(st.data())
def test_each_row_is_read_once_in_whatever_order_transactions_commit(data: DataObject) -> None:
    """Each transaction takes an id, and is committed or undone later, within GAP_S."""
    under_way: list[int] = []
    committed: set[int] = set()
    read: list[int] = []
    at, last, position = 0.0, 0, Position()
    for step in data.draw(st.lists(st.sampled_from(["begin", "commit", "undo", "read"]), max_size=60)):
        at += data.draw(st.floats(0, GAP_S / 100))
        if step == "begin":
            under_way.append(last := last + 1)
        elif step in {"commit", "undo"} and under_way:
            id_ = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            if step == "commit":
                committed.add(id_)
        elif step == "read":
            asked = {gap.id for gap in position.gaps}
            found = sorted(it for it in committed if it > position.last or it in asked)
            read += found
            position = position.after(found, at)
    committed.update(under_way)
    asked = {gap.id for gap in position.gaps}
    read += [it for it in sorted(committed) if it > position.last or it in asked]
    assert sorted(read) == sorted(committed)


def test_what_was_undone_is_not_asked_for_for_ever() -> None:
    position = Position().after([1, 3], 0.0)
    assert position == Position(3, (Gap(2, GAP_S),))
    assert position.after([], GAP_S - 1).gaps == position.gaps
    assert position.after([], GAP_S + 1) == Position(3)


def test_a_database_whose_early_rows_are_gone_leaves_few_gaps() -> None:
    assert len(Position().after([10_000_000], 0.0).gaps) == MAX_GAPS


def test_a_server_reads_what_others_told_after_it_began_and_what_was_under_way_then() -> None:
    conn = in_memory()
    for id_ in (1, 2, 4):
        conn.execute(sa.insert(NEWS).values(id=id_, at=NOON, server="other", body=f"{id_}"))
    position = news.here(conn, 0.0)
    assert position == Position(4, (Gap(3, GAP_S),))
    conn.execute(sa.insert(NEWS).values(id=3, at=NOON, server="other", body="3"))
    news.tell(conn, "me", NOON, ["mine"])
    news.tell(conn, "other", NOON, ["6", "7"])
    found = news.read(conn, position, "me")
    assert [(row.id, row.body) for row in found] == [(3, "3"), (5, ""), (6, "6"), (7, "7")]
    position = position.after([row.id for row in found], 1.0)
    assert (position, news.read(conn, position, "me")) == (Position(7), [])
    assert conn.info["wakes"]


def test_old_news_that_all_have_read_goes_but_for_the_newest_whose_id_is_not_used_again() -> None:
    conn = in_memory()
    news.tell(conn, "me", NOON, ["1", "2"])
    news.tell(conn, "me", NOON + timedelta(seconds=1), ["3", "4"])

    def kept() -> list[int]:
        return list(conn.execute(sa.select(NEWS.c.id).order_by(NEWS.c.id)).scalars())

    news.trim(conn, [(1, NOON + timedelta(hours=1))])
    assert kept() == [2, 3, 4]
    news.trim(conn, [(4, NOON + timedelta(seconds=1))])
    assert kept() == [3, 4]
    news.trim(conn, [(4, NOON + timedelta(hours=1))])
    assert kept() == [4]
