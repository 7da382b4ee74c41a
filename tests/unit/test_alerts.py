"""Promise 10, in notifications: what lasts is told once, again when more is wrong, and once more when it is over."""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.notify import messages, pings
from server.notify.decide import (
    MAX_FOLLOWED,
    Item,
    ObjectKey,
    Policy,
    Situation,
    State,
    Watched,
    decide,
    firing,
)
from server.notify.pings import End, Pinged
from server.notify.situations import EVENT_OF, Facts, Found, HostFacts, seen_by
from server.notify.webhooks import is_allowed
from server.observe.overview import SECTIONS
from server.observe.problems import Problem
from server.resources.grants import Grant
from server.resources.manifests import parse_alert
from server.resources.specs import AlertSpec, LabelSelector
from server.resources.targets import grant_errors, signing_key

T = datetime(2026, 11, 28, 3, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NIGHTLY = ("Schedule", "default", "nightly")
POLICY = Policy(timedelta(hours=4), send_resolved=True)
HOSTS = frozenset("abcd")
OBJECTS = [NIGHTLY, ("Schedule", "default", "hourly"), ("Host", "", "")]
EVERYTHING = Watched(OBJECTS, HOSTS)
AFTER = {NIGHTLY: timedelta(), OBJECTS[1]: timedelta(), OBJECTS[2]: 10 * MINUTE}


def failing(*hosts: str, about: ObjectKey = NIGHTLY, after: timedelta | None = None) -> Situation:
    message = f"the last run failed on {len(hosts)} hosts"
    return Situation("Failure", "RunsFail", about, message, hosts, after=AFTER[about] if after is None else after)


class Told:
    """An Alert that decides each time it is asked, and keeps its state as the store does."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.state = State()
        self.items: list[Item] = []

    def at(self, minutes: float, *situations: Situation, watched: Watched = EVERYTHING) -> list[str]:
        now = T + minutes * MINUTE
        items, state = decide(situations, watched, self.state, self.policy, now)
        self.state = msgspec.json.decode(msgspec.json.encode(state), type=State)
        assert self.state == state
        self.items += items
        return [it.kind for it in items]


def test_what_is_wrong_is_told_once_and_again_when_it_was_not_for_long_and_when_it_is_over() -> None:
    alert = Told()
    assert alert.at(0, failing("a")) == ["firing"]
    assert alert.at(1, failing("a")) == []
    assert alert.at(239, failing("a")) == []
    assert alert.at(240, failing("a")) == ["repeat"]
    assert alert.at(241) == ["resolved"]
    assert alert.at(242) == []


def test_a_further_host_is_told_and_one_that_comes_back_is_told_anew() -> None:
    alert = Told()
    assert alert.at(0, failing("a")) == ["firing"]
    assert alert.at(1, failing("a", "b")) == ["firing"]
    assert alert.items[-1].hosts == ["b", "a"]  # the new one first
    assert alert.at(2, failing("b")) == []
    assert alert.at(3, failing("a", "b")) == ["firing"]
    assert alert.at(4, failing("c", "b")) == ["firing"]  # as many as before, and not the same


def test_what_does_not_last_is_not_told() -> None:
    alert = Told()
    gone = failing("a", about=OBJECTS[2])
    assert alert.at(0, gone) == []
    assert alert.at(9, gone) == []
    assert alert.at(9.5) == []
    assert alert.at(11, gone) == []
    assert alert.at(21, gone) == ["firing"]


def test_each_host_has_its_own_time() -> None:
    alert = Told()
    assert alert.at(0, failing("a", about=OBJECTS[2])) == []
    assert alert.at(10, failing("a", "b", about=OBJECTS[2])) == ["firing"]
    assert alert.items[-1].hosts == ["a"]
    assert alert.at(20, failing("b", about=OBJECTS[2])) == ["firing"]
    assert alert.at(25, failing("c", about=OBJECTS[2])) == ["resolved"]  # c is not long enough away
    assert alert.at(35, failing("c", about=OBJECTS[2])) == ["firing"]


def test_nothing_is_told_of_its_end_where_the_alert_does_not_want_it() -> None:
    alert = Told(Policy(timedelta(hours=4), send_resolved=False))
    assert alert.at(0, failing("a")) == ["firing"]
    assert alert.at(1) == []
    assert firing(alert.state) == {}


def test_what_is_no_longer_watched_is_not_told_as_well() -> None:
    for about, watched in (
        (NIGHTLY, EVERYTHING._replace(objects=[])),  # deleted, or other labels are selected
        (NIGHTLY, EVERYTHING._replace(events=["Overdue"])),
        (OBJECTS[2], EVERYTHING._replace(hosts=["b"])),
    ):
        alert = Told()
        assert alert.at(0, failing("a", about=about, after=timedelta())) == ["firing"]
        assert alert.at(1, watched=watched) == ["resolved"]
        assert "no longer watched" in alert.items[-1].message


def test_what_nothing_can_be_known_of_yet_is_neither_over_nor_told_again() -> None:
    alert = Told()
    alert.at(0, failing("a"))
    assert alert.at(1, watched=EVERYTHING._replace(unknown=[NIGHTLY])) == []
    assert alert.at(2, failing("a")) == []
    assert alert.at(3) == ["resolved"]


def test_what_may_be_meant_so_is_told_once() -> None:
    alert, once = Told(), failing("a")._replace(repeats=False)
    assert alert.at(0, once) == ["firing"]
    assert alert.at(1000, once) == []
    assert alert.at(1001) == ["resolved"]


def test_a_clock_that_is_set_back_delays_no_message() -> None:
    alert = Told()
    assert alert.at(600, failing("a")) == ["firing"]
    assert alert.at(0, failing("a")) == []
    assert alert.at(239, failing("a")) == []
    assert alert.at(240, failing("a")) == ["repeat"]


def test_of_very_many_hosts_some_are_followed_and_all_are_counted() -> None:
    alert, hosts = Told(), [f"host-{at:05}" for at in range(10 * MAX_FOLLOWED)]
    assert alert.at(0, failing(*hosts[:-1])) == ["firing"]
    assert alert.items[-1].count == len(hosts) - 1
    assert alert.at(1, failing(*hosts[:-1])) == []
    assert alert.at(2, failing(*hosts)) == ["firing"]
    assert len(msgspec.json.encode(alert.state)) < 128 << 10


def test_what_is_kept_of_very_many_situations_is_bounded_and_each_is_told() -> None:
    hosts = [f"host-{at:05}" for at in range(MAX_FOLLOWED)]
    many = [failing(*hosts)._replace(about=("Schedule", "ns", f"s-{at}")) for at in range(1000)]
    alert = Told()
    assert alert.at(0, *many) == ["firing"] * len(many)
    assert alert.items[-1].count == len(hosts)
    assert alert.at(1, *many) == []
    assert len(msgspec.json.encode(alert.state)) < 4 << 20
    assert alert.at(2) == ["resolved"] * len(many)


situations = st.lists(
    st.builds(
        lambda about, hosts: failing(*sorted(hosts), about=about),
        st.sampled_from(OBJECTS),
        st.sets(st.sampled_from("abcd"), min_size=1),
    ),
    max_size=3,
    unique_by=lambda it: it.key,
)
stories = st.lists(st.tuples(st.integers(0, 300), situations), max_size=12)


@given(stories)
def test_none_is_lost_and_none_is_told_twice(story: Sequence[tuple[int, Sequence[Situation]]]) -> None:
    """By a second bookkeeping: since when each host is in each situation, and what was told of it last."""
    alert, minutes = Told(), 0
    since: dict[tuple[str, str], int] = {}
    told: dict[str, tuple[int, set[str]]] = {}
    for pause, present in story:
        minutes += pause
        pairs = {(it.key, host) for it in present for host in it.hosts}
        since = {pair: since.get(pair, minutes) for pair in pairs}
        before = len(alert.items)
        alert.at(minutes, *present)
        said = {f"{'/'.join(it.about)}/{it.reason}": it for it in alert.items[before:]}
        assert len(said) == len(alert.items) - before  # at most one message for each situation
        for it in present:
            ripe = {host for host in it.hosts if minutes - since[it.key, host] >= it.after / MINUTE}
            at, hosts = told.get(it.key, (0, set()))
            if not ripe:
                assert (it.key in said) == (it.key in told)
                told.pop(it.key, None)
            elif it.key not in told or ripe - hosts:
                assert said[it.key].kind == "firing"
                told[it.key] = minutes, ripe
            elif minutes - at >= 240:
                assert said[it.key].kind == "repeat"
                told[it.key] = minutes, ripe
            else:
                assert it.key not in said
                told[it.key] = at, hosts & ripe
        ended = told.keys() - {it.key for it in present}
        assert all(said[key].kind == "resolved" for key in ended)
        assert said.keys() <= {it.key for it in present} | ended
        told = {key: it for key, it in told.items() if key not in ended}
        assert firing(alert.state).keys() == told.keys()
    assert [it.id for it in alert.items] == list(range(1, len(alert.items) + 1))


long_text = st.text(st.characters(codec="utf-8"), max_size=3000)
names = st.text("abc", min_size=253, max_size=253)
items = st.builds(
    Item,
    st.integers(1, 10),
    st.sampled_from(["firing", "repeat", "resolved"]),
    st.just("Failure"),
    st.just("RunsFail"),
    st.tuples(st.just("Schedule"), st.just("n" * 63), names),
    long_text,
    st.just(T),
    st.lists(names, max_size=20),
    st.integers(0, 10_000),
)


@given(st.lists(items, min_size=1, max_size=4), st.integers(1, 30))
def test_no_message_is_longer_than_its_bound(some: list[Item], times: int) -> None:
    written = messages.body("default/on-call", "critical", T, some * times)
    assert len(written.encode()) <= messages.MAX_BODY
    data = msgspec.json.decode(written)["data"]
    assert len(data["items"]) + data["more"] == len(some) * times
    title, text = messages.text("default/on-call", "critical", data["items"], data["more"])
    assert len(title) < 256
    assert len(text.encode()) <= messages.MAX_BODY


def test_a_message_is_signed_as_standard_webhooks_says() -> None:
    """Worked out anew from the specification's "Signature scheme"."""
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    signed = messages.signature(signing_key(secret), "msg_1", T, b'{"a":1}')
    content = f"msg_1.{int(T.timestamp())}." + '{"a":1}'
    expected = hmac.new(b"k" * 32, content.encode(), hashlib.sha256).digest()
    assert signed == "v1," + base64.b64encode(expected).decode()


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "not base64 at all!", "whsec_" + "A" * 400])
def test_a_signing_secret_that_cannot_be_used_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and 24 to 64 bytes") as error:
        signing_key(secret)
    assert len(secret) < 10 or secret not in str(error.value)


