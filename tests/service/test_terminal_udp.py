"""The settings of a terminal that registers by UDP, and what becomes of them."""

from __future__ import annotations

import pytest
from twisted.internet.defer import execute

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.service import terminal
from tests.service.test_options import errors, parse
from tests.service.test_services import options_of, start
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor

KEY = "Key ID:K1\nRegistration Key:" + "73" * 32 + "\nInterval:25\n"


class SettingsTests:
    """``--udp``, ``--no-hold``, ``--linger``, ``--keepalive-most``."""

    def test_default(self) -> None:
        """Nothing goes by UDP unless it is said, and the line is held."""
        options = parse(terminal.Options)
        assert options["udp"] is None
        assert options["no-hold"] is False

    @pytest.mark.parametrize(
        ("text", "server"),
        [
            ("auto", (None, 1200)),
            ("192.0.2.1:1999", ("192.0.2.1", 1999)),
            ("[2001:db8::1]:1200", ("2001:db8::1", 1200)),
            ("resolver.example.jp:1200", ("resolver.example.jp", 1200)),
        ],
    )
    def test_server(self, text: str, server: object) -> None:
        """A host and a port, or the mediator's own host."""
        assert parse(terminal.Options, f"--udp={text}")["udp"] == server

    @pytest.mark.parametrize(
        "text", ["1200", "a", "a:", ":1200", "a:0", "a:65536", "2001:db8::1:1200", "a b:1", "ä:1"]
    )
    def test_no_server(self, text: str) -> None:
        """Anything else is refused at the start."""
        (error,) = errors(terminal.Options, "--identifier=Ib", f"--udp={text}")
        assert error == f"broker-terminal: --udp: {text!r} is neither HOST:PORT nor auto"

    def test_nobody_could_wake_it(self) -> None:
        """Without datagrams the line is held."""
        (error,) = errors(terminal.Options, "--identifier=Ib", "--no-hold")
        assert "--no-hold: needs udp" in error


class ServiceTests:
    """They reach the terminal."""

    def test_quiet(self) -> None:
        """It registers by UDP with the key of its login, and closes its line in time (D1)."""
        reactor = FakeReactor()
        options = options_of(
            terminal.Options,
            "--identifier=Ib",
            "--udp=127.0.0.1:1999",
            "--no-hold",
            "--linger=3",
            "--keepalive-most=7",
        )
        start(terminal.TerminalService(reactor, options, execute))
        line = reactor.dials[0].accept()
        assert line.text() == "REGISTER\nIdentifier:Ib\nUDP:Yes\nPort:1203\nTransaction:1\n\n"
        line.type(f"NOTIFY\nRegistration Completed.\nEpoch:e1\n{KEY}Transaction:1\nCode:200\n\n")
        settle(reactor)
        (port,) = reactor.datagrams
        data, to = port.sent[0]
        assert to == ("127.0.0.1", 1999)
        assert parse_datagram(data).get("Identifier") == "Ib"
        assert parse_datagram(data).get("Expires") == "60"
        answer = Message(NOTIFY, REGISTRATION_COMPLETED, Sequence="1")
        port.receive(sign(answer, b"s" * 32), to)
        advance(reactor, 2.9)
        assert not line.closed
        advance(reactor, 0.1)
        assert line.closed
        advance(reactor, 4.1)  # seven in all, though the mediator has said 25
        assert len([data for data, _ in port.sent if data.startswith(b"REGISTER")]) == 2
