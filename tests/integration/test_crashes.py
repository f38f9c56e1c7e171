"""Kill -9 at random moments of a whole broker at work: what it said holds, and it said no more."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from random import Random
from typing import Final

import pytest

from tests.integration.crowd import Crowd
from tests.integration.serial import DENIED, DONE, GRANTED, Lists, call, edit, forget
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


def _member(may: Collection[bool], who: str, group: str) -> Collection[bool]:
    return may


class SerialTests:
    """What is taken for impossible."""

    def lists(self, *entries: tuple[str, bool]) -> Lists:
        """A list that is known."""
        lists = Lists("Ib")
        lists.begin(1, edit([("Create", entries)]))
        lists.end(1, DONE)
        return lists

    def test_withdrawn(self) -> None:
        """A grant to who was off the list before the query; while it goes, either may be."""
        for over in (True, False):
            lists = self.lists(("Ia", False))
            lists.begin(2, edit([("Delete", [("Ia", False)])]))
            if over:
                lists.end(2, DONE)
            lists.begin(3, call("Ia", partial(_member, {False})))
            if over:
                with pytest.raises(AssertionError, match="nothing permits 'granted'"):
                    lists.end(3, GRANTED)
            else:
                lists.end(3, GRANTED)
                lists.end(2, DONE)
                lists.seen(frozenset())

    def test_used(self) -> None:
        """A second grant by one use, also where the first was never read."""
        for read in (True, False):
            lists = self.lists(("Ia", True))
            for number in (2, 3):
                lists.begin(number, call("Ia", partial(_member, {False})))
            if read:
                lists.end(2, GRANTED)
            else:
                lists.crash(None)
                lists.seen(frozenset())
                lists.begin(3, call("Ia", partial(_member, {False})))
            with pytest.raises(AssertionError, match="nothing permits 'granted'"):
                lists.end(3, GRANTED)

    def test_lost(self) -> None:
        """A list without what was acknowledged, or with half of what was not."""
        with pytest.raises(AssertionError, match="is none of"):
            self.lists(("Ia", False)).seen(frozenset())
        lists = self.lists()
        lists.begin(2, edit([("Add", [("Ia", False)]), ("Add", [("Ic", True)])]))
        lists.crash(None)
        with pytest.raises(AssertionError, match="is none of"):
            lists.seen(frozenset([("Ia", False)]))

    def test_group(self) -> None:
        """Through a group, while somebody may be in it, and no more once it is forgotten."""
        lists = self.lists(("@g", False))
        for number, may, outcome in (
            (2, {True}, GRANTED),
            (3, {False}, DENIED),
            (4, {True, False}, GRANTED),
            (5, {True, False}, DENIED),
        ):
            lists.begin(number, call("Ia", partial(_member, may)))
            lists.end(number, outcome)
        lists.begin(6, forget("@g"))
        lists.crash(6)
        assert lists.had(6) == {True, False}
        lists.seen(frozenset([("@g", False)]))
        assert lists.had(6) == {False}
        lists.settle(6, had=False)
        lists.begin(7, forget("@g"))
        lists.end(7, DONE)
        lists.begin(8, call("Ia", partial(_member, {True})))
        with pytest.raises(AssertionError, match="nothing permits 'granted'"):
            lists.end(8, GRANTED)
