"""The location table (fig. 7): the newest contact wins, old ones expire (A7, I10)."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
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


class RegisterTests:
    """What is registered over the terminal's own connection."""

    def test_newest_wins(self, table: LocationTable) -> None:
        """A later registration replaces an earlier one; else there is none (A7, A8, S807)."""
        assert contact(table, 0) is None
        old, new = at(1), at(2, host="202.224.186.83")
        assert table.register("Ib", old)
        assert table.register("Ib", new)
        assert contact(table, 3) is new

    def test_older_never_replaces_newer(self, table: LocationTable) -> None:
        """A registration that arrives late leaves the newer one in force, and says so (I10)."""
        new = at(2)
        table.register("Ib", new)
        assert not table.register("Ib", at(1, host="10.0.0.1"))
        assert not table.renew("Ib", at(1, host="10.0.0.1"), 3)
        assert contact(table, 3) is new

    def test_expiry(self, table: LocationTable) -> None:
        """A contact is told until its seconds have passed, and not at that moment (I10)."""
        table.register("Ib", at(100, expires=60))
        assert contact(table, 159.999)
        assert not contact(table, 160)

    def test_held_does_not_expire(self, table: LocationTable) -> None:
        """While its connection is open it is in force; then its lifetime begins."""
        mine = at(100, expires=60)
        table.register("Ib", mine, held=True)
        assert table.lookup("Ib", 10**9) == (mine, inf)
        table.release("Ib", mine, 1000)
        assert contact(table, 1059)
        assert not contact(table, 1060)

    def test_release_of_a_replaced_contact(self, table: LocationTable) -> None:
        """A connection that closes releases its own contact alone, not an equal one."""
        first, second = at(1), at(1)
        table.register("Ib", first, held=True)
        table.register("Ib", second, held=True)
        table.release("Ib", first, 2)
        assert contact(table, 10**6) is second

    def test_withdrawal(self, table: LocationTable) -> None:
        """What is withdrawn is not told; to withdraw what is not there does nothing."""
        table.register("Ib", at(1), held=True)
        table.withdraw("Ib")
        table.withdraw("Ib")
        assert contact(table, 2) is None
        assert len(table) == 0


class RenewTests:
    """What another server vouches for."""

    def test_renewed(self, table: LocationTable) -> None:
        """The same contact is prolonged from then on, whatever its age (I10)."""
        table.renew("Ib", at(100), 100)
        assert table.renew("Ib", at(99.5), 150)
        assert contact(table, 209.9)
        assert not contact(table, 210)

    def test_never_shortens_what_is_held(self, table: LocationTable) -> None:
        """A mediator's older word of the contact that a connection holds changes nothing."""
        table.register("Ib", at(100), held=True)
        assert table.renew("Ib", at(99), 150)
        assert contact(table, 10**6)

    @pytest.mark.parametrize("swept", [False, True])
    def test_expired_is_replaced(self, table: LocationTable, swept: bool) -> None:
        """Once the newer has expired, an older one that has not is taken, swept or not."""
        table.renew("Ib", at(100, expires=10), 100)
        if swept:
            table.prune(110)
        older = at(50, host="10.0.0.1")
        assert table.renew("Ib", older, 110)
        assert contact(table, 111) is older

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["renewed", "withdrawn", "swept"]),
                st.integers(0, 30),  # seconds that pass before it
                st.integers(0, 40),  # the contact's age
                st.integers(1, 50),  # its lifetime
            ),
            max_size=20,
        )
    )
    def test_as_the_model(self, events: list[tuple[str, int, int, int]]) -> None:
        """In whatever order contacts of any age come in, the newest in force is told.

        Each has a host of its own, so that none renews another; sweeping makes no difference
        (A7, I10).
        """
        table = LocationTable()
        now = 1000.0
        model: tuple[float, float, str] | None = None  # registered, until, host
        for number, (event, passed, age, expires) in enumerate(events):
            now += passed
            if model is not None and model[1] <= now:
                model = None
            if event == "swept":
                table.prune(now)
            elif event == "withdrawn":
                table.withdraw("Ib")
                model = None
            else:
                host = f"10.0.0.{number}"
                newer = model is None or now - age >= model[0]
                assert table.renew("Ib", at(now - age, host=host, expires=expires), now) == newer
                if newer:
                    model = (now - age, now + expires, host)
            binding = table.lookup("Ib", now)
            told = None if binding is None else (binding.contact.host, binding.until)
            assert told == (None if model is None else (model[2], model[1]))


class SizeTests:
    """How much it holds."""

    def test_cap(self) -> None:
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

    def test_prune(self, table: LocationTable) -> None:
        """Sweeping removes what has expired, and only that, and says how many."""
        table.register("Ia", at(0, expires=10))
        table.register("Ib", at(0, expires=11))
        table.register("Ic", at(0, expires=1), held=True)
        assert table.prune(10) == 1
        assert len(table) == 2
