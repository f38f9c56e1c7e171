"""States as a table: ``STATES[state][event] -> state``, one ``advance``, one picture.

An object with a life (a session, a channel, an idle connection) keeps its state in one attribute,
and this table says which event leads where. What the table does not have can't happen: it is an
error, and never a silent change of a flag.

    STATES = StateTable("session", UNSPENT, {UNSPENT: {BEGIN: BEGUN, END: ENDED}, …})
    self.state = STATES.advance(self.state, BEGIN)

Pure and without imports from broker: any room may use it. States and events are plain strings,
``Final`` constants of the module that owns the table: a look-up is two dict accesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType


class UnexpectedEvent(Exception):
    """An event came in a state whose row does not have it: a bug in the code that raised it."""


class StateTable:
    """The transitions of one kind of object; frozen, and checked when it is made.

    :ivar name: what has these states, such as ``session``: for errors and pictures
    :ivar initial: the state in which each begins
    """

    __slots__ = ("_table", "initial", "name")

    def __init__(self, name: str, initial: str, table: Mapping[str, Mapping[str, str]]) -> None:
        """
        :param table: by state, and then by event, the next state; a final state has an empty row
        :raises ValueError: an event leads to a state without a row, or a state is never reached
        """
        self.name = name
        self.initial = initial
        # Plain dicts inside: a proxy would cost an access more in each ``advance``.
        self._table = {state: dict(row) for state, row in table.items()}
        self._check()

    def _check(self) -> None:
        reached = [self.initial]
        for state in reached:  # grows as it goes
            if state not in self._table:
                raise ValueError(f"{self.name}: the state {state!r} has no row")
            reached.extend(
                following
                for following in dict.fromkeys(self._table[state].values())
                if following not in reached
            )
        for state in self._table:
            if state not in reached:
                raise ValueError(f"{self.name}: the state {state!r} is never reached")

    def advance(self, state: str, event: str) -> str:
        """Give the state that an event leads to.

        :raises UnexpectedEvent: the row of this state does not have the event
        """
        try:
            return self._table[state][event]
        except KeyError:
            raise UnexpectedEvent(f"{self.name}: {event!r} in state {state!r}") from None

    def allows(self, state: str, event: str) -> bool:
        """Whether the row of a state has an event."""
        return event in self._table.get(state, ())

    def __getitem__(self, state: str) -> Mapping[str, str]:
        """The row of a state, read-only: by event, the next state."""
        return MappingProxyType(self._table[state])

    def __iter__(self) -> Iterator[str]:
        """The states, in the order of the table."""
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def is_final(self, state: str) -> bool:
        """Whether nothing leads out of a state: its row is empty, or leads back to it alone."""
        return all(following == state for following in self._table[state].values())

    def rows(self) -> list[tuple[str, str, str]]:
        """Every transition as (state, event, next state), in the order of the table."""
        return [
            (state, event, following)
            for state, row in self._table.items()
            for event, following in row.items()
        ]

    def to_dot(self) -> str:
        """The table as a Graphviz digraph: final states have a double line."""
        lines = [f'digraph "{self.name}" {{', f'  "" [shape=none]; "" -> "{self.initial}";']
        lines += [f'  "{state}" [peripheries=2];' for state in self if self.is_final(state)]
        lines += [f'  "{a}" -> "{b}" [label="{event}"];' for a, event, b in self.rows()]
        return "\n".join([*lines, "}", ""])
