"""The permit table (fig. 4): identifier to the identifiers it accepts.

A registration is first *prepared*, which decides everything and changes nothing, then committed by
a store, then *applied*. So a refusal changes nothing (I5), and what is applied is durable (I8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

#: How many identifiers one list may hold.
LIST_MOST: Final = 1000
#: How many bytes they may have together, so that a list can be told in one message.
LIST_BYTES_MOST: Final = 60_000
#: What one line that tells a list may hold, its field name set aside.
LINE_BYTES: Final = 1000


class ListTooLong(ValueError):
    """A list would hold more than it may."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long, and how often, an entry of a list permits.

    :ivar until: when it expires, in seconds since 1970 (UTC); never, without
    :ivar uses: how many calls it still permits; any number, without
    """

    until: float | None = None
    uses: int | None = None


@dataclass(frozen=True, slots=True)
class PermitChange:
    """The new list of one identifier, as data for a store.

    :ivar owner: whose list it is
    :ivar accepted: the whole list after the change, in order: identifiers, and groups' names
    :ivar limits: the limits of those entries that have one
    """

    owner: str
    accepted: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...] = ()


class PermitTable:
    """Who may reach whom; nobody, where nothing is said (I3)."""

    __slots__ = ("_accepted",)

    def __init__(self, lists: Iterable[PermitChange] = ()) -> None:
        self._accepted: dict[str, dict[str, None]] = {}
        for change in lists:
            self.apply(change)

    def permits(self, callee: str, caller: str) -> bool:
        """Whether the callee accepts the caller (S1203). The same work whether or not it exists."""
        return caller in self._accepted.get(callee, _NOBODY)

    def accepted(self, owner: str) -> tuple[str, ...]:
        """The list of one identifier, in the order in which it was made."""
        return tuple(self._accepted.get(owner, _NOBODY))

    def prepare(self, owner: str, edits: Sequence[str]) -> PermitChange:
        """Work out what edits make of a list (fig. 3a–d), in the order of their lines.

        :param edits: as ``grammar.edit`` gives them: ``'Create Ib,If'``, ``'Delete If'``
        :raises ListTooLong: the list would be over its limit
        """
        entries = dict(self._accepted.get(owner, _NOBODY))
        for edit in edits:
            word, _, rest = edit.partition(" ")
            names = rest.split(",") if rest else []
            if word == "Create":
                entries = dict.fromkeys(names)
            elif word == "Add":
                entries.update(dict.fromkeys(names))
            else:
                for name in names:
                    entries.pop(name, None)
        if len(entries) > LIST_MOST:
            raise ListTooLong(f"a list holds at most {LIST_MOST} identifiers")
        if sum(len(name.encode()) + 1 for name in entries) > LIST_BYTES_MOST:
            raise ListTooLong(f"a list holds at most {LIST_BYTES_MOST} bytes")
        return PermitChange(owner, tuple(entries))

    def apply(self, change: PermitChange) -> tuple[str, ...]:
        """Put a prepared list in force.

        :return: those who were accepted before and no longer are
        """
        before = self._accepted.pop(change.owner, _NOBODY)
        after = dict.fromkeys(change.accepted)
        if after:
            self._accepted[change.owner] = after
        return tuple(name for name in before if name not in after)

    def __len__(self) -> int:
        return len(self._accepted)


_NOBODY: Final[dict[str, None]] = {}


def as_edits(names: Sequence[str], word: str = "Create") -> list[str]:
    """The edits that name so many, each within one line.

    :param word: the first edit's; a ``Create`` that goes beyond one line goes on with ``Add``
    """
    edits: list[str] = []
    listed = ""
    for name in names:
        if listed and len(listed.encode()) + len(name.encode()) + 1 > LINE_BYTES:
            edits.append(f"{word} {listed}")
            word = "Add" if word == "Create" else word
            listed = ""
        listed += f",{name}" if listed else name
    return [*edits, f"{word} {listed}" if listed else word]
