"""How often a callee is asked for its consent: each cap, and that it ends (I17)."""

from __future__ import annotations

import random

from broker.tables.prompts import A_CALLEE, A_CALLER, A_PAIR, PromptTable
from broker.tables.rate_limits import WINDOW


def ask(table: PromptTable, times: int, now: float, caller: str = "Ia", callee: str = "Ib") -> int:
    """Ask so often at one moment; give how often it was let through."""
    return sum(table.take(caller, callee, now) for _ in range(times))


class PromptsTests:
    """The caps (I17)."""

    def test_a_pair(self) -> None:
        """One caller has one callee asked three times a minute, and another three of its own."""
        table = PromptTable()
        assert ask(table, 9, 0) == A_PAIR
        assert ask(table, 9, 0, callee="Ic") == A_PAIR
        assert ask(table, 9, 0, caller="Ix") == A_PAIR

    def test_a_caller(self) -> None:
        """One caller causes ten questions a minute, whoever is asked."""
        table = PromptTable()
        assert sum(ask(table, 1, 0, callee=f"I{n}") for n in range(30)) == A_CALLER
        assert ask(table, 1, 0, caller="Ix", callee="I29") == 1

    def test_a_callee(self) -> None:
        """One callee is asked ten times a minute, whoever causes it."""
        table = PromptTable()
        assert sum(ask(table, 1, 0, caller=f"I{n}") for n in range(30)) == A_CALLEE
        assert ask(table, 1, 0, callee="Ic") == 1

    def test_a_minute(self) -> None:
        """What was asked a minute ago counts no more; what was not let through never did."""
        table = PromptTable()
        assert ask(table, 2, 0) == 2
        assert ask(table, 1, 30) == 1
        assert ask(table, 100, WINDOW - 0.1) == 0
        assert ask(table, 9, WINDOW) == 2
        assert ask(table, 9, 30 + WINDOW) == 1

    def test_bounded(self) -> None:
        """It remembers so many; beyond them nobody is asked, and all is forgotten in time (I15)."""
        table = PromptTable(most=50)
        let = [table.take(f"I{n}", f"J{n}", 0) for n in range(60)]
        assert let == [True] * 50 + [False] * 10
        assert table.take("Ia", "Ib", WINDOW)
        assert len(table) == 1
        assert (len(table._pairs), len(table._callers), len(table._callees)) == (1, 1, 1)

    def test_against_a_plain_count(self) -> None:
        """Over a long time it lets through what a count of the last minute would."""
        drawn = random.Random(5)
        table = PromptTable()
        let: list[tuple[float, str, str]] = []
        now = 0.0
        for _ in range(4000):
            now += drawn.random() * 2
            caller, callee = drawn.choice("abcdefgh"), drawn.choice("uvwxyz")
            recent = [one for one in let if one[0] > now - WINDOW]
            may = (
                sum(one[1:] == (caller, callee) for one in recent) < A_PAIR
                and sum(one[1] == caller for one in recent) < A_CALLER
                and sum(one[2] == callee for one in recent) < A_CALLEE
            )
            assert table.take(caller, callee, now) == may
            if may:
                let.append((now, caller, callee))
        assert 100 < len(let) < 3500
