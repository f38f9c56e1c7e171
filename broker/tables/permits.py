"""The permit table (fig. 4): for each identifier, the callers and groups that it accepts.

Also the callers that it rejects under every policy, and its policy. A change is first *prepared*,
which decides everything and changes nothing, then committed to a store, then *applied*. So a
refusal changes nothing (I5), and what is applied is durable (I8).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Final

#: How many entries one list may have.
LIST_MOST: Final = 1000
#: How many bytes they may have together, so that a list fits into one message.
LIST_BYTES_MOST: Final = 60_000
#: Bytes of one line of a list, without its field name.
LINE_BYTES: Final = 1000
#: Policies. The identifier's list decides which callers are accepted;
LIST: Final = "List"
#: the identifier is asked for each call (C3), and its list is not in force;
ASK: Final = "Ask"
#: callers need its call password, which it checks itself (D3), and its list is not in force.
PASSWORD: Final = "Password"

#: The longest remaining lifetime, in seconds, that a listing shows: terminals read no more.
EXPIRES_MOST: Final = 10 * 365 * 86400


class ListTooLong(ValueError):
    """A list would be longer than it may be."""


class LimitedRejection(ValueError):
    """A rejection has limits: once they are used up, the caller would be accepted."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long, and how often, an entry of a list permits calls.

    :ivar until: when it expires, in seconds since 1970 (UTC); ``None`` for never
    :ivar uses: how many calls it still permits; ``None`` for any number
    """

    until: float | None = None
    uses: int | None = None


@dataclass(frozen=True, slots=True)
class PermitChange:
    """The new list of one identifier, as data for a store.

    :ivar owner: the identifier that it belongs to
    :ivar accepted: the whole list after the change, in order: identifiers and names of groups
    :ivar limits: the limits of those entries that have one
    :ivar rejected: identifiers and groups rejected under every policy, in order
    :ivar policy: ``LIST``, ``ASK``, ``PASSWORD``, or one that this version does not know, under
        which no caller is accepted
    """

    owner: str
    accepted: tuple[str, ...]
    limits: tuple[tuple[str, Limit], ...] = ()
    rejected: tuple[str, ...] = ()
    policy: str = LIST

    @property
    def is_default(self) -> bool:
        """Whether it equals what holds for an identifier that registered nothing."""
        return not (self.accepted or self.rejected) and self.policy == LIST


#: The list of an identifier that has none.
NO_ENTRIES: Final[dict[str, Limit | None]] = {}
#: The limit of a caller that is not on a list: it never permits a call.
NEVER: Final = Limit(until=-inf, uses=0)


class PermitTable:
    """Which callers may reach which callees. Without an entry, none may (I3).

    :ivar lists: each list by its owner, every entry with its limit; ``None`` for no limit
    :ivar counting_owners: the owners of lists with an entry that permits a number of calls
    :ivar rejected: the entries that each owner rejects
    :ivar policies: each owner's policy, unless it is ``LIST``
    :ivar ask_owners: the owners whose policy is ``ASK``
    """

    __slots__ = ("ask_owners", "counting_owners", "lists", "policies", "rejected")

    def __init__(self, lists: Iterable[PermitChange] = ()) -> None:
        self.lists: dict[str, dict[str, Limit | None]] = {}
        self.counting_owners: set[str] = set()
        self.rejected: dict[str, tuple[str, ...]] = {}
        self.policies: dict[str, str] = {}
        self.ask_owners: set[str] = set()
        for change in lists:
            self.apply(change)

    def permit_entry(
        self, callee: str, caller: str, groups: Iterable[str], now: float
    ) -> str | None:
        """Return the entry of the callee's list that permits the caller, ``None`` if none does.

        The caller itself goes before its groups. An expired entry permits nothing.

        :param groups: the groups that the caller is in
        :param now: seconds since 1970
        """
        entries = self.lists.get(callee, NO_ENTRIES)
        if _in_force(entries.get(caller, NEVER), now):
            return caller
        found = None
        for group in groups:  # No early end: the time does not depend on which group permits.
            if _in_force(entries.get(group, NEVER), now) and found is None:
                found = group
        return found

    def limit(self, owner: str, entry: str) -> Limit | None:
        """Return the limit of an entry, ``None`` if it has none, ``NEVER`` if it is not there."""
        return self.lists.get(owner, NO_ENTRIES).get(entry, NEVER)

    def is_in_force(self, owner: str, entry: str, now: float) -> bool:
        """Return whether a list has an entry that has not expired."""
        return _in_force(self.limit(owner, entry), now)

    def has_expired(self, owner: str, entry: str, now: float) -> bool:
        """Return whether a list has an entry that has expired."""
        limit = self.lists.get(owner, NO_ENTRIES).get(entry)
        return not _in_force(limit, now)

    def policy(self, owner: str) -> str:
        """Return an identifier's policy."""
        return self.policies.get(owner, LIST)

    def rejects(self, owner: str, called: Iterable[str]) -> bool:
        """Return whether an identifier rejects a caller, under every policy.

        :param called: all that an entry may name the caller by: its identifier, aliases and groups
        """
        rejected = self.rejected.get(owner)
        return rejected is not None and not set(rejected).isdisjoint(called)

    def accepted(self, owner: str) -> tuple[str, ...]:
        """Return the entries of one list, in the order in which they were added."""
        return tuple(self.lists.get(owner, NO_ENTRIES))

    def listing(self, owner: str, now: float) -> list[str]:
        """Return the entries in force, each with what remains of its limit."""
        entries = self.lists.get(owner, NO_ENTRIES)
        return [_text(name, limit, now) for name, limit in entries.items() if _in_force(limit, now)]

    def owners_of(self, entry: str) -> list[str]:
        """Return the owners of the lists that have an entry; looks at every list."""
        return [owner for owner, entries in self.lists.items() if entry in entries]

    def expires(self, owner: str) -> float:
        """Return when the first entry of a list expires, infinity if none does."""
        limits = [
            limit for limit in self.lists.get(owner, NO_ENTRIES).values() if limit is not None
        ]
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
        """Apply edits to a copy of a list (fig. 3a–d), in the order of their lines.

        Each change removes expired entries. An entry that is added again gets the limit that it is
        added with, or none.

        :param edits: as ``grammar.edit`` gives them: ``'Create Ib,If;uses=1'``, ``'Delete If'``
        :param now: seconds since 1970
        :param canonical: returns the identifier that an alias stands for
        :param reject: edits of the list of rejected callers
        :param policy: the new policy; ``None`` keeps the current one
        :raises ListTooLong: a list would be longer than it may be
        :raises LimitedRejection: a rejection has limits
        """
        entries = self._unexpired(owner, now)
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
            texts = [_text(name, limit, now) for name, limit in entries.items()]
            if sum(len(text.encode()) + 1 for text in (*texts, *rejected)) > LIST_BYTES_MOST:
                raise ListTooLong(f"a list holds at most {LIST_BYTES_MOST} bytes")
        return change

    def _rejected(
        self, before: Iterable[str], edits: Sequence[str], canonical: Callable[[str], str]
    ) -> Collection[str]:
        """Apply edits to a copy of the list of rejected callers."""
        rejected = dict.fromkeys(before)
        for edit in edits:
            word, given = _read(edit, 0, canonical)
            if any(limit is not None for limit in given.values()):
                raise LimitedRejection("a rejection cannot have limits")
            if word == "Create":
                rejected = {}
            for name in given:
                if word == "Delete":
                    rejected.pop(name, None)
                else:
                    rejected[name] = None
        return rejected

    def prepare_use(self, owner: str, entry: str, now: float) -> PermitChange:
        """Prepare the list after one call by an entry that permits a number of calls.

        :raises ValueError: the entry permits any number of calls
        """
        entries = self._unexpired(owner, now)
        limit = entries[entry]
        if limit is None or limit.uses is None:
            raise ValueError("this entry permits any number of calls")
        if limit.uses > 1:
            entries[entry] = replace(limit, uses=limit.uses - 1)
        else:
            del entries[entry]
        return self._change(owner, entries)

    def prepare_unexpired(self, owner: str, now: float) -> PermitChange:
        """Prepare the list without expired entries."""
        return self._change(owner, self._unexpired(owner, now))

    def prepare_without(self, owner: str, entry: str, now: float) -> PermitChange:
        """Prepare the list without one entry."""
        entries = self._unexpired(owner, now)
        entries.pop(entry, None)
        return self._change(owner, entries)

    def apply(self, change: PermitChange) -> dict[str, Limit | None]:
        """Put a prepared change in force.

        :return: the entries that it removed, with their limits
        """
        owner = change.owner
        before = self.lists.pop(owner, NO_ENTRIES)
        after: dict[str, Limit | None] = dict.fromkeys(change.accepted)
        self.counting_owners.discard(owner)
        self._apply_policy(change)
        for name, limit in change.limits:
            after[name] = limit
            if limit.uses is not None:
                self.counting_owners.add(owner)
        if after:
            self.lists[owner] = after
        return {name: limit for name, limit in before.items() if name not in after}

    def knows(self, owner: str) -> bool:
        """Return whether an identifier has a list, rejections or a policy."""
        return owner in self.lists or owner in self.rejected or owner in self.policies

    def __len__(self) -> int:
        return len(self.lists)

    def _apply_policy(self, change: PermitChange) -> None:
        owner = change.owner
        self.rejected.pop(owner, None)
        if change.rejected:
            self.rejected[owner] = change.rejected
        self.policies.pop(owner, None)
        self.ask_owners.discard(owner)
        if change.policy != LIST:
            self.policies[owner] = change.policy
        if change.policy == ASK:
            self.ask_owners.add(owner)

    def _change(
        self,
        owner: str,
        entries: Mapping[str, Limit | None],
        rejected: Iterable[str] | None = None,
        policy: str | None = None,
    ) -> PermitChange:
        """Return a change of the entries; rejections and policy stay unless given."""
        limits = [(name, limit) for name, limit in entries.items() if limit is not None]
        if rejected is None:
            rejected = self.rejected.get(owner, ())
        if policy is None:
            policy = self.policies.get(owner, LIST)
        return PermitChange(owner, tuple(entries), tuple(limits), tuple(rejected), policy)

    def _unexpired(self, owner: str, now: float) -> dict[str, Limit | None]:
        entries = self.lists.get(owner, NO_ENTRIES)
        return {name: limit for name, limit in entries.items() if _in_force(limit, now)}


