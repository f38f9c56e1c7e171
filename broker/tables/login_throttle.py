"""Login throttle: after failed logins, a source must wait before it attempts an identifier again.

It counts by pair of source and identifier, so that failures from elsewhere never keep the owner
of an identifier out (I23).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Failures within ``WINDOW`` seconds that cause a delay.
FAILURES: Final = 10
WINDOW: Final = 60.0
#: The longest delay in seconds. The first is one second, and each failure doubles it.
DELAY_MOST: Final = 300.0
#: Seconds without a failure after which a delayed pair is forgotten.
FORGOTTEN: Final = 600.0
#: Pairs that are remembered; a new one replaces the oldest (I15).
PAIRS_MOST: Final = 10_000


@dataclass(slots=True)
class _Attempts:
    """The attempts of one source at one identifier.

    :ivar count: failures, and attempts whose outcome is not known yet
    :ivar since: when they began, or the last delay did
    :ivar until: the end of the delay
    """

    count: int
    since: float
    until: float = 0.0


class LoginThrottle:
    """The recent attempts of each source at each identifier."""

    __slots__ = ("_attempts", "_most")

    def __init__(self, most: int = PAIRS_MOST) -> None:
        """
        :param most: how many pairs are remembered
        """
        self._most = most
        self._attempts: dict[tuple[str, str], _Attempts] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def delay(self, source: str, identifier: str, now: float) -> float:
        """Return the seconds until a password of this source may be checked; 0 for now."""
        attempts = self._attempts.get((source, identifier))
        return 0.0 if attempts is None else max(0.0, attempts.until - now)

    def attempt(self, source: str, identifier: str, now: float) -> bool:
        """Count an attempt before its password is checked, so that concurrent ones count too.

        :return: whether it causes the first delay
        """
        pair = (source, identifier)
        attempts = self._attempts.pop(pair, None)
        if attempts is None or now - attempts.since > (WINDOW if not attempts.until else FORGOTTEN):
            attempts = _Attempts(0, now)
        attempts.count += 1
        if attempts.count >= FAILURES:
            doublings = min(attempts.count - FAILURES, 16)
            attempts.until = now + min(2.0**doublings, DELAY_MOST)
            attempts.since = now
        if len(self._attempts) >= self._most:
            del self._attempts[next(iter(self._attempts))]
        self._attempts[pair] = attempts
        return attempts.count == FAILURES

    def refund(self, source: str, identifier: str) -> None:
        """Stop counting an attempt: its password was not checked."""
        attempts = self._attempts.get((source, identifier))
        if attempts is not None:
            attempts.count -= 1
            attempts.until = 0.0 if attempts.count < FAILURES else attempts.until

    def succeed(self, source: str, identifier: str) -> None:
        """Forget a pair: its password was right."""
        self._attempts.pop((source, identifier), None)
