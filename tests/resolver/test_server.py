"""The resolver as a server: who may register what there, and who may ask."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from twisted.logger import capturedLogs

from broker.messages.errors import PermissionDenied, RegistrationFailed
from broker.messages.message import Message
from broker.net.request_task import send_refusal
from broker.resolver.registrar import CONNECTIONS_AN_IDENTIFIER
from tests.resolver.apart import FakeResolver
from tests.support.reactor import FakeReactor
from tests.support.transport import Client

COMPLETED = "NOTIFY\nRegistration Completed.\n\n"
DENIED = "NOTIFY\nPermission Denied.\n\n"
NOT_FOUND = "NOTIFY\nCallee not Found.\n\n"
FAILED = "NOTIFY\nRegistration Failed.\nCause:"
BAD = "NOTIFY\nBad Message.\nCause:"
LINK = "REGISTER\nRole:Mediator\n\n"
WHERE = "QUERY\nLOOKUP\nCallee:Ib\n\n"
HERE, THERE = ("127.0.0.1", 1203), ("127.0.0.2", 1203)


def register(*lines: str, identifier: str = "Ib", host: str = "127.0.0.1") -> str:
    """A registration of an address."""
    return "\n".join(["REGISTER", f"Identifier:{identifier}", f"Address:{host}", *lines, "", ""])


def ask(client: Client, text: str) -> str:
    """Type something, and read the answer."""
    client.type(text)
    return client.text()


@pytest.fixture
def resolver() -> FakeResolver:
    """A resolver to which nothing is connected."""
    return FakeResolver(FakeReactor())


class MediatorLinkTests:
    """A mediator's link: the only one that is told addresses."""

    @pytest.mark.parametrize(
        ("secret", "host", "given", "taken"),
        [
            # Without a secret a link is taken from loopback, and from nowhere else, whatever
            # password is given (I25).
            (None, "127.0.0.1", "", True),
            (None, "::1", "", True),
            (None, "192.168.1.5", "x", False),
            (None, "202.224.186.82", "x", False),
            (None, "2400:4000::5", "x", False),
            # Where a secret is set, even loopback must show it; who shows it may be anywhere.
            ("secret", "127.0.0.1", "", False),
            ("secret", "127.0.0.1", "wrong", False),
            ("secret", "127.0.0.1", "secret2", False),
            ("Öffne dich", "202.224.186.82", "Öffne dich", True),
        ],
    )
    def test_when_a_link_is_opened_then_its_source_or_its_secret_decides(
        self, secret: str | None, host: str, given: str, taken: bool
    ) -> None:
        """One that is refused is closed, and what came with it is not answered."""
        client = FakeResolver(FakeReactor(), secret=secret).connect(host)
        password = f"Password:{given}\n" if given else ""
        answer = ask(client, f"REGISTER\nRole:Mediator\n{password}\n{WHERE}")
        assert (answer, client.ended) == ((COMPLETED + NOT_FOUND) if taken else DENIED, not taken)

    def test_lookup_by_anyone_else(self, resolver: FakeResolver) -> None:
        """A stranger and a terminal are denied, the same whether or not the callee exists (I1)."""
        terminal = resolver.connect()
        ask(terminal, register())
        for client in (resolver.connect(), terminal):
            for callee in ("Callee:Ib\n", "Callee:Inobody\n", ""):
                assert ask(client, f"QUERY\nLOOKUP\n{callee}\n") == DENIED

    @pytest.mark.parametrize(
        ("before", "role", "refusal"),
        [
            pytest.param(register(), LINK, FAILED, id="a terminal's connection stays what it is"),
            pytest.param(
                "",
                "REGISTER\nRole:Mediator\nIdentifier:Ia\n\n",
                f"{FAILED}Identifier is not accepted here\n\n",
                id="a link is bound to no identifier",
            ),
        ],
    )
    def test_when_a_terminal_would_be_a_link_then_it_is_refused(
        self, resolver: FakeResolver, before: str, role: str, refusal: str
    ) -> None:
        """No connection is both."""
        client = resolver.connect()
        ask(client, before)
        assert ask(client, role).startswith(refusal)
        assert ask(client, WHERE) == DENIED

    def test_register_and_look_up(self, resolver: FakeResolver) -> None:
        """What a link registers for a terminal, a look-up tells, and for how long (fig. 7, 8); told
        again with its age it holds for all its seconds again (A7); ``Expires:0`` takes it back.

        Whether a terminal may be dialled is the mediator's word, and comes back as told.
        """
        clock, link = resolver.clock, resolver.link()
        where = "Callee Address:202.224.186.82\nCallee Port:1205"
        said = ["Port:1205", "Expires:60", "Dial:Yes"]
        assert ask(link, register(*said, host="202.224.186.82")) == COMPLETED
        clock.advance(10)
        assert ask(link, WHERE) == f"NOTIFY\n{where}\nExpires:50\nDial:Yes\n\n"
        again = register(*said, "Age:11", host="202.224.186.82")
        assert ask(link, again) == COMPLETED
        clock.advance(59)
        assert ask(link, WHERE) == f"NOTIFY\n{where}\nExpires:1\nDial:Yes\n\n"
        clock.advance(1)
        assert ask(link, WHERE) == NOT_FOUND
        ask(link, register())
        assert "Dial" not in ask(link, WHERE)
        assert ask(link, "REGISTER\nIdentifier:Ib\nExpires:0\n\n") == COMPLETED
        assert ask(link, WHERE) == NOT_FOUND

    def test_age(self) -> None:
        """An older address never replaces a newer one, from any link, in any order (I10)."""
        clock = FakeReactor()
        clock.advance(100)
        resolver = FakeResolver(clock)
        one, other = resolver.link(), resolver.link()
        old = register("Age:6", host=THERE[0])
        refused = f"{FAILED}a newer address is registered\n\n"
        assert ask(one, register("Age:5")) == COMPLETED
        assert [ask(link, old) for link in (other, one)] == [refused] * 2
        assert resolver.told("Ib") == HERE
        assert ask(other, register("Age:4", host=THERE[0])) == COMPLETED
        assert resolver.told("Ib") == THERE

    def test_superseded(self, resolver: FakeResolver) -> None:
        """The mediator whose address does not hold now is told so, and no other is (A7)."""
        first, second, terminal = resolver.link(), resolver.link(), resolver.connect()
        telling = "NOTIFY\nSuperseded.\nIdentifier:Ib\n\n"
        by_mediator = register()
        ask(first, by_mediator)
        assert ask(first, by_mediator) == COMPLETED  # its own: it knows
        second.type(by_mediator)
        assert (first.text(), second.text()) == (telling, COMPLETED)
        terminal.type(register())
        assert (first.text(), second.text(), terminal.text()) == ("", telling, COMPLETED)
        ask(first, by_mediator)
        terminal.type("REGISTER\nExpires:0\n\n")
        assert (first.text(), second.text(), terminal.text()) == (telling, "", COMPLETED)
        first.type(by_mediator)
        first.vanish()
        assert ask(second, by_mediator) == COMPLETED


