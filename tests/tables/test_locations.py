"""The location table (fig. 7): the newest contact wins, old ones expire (A7, I10)."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.tables.locations import AddressRefused, Contact, LocationTable


def at(registered: float, *, host: str = "202.224.186.82", expires: int = 60) -> Contact:
    """A contact registered at that time."""
    return Contact(host, 1203, registered, expires)


def contact(table: LocationTable, now: float, identifier: str = "Ib") -> Contact | None:
    """The contact in force."""
    binding = table.lookup(identifier, now)
    return None if binding is None else binding.contact


@pytest.fixture
def table() -> LocationTable:
    """An empty table."""
    return LocationTable()


def test_held_does_not_expire(table: LocationTable) -> None:
    """While its connection is open it is in force; then its lifetime begins.

    A mediator's older word of it meanwhile changes nothing.
    """
    mine = at(100, expires=60)
    table.register("Ib", mine, held=True)
    assert table.renew("Ib", at(99), 150)
    assert table.lookup("Ib", 10**9) == (mine, inf)
    table.release("Ib", mine, 1000)
    assert contact(table, 1059)
    assert not contact(table, 1060)


def test_release_of_a_replaced_contact(table: LocationTable) -> None:
    """A connection that closes releases its own contact alone, not an equal one."""
    first, second = at(1), at(1)
    table.register("Ib", first, held=True)
    table.register("Ib", second, held=True)
    table.release("Ib", first, 2)
    assert contact(table, 10**6) is second


def test_renewed(table: LocationTable) -> None:
    """The same contact is prolonged from then on, whatever its age (I10)."""
    table.renew("Ib", at(100), 100)
    assert table.renew("Ib", at(99.5), 150)
    assert contact(table, 209.9)
    assert not contact(table, 210)


@settings(deadline=None, max_examples=150)
@example([("register", 0, 2, 60), ("register", 0, 3, 60), ("renew", 0, 3, 60)])
@example([("renew", 0, 0, 10), ("renew", 10, 60, 60)])
@example([("renew", 0, 0, 10), ("prune", 10, 0, 1), ("renew", 0, 60, 60)])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "renew", "withdraw", "prune"]),
            st.integers(0, 30),  # seconds that pass before it
            st.integers(0, 40),  # the contact's age
            st.integers(1, 50),  # its lifetime
        ),
        max_size=20,
    )
)
def test_as_the_model(events: list[tuple[str, int, int, int]]) -> None:
    """In whatever order contacts of any age come, the newest in force is told (A7, A8, S807).

    It is told until its seconds have passed, and not at that moment: a registered one's begin
    when it was registered, a renewed one's when it is renewed. An older one never replaces it,
    and it is said so; once it has expired an older one may, swept or not. What is withdrawn is
    not told. Each has a host of its own, so that none renews another (I10).
    """
    table = LocationTable()
    now = 1000.0
    model: tuple[float, float, str] | None = None  # registered, until, host
    for number, (event, passed, age, expires) in enumerate(events):
        now += passed
        if event == "prune":
            gone = model is not None and model[1] <= now
            assert table.prune(now) == gone
            model = None if gone else model
        elif event == "withdraw":
            table.withdraw("Ib")
            assert len(table) == 0
            model = None
        else:
            made = at(now - age, host=f"10.0.0.{number}", expires=expires)
            if event == "renew":
                live = model if model is not None and model[1] > now else None
                until, taken = now + expires, table.renew("Ib", made, now)
            else:
                live = model
                until, taken = made.registered + expires, table.register("Ib", made)
            assert taken == (live is None or made.registered >= live[0])
            if taken:
                model = (made.registered, until, made.host)
        binding = table.lookup("Ib", now)
        told = None if binding is None else (binding.contact.host, binding.until)
        assert told == (model[:0:-1] if model is not None and model[1] > now else None)


def test_cap() -> None:
    """A full table takes no new identifier, and goes on for those it knows (I15, I5)."""
    table = LocationTable(most=2)
    table.register("Ia", at(1))
    table.register("Ib", at(1))
    with pytest.raises(AddressRefused):
        table.register("Ic", at(2))
    with pytest.raises(AddressRefused):
        table.renew("Ic", at(2), 2)
    assert contact(table, 3, "Ic") is None
    assert table.register("Ib", at(2))
    assert table.renew("Ia", at(2), 2)
    assert len(table) == 2


def test_prune(table: LocationTable) -> None:
    """Sweeping removes what has expired, and only that, and says how many."""
    table.register("Ia", at(0, expires=10))
    table.register("Ib", at(0, expires=11))
    table.register("Ic", at(0, expires=1), held=True)
    assert table.prune(10) == 1
    assert len(table) == 2
