"""Promise 11: servers that share a database tell each other what they decide of jobs, and leave to each its hosts."""

from typing import Any

import pytest
import sqlalchemy as sa

from server.agents.session import HelloFacts
from server.errors import Conflict
from server.jobs import notices
from server.jobs.fires import DELETED
from server.jobs.kinds import ConcurrencyLimit
from server.jobs.notices import AnyNotice, Arrived, Changed, EndAsked, Ended, Left, Recorded, ServerGone, SlotsGiven
from server.jobs.queue import Arrival
from server.store import connections
from server.store.hosts import delete_hosts, upsert_hosts
from server.store.queue import FRONT
from server.store.rows import HostRow
from server.store.tables import CONNECTIONS, NEWS
from tests.jobqueue import MINUTE, NOON, Jobs, in_memory, job

ONE = {"repo": ConcurrencyLimit(1)}


class Servers:
    """Two servers over one database: host a is connected to one, host b to the other."""

    def __init__(self) -> None:
        self.conn = in_memory()
        self.one, self.other = (Jobs(self.conn, ONE, server=name, is_shared=True) for name in ("one", "other"))
        self.one.connected("a")
        self.other.connected("b")
        self._read = 0
        self.told()

    def told(self) -> list[tuple[str, AnyNotice]]:
        """What was told since this was asked last, and by whom."""
        rows = self.conn.execute(sa.select(NEWS.c.id, NEWS.c.server, NEWS.c.body).where(NEWS.c.id > self._read)).all()
        self._read = max((row.id for row in rows), default=self._read)
        return [(row.server, notice) for row in rows for notice in notices.decode(row.body)]

    def connection(self, host: str) -> Any:
        """The server that has a host, and the host's session."""
        row = self.conn.execute(sa.select(CONNECTIONS).where(CONNECTIONS.c.host == host)).one()
        return row.server, row.session


@pytest.fixture
def servers() -> Servers:
    return Servers()


def test_a_server_without_others_tells_nothing() -> None:
    jobs = Jobs(in_memory())
    jobs.connected("a")
    jobs.add(job("1"))
    jobs.accepts("1")
    jobs.ends("1")
    jobs.disconnected("a")
    assert jobs.conn.execute(sa.select(NEWS)).all() == []


def test_a_job_for_another_servers_host_is_left_to_that_server(servers: Servers) -> None:
    recorded, sent = servers.one.record(job("1", "b"))
    assert (set(recorded.new), set(recorded.sendable), sent) == ({"1"}, set(), [])
    assert servers.told() == [("one", SlotsGiven({"b": ["1"]})), ("one", Recorded())]


def test_a_slot_that_becomes_free_goes_to_another_servers_host(servers: Servers) -> None:
    assert servers.one.add(job("1", "a"), job("2", "b")) == ["1"]
    servers.one.accepts("1")
    servers.told()
    assert servers.one.ends("1") == []
    ended, slots = servers.told()
    assert isinstance(ended[1], Ended)
    assert (ended[1].end.job_id, ended[1].end.status, ended[1].repository, ended[1].final) == (
        "1",
        "succeeded",
        "repo",
        True,
    )
    assert slots == ("one", SlotsGiven({"b": ["2"]}))


def test_what_began_is_told(servers: Servers) -> None:
    servers.one.add(job("1", "a"))
    servers.told()
    servers.one.accepts("1")
    assert servers.told() == [("one", Changed())]


def test_another_servers_host_is_asked_by_that_server_to_end_a_job(servers: Servers) -> None:
    servers.other.add(job("1", "b"))
    servers.other.accepts("1")
    servers.told()
    servers.one.cancel("1", why="me")
    assert (servers.one.asked, servers.told()) == ([], [("one", EndAsked("b", "1", "me"))])
    servers.other.cancel("1", why="me")
    assert (servers.other.asked, servers.told()) == (["1"], [])


def test_a_job_that_was_to_end_while_its_host_said_hello_elsewhere_is_asked_for_there(servers: Servers) -> None:
    servers.one.add(job("1", "a"))
    servers.one.accepts("1")
    servers.one.cancel("1", why="me")  # by way of a connection that is gone
    assert (servers.other.connected("a", ["1"]), servers.other.asked) == ([], ["1"])
    assert servers.other.connected("a", []) == []


