"""While lists are read, the controller keeps the newer answer and notices what was deleted meanwhile."""

import pytest

from controller.client import Unreachable
from controller.cluster.listings import Listings
from controller.cluster.server_state import Answers, ServerState
from controller.resources import Key

ETC, HOME = Key("Schedule", "ns", "etc"), Key("Schedule", "ns", "home")
MAIN = Key("Repository", "ns", "main")


def test_a_list_takes_the_place_of_what_was_answered_before_of_what_it_covers() -> None:
    answers = Answers[Key]()
    for key in (ETC, HOME, MAIN):
        answers.put(key, {"at": 1})
    answers.begin()
    answers.replace([(ETC, {"at": 2})], lambda key: key.kind == "Schedule")
    assert {key: answers.get(key) for key in (ETC, HOME, MAIN)} == {ETC: {"at": 2}, HOME: None, MAIN: {"at": 1}}
    assert answers.keys() == {ETC, MAIN}


def test_what_is_answered_while_a_list_is_read_is_newer_than_the_list() -> None:
    answers = Answers[Key]()
    answers.put(HOME, {"at": 1})
    answers.begin()
    answers.put(ETC, {"at": 3})
    answers.put(HOME, None)
    answers.replace([(ETC, {"at": 2}), (HOME, {"at": 2})])
    assert (answers.get(ETC), answers.get(HOME)) == ({"at": 3}, None)


def test_a_server_that_is_away_is_not_asked_until_it_is_reached() -> None:
    server = ServerState()
    server.check_reachable()
    server.mark_unreachable(Unreachable("not there"))
    with pytest.raises(Unreachable, match="not there"):
        server.check_reachable()
    server.mark_reachable()
    server.check_reachable()


@pytest.fixture
def listings() -> Listings:
    listings = Listings(within_s=2)
    listings.begin(0)
    assert not listings.on_listed(ETC, 1)
    assert not listings.on_listed(HOME, 1)
    return listings


def test_a_list_of_what_was_listed_before_is_another_one(listings: Listings) -> None:
    assert listings.on_listed(ETC, 50)


def test_what_a_list_leaves_out_may_have_been_deleted_unseen(listings: Listings) -> None:
    assert not listings.omits([ETC, HOME, MAIN], 2.9)  # the list may go on
    assert listings.omits([ETC, HOME, MAIN], 3)
    assert not listings.omits([ETC, HOME, MAIN], 4)  # it has been said


def test_what_was_told_by_an_event_or_is_gone_is_not_left_out(listings: Listings) -> None:
    listings.on_event(MAIN)
    assert not listings.omits([ETC, HOME, MAIN], 3)
    listings.begin(3)
    listings.forget(HOME)
    assert not listings.omits([ETC, MAIN], 5)
    assert not listings.on_listed(HOME, 6)
