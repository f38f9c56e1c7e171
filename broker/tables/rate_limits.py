"""Rate limits by caller and callee: how often something may be done in a minute (I16, I17).

Callers cannot tell a request over the limit from one that the callee refused (I6).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

#: The sliding window in seconds.
WINDOW: Final = 60.0
#: Maximum number of attempts that a limiter remembers; it rejects what exceeds it (I15).
REMEMBERED_MOST: Final = 100_000

K = TypeVar("K")


class RateLimits(NamedTuple):
    """Attempts allowed in a window.

    :ivar pair: of one caller at one callee
    :ivar caller: of one caller, at all callees together
    :ivar callee: of all callers together, at one callee
    """

    pair: int
    caller: int
    callee: int


#: Call passwords that a callee is asked to check and refuses. One caller has a sixth of the
#: callee's limit, so that it cannot keep others out.
PASSWORD_GUESSES: Final = RateLimits(pair=5, caller=20, callee=30)
#: Requests for a callee's consent.
CONSENT_PROMPTS: Final = RateLimits(pair=3, caller=10, callee=10)


class RateLimiter:
    """The attempts of the last window, counted by caller, by callee and by pair."""

    __slots__ = ("_callees", "_callers", "_limits", "_most", "_pairs", "_recent", "_serial")

    def __init__(self, limits: RateLimits, most: int = REMEMBERED_MOST) -> None:
        """
        :param most: how many attempts are remembered
        """
        self._limits = limits
        self._most = most
        self._serial = 0
        self._recent: OrderedDict[int, tuple[float, str, str]] = OrderedDict()
        self._pairs: dict[tuple[str, str], int] = {}
        self._callers: dict[str, int] = {}
        self._callees: dict[str, int] = {}

    def acquire(self, caller: str, callee: str, now: float) -> int | None:
        """Count an attempt before it is made, so that concurrent ones count too.

        :param now: seconds of a monotonic clock
        :return: a token for `refund`; ``None`` if a limit is reached: such an attempt must not be
            made, and does not count
        """
        self._expire(now)
        pair = (caller, callee)
        if (
            self._pairs.get(pair, 0) >= self._limits.pair
            or self._callers.get(caller, 0) >= self._limits.caller
            or self._callees.get(callee, 0) >= self._limits.callee
            or len(self._recent) >= self._most
        ):
            return None
        self._serial += 1
        self._recent[self._serial] = (now, caller, callee)
        self._pairs[pair] = self._pairs.get(pair, 0) + 1
        self._callers[caller] = self._callers.get(caller, 0) + 1
        self._callees[callee] = self._callees.get(callee, 0) + 1
        return self._serial

    def refund(self, token: int) -> None:
        """Stop counting an attempt. Does nothing if its window is over or it was refunded."""
        attempt = self._recent.pop(token, None)
        if attempt is not None:
            self._uncount(attempt)

    def __len__(self) -> int:
        return len(self._recent)

    def _expire(self, now: float) -> None:
        while self._recent:
            token, attempt = next(iter(self._recent.items()))
            if attempt[0] > now - WINDOW:
                return
            del self._recent[token]
            self._uncount(attempt)

    def _uncount(self, attempt: tuple[float, str, str]) -> None:
        _, caller, callee = attempt
        _decrement(self._pairs, (caller, callee))
        _decrement(self._callers, caller)
        _decrement(self._callees, callee)


def _decrement(counts: dict[K, int], key: K) -> None:
    """Take one off a count, and drop it at zero: a table must not grow by names seen once."""
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