def test_the_newest_hello_counts_and_the_end_of_an_older_connection_changes_nothing(servers: Servers) -> None:
    servers.one.add(job("1", "a"))
    servers.told()
    assert servers.other.connected("a", ["1"]) == []
    assert servers.told() == [("other", Arrived("a", 2, "process", HelloFacts("1.2")))]
    assert servers.one.disconnected("a") == ([], False)
    assert (servers.connection("a"), servers.told()) == (("other", 2), [])
    assert servers.other.disconnected("a") == ([], True)
    assert (servers.connection("a"), servers.told()) == ((None, 2), [("other", Left("a"))])


def test_a_host_that_is_back_anywhere_keeps_its_slot(servers: Servers) -> None:
    servers.one.add(job("1", "a"), job("2", "b"))
    servers.one.disconnected("a")
    servers.other.connected("a", ["1"])
    assert servers.one.given_up("a") == []
    servers.other.disconnected("a")
    assert servers.other.given_up("a") == ["2"]


def test_a_dead_servers_hosts_are_away_and_their_jobs_wait(servers: Servers) -> None:
    servers.one.add(job("1", "a"), job("2", "a"))
    servers.told()
    ((outcome, holding),) = servers.other.queue.server_gone(servers.conn, [("one", NOON)])
    assert (outcome.sent, holding, servers.one.ready()) == ([], ["a"], [])
    assert (servers.connection("a"), servers.told()) == ((None, 1), [("other", ServerGone("one"))])
    ((_, lost),) = servers.other.queue.lead(servers.conn, [NOON])
    assert lost == [("a", NOON)]


def test_no_host_of_a_dead_server_is_given_a_slot_however_many_it_had() -> None:
    hosts = [f"{at:04}" for at in range(2 * FRONT)]
    one = Jobs(in_memory(), {"repo": ConcurrencyLimit(10)}, hosts, "one", is_shared=True)
    one.queue.arrived(one.conn, [Arrival(host, (), NOON) for host in hosts])
    assert one.add(job("0", hosts[0]), job("1", hosts[0], "prune", at=1)) == ["0"]
    assert one.add(*(job(host, host, at=2) for host in hosts)) == []  # the prune waits, and they do behind it
    other = Jobs(one.conn, one.limits, (), "other", is_shared=True)
    ((outcome, holding),) = other.queue.server_gone(one.conn, [("one", NOON)])
    assert (outcome.sent, holding, one.ready()) == ([], [hosts[0]], [])


def test_of_hosts_that_come_at_once_the_job_that_came_first_goes_first() -> None:
    hosts = [f"{at:04}" for at in range(2 * FRONT)]
    one = Jobs(in_memory(), ONE, hosts, "one", is_shared=True)
    one.add(*(job(host, host, at=-at) for at, host in enumerate(hosts)))
    outcome, *_ = one.queue.arrived(one.conn, [Arrival(host, (), NOON) for host in hosts])[0]
    assert [row.id for row in outcome.sent] == [hosts[-1]]


def test_a_server_that_begins_or_leads_leaves_the_others_hosts_as_they_are(servers: Servers) -> None:
    servers.one.add(job("1", "a"), job("2", "b"))
    third = Jobs(servers.conn, ONE, (), "third", is_shared=True)
    assert third.restart() == []
    ((outcome, lost),) = third.queue.lead(servers.conn, [NOON - MINUTE])
    assert (outcome.sent, lost, servers.one.ready(), servers.connection("b")) == ([], [], ["2"], ("other", 1))


def test_connections_are_read_as_they_stand(servers: Servers) -> None:
    servers.other.disconnected("b")
    found = {row.host: row for row in connections.all_connections(servers.conn)}
    assert (found["a"].server, found["a"].hello) == ("one", {"agent_version": "1.2"})
    assert (found["b"].server, found["b"].lost_at, found["b"].session) == (None, NOON, 1)


def test_a_job_is_not_recorded_for_a_host_that_another_server_deleted(servers: Servers) -> None:
    """Nobody would ever end it."""
    forget_and_delete(servers.conn, "b")
    recorded, sent = servers.other.record(job("1", "b", schedule="s", due=NOON))
    assert (recorded.new, recorded.refused, sent) == (set(), {"1": DELETED}, [])
    with pytest.raises(Conflict, match="b was deleted"):
        servers.other.record(job("2", "b"))
    upsert_hosts(servers.conn, [HostRow("b", {}, NOON, NOON)])
    assert servers.other.record(job("2", "b"))[0].new == {"2"}


def forget_and_delete(conn: sa.Connection, host: str) -> None:
    connections.forget(conn, [host])
    delete_hosts(conn, [host])
