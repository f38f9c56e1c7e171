"""A mediator and a resolver as two servers on one network (A15): whole calls."""

from __future__ import annotations

import pytest

from tests.resolver.apart import Apart
from tests.support.reactor import FakeReactor
from tests.support.server import FakeMediator, a_mediator
from tests.support.transport import Client

COMPLETED = "NOTIFY\nRegistration Completed.\n\n"
NOT_FOUND = "NOTIFY\nCallee not Found.\n\n"
DENIED = "NOTIFY\nPermission Denied.\n\n"
UNAVAILABLE = "NOTIFY\nService Unavailable.\n\n"
ASK = "QUERY\nIdentifier:Ia\nCallee:Ib\n\n"


class Network:
    """A mediator, its resolver apart, and terminals."""

    def __init__(self) -> None:
        self.clock = FakeReactor()
        self.apart = Apart(self.clock).start()
        self.fake: FakeMediator = a_mediator(self.clock, resolver=self.apart.remote)

    def terminal(self, text: str = "") -> Client:
        """A terminal's connection to the mediator, and what it says first."""
        client = self.fake.connect()
        if text:
            assert self.say(client, text) == COMPLETED
        return client

    def say(self, client: Client, text: str) -> str:
        """Type something, let the two servers speak, and read the answer."""
        client.type(text)
        self.apart.pump()
        return client.text()

    def lose(self) -> None:
        """The resolver's process ends, and is away."""
        self.apart.away = True
        self.apart.restart()

    def callee(self, more: str = "") -> Client:
        """Ib, who accepts Ia and is there."""
        said = f"REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1205\nAccept:Add Ia\n{more}\n"
        return self.terminal(said)


@pytest.fixture
def network() -> Network:
    """A mediator, a resolver apart, and terminals."""
    return Network()


class ApartTests:
    """What works with the resolver inside works with it apart."""

    def test_whole_call(self, network: Network) -> None:
        """Fig. 12 and 16, with fig. 7 and 8 between two servers (A13, A15, A16); both sides have
        the same password, key and session (A10, A11).
        """
        callee = network.callee()
        assert network.apart.resolver.told("Ib") == ("127.0.0.1", 1205)
        elsewhere = network.apart.resolver.connect()  # the same terminal, at the resolver itself
        elsewhere.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1205\n\n")
        network.apart.pump()
        caller = network.terminal()
        assert network.say(caller, ASK) == ""
        assert network.apart.heard()[-1] == ["QUERY", "LOOKUP", "Callee:Ib"]
        assert network.say(callee, "") == "QUERY\nSTATUS\n\n"
        callee.type("NOTIFY\nSTATUS Acceptable.\n\n")
        accepted, to_caller = caller.received()
        *_, to_callee = callee.received()
        assert accepted.statement == "Request Accepted."
        assert to_caller.fields["Callee Address"] == "127.0.0.1"
        assert to_caller.fields["Callee Port"] == "1205"
        assert to_callee.fields["Caller ID"] == "Ia"
        for name in ("Password", "Encrypt Key", "Session", "Reply Password"):
            assert to_caller.fields[name] == to_callee.fields[name]

    @pytest.mark.parametrize("away", [False, True])
    def test_not_permitted(self, network: Network, away: bool) -> None:
        """Who is not permitted is refused before the resolver is asked, so learns nothing of it,
        not even whether it is away (A9, I6). A ``REGISTER`` without an address needs no resolver.
        """
        network.callee()
        if away:
            network.lose()
        network.terminal("REGISTER\nIdentifier:Ie\nAccept:Add Ia\n\n")
        network.apart.heard()
        caller = network.terminal()
        for callee in ("Ib", "Inobody"):
            assert network.say(caller, f"QUERY\nIdentifier:Ic\nCallee:{callee}\n\n") == DENIED
        assert network.apart.heard() == []

    def test_registered_there_directly(self, network: Network) -> None:
        """A permitted caller learns that the resolver has no address (A20, S1205); one that a
        terminal sent to the resolver itself is found (A7, fig. 7).
        """
        network.terminal("REGISTER\nIdentifier:Ib\nAccept:Add Ia\n\n")
        caller = network.terminal()
        assert network.say(caller, ASK) == NOT_FOUND
        terminal = network.apart.resolver.connect()
        terminal.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1205\n\n")
        assert network.say(caller, ASK) == ""
        dial = next(dial for dial in network.clock.dials if dial.port == 1205)
        woken = dial.accept()
        assert woken.text() == "NOTIFY\nConnection Requested.\n\n"

    def test_not_dialled_without_the_word(self, network: Network) -> None:
        """An address that no server vouches for is told to no one by dialling (I12)."""
        network.terminal("REGISTER\nIdentifier:Ib\nAccept:Add Ia\n\n")
        other = network.apart.resolver.link()
        other.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1205\n\n")
        caller = network.terminal()
        assert network.say(caller, ASK) == "NOTIFY\nCallee not Connected.\n\n"
        assert not any(dial.port == 1205 for dial in network.clock.dials)

    def test_gone_and_expired(self, network: Network) -> None:
        """After the callee's connection its address holds for its expiry, and not after (A7)."""
        callee = network.callee("Expires:60\n")
        network.apart.pass_by(300, 10)
        callee.vanish()
        network.apart.pump()
        network.apart.holds_for(60)
        assert network.say(network.terminal(), ASK) == NOT_FOUND


class AwayTests:
    """The resolver's process is gone."""

    def test_callers_have_an_answer_within_a_second(self, network: Network) -> None:
        """*Service Unavailable.* and not a hang; when it is back, calls go on."""
        callee, caller = network.callee(), network.terminal()
        network.lose()
        assert network.say(caller, ASK) == ""
        network.apart.advance(0.95)
        assert caller.text() == ""
        network.apart.advance(0.05)
        assert caller.text() == UNAVAILABLE
        network.apart.away = False
        network.apart.advance(3)
        assert network.say(caller, ASK) == ""
        assert network.say(callee, "") == "QUERY\nSTATUS\n\n"

    def test_registration_fails_whole(self, network: Network) -> None:
        """A ``REGISTER`` with an address waits a second, then changes nothing, permits neither."""
        network.lose()
        callee = network.terminal()
        said = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Add Ia\n\n"
        assert network.say(callee, said) == ""
        network.apart.advance(1)
        assert callee.text() == UNAVAILABLE
        network.apart.away = False
        network.apart.advance(3)
        assert network.apart.resolver.told("Ib") is None
        assert network.say(network.terminal(), ASK) == DENIED

    @pytest.mark.parametrize("many", [1, 200])
    def test_registered_again(self, network: Network, many: int) -> None:
        """The mediator registers again the terminals it holds: they are reached as before."""
        for n in range(many):
            network.terminal(f"REGISTER\nIdentifier:I{n}\nAddress:127.0.0.1\nPort:{n + 1}\n\n")
        network.apart.pass_by(20, 1)
        network.apart.restart()
        network.apart.advance(2)
        for n in range(many):
            assert network.apart.resolver.told(f"I{n}") == ("127.0.0.1", n + 1)
