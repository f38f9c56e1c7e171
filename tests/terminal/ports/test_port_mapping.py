"""Ports opened in the router, verified before they are told (terminal.ports.port_mapping)."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from zope.interface import implementer
from zope.interface.verify import verifyObject

from broker.interfaces import IOutsideView, IPortOpener, PortNotOpened
from broker.messages.errors import NotReached, ServiceUnavailable, TooManyRequests
from broker.nat.mapper import MappingEvents, NotMapped
from broker.nat.methods import PortMapping
from broker.terminal.ports.port_mapping import LEASE, VerifiedPortMapper
from tests.terminal.network import Outcome

LOCAL = "192.168.1.2"
OUTSIDE = "11.0.113.1"
PORT = 1203


def _mapping(address: str, port: int) -> PortMapping:
    return PortMapping("TCP", PORT, address, port, LEASE, LEASE, "PCP")


class Router:
    """A router that is asked by a mapper, as ``PortMapper`` is one.

    :ivar says: what it says of the next port; nothing yet, without
    :ivar open: the ports that it has open
    :ivar asked: how often it was asked to open one
    :ivar slow: whether it takes its time to close one
    """

    def __init__(
        self, address: str = OUTSIDE, port: int = 7000, says: Exception | None = None
    ) -> None:
        self.says: PortMapping | Exception | None = says or _mapping(address, port)
        self.open: set[int] = set()
        self.asked = 0
        self.slow = False
        self.stopped = False
        self.pending: list[Deferred[PortMapping]] = []
        self.closing: list[Deferred[None]] = []
        self.events: MappingEvents | None = None

    def map(
        self, protocol: str, port: int, lifetime: int, events: MappingEvents
    ) -> Deferred[PortMapping]:
        """Open a port."""
        self.events = events
        assert (protocol, lifetime) == ("TCP", LEASE)
        assert port not in self.open, "it is open already"
        assert not [one for one in self.closing if not one.called], "it is being closed"
        self.asked += 1
        if self.says is None:
            self.pending.append(Deferred())
            return self.pending[-1]
        if isinstance(self.says, Exception):
            return fail(self.says)
        self.open.add(port)
        return succeed(self.says)

    def unmap(self, protocol: str, port: int) -> Deferred[None]:
        """Close it."""
        self.open.discard(port)
        self.closing.append(Deferred())
        if not self.slow:
            self.closing[-1].callback(None)
        return self.closing[-1]

    def stop(self) -> Deferred[None]:
        """Close all."""
        self.open.clear()
        self.stopped = True
        return succeed(None)

    def moves(self, now: PortMapping | None) -> None:
        """The port is another, or none, all of a sudden."""
        before = _mapping(OUTSIDE, 7000)
        if now is None:
            self.open.clear()
        assert self.events is not None
        self.events.mapping_changed(before, now, "it has restarted")


@implementer(IOutsideView)
class View:
    """A line to a mediator that sees a terminal at an address.

    :ivar tried: the ports that were tried
    :ivar fails: what a try comes to, where it fails
    :ivar held: tries that are under way, where they take their time
    """

    def __init__(
        self,
        host: str = OUTSIDE,
        local: str = LOCAL,
        fails: Exception | None = None,
        gone: Exception | None = None,
    ) -> None:
        self.local_host = local
        self.host = host
        self.tried: list[int] = []
        self.fails = fails
        self.gone = gone
        self.held: list[Deferred[tuple[str, int]]] | None = None

    def outside(self, port: int | None = None) -> Deferred[tuple[str, int]]:
        """As its mediator sees it."""
        if self.gone is not None:
            return fail(self.gone)
        if port is None:
            return succeed((self.host, 50000))
        self.tried.append(port)
        if self.held is not None:
            self.held.append(Deferred())
            return self.held[-1]
        return succeed((self.host, port)) if self.fails is None else fail(self.fails)


class House:
    """A terminal behind a router."""

    def __init__(self, router: Router | None = None, view: View | None = None) -> None:
        self.router = router or Router()
        self.view = view or View()
        self.opener = VerifiedPortMapper(self.router)
        self.lost: list[str] = []

    def open(self, view: View | None = None) -> Outcome:
        """Have the port opened."""
        opening = self.opener.open(PORT, view or self.view, self.lost.append)
        return Outcome(Deferred.fromCoroutine(opening))

    def close(self) -> Outcome:
        """Have it closed."""
        return Outcome(Deferred.fromCoroutine(self.opener.close(PORT)))

    def refuses(self, why: str) -> None:
        """It can't be had: the cause is told, and nothing stays open."""
        outcome = self.open()
        assert isinstance(outcome.error, PortNotOpened)
        assert str(outcome.error) == why
        assert self.router.open == set()
        self.router.says = _mapping(OUTSIDE, 7000)  # and it may be tried again
        self.view.host, self.view.fails, self.view.gone = OUTSIDE, None, None
        assert self.open().value == (OUTSIDE, 7000)