# Pings.

ENDS = st.dictionaries(st.sampled_from("ab"), st.builds(End, st.sampled_from(["1", "2"]), st.booleans()), max_size=2)
RUNS = st.dictionaries(st.sampled_from("ab"), st.sampled_from(["3", "4"]), max_size=2)


@given(st.lists(st.tuples(ENDS, RUNS, st.booleans()), max_size=6), st.booleans())
def test_each_run_is_pinged_once_and_a_success_of_one_host_hides_no_failure_of_another(
    looks: list[tuple[dict[str, End], dict[str, str], bool]], each_host: bool
) -> None:
    was = Pinged()
    for ended, running, is_late in looks:
        late = ["a"] if is_late else []
        found, after = pings.decide(ended, running, late, was, each_host=each_host)
        assert pings.decide(ended, running, late, after, each_host=each_host)[0] == []
        new = {host for host, end in ended.items() if was.ended.get(host) != end.job_id}
        if each_host:
            assert {it.host for it in found if it.kind != "start"} == new
        else:
            bad = is_late or not all(end.is_good for end in ended.values())
            assert not (bad and any(it.kind == "success" for it in found))
            assert len(found) <= 3
            assert {it.host for it in found} <= {""}
            assert any(it.kind == "fail" for it in found) == any(not ended[host].is_good for host in new)
        was = after