def _in_force(limit: Limit | None, now: float) -> bool:
    return limit is None or limit.until is None or limit.until > now


def _bytes_at_most(names: Collection[str]) -> int:
    """Return an upper bound for the bytes of names: UTF-8 has at most four for a character."""
    return 4 * sum(map(len, names)) + len(names)


def _read(
    edit: str, now: float, canonical: Callable[[str], str]
) -> tuple[str, dict[str, Limit | None]]:
    """Read one edit: its word, and the entries that it names, each with its limit."""
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
    """Return an entry as a message has it: ``Ic;expires=3541;uses=1``."""
    if limit is None:
        return name
    if limit.until is not None:
        remaining = ceil(round(limit.until - now, 3))  # Else 3600 could become 3601.
        name += f";expires={min(max(remaining, 1), EXPIRES_MOST)}"
    return name if limit.uses is None else f"{name};uses={limit.uses}"


def deleted_entries(
    edits: Sequence[str], canonical: Callable[[str], str] = str
) -> frozenset[str] | None:
    """Return the entries that edits delete by name; ``None`` for all, if there is a Create."""
    names: set[str] = set()
    for edit in edits:
        word, given = _read(edit, 0, canonical)
        if word == "Create":
            return None
        if word == "Delete":
            names.update(given)
    return frozenset(names)


def as_edits(names: Sequence[str], word: str = "Create") -> list[str]:
    """Return the edits that name entries, each in one line.

    :param names: entries, with their limits if they have any
    :param word: of the first edit; a ``Create`` that needs more than one line continues with
        ``Add``
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
