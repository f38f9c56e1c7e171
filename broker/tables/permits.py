"""The permit table (fig. 4): identifier to the identifiers, and groups, that it accepts.

With it, whom an identifier refuses whatever else is said, and how its consent is had. A
registration is first *prepared*, which decides everything and changes nothing, then committed by a
store, then *applied*. So a refusal changes nothing (I5), and what is applied is durable (I8).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Final

#: How many entries one list may hold.
LIST_MOST: Final = 1000
#: How many bytes they may have together, so that a list can be told in one message.
LIST_BYTES_MOST: Final = 60_000
#: What one line that tells a list may hold, its field name set aside.
LINE_BYTES: Final = 1000
#: How the consent of an identifier is had: its list gives it,
LIST: Final = "List"
#: or it says itself, each time, whom it accepts (C3). Its list is not in force then.
ASK: Final = "Ask"
#: or whoever knows its call password has it, which it checks itself (D3). Nor is its list then.
PASSWORD: Final = "Password"

#: The most seconds that are told to remain of an entry; more, and a terminal could not read them.
EXPIRES_MOST: Final = 10 * 365 * 86400


class ListTooLong(ValueError):
    """A list would hold more than it may."""


class LimitedRejection(ValueError):
    """An entry of those who are refused has limits: after them it would refuse nobody."""


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
    :ivar rejected: whom it refuses, whatever else is said, in order: identifiers, and groups' names
    :ivar policy: how its consent is had: ``LIST``, ``ASK``, or what this version doesn't know, by
        which nobody is accepted
    """

    owner: str
    accepted: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...] = ()
    rejected: tuple[str, ...] = ()
    policy: str = LIST

    @property
    def is_default(self) -> bool:
        """Whether it says no more than is true of whoever has said nothing."""
        return not (self.accepted or self.rejected) and self.policy == LIST


#: The list of whoever has none.
NOBODY: Final[dict[str, Limit | None]] = {}
#: The limit of what is on no list: it permits nobody, ever.
NEVER: Final = Limit(until=-inf, uses=0)


