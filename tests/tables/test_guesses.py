"""Call passwords that were refused: how many a callee hears of, and who is kept out by whom."""

from __future__ import annotations

from broker.tables.guesses import A_CALLEE, A_CALLER, A_PAIR, GuessTable
from broker.tables.rate_limits import WINDOW


class GuessTests:
    """What is let through (I17)."""

    def test_a_pair(self) -> None:
        """Five in a minute; the sixth once the first is a minute old."""
        table = GuessTable()
        for second in range(A_PAIR):
            assert table.begin("Ia", "Ib", second) is not None
        assert table.begin("Ia", "Ib", A_PAIR) is None
        assert table.begin("Ia", "Ib", WINDOW - 0.5) is None
        assert table.begin("Ia", "Ib", WINDOW) is not None
        assert table.begin("Ia", "Ib", WINDOW) is None

    def test_a_caller(self) -> None:
        """One that tries everybody is heard by twenty."""
        table = GuessTable()
        heard = [table.begin("Ia", f"I{n}", 0) for n in range(A_CALLER + 1)]
        assert heard.count(None) == 1
        assert heard[-1] is None

    def test_a_callee(self) -> None:
        """It hears of thirty, whoever they come from; and one caller alone can't use them up."""
        table = GuessTable()
        while table.begin("Ia", "Ib", 0) is not None:
            pass
        assert table.begin("Ic", "Ib", 0) is not None
        heard = [table.begin(f"I{n}", "Ib", 0) for n in range(A_CALLEE)]
        assert heard.count(None) == A_PAIR + 1
        assert table.begin("Ic", "Id", 0) is not None

    def test_right_ones_do_not_count(self) -> None:
        """And those are forgotten once, not twice."""
        table = GuessTable()
        for _ in range(3 * A_CALLEE):
            guess = table.begin("Ia", "Ib", 0)
            assert guess is not None
            table.right(guess)
            table.right(guess)
        assert len(table) == 0

    def test_late_and_right(self) -> None:
        """One that is right after it has been forgotten changes nothing."""
        table = GuessTable()
        guess = table.begin("Ia", "Ib", 0)
        assert guess is not None
        assert table.begin("Ic", "Ib", WINDOW) is not None
        table.right(guess)
        assert len(table) == 1

    def test_bounded(self) -> None:
        """No more are remembered than may be; beyond them nobody is asked (I15)."""
        table = GuessTable(most=2)
        assert table.begin("Ia", "Ib", 0) is not None
        assert table.begin("Ic", "Id", 0) is not None
        assert table.begin("Ie", "If", 0) is None
        assert len(table) == 2
        assert table.begin("Ie", "If", WINDOW) is not None
        assert len(table) == 1

    def test_nothing_stays(self) -> None:
        """What is forgotten leaves no count behind."""
        table = GuessTable()
        table.begin("Ia", "Ib", 0)
        guess = table.begin("Ic", "Id", WINDOW)
        assert guess is not None
        table.right(guess)
        assert not any((table._pairs, table._callers, table._callees, table._recent))
