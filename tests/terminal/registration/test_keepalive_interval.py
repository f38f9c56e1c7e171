"""How often keepalives are sent: as seldom as mappings are seen to last, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.terminal.registration.keepalive_interval import (
    GROWTH,
    PRECISION,
    RETRY_AFTER,
    SHORTEST,
    KeepaliveInterval,
)


def suggested(seconds: float, most: float = 300) -> KeepaliveInterval:
    """An interval of which the server has suggested so much."""
    interval = KeepaliveInterval(most)
    interval.suggest(seconds)
    return interval


def played(interval: KeepaliveInterval, life: float, keepalives: int) -> list[float]:
    """The intervals of so many keepalives on a way whose mappings live so long."""
    intervals = []
    for _ in range(keepalives):
        intervals.append(interval.seconds)
        interval.answered()
        if interval.seconds < life:
            interval.lasted(interval.seconds)
        else:
            interval.lost(interval.seconds)
    return intervals


class IntervalTests:
    """E1, E11: cheap, and yet the way back stays open."""

    def test_suggestion(self) -> None:
        """It begins with what the server suggests, but never above its own limit."""
        interval = suggested(25)
        assert interval.seconds == 25
        interval = suggested(25, 10)
        assert interval.seconds == 10

    def test_nothing_is_guessed(self) -> None:
        """Answers alone prove nothing of the way back: the suggestion stays."""
        interval = suggested(25)
        for _ in range(3 * RETRY_AFTER):
            interval.answered()
        assert interval.seconds == 25

    def test_grows(self) -> None:
        """A silence that was outlived makes it longer, up to the limit."""
        interval = suggested(25, 100)
        assert played(interval, 1000, 6) == [25, 37.5, 56.25, 84.375, 100, 100]

    def test_too_long(self) -> None:
        """A silence that was not makes it as long as the longest that was."""
        interval = suggested(20)
        interval.lasted(20)
        assert interval.seconds == 20 * GROWTH
        interval.lost(30)
        assert interval.seconds == 20

    def test_too_long_from_the_beginning(self) -> None:
        """Where none has lasted, half of it is tried."""
        interval = suggested(8)
        assert played(interval, 1.5, 6)[:4] == [8, 4, 2, 1]

    def test_another_router(self) -> None:
        """Where a silence does not last that did before, what was found out is void."""
        interval = suggested(25)
        played(interval, 1000, 8)
        assert interval.seconds == 300
        interval.lost(300)
        assert interval.seconds == 150
        assert played(interval, 20, 8)[-1] < 20

    def test_a_notice_proves(self) -> None:
        """A notice after a silence that was taken to be too long says that it was not."""
        interval = suggested(20)
        interval.lasted(20)
        interval.lost(30)
        interval.lasted(31)
        assert interval.seconds == 31 * GROWTH

    def test_forgiven(self) -> None:
        """What was too long is tried again after a while, and seldom."""
        interval = suggested(25)
        intervals = played(interval, 40, 2 * RETRY_AFTER)
        tried = [index for index, seconds in enumerate(intervals) if seconds >= 40]
        early = [index for index in tried if index < 10]
        late = [index for index in tried if index >= RETRY_AFTER]
        assert 1 <= len(early) <= 2
        assert 1 <= len(late) <= 2
        assert tried == early + late
        assert max(intervals) < 60

    @given(
        st.floats(1.5, 3600),
        st.floats(5, 600),
        st.floats(1, 300),
    )
    def test_finds(self, life: float, most: float, suggestion: float) -> None:
        """Whatever the router, it comes near the life of its mappings and stays below it."""
        interval = suggested(suggestion, most)
        played(interval, life, 60)
        rest = played(interval, life, 20)
        assert all(SHORTEST <= seconds <= most for seconds in rest)
        assert max(rest) < life
        assert min(rest) >= min(most, life * (1 - PRECISION)) * 0.95 - SHORTEST
