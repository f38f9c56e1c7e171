"""Failed logins by source and identifier: how long a source must wait before it guesses again.

Each pair is by itself, so that nobody's failures keep the owner out who comes from elsewhere (I23).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Failures within ``WINDOW`` seconds before there is a delay.
FAILURES: Final = 10
WINDOW: Final = 60.0
#: The longest delay, in seconds; the first is one second, and each is twice the one before.
DELAY_MOST: Final = 300.0
#: Seconds without a failure after which a pair that was delayed is forgotten.
FORGOTTEN: Final = 600.0
#: Pairs that are remembered; one more takes the place of the oldest (I15).
PAIRS_MOST: Final = 10_000


@dataclass(slots=True)
class _Tries:
    """What is known of one source's guesses at one identifier."""

    count: int
    since: float
    until: float = 0.0  # no further guess before this


class AttemptTable:
    """The failures of late, of each source for each identifier."""

    __slots__ = ("_most", "_tries")

    def __init__(self, most: int = PAIRS_MOST) -> None:
        """
        :param most: pairs that are remembered
        """
        self._most = most
        self._tries: dict[tuple[str, str], _Tries] = {}

    def __len__(self) -> int:
        return len(self._tries)

    def wait(self, source: str, identifier: str, now: float) -> float:
        """Seconds for which a password of this source is not looked at; 0 if it is now."""
        tries = self._tries.get((source, identifier))
        return 0.0 if tries is None else max(0.0, tries.until - now)

    def begin(self, source: str, identifier: str, now: float) -> bool:
        """Count a guess before it is checked, so that many at once count as many.

        :return: whether this one begins the first delay
        """
        pair = (source, identifier)
        tries = self._tries.pop(pair, None)
        if tries is None or now - tries.since > (WINDOW if not tries.until else FORGOTTEN):
            tries = _Tries(0, now)
        tries.count += 1
        if tries.count >= FAILURES:
            doublings = min(tries.count - FAILURES, 16)
            tries.until = now + min(2.0**doublings, DELAY_MOST)
            tries.since = now
        if len(self._tries) >= self._most:
            del self._tries[next(iter(self._tries))]
        self._tries[pair] = tries
        return tries.count == FAILURES

    def spare(self, source: str, identifier: str) -> None:
        """A guess was not checked after all."""
        tries = self._tries.get((source, identifier))
        if tries is not None:
            tries.count -= 1
            tries.until = 0.0 if tries.count < FAILURES else tries.until

    def right(self, source: str, identifier: str) -> None:
        """A guess was right: what went before is forgotten."""
        self._tries.pop((source, identifier), None)
