"""The session table: what rests on a permit, so that a withdrawal finds it (I2)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.states import UnexpectedEvent
from broker.tables.sessions import (
    BEGIN,
    BEGUN,
    BEGUN_A_CALLEE,
    END,
    ENDED,
    EXPIRE,
    EXPIRED,
    REPLACE,
    REPLACED,
    STATES,
    TERMINATE,
    TERMINATED,
    UNSPENT,
    UNSPENT_A_CALLER,
    Session,
    SessionTable,
)

CLOSED = {END: ENDED, TERMINATE: TERMINATED, EXPIRE: EXPIRED}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (UNSPENT, {BEGIN: BEGUN, REPLACE: REPLACED, **CLOSED}),
        (BEGUN, {BEGIN: BEGUN, **CLOSED}),
        *((state, {}) for state in (ENDED, TERMINATED, REPLACED, EXPIRED)),
    ],
)
def test_table(state: str, expected: dict[str, str]) -> None:
    """What each event does in each state; nothing happens to a session that is over."""
    session = Session("S1", "Ia", "Ib", state=state)
    for event in (BEGIN, END, TERMINATE, REPLACE, EXPIRE):
        session.state = state
        if event in expected:
            session.advance(event)
        else:
            with pytest.raises(UnexpectedEvent):
                session.advance(event)
        assert session.state == expected.get(event, state)
    assert len(STATES) == 6


def test_unspent_a_caller() -> None:
    """A caller's unspent sessions are limited, until one begins or ends (I15)."""
    table = SessionTable()
    sessions = [table.grant(f"S{n}", "Ia", f"I{n}")[0] for n in range(UNSPENT_A_CALLER)]
    assert not table.has_room("Ia", "one-more")
    assert table.has_room("Ia", "I0"), "one more for the same pair replaces"
    assert table.has_room("Ic", "one-more"), "another's share is its own"
    table.begin(sessions[0])
    assert table.has_room("Ia", "one-more")
    table.grant("again", "Ia", "one-more")
    assert not table.has_room("Ia", "another")
    table.expire(sessions[1])
    assert table.has_room("Ia", "another")


def test_begun_a_callee() -> None:
    """A callee's begun sessions are limited (I15); beginning twice is once."""
    table = SessionTable()
    for n in range(BEGUN_A_CALLEE):
        session, _ = table.grant(f"S{n}", f"I{n}", "Ib")
        assert table.begin(session)
        assert table.begin(session)
    late, _ = table.grant("late", "Ia", "Ib")
    assert not table.begin(late)
    table.close(table.of("Ib")[0], END)
    assert table.begin(late)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["grant", BEGIN, END, TERMINATE]),
            st.sampled_from(["Ia", "Ib"]),
            st.integers(0, UNSPENT_A_CALLER + 1) | st.just(0),
        ),
        max_size=80,
    )
)
def test_as_the_model(events: list[tuple[str, str, int]]) -> None:
    """Whatever happens, counts and orders are those of a plain list of sessions.

    A pair has one unspent session: the one before it is forgotten, and is given back (I7). One
    that has begun goes on beside the next grant, and both rest on the permit (I2). A session is
    found by its caller and its callee, and by no other (I4). To close one that is forgotten
    does nothing: its state stays, and no share is freed again.
    """
    table = SessionTable()
    model: list[Session] = []
    closed: dict[str, tuple[Session, str]] = {}
    for number, (event, caller, which) in enumerate(events):
        callee = f"Callee{which}"
        own = [one for one in model if one.caller == caller]
        unspent = [one for one in own if not one.begun]
        pair = [one for one in unspent if one.callee == callee]
        has_room = len(unspent) < UNSPENT_A_CALLER or bool(pair)
        assert table.has_room(caller, callee) == has_room
        if event == "grant" and has_room:
            session, replaced = table.grant(f"S{number}", caller, callee)
            assert ([replaced] if replaced else []) == pair
            model = [one for one in model if one is not replaced] + [session]
            closed |= {one.identifier: (one, REPLACED) for one in pair}
        elif event == BEGIN and pair:
            assert table.begin(pair[0])
        elif event in CLOSED:
            for one in [one for one in own if one.callee == callee][:1]:
                table.close(one, event)
                model.remove(one)
                closed[one.identifier] = one, CLOSED[event]
            for one, _ in closed.values():
                table.close(one, END)
        assert len(table) == len(model)
        assert table.of(callee) == [one for one in model if one.callee == callee]
        assert table.all() == model
        assert all(one.state == (BEGUN if one.begun else UNSPENT) for one in model)
        for one in model:
            found = [table.find(one.identifier, who) for who in (one.caller, one.callee, "Ic")]
            assert found == [one, one, None]
        for one, state in closed.values():
            assert (one.state, table.find(one.identifier, one.caller)) == (state, None)
