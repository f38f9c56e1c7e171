"""The lists that decide one request: how they are told, how long they may be, what they decide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.tables.consent_lists import ConsentLists, NoConsent, check_lists, consents, lists_of
from broker.tables.permits import LIST_MOST, as_edits

entries = st.sampled_from(["Ia", "Ib", "Ic", "taro", "hanako", "@family", "@work"])


class ConsentsTests:
    """What lists decide (S2004, C5)."""

    @pytest.mark.parametrize(
        ("accepted", "rejected", "expected"),
        [
            (["Ia"], [], True),
            (["taro"], [], True),
            (["@family"], [], True),
            (["Ix", "@work", "Ia"], [], True),
            ([], [], False),
            (["Ix", "hanako", "@work"], [], False),
            (["Ia"], ["Ia"], False),
            (["Ia"], ["taro"], False),
            (["taro"], ["@family"], False),
            (["@family"], ["Ia"], False),
            (["@family"], ["jiro"], False),
            (["Ia"], ["Ic", "@work", "hanako"], True),
        ],
    )
    def test_decides(self, accepted: list[str], rejected: list[str], expected: bool) -> None:
        """An entry may be the caller's identifier, a name of its, or a group; refused wins."""
        called = {"Ia", "taro", "jiro", "@family"}
        assert consents(ConsentLists(accepted, rejected), called) == expected

    @given(st.lists(entries), st.lists(entries))
    def test_refused_wins(self, accepted: list[str], rejected: list[str]) -> None:
        """Nobody is accepted who is on no list, or on the list of those who are refused (I3)."""
        called = {"Ia", "taro", "@family"}
        decided = consents(ConsentLists(accepted, rejected), called)
        assert decided == (not called.isdisjoint(accepted) and called.isdisjoint(rejected))


class ToldTests:
    """How lists are told."""

    @given(st.lists(entries, max_size=400), st.lists(entries, max_size=400))
    def test_round(self, accepted: list[str], rejected: list[str]) -> None:
        """What one side tells the other reads."""
        assert lists_of(as_edits(accepted), as_edits(rejected)) == (accepted, rejected)

    def test_no_rejections(self) -> None:
        """Whoever refuses nobody may leave that list out; not the other one."""
        assert lists_of(["Create Ia"], []) == (["Ia"], ())
        with pytest.raises(NoConsent, match="missing"):
            lists_of([], ["Create Ix"])

    @pytest.mark.parametrize(
        "edits",
        [["Add Ia"], ["Delete Ia"], ["Create Ia", "Create Ib"], ["Create Ia", "Delete Ia"]],
    )
    def test_edits_of_nothing(self, edits: list[str]) -> None:
        """What would edit a list that isn't there is none (I3)."""
        with pytest.raises(NoConsent, match="Create"):
            lists_of(edits, [])
        with pytest.raises(NoConsent, match="Create"):
            lists_of(["Create Ia"], edits)

    def test_limits(self) -> None:
        """Limits mean nothing where one request is decided: better none than misunderstood."""
        with pytest.raises(NoConsent, match="limits"):
            lists_of(["Create Ia;uses=1"], [])

    def test_too_long(self) -> None:
        """A list holds 1,000 entries, and both 60,000 bytes together (I15)."""
        most = [f"I{n}" for n in range(LIST_MOST)]
        assert check_lists(ConsentLists(most, most)) == (most, most)
        for lists in (ConsentLists([*most, "Ia"]), ConsentLists([], [*most, "Ia"])):
            with pytest.raises(NoConsent, match="1000"):
                check_lists(lists)
        half = [f"{n:03}{'x' * 56}" for n in range(500)]
        assert check_lists(ConsentLists(half, half))
        with pytest.raises(NoConsent, match="60000"):
            check_lists(ConsentLists(half, [*half, "I"]))