@pytest.fixture
def house() -> House:
    """A terminal behind a router that opens what it is asked for."""
    return House()


class VerifiedTests:
    """It is verified, not believed (D9, I12)."""

    def test_opened(self, house: House) -> None:
        """The address that the mediator sees, and the router's port, once that was reached."""
        assert verifyObject(IPortOpener, house.opener)
        assert verifyObject(IOutsideView, house.view)
        house.view.held = []
        outcome = house.open()
        assert house.view.tried == [7000]
        assert not outcome.done
        house.view.held[0].callback((OUTSIDE, 7000))
        assert outcome.value == (OUTSIDE, 7000)
        assert house.router.open == {PORT}

    @pytest.mark.parametrize(
        ("router", "view", "why"),
        [
            (
                Router("192.168.1.2"),
                View("11.0.113.1"),
                "the router says its outside address is 192.168.1.2, the mediator sees 11.0.113.1:"
                " another router is in between",
            ),
            (
                Router(),
                View(fails=NotReached("nothing answers at 11.0.113.1 port 7000 from here")),
                "the router has opened its port 7000 by PCP; the mediator has tried it:"
                " nothing answers at 11.0.113.1 port 7000 from here",
            ),
            (
                Router(),
                View(fails=TooManyRequests("wait a minute")),
                "the router has opened its port 7000 by PCP; the mediator has tried it:"
                " wait a minute",
            ),
            # What became of each method is told.
            (
                Router(says=NotMapped("PCP: silent", "UPnP: no router answers")),
                View(),
                "PCP: silent; UPnP: no router answers",
            ),
            # Nothing is asked of the router then.
            (
                Router(),
                View(gone=ServiceUnavailable("the mediator did not answer")),
                "the mediator does not say where we are: the mediator did not answer",
            ),
            (
                Router(),
                View("2001:db8::7"),
                "the mediator sees 2001:db8::7, and no router is asked by IPv6",
            ),
        ],
    )
    def test_refused(self, router: Router, view: View, why: str) -> None:
        """What is not so is not told as an address: the cause is."""
        seen = view.host if view.gone is None else ""
        House(router, view).refuses(why)
        asks_nothing = not seen or ":" in seen
        assert router.asked == (1 if asks_nothing else 2)  # once is afterwards
        assert view.tried == [7000] * (2 if "has tried it" in why else 1)

    def test_a_closed_network(self) -> None:
        """A private address is as good, if it is the one that is seen (D10)."""
        house = House(Router("10.0.0.9"), View("10.0.0.9"))
        assert house.open().value == ("10.0.0.9", 7000)

    def test_the_line_goes(self, house: House) -> None:
        """The line's own failure is told as such, and what was opened is closed."""
        house.view.fails = ConnectionLost()
        outcome = house.open()
        assert isinstance(outcome.error, ConnectionLost)
        assert house.router.open == set()

    def test_closed_again_meanwhile(self, house: House) -> None:
        """What the router takes back while it is being tried is not told."""
        house.view.held = []
        outcome = house.open()
        house.router.moves(None)
        house.view.held[0].callback((OUTSIDE, 7000))
        assert str(outcome.error) == "the router has closed it again"


class NoRouterTests:
    """A host that is seen at its own address needs nothing opened (D10)."""

    def test_its_own_address(self) -> None:
        """It is tried too; what can't be reached, behind a firewall, is told."""
        house = House(view=View(LOCAL))
        assert house.open().value == (LOCAL, PORT)
        assert (house.view.tried, house.router.asked) == ([PORT], 0)
        assert house.close().done
        house.view.fails = NotReached("nothing answers")
        assert str(house.open().error) == "the mediator has tried it: nothing answers"


