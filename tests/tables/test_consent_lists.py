"""The lists that decide one request: how they are told, how long they may be, what they decide."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.tables.consent_lists import ConsentLists, NoConsent, check_lists, consents, lists_of
from broker.tables.permits import LIST_MOST, as_edits

entries = st.sampled_from(["Ia", "Ib", "Ic", "taro", "hanako", "@family", "@work"])


@example(["Ix", "@work", "Ia"], ["Ic", "hanako"])
@example(["taro"], ["@family"])
@example(["@family"], ["jiro"])
@given(st.lists(entries), st.lists(entries))
def test_refused_wins(accepted: list[str], rejected: list[str]) -> None:
    """Nobody is accepted who is on no list, or on that of those who are refused (I3, S2004, C5).

    An entry may be the caller's identifier, a name of its, or a group that it is in.
    """
    called = {"Ia", "taro", "jiro", "@family"}
    decided = consents(ConsentLists(accepted, rejected), called)
    assert decided == (not called.isdisjoint(accepted) and called.isdisjoint(rejected))


@given(st.lists(entries, max_size=400), st.lists(entries, max_size=400))
def test_round(accepted: list[str], rejected: list[str]) -> None:
    """What one side tells the other reads."""
    assert lists_of(as_edits(accepted), as_edits(rejected)) == (accepted, rejected)


def test_no_rejections() -> None:
    """Whoever refuses nobody may leave that list out; not the other one."""
    assert lists_of(["Create Ia"], []) == (["Ia"], ())
    with pytest.raises(NoConsent, match="missing"):
        lists_of([], ["Create Ix"])


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        # What would edit a list that isn't there is none (I3).
        *((["Add Ia"], "Create"), (["Delete Ia"], "Create")),
        *((["Create Ia", "Create Ib"], "Create"), (["Create Ia", "Delete Ia"], "Create")),
        # Limits mean nothing where one request is decided: better none than misunderstood.
        (["Create Ia;uses=1"], "limits"),
    ],
)
def test_edits_of_nothing(edits: list[str], why: str) -> None:
    """What is no whole list is none, on either side."""
    for lists in ((edits, []), (["Create Ia"], edits)):
        with pytest.raises(NoConsent, match=why):
            lists_of(*lists)


def test_too_long() -> None:
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