class TerminalTests:
    """A terminal that registers its own address (A7, fig. 7)."""

    def test_held_while_connected(self, resolver: FakeResolver) -> None:
        """Its address holds while the connection is open, and expires after it; what a mediator
        registered outlives its link as long (A7). ``Expires:0`` takes it back.
        """
        clock, client, link = resolver.clock, resolver.connect(), resolver.link()
        assert ask(client, register("Expires:60")) == COMPLETED
        clock.advance(10_000)
        assert "\nExpires:60\n" in ask(link, WHERE)
        ask(link, register("Expires:60", identifier="Ic"))
        client.vanish()
        link.vanish()
        clock.advance(59)
        assert resolver.told("Ib") == resolver.told("Ic") == HERE
        clock.advance(1)
        assert resolver.told("Ib") is resolver.told("Ic") is None
        client = resolver.connect()
        ask(client, register())
        assert ask(client, "REGISTER\nExpires:0\n\n") == COMPLETED
        assert resolver.told("Ib") is None

    def test_newest_wins(self, resolver: FakeResolver) -> None:
        """It moves: the newest address is told, over whichever connection it came (A7)."""
        first, second = resolver.connect(), resolver.connect()
        ask(first, register("Expires:1"))
        ask(second, register("Expires:1", host=THERE[0]))
        first.vanish()
        resolver.clock.advance(100)
        assert resolver.told("Ib") == THERE

    def test_its_own_only(self, resolver: FakeResolver) -> None:
        """A connection that has said who it is registers no other terminal (I4, I5)."""
        client = resolver.connect()
        ask(client, register(identifier="Ia"))
        answer = ask(client, register("Transaction:1"))
        assert "Registration Failed." in answer
        assert "Code:403" in answer
        assert "Registration Failed." in ask(client, "REGISTER\nIdentifier:Ib\nExpires:0\n\n")
        assert resolver.told("Ib") is None
        assert ask(client, f"REGISTER\nAddress:{THERE[0]}\n\n") == COMPLETED
        assert resolver.told("Ia") == THERE

    def test_must_say_who_it_is(self, resolver: FakeResolver) -> None:
        """An address without an identifier belongs to no terminal."""
        answer = ask(resolver.connect(), "REGISTER\nAddress:127.0.0.1\n\n")
        assert answer.startswith("NOTIFY\nLogin Required.\n")

    @pytest.mark.parametrize(
        ("by_mediator", "lines"),
        [
            (True, "Address:127.0.0.1"),
            (True, "Identifier:Ib"),
            (True, "Identifier:Ib\nAddress:0.0.0.0"),
            (True, "Identifier:Ib\nAddress:224.0.0.1"),
            (True, "Identifier:Ib\nAddress:255.255.255.255"),
            (True, "Identifier:Ib\nAddress:host.example.jp"),
            (True, "Identifier:Ib\nAddress:127.0.0.1\nPort:1200"),
            (True, "Identifier:Ib\nAddress:127.0.0.1\nAccept:Add Ia"),
            (False, "Identifier:Ib"),
            (False, "Identifier:Ib\nAddress:127.0.0.1\nAge:5"),
            (False, "Identifier:Ib\nAddress:127.0.0.1\nDial:Yes"),
            (False, "Identifier:Ib\nAddress:127.0.0.1\nAccept:Add Ia"),
            (False, "Identifier:Ib\nAddress:192.168.1.5"),
            (False, "Identifier:Ib\nAddress:0.0.0.0"),
            (False, "Identifier:Ib\nAddress:127.0.0.1\nPort:1200"),
            (False, "Identifier:Ib\nPort:1203"),
        ],
    )
    def test_refused(self, resolver: FakeResolver, by_mediator: bool, lines: str) -> None:
        """What can't be an address of a terminal, or is not a terminal's to say, is refused; it
        changes nothing, and binds the connection to no terminal (I12, I5).
        """
        ask(resolver.link(), register(host="127.0.0.9"))
        client = resolver.link() if by_mediator else resolver.connect()
        assert "Registration Failed." in ask(client, f"REGISTER\n{lines}\n\n")
        assert resolver.told("Ib") == ("127.0.0.9", 1203)
        assert ask(client, register(identifier="Ic")) == COMPLETED

    def test_allowed_networks(self) -> None:
        """The operator may allow addresses of another kind than the connection's (I12)."""
        resolver = FakeResolver(FakeReactor(), allowed=[ip_network("192.168.0.0/16")])
        assert ask(resolver.connect(), register(host="192.168.1.5")) == COMPLETED
        assert "\nDial:Yes\n" in ask(resolver.link(), WHERE)

    def test_connections_an_identifier(self, resolver: FakeResolver) -> None:
        """One identifier has a few connections; one more closes the oldest (I15)."""
        clients = [resolver.connect() for _ in range(CONNECTIONS_AN_IDENTIFIER + 1)]
        for client in clients:
            ask(client, register())
        assert [client.closed for client in clients] == [True] + [False] * (len(clients) - 1)