class PermitTable:
    """Who may reach whom; nobody, where nothing is said (I3).

    :ivar lists: each list by its owner, every entry with its limit; ``None`` for no limit
    :ivar counting: whose lists hold an entry that permits a number of calls
    :ivar rejected: whom each refuses, by its owner
    :ivar policies: how each one's consent is had, where not by its list
    :ivar asked: whose consent is asked for each time
    """

    __slots__ = ("asked", "counting", "lists", "policies", "rejected")

    def __init__(self, lists: Iterable[PermitChange] = ()) -> None:
        self.lists: dict[str, dict[str, Limit | None]] = {}
        self.counting: set[str] = set()
        self.rejected: dict[str, tuple[str, ...]] = {}
        self.policies: dict[str, str] = {}
        self.asked: set[str] = set()
        for change in lists:
            self.apply(change)

    def basis(self, callee: str, caller: str, groups: Iterable[str], now: float) -> str | None:
        """The entry of the callee's list that permits the caller; ``None`` where none does.

        The caller itself comes before its groups. What has expired permits nobody.

        :param groups: those that the caller is in
        :param now: seconds since 1970
        """
        entries = self.lists.get(callee, NOBODY)
        if _counts(entries.get(caller, NEVER), now):
            return caller
        found = None
        for group in groups:
            if _counts(entries.get(group, NEVER), now) and found is None:
                found = group
        return found

    def limit(self, owner: str, entry: str) -> Limit | None:
        """The limit of an entry, ``None`` if it has none; what is no entry has long expired."""
        return self.lists.get(owner, NOBODY).get(entry, NEVER)

    def stands(self, owner: str, entry: str, now: float) -> bool:
        """Whether a list holds an entry that has not expired."""
        return _counts(self.limit(owner, entry), now)

    def expired(self, owner: str, entry: str, now: float) -> bool:
        """Whether a list holds an entry that has expired."""
        limit = self.lists.get(owner, NOBODY).get(entry)
        return not _counts(limit, now)

    def policy(self, owner: str) -> str:
        """How an identifier's consent is had."""
        return self.policies.get(owner, LIST)

    def rejects(self, owner: str, called: Iterable[str]) -> bool:
        """Whether an identifier refuses a caller, whatever else it has said.

        :param called: all that stands for the caller: its identifier, its names, its groups
        """
        rejected = self.rejected.get(owner)
        return rejected is not None and not set(rejected).isdisjoint(called)

    def accepted(self, owner: str) -> tuple[str, ...]:
        """The list of one identifier, in the order in which it was made."""
        return tuple(self.lists.get(owner, NOBODY))

    def told(self, owner: str, now: float) -> list[str]:
        """The same, each entry with what remains of its limit, without those that have expired."""
        entries = self.lists.get(owner, NOBODY)
        return [_text(name, limit, now) for name, limit in entries.items() if _counts(limit, now)]

    def holding(self, entry: str) -> list[str]:
        """Whose lists of those they accept hold an entry; looks at every list."""
        return [owner for owner, entries in self.lists.items() if entry in entries]

    def expires(self, owner: str) -> float:
        """When the first entry of a list expires, or has; infinity where none does."""
        limits = [limit for limit in self.lists.get(owner, NOBODY).values() if limit is not None]
        if not limits:
            return inf
        return min(inf if limit.until is None else limit.until for limit in limits)

    def prepare(
        self,
        owner: str,
        edits: Sequence[str],
        now: float,
        canonical: Callable[[str], str] = str,
        *,
        reject: Sequence[str] = (),
        policy: str | None = None,
    ) -> PermitChange:
        """Work out what edits make of a list (fig. 3a–d), in the order of their lines.

        What has expired goes with any change. An entry that is added again has the limit that it
        is added with, none included.

        :param edits: as ``grammar.edit`` gives them: ``'Create Ib,If;uses=1'``, ``'Delete If'``
        :param now: seconds since 1970
        :param canonical: gives the identifier that a name stands for
        :param reject: likewise, for whom it refuses
        :param policy: how its consent is had from now on; as before, without
        :raises ListTooLong: a list would be over its limit
        :raises LimitedRejection: whom it refuses would be refused for a time, or a number of times
        """
        entries = self._standing(owner, now)
        for edit in edits:
            word, given = _read(edit, now, canonical)
            if word == "Create":
                entries = given
            elif word == "Add":
                entries.update(given)
            else:
                for name in given:
                    entries.pop(name, None)
        rejected: Collection[str] = self.rejected.get(owner, ())
        if reject:
            rejected = self._rejected(rejected, reject, canonical)
        if max(len(entries), len(rejected)) > LIST_MOST:
            raise ListTooLong(f"a list holds at most {LIST_MOST} identifiers")
        change = self._change(owner, entries, rejected, policy)
        if change.limits or rejected or _bytes_at_most(entries) > LIST_BYTES_MOST:
            told = [_text(name, limit, now) for name, limit in entries.items()]
            if sum(len(text.encode()) + 1 for text in (*told, *rejected)) > LIST_BYTES_MOST:
                raise ListTooLong(f"a list holds at most {LIST_BYTES_MOST} bytes")
        return change

    def _rejected(
        self, before: Iterable[str], edits: Sequence[str], canonical: Callable[[str], str]
    ) -> Collection[str]:
        """What edits make of the list of those who are refused."""
        rejected = dict.fromkeys(before)
        for edit in edits:
            word, given = _read(edit, 0, canonical)
            if any(limit is not None for limit in given.values()):
                raise LimitedRejection("who is refused is refused without limits")
            if word == "Create":
                rejected = {}
            for name in given:
                if word == "Delete":
                    rejected.pop(name, None)
                else:
                    rejected[name] = None
        return rejected

    def prepare_use(self, owner: str, entry: str, now: float) -> PermitChange:
        """The list once a call has been permitted by an entry that permits a number of them."""
        entries = self._standing(owner, now)
        limit = entries[entry]
        if limit is None or limit.uses is None:
            raise ValueError("this entry permits any number of calls")
        if limit.uses > 1:
            entries[entry] = replace(limit, uses=limit.uses - 1)
        else:
            del entries[entry]
        return self._change(owner, entries)

    def prepare_standing(self, owner: str, now: float) -> PermitChange:
        """The list without what has expired."""
        return self._change(owner, self._standing(owner, now))

    def prepare_without(self, owner: str, entry: str, now: float) -> PermitChange:
        """The list without one entry."""
        entries = self._standing(owner, now)
        entries.pop(entry, None)
        return self._change(owner, entries)

    def apply(self, change: PermitChange) -> dict[str, Limit | None]:
        """Put a prepared list in force.

        :return: the entries that were in it and no longer are, with their limits
        """
        owner = change.owner
        before = self.lists.pop(owner, NOBODY)
        after: dict[str, Limit | None] = dict.fromkeys(change.accepted)
        self.counting.discard(owner)
        self._apply_policy(change)
        for name, limit in change.limits:
            after[name] = limit
            if limit.uses is not None:
                self.counting.add(owner)
        if after:
            self.lists[owner] = after
        return {name: limit for name, limit in before.items() if name not in after}

    def holds(self, owner: str) -> bool:
        """Whether anything is kept for an identifier."""
        return owner in self.lists or owner in self.rejected or owner in self.policies

    def __len__(self) -> int:
        return len(self.lists)

    def _apply_policy(self, change: PermitChange) -> None:
        owner = change.owner
        self.rejected.pop(owner, None)
        if change.rejected:
            self.rejected[owner] = change.rejected
        self.policies.pop(owner, None)
        self.asked.discard(owner)
        if change.policy != LIST:
            self.policies[owner] = change.policy
        if change.policy == ASK:
            self.asked.add(owner)

    def _change(
        self,
        owner: str,
        entries: Mapping[str, Limit | None],
        rejected: Iterable[str] | None = None,
        policy: str | None = None,
    ) -> PermitChange:
        """A list with other entries; whom it refuses, and how its consent is had, as before."""
        limits = [(name, limit) for name, limit in entries.items() if limit is not None]
        if rejected is None:
            rejected = self.rejected.get(owner, ())
        if policy is None:
            policy = self.policies.get(owner, LIST)
        return PermitChange(owner, tuple(entries), tuple(limits), tuple(rejected), policy)

    def _standing(self, owner: str, now: float) -> dict[str, Limit | None]:
        entries = self.lists.get(owner, NOBODY)
        return {name: limit for name, limit in entries.items() if _counts(limit, now)}


