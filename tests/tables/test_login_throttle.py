"""Failed logins: who must wait, for how long, and who must not."""

from __future__ import annotations

import pytest

from broker.tables.login_throttle import LoginThrottle


def fail(table: LoginThrottle, times: int, now: float, who: str = "Ia", where: str = "s") -> None:
    """Guess so often at one moment, whether or not it is allowed."""
    for _ in range(times):
        table.attempt(where, who, now)


@pytest.fixture
def table() -> LoginThrottle:
    """An empty table."""
    return LoginThrottle()


class AttemptsTests:
    """The limit on failures (I23)."""

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

    def test_each_pair_by_itself(self, table: LoginThrottle) -> None:
        """Neither another source nor another identifier has to wait."""
        fail(table, 30, 0)
        assert table.delay("s", "Ia", 0) == 300
        assert not table.delay("s", "Ib", 0)
        assert not table.delay("t", "Ia", 0)

    def test_right(self, table: LoginThrottle) -> None:
        """A right one forgets what went before."""
        fail(table, 30, 0)
        table.succeed("s", "Ia")
        assert not table.delay("s", "Ia", 0)
        assert len(table) == 0

    def test_spared(self, table: LoginThrottle) -> None:
        """What was not checked after all doesn't count."""
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