def test_what_ended_before_a_schedule_had_its_url_is_not_pinged() -> None:
    ended = {"a": End("1", is_good=False)}
    assert pings.decide(ended, {}, [], pings.known(ended), each_host=True)[0] == []


@pytest.mark.parametrize(
    ("url", "kind", "called"),
    [
        ("https://hc-ping.com/uuid", "success", "https://hc-ping.com/uuid"),
        ("https://hc-ping.com/uuid/", "start", "https://hc-ping.com/uuid/start"),
        ("https://hc-ping.com/key/{host}?create=1", "fail", "https://hc-ping.com/key/web%2F1/fail?create=1"),
    ],
)
def test_a_ping_goes_where_healthchecks_io_expects_it(url: str, kind: pings.Kind, called: str) -> None:
    assert pings.url_of(url, "web/1", kind) == called


# What an Alert sees, and where it may call.

T_1, T_2 = ("Schedule", "team-a", "etc"), ("Repository", "team-b", "main")
SECRET_NAME = "team-b's own"
FACTS = Facts(
    {T_1: {"tier": "db"}, T_2: {}},
    [
        Found(T_1, Problem("RunsFail", "it failed"), ["a-1"]),
        Found(T_2, Problem("WrongPassword", SECRET_NAME)),
        Found(("Controller", "", "folder"), Problem("NotFollowing", "silent")),
        Found(("Server", "", ""), Problem("NothingDeclared", "nothing")),
    ],
    [
        HostFacts("a-1", ["NotConnected"]),
        HostFacts("b-1", ["EntriesLeftOut", "ClockSkew"]),
    ],
    {"a-1": {"pool": "a"}, "b-1": {"pool": "b"}},
)


