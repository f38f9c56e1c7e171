"""Shares of what may be done in a minute, by who does it and to whom it is done (I16, I17)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

#: Seconds in which no more than a share is let through.
WINDOW: Final = 60.0
#: What is remembered; beyond it nothing is let through (I15).
REMEMBERED_MOST: Final = 100_000

K = TypeVar("K")


class Shares(NamedTuple):
    """How much there is in a minute.

    :ivar pair: of one caller at one callee
    :ivar caller: of one caller, at all callees together
    :ivar callee: of all callers at one callee
    """

    pair: int
    caller: int
    callee: int


class ShareTable:
    """What was let through in the last minute, by caller and callee."""

    __slots__ = ("_callees", "_callers", "_most", "_pairs", "_recent", "_serial", "_shares")

    def __init__(self, shares: Shares, most: int = REMEMBERED_MOST) -> None:
        """
        :param most: how much is remembered
        """
        self._shares = shares
        self._most = most
        self._serial = 0
        self._recent: OrderedDict[int, tuple[float, str, str]] = OrderedDict()
        self._pairs: dict[tuple[str, str], int] = {}
        self._callers: dict[str, int] = {}
        self._callees: dict[str, int] = {}

    def begin(self, caller: str, callee: str, now: float) -> int | None:
        """Count one more before it is done, so that many at once count as many.

        :param now: seconds by a clock that never goes back
        :return: what ``spare`` takes; ``None`` where it may not be done, and isn't counted
        """
        self._forget(now)
        pair = (caller, callee)
        if (
            self._pairs.get(pair, 0) >= self._shares.pair
            or self._callers.get(caller, 0) >= self._shares.caller
            or self._callees.get(callee, 0) >= self._shares.callee
            or len(self._recent) >= self._most
        ):
            return None
        self._serial += 1
        self._recent[self._serial] = (now, caller, callee)
        self._pairs[pair] = self._pairs.get(pair, 0) + 1
        self._callers[caller] = self._callers.get(caller, 0) + 1
        self._callees[callee] = self._callees.get(callee, 0) + 1
        return self._serial

    def spare(self, serial: int) -> None:
        """This one does not count."""
        found = self._recent.pop(serial, None)
        if found is not None:
            self._less(found)

    def __len__(self) -> int:
        return len(self._recent)

    def _forget(self, now: float) -> None:
        while self._recent:
            serial, found = next(iter(self._recent.items()))
            if found[0] > now - WINDOW:
                return
            del self._recent[serial]
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