def _counts(limit: Limit | None, now: float) -> bool:
    return limit is None or limit.until is None or limit.until > now


def _bytes_at_most(names: Collection[str]) -> int:
    """What names without limits could have at the most: no character has more than four bytes."""
    return 4 * sum(map(len, names)) + len(names)


def _read(
    edit: str, now: float, canonical: Callable[[str], str]
) -> tuple[str, dict[str, Limit | None]]:
    """One edit: its word, and the entries that it names, each with its limit."""
    word, _, rest = edit.partition(" ")
    entries: dict[str, Limit | None] = {}
    for text in rest.split(",") if rest else ():
        name, _, limits = text.partition(";")
        until = uses = None
        for limit in limits.split(";") if limits else ():
            key, _, number = limit.partition("=")
            if key == "expires":
                until = now + int(number)
            else:
                uses = int(number)
        entries[canonical(name)] = Limit(until, uses) if limits else None
    return word, entries


def _text(name: str, limit: Limit | None, now: float) -> str:
    """An entry as it is told: ``Ic;expires=3541;uses=1``."""
    if limit is None:
        return name
    if limit.until is not None:
        remaining = ceil(round(limit.until - now, 3))  # else 3600 could come back as 3601
        name += f";expires={min(max(remaining, 1), EXPIRES_MOST)}"
    return name if limit.uses is None else f"{name};uses={limit.uses}"


def withdrawn(edits: Sequence[str], canonical: Callable[[str], str] = str) -> frozenset[str] | None:
    """The entries that edits take off by name, there or not; ``None`` for all: one is a Create."""
    names: set[str] = set()
    for edit in edits:
        word, given = _read(edit, 0, canonical)
        if word == "Create":
            return None
        if word == "Delete":
            names.update(given)
    return frozenset(names)


def as_edits(names: Sequence[str], word: str = "Create") -> list[str]:
    """The edits that name so many, each within one line.

    :param names: entries, with their limits where they have any
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
