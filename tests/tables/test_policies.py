"""The callers that an identifier rejects, and its policy, next to its list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.tables.permits import (
    ASK,
    LIST,
    LimitedRejection,
    ListTooLong,
    PermitChange,
    PermitTable,
)

names = st.lists(st.sampled_from(["Ia", "Ic", "taro", "@g", "tel:+81"]), min_size=1, max_size=4)
edits = st.lists(st.tuples(st.sampled_from(["Create", "Add", "Delete"]), names), max_size=5)


class RejectedTests:
    """The list of those who are refused."""

    @given(st.lists(edits, max_size=4))
    def test_as_edited(self, registrations: list[list[tuple[str, list[str]]]]) -> None:
        """It is what the edits make of it, in their order, each entry once (C5)."""
        table = PermitTable()
        expected: list[str] = []
        for edits in registrations:
            texts = [f"{word} {','.join(named)}" for word, named in edits]
            change = table.prepare("Ib", [], 0, reject=texts)
            assert table.rejected.get("Ib", ()) == tuple(expected), "preparing changed it"
            table.apply(change)
            for word, named in edits:
                if word == "Create":
                    expected = []
                if word == "Delete":
                    expected = [name for name in expected if name not in named]
                else:
                    expected += [name for name in named if name not in expected]
                expected = list(dict.fromkeys(expected))
            assert table.rejected.get("Ib", ()) == tuple(expected)
            assert table.rejects("Ib", ["Ia"]) == ("Ia" in expected)
            assert table.knows("Ib") == bool(expected)

    def test_by_what_a_name_stands_for(self) -> None:
        """A name is kept as the identifier that it stands for."""
        known = {"taro": "Ia"}
        change = PermitTable().prepare(
            "Ib", [], 0, lambda name: known.get(name, name), reject=["Create taro,Ix"]
        )
        assert change.rejected == ("Ia", "Ix")

    def test_no_limits(self) -> None:
        """Nobody is refused for a time only: after it he would be accepted unasked."""
        for text in ("Create Ix;uses=1", "Add Ia,Ix;expires=9"):
            with pytest.raises(LimitedRejection):
                PermitTable().prepare("Ib", [], 0, reject=[text])

    def test_too_many(self) -> None:
        """It holds as many as the other list, and their bytes are counted together (I15)."""
        table = PermitTable()
        most = ",".join(f"I{n}" for n in range(1000))
        table.prepare("Ib", [f"Create {most}"], 0, reject=[f"Create {most}"])
        with pytest.raises(ListTooLong, match="1000"):
            table.prepare("Ib", [], 0, reject=[f"Create {most},Ix"])
        half = ",".join(f"{n:03}{'x' * 56}" for n in range(500))
        table.prepare("Ib", [f"Create {half}"], 0, reject=[f"Create {half}"])
        with pytest.raises(ListTooLong, match="60000"):
            table.prepare("Ib", [f"Create {half}"], 0, reject=[f"Create {half},I"])


class KeptTests:
    """What else changes leaves them as they are."""

    CHANGE = PermitChange("Ib", ("Ia",), (), ("Ix", "@g"), ASK)

    def test_by_every_change(self) -> None:
        """By an edit, by what expires, and by whoever is taken off the list."""
        table = PermitTable([self.CHANGE])
        for change in (
            table.prepare("Ib", ["Add Ic;uses=1"], 0),
            table.prepare_unexpired("Ib", 0),
            table.prepare_without("Ib", "Ia", 0),
            table.prepare_without("Ib", "Ix", 0),
        ):
            assert (change.rejected, change.policy) == (("Ix", "@g"), ASK)
        table.apply(table.prepare("Ib", ["Add Ic;uses=1"], 0))
        used = table.prepare_use("Ib", "Ic", 0)
        assert (used.accepted, used.rejected, used.policy) == (("Ia",), ("Ix", "@g"), ASK)

    def test_default(self) -> None:
        """Who says nothing has the policy of the list, refuses nobody, and is not kept."""
        table = PermitTable([self.CHANGE])
        assert table.ask_owners == {"Ib"}
        change = table.prepare("Ib", ["Create"], 0, reject=["Create"], policy=LIST)
        assert change.is_default
        table.apply(change)
        assert not table.knows("Ib")
        assert (table.policy("Ib"), table.ask_owners) == (LIST, set())
        assert not self.CHANGE.is_default
        assert not PermitChange("Ib", (), (), ("Ix",)).is_default
        assert not PermitChange("Ib", (), (), (), ASK).is_default
