"""Rate limits: caps, window, refunds, what is remembered (I15, I17); failed logins (I23)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from broker.tables.login_throttle import LoginThrottle
from broker.tables.rate_limits import (
    CONSENT_PROMPTS,
    PASSWORD_GUESSES,
    WINDOW,
    RateLimiter,
    RateLimits,
)

EACH = pytest.mark.parametrize("limits", [PASSWORD_GUESSES, CONSENT_PROMPTS], ids=["guess", "ask"])


def count(
    limiter: RateLimiter, times: int, now: float, caller: str = "Ia", callee: str = "Ib"
) -> int:
    """Attempt so often at one moment; return how often it was let through."""
    return sum(limiter.acquire(caller, callee, now) is not None for _ in range(times))


def test_the_limits() -> None:
    """The numbers that the documents promise; no caller alone can use up a callee's share."""
    assert PASSWORD_GUESSES == (5, 20, 30)
    assert CONSENT_PROMPTS == (3, 10, 10)


class WindowTests:
    """What counts, and for how long."""

    def test_an_attempt_counts_for_a_window(self) -> None:
        """To the second; an attempt that was not let through never counts."""
        limiter = RateLimiter(CONSENT_PROMPTS)
        assert count(limiter, 2, 0) == 2
        assert count(limiter, 1, 30) == 1
        assert count(limiter, 100, WINDOW - 0.1) == 0
        assert count(limiter, 9, WINDOW) == 2
        assert count(limiter, 9, 30 + WINDOW) == 1

    def test_refunded_attempts_do_not_count(self) -> None:
        """And are refunded once, not twice."""
        limiter = RateLimiter(PASSWORD_GUESSES)
        for _ in range(3 * PASSWORD_GUESSES.callee):
            token = limiter.acquire("Ia", "Ib", 0)
            assert token is not None
            limiter.refund(token)
            limiter.refund(token)
        assert len(limiter) == 0
        token = limiter.acquire("Ia", "Ib", 0)
        assert token is not None
        assert count(limiter, 1, WINDOW, caller="Ic") == 1
        limiter.refund(token)  # after the window: it changes nothing
        assert len(limiter) == 1

    def test_bounded(self) -> None:
        """Beyond what is remembered nothing is let through; in time all is forgotten (I15)."""
        limiter = RateLimiter(CONSENT_PROMPTS, most=50)
        passed = [limiter.acquire(f"I{n}", f"J{n}", 0) is not None for n in range(60)]
        assert passed == [True] * 50 + [False] * 10
        token = limiter.acquire("Ia", "Ib", WINDOW)
        assert token is not None
        assert len(limiter) == 1
        assert (len(limiter._pairs), len(limiter._callers), len(limiter._callees)) == (1, 1, 1)
        limiter.refund(token)
        assert not any((limiter._pairs, limiter._callers, limiter._callees, limiter._recent))

    @EACH
    def test_against_a_plain_count(self, limits: RateLimits) -> None:
        """Over a long time it lets through what a count of the last minute would.

        That is: so many of one caller at one callee, of one caller at all, and of all callers at
        one callee; what another does costs none of them anything.
        """
        drawn = random.Random(5)
        limiter = RateLimiter(limits)
        recent: list[tuple[float, str, str]] = []
        now = 0.0
        reached: Counter[tuple[bool, bool, bool]] = Counter()
        for _ in range(4000):
            now += drawn.random() * 20 / limits.callee
            caller, callee = drawn.choice("aaaaabcdefgh"), drawn.choice("uuuvwxyz")
            recent = [each for each in recent if each[0] > now - WINDOW]
            full = (
                sum(each[1:] == (caller, callee) for each in recent) >= limits.pair,
                sum(each[1] == caller for each in recent) >= limits.caller,
                sum(each[2] == callee for each in recent) >= limits.callee,
            )
            reached[full] += 1
            assert count(limiter, 1, now, caller, callee) == (not any(full))
            if not any(full):
                recent.append((now, caller, callee))
        for alone in ((True, False, False), (False, True, False), (False, False, True)):
            assert reached[alone] > 20, reached


def fail(table: LoginThrottle, times: int, now: float, who: str = "Ia", where: str = "s") -> None:
    """Guess so often at one moment, whether or not it is allowed."""
    for _ in range(times):
        table.attempt(where, who, now)


@pytest.fixture
def table() -> LoginThrottle:
    """An empty table."""
    return LoginThrottle()


class LoginThrottleTests:
    """Failed logins: who must wait, for how long, and who must not (I23)."""

    def test_ten_a_minute(self, table: LoginThrottle) -> None:
        """Ten may fail within a minute; the next must wait."""
        for second in range(10):
            assert table.delay("s", "Ia", second) == 0
            assert table.attempt("s", "Ia", second) == (second == 9)
        assert table.delay("s", "Ia", 9) == 1
        assert table.delay("s", "Ia", 9.75) == 0.25
        assert table.delay("s", "Ia", 10) == 0

    def test_twice_as_long(self, table: LoginThrottle) -> None:
        """Each further failure doubles the wait, up to five minutes."""
        fail(table, 9, 0)
        now, waits = 0.0, []
        for _ in range(12):
            assert not table.delay("s", "Ia", now)
            table.attempt("s", "Ia", now)
            waits.append(table.delay("s", "Ia", now))
            now += waits[-1]
        assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]

    def test_forgotten(self, table: LoginThrottle) -> None:
        """A few failures are forgotten after a minute, many after ten."""
        fail(table, 9, 0)
        fail(table, 9, 60.5)
        assert not table.delay("s", "Ia", 60.5)
        fail(table, 1, 61)
        assert table.delay("s", "Ia", 61) == 1
        fail(table, 1, 600)
        assert table.delay("s", "Ia", 600) == 2
        fail(table, 9, 1200.5)
        assert not table.delay("s", "Ia", 1200.5)

    def test_forgiven(self, table: LoginThrottle) -> None:
        """Neither another source nor another identifier waits; a right one forgets what was before.

        What was not checked after all doesn't count.
        """
        fail(table, 30, 0)
        assert [table.delay(*whose, 0) for whose in (("s", "Ib"), ("t", "Ia"), ("s", "Ia"))] == [
            0,
            0,
            300,
        ]
        table.succeed("s", "Ia")
        assert not table.delay("s", "Ia", 0)
        assert len(table) == 0
        fail(table, 10, 0)
        table.refund("s", "Ia")
        assert not table.delay("s", "Ia", 0)
        fail(table, 1, 0)
        assert table.delay("s", "Ia", 0) == 1
        table.refund("s", "nobody")

    def test_bounded(self) -> None:
        """It remembers so many pairs, and gives up the oldest (I15)."""
        table = LoginThrottle(most=3)
        for who in "abcd":
            fail(table, 10, 0, who)
        assert len(table) == 3
        assert not table.delay("s", "a", 0)
        fail(table, 1, 1, "b")
        fail(table, 1, 1, "e")
        assert [bool(table.delay("s", who, 1)) for who in "bcd"] == [True, False, False]
        assert len(table) == 3
