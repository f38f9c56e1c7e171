"""Commits that are numbered, so that what is found after a crash shows how far the store had come.

Commit ``n`` sets two lists to ``n``: which two follows from the number. So the lists of a store
tell which commits they hold, and whether one is held by half.
"""

from __future__ import annotations

from broker.tables.permits import PermitChange

#: How many pairs of lists there are.
PAIRS = 40


def commit_of(number: int) -> list[PermitChange]:
    """The changes of one commit."""
    pair = number * 17 % PAIRS  # all of them in turn
    return [PermitChange(f"{side}{pair}", (str(number),)) for side in ("left", "right")]


def commits_in(lists: dict[str, str]) -> int:
    """How many commits the lists of a store hold: all up to one number, and nothing of a later one.

    :raises AssertionError: it is no serial order of whole commits (I9)
    """
    last = max(map(int, lists.values()), default=0)
    expected: dict[str, str] = {}
    for number in range(max(1, last - PAIRS + 1), last + 1):
        for change in commit_of(number):
            expected[change.owner] = change.accepted[0]
    assert lists == expected
    return last
