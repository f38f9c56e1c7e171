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
from tests.resolver.apart import PORT, FakeResolver
from tests.support.reactor import FakeReactor
from tests.support.transport import Client

COMPLETED = "NOTIFY\nRegistration Completed.\n\n"
DENIED = "NOTIFY\nPermission Denied.\n\n"
NOT_FOUND = "NOTIFY\nCallee not Found.\n\n"
LINK = "REGISTER\nRole:Mediator\n\n"
WHERE = "QUERY\nLOOKUP\nCallee:Ib\n\n"


def ask(client: Client, text: str) -> str:
    """Type something, and read the answer."""
    client.type(text)
    return client.text()


def fields_of(client: Client, callee: str = "Ib") -> dict[str, str]:
    """What a look-up over a link answers."""
    client.send(Message.of("QUERY", {"": "LOOKUP", "Callee": callee}))
    (answer,) = client.received()
    return answer.fields


@pytest.fixture
def resolver() -> FakeResolver:
    """A resolver to which nothing is connected."""
    return FakeResolver(FakeReactor())


class MediatorLinkTests:
    """A mediator's link: the only one that is told addresses."""

    def test_from_loopback_without_a_secret(self, resolver: FakeResolver) -> None:
        """Without a secret a link is taken from loopback."""
        assert ask(resolver.connect(), LINK) == COMPLETED
        assert ask(resolver.connect("::1"), LINK) == COMPLETED

    @pytest.mark.parametrize("host", ["192.168.1.5", "202.224.186.82", "2400:4000::5"])
    def test_from_elsewhere_without_a_secret(self, resolver: FakeResolver, host: str) -> None:
        """Without a secret nobody else opens a link, whatever password is given (I25)."""
        client = resolver.connect(host)
        assert ask(client, "REGISTER\nRole:Mediator\nPassword:x\n\n") == DENIED
        assert client.ended

    @pytest.mark.parametrize("given", ["", "Password:wrong\n", "Password:secret2\n"])
    def test_with_a_wrong_secret(self, given: str) -> None:
        """Where a secret is set, even loopback must show it; else it is refused and closed."""
        resolver = FakeResolver(FakeReactor(), secret="secret")
        client = resolver.connect()
        client.type(f"REGISTER\nRole:Mediator\n{given}\n{WHERE}")
        assert client.text() == DENIED, "and what came with it is not answered"
        assert client.ended

    def test_with_the_secret(self) -> None:
        """Who shows the secret is taken, from anywhere."""
        resolver = FakeResolver(FakeReactor(), secret="Öffne dich")
        client = resolver.connect("202.224.186.82")
        assert ask(client, "REGISTER\nRole:Mediator\nPassword:Öffne dich\n\n") == COMPLETED
        assert ask(client, WHERE) == NOT_FOUND

    def test_lookup_by_anyone_else(self, resolver: FakeResolver) -> None:
        """A stranger and a terminal are denied, the same whether or not the callee exists (I1)."""
        terminal = resolver.connect()
        ask(terminal, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        for client in (resolver.connect(), terminal):
            for callee in ("Ib", "Inobody"):
                assert ask(client, f"QUERY\nLOOKUP\nCallee:{callee}\n\n") == DENIED
            assert ask(client, "QUERY\nLOOKUP\n\n") == DENIED

    def test_a_terminals_connection_becomes_no_link(self, resolver: FakeResolver) -> None:
        """A connection that belongs to a terminal is refused as a link, and stays what it is."""
        client = resolver.connect()
        ask(client, "REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\n\n")
        assert "Registration Failed." in ask(client, LINK)
        assert ask(client, WHERE) == DENIED

    def test_a_link_has_no_identifier(self, resolver: FakeResolver) -> None:
        """``Role`` with an ``Identifier`` is refused: a link is bound to none."""
        client = resolver.connect()
        answer = ask(client, "REGISTER\nRole:Mediator\nIdentifier:Ia\n\n")
        assert answer == "NOTIFY\nRegistration Failed.\nCause:Identifier is not accepted here\n\n"
        assert ask(client, WHERE) == DENIED

    def test_register_and_look_up(self, resolver: FakeResolver) -> None:
        """What a link registers for a terminal, a look-up tells, and for how long (fig. 7, 8)."""
        clock = resolver.clock
        link = resolver.link()
        said = "REGISTER\nIdentifier:Ib\nAddress:202.224.186.82\nPort:1205\nExpires:60\n\n"
        assert ask(link, said) == COMPLETED
        clock.advance(10)
        assert ask(link, WHERE) == (
            "NOTIFY\nCallee Address:202.224.186.82\nCallee Port:1205\nExpires:50\n\n"
        )
        clock.advance(50)
        assert ask(link, WHERE) == NOT_FOUND

    def test_the_links_end_ends_no_address(self, resolver: FakeResolver) -> None:
        """What a mediator registered outlives its link, until it expires (A7)."""
        clock = resolver.clock
        link = resolver.link()
        ask(link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nExpires:60\n\n")
        link.vanish()
        clock.advance(59)
        assert resolver.told("Ib") == ("127.0.0.1", 1203)
        clock.advance(1)
        assert resolver.told("Ib") is None

    def test_age(self) -> None:
        """An older address never replaces a newer one, whoever tells it, in any order (I10)."""
        clock = FakeReactor()
        clock.advance(100)
        resolver = FakeResolver(clock)
        one, other = resolver.link(), resolver.link()
        new = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAge:5\n\n"
        old = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.2\nAge:6\n\n"
        refused = "NOTIFY\nRegistration Failed.\nCause:a newer address is registered\n\n"
        assert ask(one, new) == COMPLETED
        assert ask(other, old) == refused
        assert ask(one, old) == refused
        assert resolver.told("Ib") == ("127.0.0.1", 1203)
        assert ask(other, old.replace("Age:6", "Age:4")) == COMPLETED
        assert resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_refreshed(self, resolver: FakeResolver) -> None:
        """Told again with its age, an address holds anew for all its seconds (A7)."""
        clock = resolver.clock
        link = resolver.link()
        ask(link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nExpires:60\n\n")
        clock.advance(30)
        said = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nExpires:60\nAge:31\n\n"
        assert ask(link, said) == COMPLETED
        clock.advance(59)
        assert resolver.told("Ib") == ("127.0.0.1", 1203)

    def test_dial(self, resolver: FakeResolver) -> None:
        """Whether a terminal may be dialled is the mediator's word, and comes back as told."""
        link = resolver.link()
        ask(link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nDial:Yes\n\n")
        ask(link, "REGISTER\nIdentifier:Ic\nAddress:127.0.0.1\n\n")
        assert fields_of(link, "Ib")["Dial"] == "Yes"
        assert "Dial" not in fields_of(link, "Ic")

    def test_superseded(self, resolver: FakeResolver) -> None:
        """The mediator whose address no longer holds is told so, and nobody else is (A7)."""
        first, second = resolver.link(), resolver.link()
        terminal = resolver.connect()
        telling = "NOTIFY\nSuperseded.\nIdentifier:Ib\n\n"
        by_mediator = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n"
        first.type(by_mediator)
        first.text()
        first.type(by_mediator)  # its own: it knows
        assert first.text() == COMPLETED
        second.type(by_mediator)
        assert (first.text(), second.text()) == (telling, COMPLETED)
        terminal.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        assert (first.text(), second.text(), terminal.text()) == ("", telling, COMPLETED)
        first.type(by_mediator)
        first.text()
        terminal.type("REGISTER\nExpires:0\n\n")
        assert (first.text(), second.text(), terminal.text()) == (telling, "", COMPLETED)
        first.type(by_mediator)
        first.vanish()
        second.type(by_mediator)
        assert second.text() == COMPLETED

    def test_withdrawn(self, resolver: FakeResolver) -> None:
        """``Expires:0`` takes an address back."""
        link = resolver.link()
        ask(link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        assert ask(link, "REGISTER\nIdentifier:Ib\nExpires:0\n\n") == COMPLETED
        assert ask(link, WHERE) == NOT_FOUND

    @pytest.mark.parametrize(
        "lines",
        [
            "Address:127.0.0.1",
            "Identifier:Ib",
            "Identifier:Ib\nAddress:0.0.0.0",
            "Identifier:Ib\nAddress:224.0.0.1",
            "Identifier:Ib\nAddress:255.255.255.255",
            "Identifier:Ib\nAddress:host.example.jp",
            "Identifier:Ib\nAddress:127.0.0.1\nPort:1200",
            "Identifier:Ib\nAddress:127.0.0.1\nAccept:Add Ia",
        ],
    )
    def test_refused(self, resolver: FakeResolver, lines: str) -> None:
        """What can't be an address of a terminal is refused, and changes nothing (I12, I5)."""
        link = resolver.link()
        ask(link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.9\n\n")
        assert "Registration Failed." in ask(link, f"REGISTER\n{lines}\n\n")
        assert resolver.told("Ib") == ("127.0.0.9", 1203)

    def test_correlation(self, resolver: FakeResolver) -> None:
        """Of many questions in one piece each has its own answer (I11)."""
        link = resolver.link()
        many = 300
        for n in range(many):
            link.feed(
                f"REGISTER\nIdentifier:I{n}\nAddress:127.0.0.1\nPort:{2000 + n}\n"
                f"Transaction:r{n}\n\n".encode()
            )
            link.feed(f"QUERY\nLOOKUP\nCallee:I{n}\nTransaction:q{n}\n\n".encode())
        answers = {message.fields["Transaction"]: message for message in link.received()}
        assert len(answers) == 2 * many
        for n in range(many):
            assert answers[f"q{n}"].fields["Callee Port"] == str(2000 + n)
            assert answers[f"q{n}"].fields["Code"] == "200"

    def test_full(self) -> None:
        """A full table refuses who is new, with its cause (I15)."""
        resolver = FakeResolver(FakeReactor(), most=1)
        link = resolver.link()
        ask(link, "REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\n\n")
        assert "Cause:the table of addresses is full" in ask(
            link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n"
        )
        assert ask(link, WHERE) == NOT_FOUND


class TerminalTests:
    """A terminal that registers its own address (A7, fig. 7)."""

    def test_held_while_connected(self, resolver: FakeResolver) -> None:
        """Its address holds while the connection is open, and expires after it (A7)."""
        clock = resolver.clock
        client = resolver.connect()
        said = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nExpires:60\n\n"
        assert ask(client, said) == COMPLETED
        clock.advance(10_000)
        assert fields_of(resolver.link())["Expires"] == "60"
        client.vanish()
        clock.advance(59)
        assert resolver.told("Ib") == ("127.0.0.1", 1203)
        clock.advance(1)
        assert resolver.told("Ib") is None

    def test_newest_wins(self, resolver: FakeResolver) -> None:
        """It moves: the newest address is told, over whichever connection it came (A7)."""
        clock = resolver.clock
        first, second = resolver.connect(), resolver.connect()
        ask(first, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nExpires:1\n\n")
        ask(second, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.2\nExpires:1\n\n")
        first.vanish()
        clock.advance(100)
        assert resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_its_own_only(self, resolver: FakeResolver) -> None:
        """A connection that has said who it is registers nobody else (I4, I5)."""
        client = resolver.connect()
        ask(client, "REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\n\n")
        answer = ask(client, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nTransaction:1\n\n")
        assert "Registration Failed." in answer
        assert "Code:403" in answer
        assert resolver.told("Ib") is None
        assert "Registration Failed." in ask(client, "REGISTER\nIdentifier:Ib\nExpires:0\n\n")
        assert ask(client, "REGISTER\nAddress:127.0.0.2\n\n") == COMPLETED
        assert resolver.told("Ia") == ("127.0.0.2", 1203)

    def test_must_say_who_it_is(self, resolver: FakeResolver) -> None:
        """An address without an identifier is nobody's."""
        answer = ask(resolver.connect(), "REGISTER\nAddress:127.0.0.1\n\n")
        assert answer.startswith("NOTIFY\nLogin Required.\n")

    @pytest.mark.parametrize(
        "lines",
        [
            "",
            "Address:127.0.0.1\nAge:5\n",
            "Address:127.0.0.1\nDial:Yes\n",
            "Address:127.0.0.1\nAccept:Add Ia\n",
            "Address:192.168.1.5\n",
            "Address:0.0.0.0\n",
            "Address:127.0.0.1\nPort:1200\n",
            "Port:1203\n",
        ],
    )
    def test_refused(self, resolver: FakeResolver, lines: str) -> None:
        """What is not a terminal's to say is refused, and binds nobody (I5, I12)."""
        client = resolver.connect()
        assert "Registration Failed." in ask(client, f"REGISTER\nIdentifier:Ib\n{lines}\n")
        assert resolver.told("Ib") is None
        assert ask(client, "REGISTER\nIdentifier:Ic\nAddress:127.0.0.1\n\n") == COMPLETED

    def test_allowed_networks(self) -> None:
        """The operator may allow addresses of another kind than the connection's (I12)."""
        resolver = FakeResolver(FakeReactor(), allowed=[ip_network("192.168.0.0/16")])
        client = resolver.connect()
        assert ask(client, "REGISTER\nIdentifier:Ib\nAddress:192.168.1.5\n\n") == COMPLETED
        assert fields_of(resolver.link())["Dial"] == "Yes"

    def test_withdrawn(self, resolver: FakeResolver) -> None:
        """``Expires:0`` takes its address back."""
        client = resolver.connect()
        ask(client, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        assert ask(client, "REGISTER\nExpires:0\n\n") == COMPLETED
        assert resolver.told("Ib") is None

    def test_connections_an_identifier(self, resolver: FakeResolver) -> None:
        """One identifier has a few connections; one more closes the oldest (I15)."""
        clients = [resolver.connect() for _ in range(CONNECTIONS_AN_IDENTIFIER + 1)]
        for client in clients:
            ask(client, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        assert [client.closed for client in clients] == [True] + [False] * (len(clients) - 1)


class ServingTests:
    """What else may come."""

    @pytest.mark.parametrize(
        "text", ["QUERY\nCallee:Ib\n\n", "REQUEST\nCallee:Ib\n\n", "QUERY\nPERMITS\n\n"]
    )
    def test_not_served(self, resolver: FakeResolver, text: str) -> None:
        """What belongs to a mediator is a bad message here, and the connection goes on."""
        link = resolver.link()
        assert ask(link, text).startswith("NOTIFY\nBad Message.\nCause:")
        assert ask(link, WHERE) == NOT_FOUND

    def test_bodies(self, resolver: FakeResolver) -> None:
        """A message with a body is refused, and its body is not taken for messages."""
        link = resolver.link()
        body = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n"
        answer = ask(link, f"REGISTER\nIdentifier:Ib\nLength:{len(body)}\n\n{body}{WHERE}")
        assert answer.startswith("NOTIFY\nBad Message.\n")
        assert answer.endswith(NOT_FOUND)

    def test_notify_is_never_answered(self, resolver: FakeResolver) -> None:
        """A ``NOTIFY`` gets no answer and changes nothing."""
        link = resolver.link()
        assert ask(link, "NOTIFY\nIdentifier:Ib\nAddress:127.0.0.1\n\n") == ""
        assert resolver.told("Ib") is None

    def test_malformed(self, resolver: FakeResolver) -> None:
        """What is no message is answered with its cause, and the link goes on (I24)."""
        link = resolver.link()
        answer = ask(link, "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAge:-1\n\n")
        assert answer == "NOTIFY\nBad Message.\nCause:Age: must be a number\n\n"
        assert ask(link, WHERE) == NOT_FOUND

    def test_unforeseen(self, resolver: FakeResolver) -> None:
        """What nobody foresaw is logged, answered without detail, and ends nothing else (I24)."""
        link = resolver.link()
        broken: Any = object()
        resolver.server._locations = broken
        with capturedLogs() as logged:
            assert ask(link, WHERE) == "NOTIFY\nService Unavailable.\n\n"
        (failure,) = [event["log_failure"] for event in logged if "log_failure" in event]
        assert failure.check(AttributeError)
        assert not link.closed
        assert resolver.server.counts["Service Unavailable."] == 1

    def test_no_cause_beside_a_bare_refusal(self, resolver: FakeResolver) -> None:
        """What the figures refuse without a word more is told so, whatever was raised (I6)."""
        link = resolver.link()
        peer = link.protocol.receiver
        for error in (PermissionDenied("it is there"), RegistrationFailed("it is full")):
            send_refusal(peer.open_request(Message("QUERY")), error)
        assert link.text() == DENIED + "NOTIFY\nRegistration Failed.\nCause:it is full\n\n"

    def test_silent_strangers(self, resolver: FakeResolver) -> None:
        """Who connects and says nothing is closed after ten seconds; a link is not (I14)."""
        clock = resolver.clock
        silent, link = resolver.connect(), resolver.link()
        clock.advance(10)
        assert silent.closed
        assert not link.closed

    def test_stopped(self, resolver: FakeResolver) -> None:
        """Stopping closes every connection and leaves no timer behind."""
        clock = resolver.clock
        link, terminal = resolver.link(), resolver.connect()
        ask(terminal, f"REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:{PORT + 1}\n\n")
        resolver.server.stop()
        assert link.closed
        assert terminal.closed
        assert not clock.getDelayedCalls()