class SharedTests:
    """Several may want one port; it is closed with the last, and never left open (D9)."""

    def test_closed_with_the_last(self, house: House) -> None:
        """The second does not ask the router, nor is it tried again."""
        assert house.open().value == house.open().value == (OUTSIDE, 7000)
        assert (house.router.asked, house.view.tried) == (1, [7000])
        assert house.close().done
        assert house.router.open == {PORT}
        assert house.close().done
        assert house.router.open == set()
        assert house.close().done  # once too often

    @pytest.mark.parametrize("which", [0, 1, None])
    def test_both_at_once(self, which: int | None, house: House) -> None:
        """The second waits for what becomes of the first. Where one is given up the other has it:
        the second opens it for itself, if it is the first that is given up.
        """
        house.view.held = []
        both = [house.open(), house.open()]
        wanted = [outcome for number, outcome in enumerate(both) if number != which]
        if which is not None:
            both[which].deferred.cancel()
            assert isinstance(both[which].error, CancelledError)
        house.view.held[-1].callback((OUTSIDE, 7000))
        assert [outcome.value for outcome in wanted] == [(OUTSIDE, 7000)] * len(wanted)
        assert house.router.asked == (2 if which == 0 else 1)
        for _ in wanted:
            house.close()
        assert house.router.open == set()

    @pytest.mark.parametrize("when", ["opening", "trying"])
    def test_given_up(self, when: str, house: House) -> None:
        """Whatever it waits for, nothing stays open."""
        if when == "opening":
            house.router.says = None
        house.view.held = []
        outcome = house.open()
        outcome.deferred.cancel()
        assert isinstance(outcome.error, CancelledError)
        assert house.router.open == set()

    def test_opened_while_it_is_closed(self, house: House) -> None:
        """It is asked for again when the router has closed it, and not before."""
        house.router.slow = True
        house.open()
        closing = house.close()
        outcome = house.open()
        assert (house.router.asked, closing.done, outcome.done) == (1, False, False)
        house.router.closing[0].callback(None)
        assert closing.done
        assert outcome.value == (OUTSIDE, 7000)
        assert house.router.open == {PORT}

    def test_stopped(self, house: House) -> None:
        """All is closed, whatever is in use."""
        house.open()
        assert house.opener.stop().called
        assert house.router.stopped
        assert house.close().done


class ChangedTests:
    """The router, or the place, is another."""

    def test_elsewhere(self, house: House) -> None:
        """A terminal that is seen elsewhere has it opened there, and tried."""
        house.open()
        house.router.says = _mapping("11.0.113.9", 7001)
        there = View("11.0.113.9")
        assert house.open(there).value == ("11.0.113.9", 7001)
        assert (house.router.asked, there.tried) == (2, [7001])
        house.close()
        house.close()
        assert house.router.open == set()

    def test_not_to_be_had_there(self, house: House) -> None:
        """What was open where the terminal was is closed, though it is in use."""
        house.open()
        there = View("11.0.113.9")
        there.fails = NotReached("nothing answers")
        house.router.says = _mapping("11.0.113.9", 7001)
        assert isinstance(house.open(there).error, PortNotOpened)
        assert house.router.open == set()
        house.close()
        assert house.open().done

    def test_lost(self, house: House) -> None:
        """A user is told once, however often it has had it opened, as over one line after another;
        asked again, it is opened again. What is closed changes nothing.
        """
        for _ in range(3):
            house.open()
        house.router.moves(None)
        house.router.moves(None)
        assert house.lost == ["it has restarted"]
        assert house.open().value == (OUTSIDE, 7000)
        assert house.router.asked == 2
        for _ in range(4):
            assert house.router.open == {PORT}
            house.close()
        assert house.router.open == set()
        house.router.moves(None)
        assert house.lost == ["it has restarted"]

    def test_moved(self, house: House) -> None:
        """Another port of the same router: it is tried, and not asked for again."""
        house.open()
        house.router.moves(_mapping(OUTSIDE, 7009))
        assert house.lost == ["it has restarted"]
        assert house.open().value == (OUTSIDE, 7009)
        assert (house.router.asked, house.view.tried) == (1, [7000, 7009])
