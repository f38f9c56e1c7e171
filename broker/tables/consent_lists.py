"""The lists by which a terminal gives its consent to one request (C3–C5), and what they decide.

The terminal sends both lists whole and is not told who asks: whoever asks compares (S2004).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from broker.tables.permits import LIST_BYTES_MOST, LIST_MOST


class NoConsent(ValueError):
    """These are no lists of whom a terminal accepts and refuses; the text says why."""


class Lists(NamedTuple):
    """Whom a terminal lets call, and whom not: identifiers, names, and groups with their ``@``.

    :ivar accepted: those it accepts
    :ivar rejected: those it refuses, be they accepted besides
    """

    accepted: Sequence[str] = ()
    rejected: Sequence[str] = ()


#: What accepts nobody.
NOBODY_ACCEPTED: Final = Lists()


def check_lists(lists: Lists) -> Lists:
    """See that lists are no longer than they may be.

    :raises NoConsent: they are
    """
    if max(len(lists.accepted), len(lists.rejected)) > LIST_MOST:
        raise NoConsent(f"a list holds at most {LIST_MOST} entries")
    if sum(len(name.encode()) + 1 for part in lists for name in part) > LIST_BYTES_MOST:
        raise NoConsent(f"the lists hold at most {LIST_BYTES_MOST} bytes together")
    return lists


def lists_of(accept: Sequence[str], reject: Sequence[str]) -> Lists:
    """The lists that edits tell: each begins with ``Create`` and goes on with ``Add``.

    :param accept: as ``grammar.edit`` gives them; none at all is no list
    :param reject: likewise; none at all refuses nobody
    :raises NoConsent: they tell none
    """
    if not accept:
        raise NoConsent("there is no list of those who are accepted")
    return check_lists(Lists(_entries(accept), _entries(reject) if reject else ()))


def _entries(edits: Sequence[str]) -> list[str]:
    entries: list[str] = []
    for place, edit in enumerate(edits):
        word, _, rest = edit.partition(" ")
        if word != ("Add" if place else "Create"):
            raise NoConsent("a list is told by Create, and Add where it is long")
        if ";" in rest:
            raise NoConsent("a list that decides one request has no limits")
        entries += rest.split(",") if rest else ()
    return entries


def consents(lists: Lists, called: Collection[str]) -> bool:
    """Whether lists accept a caller; to be refused wins (C5).

    :param called: all that stands for the caller: its identifier, its names, its groups
    """
    return any(name in called for name in lists.accepted) and not any(
        name in called for name in lists.rejected
    )
