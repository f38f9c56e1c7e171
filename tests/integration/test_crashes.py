"""Kill -9 at random moments of a whole broker at work: what it said holds, and it said no more."""

from __future__ import annotations

import os
from random import Random
from typing import Final

import pytest

from tests.integration.crowd import Crowd
from tests.integration.serial import DENIED, DONE, GRANTED, Effect, Lists, call, edit, forget
from tests.integration.site import Site

#: Slow: the broker is killed many times, and looked through after each.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: How often the broker is killed; more often shows more.
KILLS: Final = int(os.environ.get("BROKER_KILLS", "20"))
#: After how many messages at the most: with the ledger first, and behind, which needs a while.
FIRST: Final = 1000
BEHIND: Final = 2500


def test_killed(site: Site) -> None:
    """Every acknowledged change is there, and no half of another (I8, I9).

    No address was told that no serial order of the changes permits (I1, I2), by an entry of one use
    only once (I7), and each is in the ledger. Tokens hold across all that, while their account and
    its password do (I2).
    """
    moments = Random(1)
    crowd = Crowd(site, seed=1)
    crowd.begin()
    for kill in range(KILLS):
        if kill % 10 == 7:
            crowd.stillborn()
        first = kill % 2 == 0
        crowd.live(moments.randrange(FIRST if first else BEHIND), first=first)
    crowd.last()
    counts = crowd.counts
    print(dict(sorted(counts.items())))  # with -s, and where something is wrong
    assert counts["kills"] == KILLS
    # Else it would have tried too little of each.
    for what, least in (("edits", 20), ("granted", 20), ("denied", 20), ("group delete", 0.3)):
        assert counts[what] >= least * KILLS, what
    assert counts["records seen"] > counts["granted"] / 2
    assert counts["guests let in"] > 0
    assert counts["guests refused"] > 0


def happens(lists: Lists, number: int, effect: Effect, outcome: str) -> None:
    """Something is asked for, and answered."""
    lists.begin(number, effect)
    lists.end(number, outcome)


def known(*entries: tuple[str, bool]) -> Lists:
    """A list that is known."""
    lists = Lists("Ib")
    happens(lists, 1, edit([("Create", entries)]), DONE)
    return lists


def calls(*may: bool) -> Effect:
    """Ia calls, which may or may not be in a group."""
    return call("Ia", lambda who, group: may)


NOT_GRANTED = pytest.raises(AssertionError, match="nothing permits 'granted'")
IMPOSSIBLE = pytest.raises(AssertionError, match="is none of")


class SerialTests:
    """What is taken for impossible."""

    def test_withdrawn(self) -> None:
        """A grant to a caller off the list before the query; while it goes, either may be."""
        withdraw = edit([("Delete", [("Ia", False)])])
        lists = known(("Ia", False))
        happens(lists, 2, withdraw, DONE)
        with NOT_GRANTED:
            happens(lists, 3, calls(False), GRANTED)
        lists = known(("Ia", False))
        lists.begin(2, withdraw)
        happens(lists, 3, calls(False), GRANTED)
        lists.end(2, DONE)
        lists.seen(frozenset())

    def test_used(self) -> None:
        """A second grant by one use, also where the first was never read."""
        lists = known(("Ia", True))
        for number in (2, 3):
            lists.begin(number, calls(False))
        lists.end(2, GRANTED)
        with NOT_GRANTED:
            lists.end(3, GRANTED)
        lists = known(("Ia", True))
        lists.begin(2, calls(False))
        lists.crash(None)
        lists.seen(frozenset())
        with NOT_GRANTED:
            happens(lists, 3, calls(False), GRANTED)

    def test_lost(self) -> None:
        """A list without what was acknowledged, or with half of what was not."""
        with IMPOSSIBLE:
            known(("Ia", False)).seen(frozenset())
        lists = known()
        lists.begin(2, edit([("Add", [("Ia", False)]), ("Add", [("Ic", True)])]))
        lists.crash(None)
        with IMPOSSIBLE:
            lists.seen(frozenset([("Ia", False)]))

    def test_group(self) -> None:
        """Through a group, while a caller may be in it, and not once it is forgotten."""
        lists = known(("@g", False))
        happens(lists, 2, calls(True), GRANTED)
        happens(lists, 3, calls(False), DENIED)
        happens(lists, 4, calls(True, False), GRANTED)
        happens(lists, 5, calls(True, False), DENIED)
        lists.begin(6, forget("@g"))
        lists.crash(6)
        assert lists.had(6) == {True, False}
        lists.seen(frozenset([("@g", False)]))
        assert lists.had(6) == {False}
        lists.settle(6, had=False)
        happens(lists, 7, forget("@g"), DONE)
        with NOT_GRANTED:
            happens(lists, 8, calls(True), GRANTED)