class ServingTests:
    """What else may come."""

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            # What belongs to a mediator is a bad message here.
            ("QUERY\nCallee:Ib\n\n", BAD),
            ("REQUEST\nCallee:Ib\n\n", BAD),
            ("QUERY\nPERMITS\n\n", BAD),
            # What is no message is answered with its cause (I24).
            (register("Age:-1"), f"{BAD}Age: must be a number\n\n"),
            # A message with a body is refused, and its body is not taken for messages.
            (f"REGISTER\nIdentifier:Ib\nLength:{len(register())}\n\n{register()}", BAD),
            # A NOTIFY gets no answer and changes nothing.
            ("NOTIFY\nIdentifier:Ib\nAddress:127.0.0.1\n\n", ""),
        ],
    )
    def test_when_it_is_not_served_then_the_link_goes_on(
        self, resolver: FakeResolver, text: str, answer: str
    ) -> None:
        """Nothing is registered by it."""
        link = resolver.link()
        came = ask(link, text)
        assert came.startswith(answer)
        assert came.count("NOTIFY") == bool(answer)
        assert ask(link, WHERE) == NOT_FOUND

    def test_unforeseen(self, resolver: FakeResolver) -> None:
        """An unforeseen error is logged, answered without detail, and ends nothing else (I24)."""
        link = resolver.link()
        broken: Any = object()
        resolver.server._locations = broken
        with capturedLogs() as logged:
            assert ask(link, WHERE) == "NOTIFY\nService Unavailable.\n\n"
        (failure,) = [event["log_failure"] for event in logged if "log_failure" in event]
        assert failure.check(AttributeError)
        assert not link.closed
        assert resolver.server.counts["Service Unavailable."] == 1

    def test_no_cause_with_a_bare_refusal(self, resolver: FakeResolver) -> None:
        """What the figures refuse without another word is told so, whatever was raised (I6)."""
        link = resolver.link()
        peer = link.protocol.receiver
        for error in (PermissionDenied("it is there"), RegistrationFailed("it is full")):
            send_refusal(peer.open_request(Message("QUERY")), error)
        assert link.text() == f"{DENIED}{FAILED}it is full\n\n"

    def test_silent_strangers(self, resolver: FakeResolver) -> None:
        """Who connects and says nothing is closed after ten seconds; a link is not (I14). Stopping
        closes every connection and leaves no timer behind.
        """
        silent, link, terminal = resolver.connect(), resolver.link(), resolver.connect()
        ask(terminal, register())
        resolver.clock.advance(10)
        assert [one.closed for one in (silent, link, terminal)] == [True, False, False]
        resolver.server.stop()
        assert link.closed
        assert terminal.closed
        assert not resolver.clock.getDelayedCalls()
