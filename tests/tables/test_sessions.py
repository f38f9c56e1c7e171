"""The session table: what stands on a permit, so that a withdrawal finds it (I2)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.tables.sessions import BEGUN_A_CALLEE, UNSPENT_A_CALLER, Session, SessionTable


class SessionTableTests:
    """Sessions granted, begun and ended."""

    def test_found_by_its_parties_only(self) -> None:
        """A session is found by its caller and its callee, and by nobody else (I4)."""
        table = SessionTable()
        session, _ = table.grant("S1", "Ia", "Ib")
        assert table.find("S1", "Ia") is session
        assert table.find("S1", "Ib") is session
        assert table.find("S1", "Ic") is None
        assert table.find("S2", "Ia") is None

    def test_a_new_one_replaces_the_pairs_unspent(self) -> None:
        """One unspent session a pair: the one before it is no more, and is given back (I7)."""
        table = SessionTable()
        first, _ = table.grant("S1", "Ia", "Ib")
        second, replaced = table.grant("S2", "Ia", "Ib")
        assert replaced is first
        assert table.find("S1", "Ia") is None
        assert table.of("Ib") == [second]

    def test_a_begun_one_is_not_replaced(self) -> None:
        """A call that goes on is left alone by the next grant, and both rest on the permit."""
        table = SessionTable()
        first, _ = table.grant("S1", "Ia", "Ib")
        assert table.begin(first)
        second, replaced = table.grant("S2", "Ia", "Ib")
        assert replaced is None
        assert table.of("Ib") == table.all() == [first, second]
        assert table.of("Ia") == []

    def test_unspent_a_caller(self) -> None:
        """A caller has so many unspent sessions and no more, until one begins or ends (I15)."""
        table = SessionTable()
        sessions = [table.grant(f"S{n}", "Ia", f"I{n}")[0] for n in range(UNSPENT_A_CALLER)]
        assert not table.room("Ia", "one-more")
        assert table.room("Ia", "I0"), "one more for the same pair replaces"
        assert table.room("Ic", "one-more"), "another's share is its own"
        table.begin(sessions[0])
        assert table.room("Ia", "one-more")
        table.grant("again", "Ia", "one-more")
        assert not table.room("Ia", "another")
        table.drop(sessions[1])
        assert table.room("Ia", "another")

    def test_begun_a_callee(self) -> None:
        """A callee has so many sessions begun and no more (I15); beginning twice is once."""
        table = SessionTable()
        for n in range(BEGUN_A_CALLEE):
            session, _ = table.grant(f"S{n}", f"I{n}", "Ib")
            assert table.begin(session)
            assert table.begin(session)
        late, _ = table.grant("late", "Ia", "Ib")
        assert not table.begin(late)
        table.drop(table.of("Ib")[0])
        assert table.begin(late)

    def test_dropped_twice(self) -> None:
        """Dropping what is gone is nothing, and frees no share a second time."""
        table = SessionTable()
        session, _ = table.grant("S1", "Ia", "Ib")
        table.grant("S2", "Ia", "Ic")
        table.drop(session)
        table.drop(session)
        assert len(table) == 1
        assert table.of("Ib") == []

    @settings(deadline=None, max_examples=80)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["grant", "begin", "drop"]),
                st.sampled_from(["Ia", "Ib"]),
                st.integers(0, UNSPENT_A_CALLER + 1),
            ),
            max_size=80,
        )
    )
    def test_as_the_model(self, events: list[tuple[str, str, int]]) -> None:
        """Whatever happens, counts and orders are those of a plain list of sessions."""
        table = SessionTable()
        model: list[Session] = []
        for number, (event, caller, which) in enumerate(events):
            callee = f"I{which}"
            unspent = [one for one in model if one.caller == caller and not one.begun]
            waiting = [one for one in unspent if one.callee == callee]
            room = len(unspent) < UNSPENT_A_CALLER or bool(waiting)
            assert table.room(caller, callee) == room
            if event == "grant" and room:
                session, replaced = table.grant(f"S{number}", caller, callee)
                assert ([replaced] if replaced else []) == waiting
                model = [one for one in model if one is not replaced] + [session]
            elif event == "begin" and waiting:
                assert table.begin(waiting[0])
            elif event == "drop" and waiting:
                table.drop(waiting[0])
                model.remove(waiting[0])
            assert len(table) == len(model)
            assert table.of(callee) == [one for one in model if one.callee == callee]
            assert table.all() == model
