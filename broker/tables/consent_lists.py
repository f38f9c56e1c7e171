"""The lists by which a terminal consents to one request (C3–C5), and what they decide.

The terminal sends both lists in full and does not learn the caller; the mediator compares (S2004).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from broker.tables.permits import LIST_BYTES_MOST, LIST_MOST


class NoConsent(ValueError):
    """These are not valid consent lists; the text says why."""


class ConsentLists(NamedTuple):
    """The callers that a terminal accepts and rejects: identifiers, aliases, and ``@groups``.

    :ivar accepted: callers it accepts
    :ivar rejected: callers it rejects, even if ``accepted`` has them too
    """

    accepted: Sequence[str] = ()
    rejected: Sequence[str] = ()


#: Accepts no caller.
NONE_ACCEPTED: Final = ConsentLists()


def check_lists(lists: ConsentLists) -> ConsentLists:
    """Return the lists, if they are within their limits.

    :raises NoConsent: they are too long
    """
    if max(len(lists.accepted), len(lists.rejected)) > LIST_MOST:
        raise NoConsent(f"a list holds at most {LIST_MOST} entries")
    if sum(len(name.encode()) + 1 for part in lists for name in part) > LIST_BYTES_MOST:
        raise NoConsent(f"the lists hold at most {LIST_BYTES_MOST} bytes together")
    return lists


def lists_of(accept: Sequence[str], reject: Sequence[str]) -> ConsentLists:
    """Read lists from edits: each list begins with ``Create`` and continues with ``Add``.

    :param accept: edits as ``grammar.edit`` gives them; empty if the terminal sent no list
    :param reject: likewise; empty if it rejects no caller
    :raises NoConsent: they are not lists
    """
    if not accept:
        raise NoConsent("the Accept list is missing")
    return check_lists(ConsentLists(_entries(accept), _entries(reject) if reject else ()))


def _entries(edits: Sequence[str]) -> list[str]:
    entries: list[str] = []
    for index, edit in enumerate(edits):
        word, _, rest = edit.partition(" ")
        if word != ("Add" if index else "Create"):
            raise NoConsent("a list begins with Create and continues with Add")
        if ";" in rest:
            raise NoConsent("a consent list cannot have limits")
        entries += rest.split(",") if rest else ()
    return entries


def consents(lists: ConsentLists, called: Collection[str]) -> bool:
    """Return whether lists accept a caller; a rejection wins (C5).

    :param called: all that an entry may name the caller by: its identifier, aliases and groups
    """
    return any(name in called for name in lists.accepted) and not any(
        name in called for name in lists.rejected
    )
