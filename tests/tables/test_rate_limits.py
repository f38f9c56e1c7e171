"""Rate limits: each cap, the window, refunds, and what is remembered (I15, I17)."""

from __future__ import annotations

import random

import pytest

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
    """The numbers that the documents promise."""
    assert PASSWORD_GUESSES == (5, 20, 30)
    assert CONSENT_PROMPTS == (3, 10, 10)


class CapTests:
    """Each of the three limits, on its own."""

    @EACH
    def test_pair(self, limits: RateLimits) -> None:
        """One caller at one callee; other pairs have their own share."""
        limiter = RateLimiter(limits)
        assert count(limiter, 9, 0) == limits.pair
        assert count(limiter, 9, 0, callee="Ic") == limits.pair
        assert count(limiter, 9, 0, caller="Ix") == limits.pair

    @EACH
    def test_caller(self, limits: RateLimits) -> None:
        """One caller that tries everybody; another caller is not affected."""
        limiter = RateLimiter(limits)
        assert sum(count(limiter, 1, 0, callee=f"I{n}") for n in range(40)) == limits.caller
        assert count(limiter, 1, 0, caller="Ix", callee="I39") == 1

    @EACH
    def test_callee(self, limits: RateLimits) -> None:
        """All callers at one callee; one caller alone cannot use that up, nor stop others."""
        limiter = RateLimiter(limits)
        alone = count(limiter, 99, 0)
        assert alone == limits.pair < limits.callee
        others = sum(count(limiter, 1, 0, caller=f"I{n}") for n in range(40))
        assert alone + others == limits.callee
        assert count(limiter, 1, 0, callee="Ic") == 1


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

    def test_refund_after_the_window(self) -> None:
        """Changes nothing."""
        limiter = RateLimiter(PASSWORD_GUESSES)
        token = limiter.acquire("Ia", "Ib", 0)
        assert token is not None
        assert count(limiter, 1, WINDOW, caller="Ic") == 1
        limiter.refund(token)
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

    def test_against_a_plain_count(self) -> None:
        """Over a long time it lets through what a count of the last minute would."""
        drawn = random.Random(5)
        limits = CONSENT_PROMPTS
        limiter = RateLimiter(limits)
        passed: list[tuple[float, str, str]] = []
        now = 0.0
        for _ in range(4000):
            now += drawn.random() * 2
            caller, callee = drawn.choice("abcdefgh"), drawn.choice("uvwxyz")
            recent = [each for each in passed if each[0] > now - WINDOW]
            may = (
                sum(each[1:] == (caller, callee) for each in recent) < limits.pair
                and sum(each[1] == caller for each in recent) < limits.caller
                and sum(each[2] == callee for each in recent) < limits.callee
            )
            assert count(limiter, 1, now, caller, callee) == may
            if may:
                passed.append((now, caller, callee))
        assert 100 < len(passed) < 3500
