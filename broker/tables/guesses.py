"""Call passwords that callees have refused of late: who is refused too often is not asked for.

Whoever guesses can't tell that from one more refusal (I6, I17).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

#: Seconds in which no more than these are let through.
WINDOW: Final = 60.0
#: Guesses of one caller at one callee,
A_PAIR: Final = 5
#: at all callees together,
A_CALLER: Final = 20
#: and of all callers at one callee. One caller alone has only a sixth of them, so that it keeps
#: nobody else out.
A_CALLEE: Final = 30
#: Guesses that are remembered; beyond them no callee is asked (I15).
REMEMBERED_MOST: Final = 100_000

K = TypeVar("K")


class GuessTable:
    """The guesses of the last minute that were not right, by who guessed and at whom."""

    __slots__ = ("_callees", "_callers", "_most", "_pairs", "_recent", "_serial")

    def __init__(self, most: int = REMEMBERED_MOST) -> None:
        """
        :param most: guesses that are remembered
        """
        self._most = most
        self._serial = 0
        self._recent: OrderedDict[int, tuple[float, str, str]] = OrderedDict()
        self._pairs: dict[tuple[str, str], int] = {}
        self._callers: dict[str, int] = {}
        self._callees: dict[str, int] = {}

    def begin(self, caller: str, callee: str, now: float) -> int | None:
        """Count a guess before it is looked at, so that many at once count as many.

        :param now: seconds by a clock that never goes back
        :return: what ``right`` takes; ``None`` where it may not be looked at, and isn't counted
        """
        self._forget(now)
        pair = (caller, callee)
        if (
            self._pairs.get(pair, 0) >= A_PAIR
            or self._callers.get(caller, 0) >= A_CALLER
            or self._callees.get(callee, 0) >= A_CALLEE
            or len(self._recent) >= self._most
        ):
            return None
        self._serial += 1
        self._recent[self._serial] = (now, caller, callee)
        self._pairs[pair] = self._pairs.get(pair, 0) + 1
        self._callers[caller] = self._callers.get(caller, 0) + 1
        self._callees[callee] = self._callees.get(callee, 0) + 1
        return self._serial

    def right(self, guess: int) -> None:
        """It was none: its password is right, and it does not count."""
        found = self._recent.pop(guess, None)
        if found is not None:
            self._less(found)

    def __len__(self) -> int:
        return len(self._recent)

    def _forget(self, now: float) -> None:
        while self._recent:
            guess, found = next(iter(self._recent.items()))
            if found[0] > now - WINDOW:
                return
            del self._recent[guess]
            self._less(found)

    def _less(self, found: tuple[float, str, str]) -> None:
        _, caller, callee = found
        _take_one(self._pairs, (caller, callee))
        _take_one(self._callers, caller)
        _take_one(self._callees, callee)


def _take_one(counts: dict[K, int], name: K) -> None:
    if counts[name] == 1:
        del counts[name]
    else:
        counts[name] -= 1