def test_an_alert_can_tell_everything_that_the_overview_tells() -> None:
    """But for what keeps Alerts themselves from telling anything, which the heartbeat tells."""
    told = {reason for reasons in SECTIONS.values() for reason in reasons}
    by_kind = {"NotFollowing"}  # of a controller
    assert told - EVENT_OF.keys() - by_kind == {"NotWriting", "NotDelivered", "SelectsNothing"}
    assert EVENT_OF.keys() <= told


def test_hosts_that_have_not_come_back_since_the_server_started_stay_as_they_were_known() -> None:
    known = Told()
    known.at(0, *seen(Grant(), scope="Fleet").values())
    quiet = FACTS._replace(hosts=[], found=[])
    for facts, are_there in (
        (quiet, False),
        (quiet._replace(awaited=["a-1"]), True),
        (quiet._replace(awaited=["b-1"]), False),
        (quiet._replace(awaited=["a-1"], all_hosts={}), False),
    ):
        found, _ = seen_by(alert_spec_of(scope="Fleet"), "team-a", Grant(), facts, known.state.known)
        assert [it.hosts for it in found if it.reason == "NotConnected"] == [["a-1"]] * are_there


LIMITED = Grant(LabelSelector({"pool": "a"}), ("/srv/a",))


def seen(grant: Grant, namespace: str = "team-a", **spec: object) -> dict[str, Situation]:
    return {it.key: it for it in seen_by(alert_spec_of(**spec), namespace, grant, FACTS, {})[0]}


def alert_spec_of(**spec: object) -> AlertSpec:
    return parse_alert({"metadata": {"name": "x"}, "spec": {"secretRef": {"name": "s"}, **spec}}).spec


def test_an_alert_sees_its_namespace_and_the_hosts_that_it_is_granted_and_nothing_of_others() -> None:
    found = seen(LIMITED)
    assert found.keys() == {"Schedule/team-a/etc/RunsFail", "Host///NotConnected"}
    assert all("b-1" not in it.message and SECRET_NAME not in it.message for it in found.values())
    assert found["Host///NotConnected"].after == timedelta(minutes=15)


def test_an_alert_of_the_fleet_sees_everything_once() -> None:
    found = seen(Grant(), scope="Fleet")
    assert {"Repository/team-b/main/WrongPassword", "Controller//folder/NotFollowing"} <= found.keys()
    assert {"Server///NothingDeclared", "Host///ClockSkew", "Host///EntriesLeftOut"} <= found.keys()
    assert len(found) == 7
    assert found["Host///NotConnected"].message == "1 host: the agent is not connected: a-1"


def test_an_alert_sees_what_it_selects() -> None:
    assert seen(LIMITED, selector={"matchLabels": {"tier": "web"}}, hostSelector={"matchLabels": {"pool": "c"}}) == {}
    assert seen(LIMITED, events=["Failure"]).keys() == {"Schedule/team-a/etc/RunsFail"}


@pytest.mark.parametrize(
    ("address", "public", "anywhere"),
    [
        ("93.184.216.34", True, True),
        ("2606:4700::1111", True, True),
        ("127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("192.168.0.1", False, True),
        ("100.64.0.1", False, True),
        ("::1", False, True),
        ("fd00::1", False, True),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("2002:a9fe:a9fe::1", False, False),
        ("::ffff:10.0.0.1", False, True),
        ("fe80::1", False, False),
        ("fd00:ec2::254", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
    ],
)
def test_an_address_is_called_only_where_that_is_allowed(address: str, public: bool, anywhere: bool) -> None:
    parsed = ipaddress.ip_address(address)
    assert (is_allowed(parsed, anywhere=False), is_allowed(parsed, anywhere=True)) == (public, anywhere)


@pytest.mark.parametrize("url", ["http://example.org/a", "mailto://a@b.org", "slack://A/B/C", "HTTP://example.org"])
def test_a_namespace_with_limits_notifies_by_https_alone_unless_it_is_granted_more(url: str) -> None:
    assert [it["field"] for it in grant_errors(LIMITED, "team-a", ["https://a.org", url], "urls")] == ["urls[1]"]
    for grant in (Grant(), msgspec.structs.replace(LIMITED, notify_anywhere=True)):
        assert list(grant_errors(grant, "team-a", [url], "urls")) == []
