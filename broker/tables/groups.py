"""Groups of terminals, which the operator makes and an entry of a list may name (A18).

A change is first *prepared*, which decides everything and changes nothing, then committed to a
store, then *applied*.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

#: How many groups there may be.
GROUPS_MOST: Final = 10_000
#: How many identifiers one group may have.
MEMBERS_MOST: Final = 10_000
#: In how many groups one identifier may be.
GROUPS_AN_IDENTIFIER: Final = 1000


class GroupRefused(ValueError):
    """A change of a group is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A group after a change, as data for a store.

    :ivar name: its name, with its ``@``
    :ivar members: the identifiers in it, in order; ``None`` if the group is deleted, which an
        empty one is not
    """

    name: str
    members: tuple[str, ...] | None


class GroupTable:
    """The members of each group, and the groups of each identifier."""

    __slots__ = ("_groups", "_members")

    def __init__(self, groups: Iterable[GroupChange] = ()) -> None:
        self._members: dict[str, dict[str, None]] = {}
        self._groups: dict[str, dict[str, None]] = {}
        for change in groups:
            self.apply(change)

    def of(self, identifier: str) -> Collection[str]:
        """Return the groups that an identifier is in."""
        return self._groups.get(identifier, _NONE)

    def members(self, name: str) -> tuple[str, ...] | None:
        """Return the members of a group, in order; ``None`` if there is no such group."""
        members = self._members.get(name)
        return None if members is None else tuple(members)

    def names(self) -> tuple[str, ...]:
        """Return all groups, in the order in which they were made."""
        return tuple(self._members)

    def prepare(self, name: str, members: Iterable[str] | None) -> GroupChange:
        """Prepare a change of a group.

        :param name: its name, with its ``@``
        :param members: identifiers, each counted once; ``None`` to delete the group
        :raises GroupRefused: there would be too many, or a group in a group
        """
        if len(name) < 2 or name[0] != "@":
            raise GroupRefused("a group's name begins with @")
        if members is None:
            return GroupChange(name, None)
        after = dict.fromkeys(members)
        before = self._members.get(name)
        if before is None and len(self._members) >= GROUPS_MOST:
            raise GroupRefused(f"there can be at most {GROUPS_MOST} groups")
        if len(after) > MEMBERS_MOST:
            raise GroupRefused(f"a group has at most {MEMBERS_MOST} identifiers")
        for member in after:
            if not member or member[0] == "@":
                raise GroupRefused("a group has only identifiers as members")
            groups = self._groups.get(member, _NONE)
            if len(groups) >= GROUPS_AN_IDENTIFIER and name not in groups:
                raise GroupRefused(f"an identifier is in at most {GROUPS_AN_IDENTIFIER} groups")
        return GroupChange(name, tuple(after))

    def apply(self, change: GroupChange) -> tuple[str, ...]:
        """Put a prepared group in force.

        :return: the members that it lost
        """
        name = change.name
        before = self._members.pop(name, _NONE)
        after = dict.fromkeys(change.members or ())
        if change.members is not None:
            self._members[name] = after
        for member in after:
            if member not in before:
                self._groups.setdefault(member, {})[name] = None
        lost = tuple(member for member in before if member not in after)
        for member in lost:
            groups = self._groups[member]
            del groups[name]
            if not groups:
                del self._groups[member]
        return lost

    def __len__(self) -> int:
        return len(self._members)


_NONE: Final[dict[str, None]] = {}
