"""Commits that are numbered, so that what is found after a crash shows how far the store had come.

Commit ``n`` sets two lists, an account and a group to ``n``: which ones follows from the number,
and so does which of them it takes away. It also adds a disclosure, at the time ``n``. So what a
store holds tells which commits those were, and whether one is held by half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.interfaces import Change, State
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.permits import Limit, PermitChange
from tests.store.contract import disclosure, held_of, made_of

#: How many pairs of lists there are.
PAIRS: Final = 40
#: Whose addresses they tell.
TOLD: Final = "Ib"
#: How many disclosures are looked at; a store tells no more at once.
TOLD_MOST: Final = 10_000


def commit_of(number: int) -> list[Change]:
    """The changes of one commit."""
    pair = number * 17 % PAIRS  # all of them in turn
    text = str(number)
    limits = ((text, Limit(number, number)),) if number % 2 else ()
    return [
        PermitChange(f"left{pair}", (text,), limits),
        AccountChange(f"I{pair}", None if number % 3 == 0 else text, f"{number:016x}", (text,)),
        PermitChange(f"right{pair}", (text,)),
        GroupChange(f"@{pair}", None if number % 5 == 0 else (text,)),
        disclosure(number, TOLD),
    ]


def commits_in(state: State, told: Sequence[Disclosure]) -> int:
    """How many commits a store holds: all up to one number, and nothing of a later one.

    :param told: the newest of what it tells of ``TOLD``, up to ``TOLD_MOST``
    :raises AssertionError: it is no serial order of whole commits (I9)
    """
    last = told[0].at if told else 0
    expected: list[Change] = []
    for number in range(max(1, last - PAIRS + 1), last + 1):
        expected += commit_of(number)
    assert held_of(state) == made_of(expected)
    assert list(told) == [
        disclosure(number, TOLD) for number in range(last, max(0, last - TOLD_MOST), -1)
    ]
    return last
