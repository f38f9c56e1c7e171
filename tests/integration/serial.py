"""What a list may hold, by what was asked and what was answered: there must be a serial order (I9).

What is under way may take effect at any moment between its question and its answer, or never if
the server is killed before it answers. Kept are all lists that can have come of that; an answer
that fits none of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

DONE: Final = "done"
GRANTED: Final = "granted"
DENIED: Final = "denied"

#: A list: its entries, each with whether it permits one call only.
Entries = frozenset[tuple[str, bool]]
#: What can become of something done to a list: how it ends, and the list that it leaves.
Effect = Callable[[Entries], Iterable[tuple[str, Entries]]]
#: Whether somebody may be in a group now: both where it is being changed.
Membership = Callable[[str, str], Collection[bool]]


def edit(edits: Sequence[tuple[str, Sequence[tuple[str, bool]]]]) -> Effect:
    """Edits (fig. 3), in their order."""

    def effect(entries: Entries) -> Iterable[tuple[str, Entries]]:
        now = dict(entries)
        for word, named in edits:
            if word == "Create":
                now = {}
            for entry, counted in named:
                if word == "Delete":
                    now.pop(entry, None)
                else:
                    now[entry] = counted
        yield DONE, frozenset(now.items())

    return effect


def forget(entry: str) -> Effect:
    """The operator deletes a group, or removes an account."""

    def effect(entries: Entries) -> Iterable[tuple[str, Entries]]:
        yield DONE, _without(entries, entry)

    return effect


def call(caller: str, member: Membership) -> Effect:
    """A query: granted by an entry, which is used up where it permits one call; else denied."""

    def effect(entries: Entries) -> Iterable[tuple[str, Entries]]:
        now = dict(entries)
        groups = [entry for entry in now if entry[0] == "@"]
        if caller in now:
            groups = []
            yield GRANTED, _without(entries, caller) if now[caller] else entries
        elif all(False in member(caller, group) for group in groups):
            yield DENIED, entries
        for group in groups:
            if True in member(caller, group):
                yield GRANTED, _without(entries, group) if now[group] else entries

    return effect


def _without(entries: Entries, entry: str) -> Entries:
    return frozenset(one for one in entries if one[0] != entry)


class Lists:
    """All that one terminal's list may be at this moment.

    :ivar whose: the terminal
    :ivar worlds: each possible list, with what of that which is under way has had its effect there
    """

    def __init__(self, whose: str) -> None:
        self.whose = whose
        nothing: frozenset[tuple[int, str]] = frozenset()
        self.worlds: set[tuple[Entries, frozenset[tuple[int, str]]]] = {(frozenset(), nothing)}
        self._under_way: dict[int, Effect] = {}

    def begin(self, number: int, effect: Effect) -> None:
        """Something is asked for, and may take effect from now on."""
        self._under_way[number] = effect
        self.spread()

    def spread(self) -> None:
        """What is under way may take effect now: again where a group's members may have changed."""
        fresh = list(self.worlds)
        while fresh:
            entries, had = fresh.pop()
            over = {number for number, _ in had}
            for number, effect in self._under_way.items():
                if number in over:
                    continue
                for outcome, after in effect(entries):
                    world = (after, had | {(number, outcome)})
                    if world not in self.worlds:
                        self.worlds.add(world)
                        fresh.append(world)

    def end(self, number: int, outcome: str) -> None:
        """It was answered: it has had its effect, with that outcome."""
        before = self.worlds
        self.worlds = {world for world in before if (number, outcome) in world[1]}
        assert self.worlds, f"{self.whose}: nothing permits {outcome!r}: {_shown(before)}"
        self.give_up(number)

    def give_up(self, number: int) -> None:
        """Nobody will know what became of it: it has had its effect by now, or never has."""
        self._under_way.pop(number, None)
        self.worlds = {
            (entries, frozenset(one for one in had if one[0] != number))
            for entries, had in self.worlds
        }

    def crash(self, unsettled: int | None) -> None:
        """The server is gone, and with it all that was under way.

        :param unsettled: what of that concerns other lists too, and is found out later
        """
        for number in list(self._under_way):
            if number == unsettled:
                del self._under_way[number]
            else:
                self.give_up(number)

    def seen(self, entries: Entries) -> None:
        """This is the list, while nothing is under way."""
        before = self.worlds
        self.worlds = {world for world in before if world[0] == entries}
        assert self.worlds, f"{self.whose}: {sorted(entries)} is none of {_shown(before)}"

    def had(self, number: int) -> set[bool]:
        """Whether something unsettled has had its effect here; both where that can't be told."""
        return {(number, DONE) in had for _, had in self.worlds}

    def settle(self, number: int, had: bool) -> None:
        """It is known by now."""
        self.worlds = {world for world in self.worlds if ((number, DONE) in world[1]) is had}
        self.give_up(number)


def _shown(worlds: Iterable[tuple[Entries, object]]) -> list[list[tuple[str, bool]]]:
    return sorted(sorted(entries) for entries in {entries for entries, _ in worlds})
