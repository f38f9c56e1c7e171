"""The blocks of docs/embedding.md run as they stand there, and do what is said of them."""

from __future__ import annotations

import ast
import inspect
import os
import random
import re
from pathlib import Path
from typing import Any, Final

import pytest
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from zope.interface import implementer
from zope.interface.verify import verifyObject

from broker.interfaces import ICallHandler, IConsent, ITrigger
from broker.mediator.wakeup import WakeUp
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.messages.errors import PermissionDenied
from broker.resolver.locations import LocalResolver
from broker.resolver.udp_registrar import UdpRegistrar
from broker.service.mediator import MediatorService
from broker.terminal.settings import LINGER, TerminalSettings
from broker.terminal.terminal import Terminal
from examples.echo import Answering, Echo
from examples.say import Saying
from tests.support.certificates import Pki
from tests.support.reactor import FakeReactor
from tests.support.server import FakeMediator
from tests.terminal.network import MEDIATOR_PORT, Listener, Outcome, World

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "embedding.md").read_text("utf-8")
BLOCKS: Final = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
#: What a mediator is made of in the block that makes one.
SETTINGS: Final = """\
store = "memory:"
admin = "none"
udp = "none"
listen = ["tcp:0:interface=127.0.0.1"]
"""


class Site(World):
    """A network with a mediator in it, whose resolver has a port for datagrams."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.application = MultiService()
        self.application.startService()

    def _a_mediator(self, **options: Any) -> FakeMediator:
        registrar = UdpRegistrar(self.clock, random.Random(5).randbytes)
        self.clock.listenUDP(1200, registrar, "127.0.0.1")
        resolver = LocalResolver(self.clock, registrar=registrar)
        reactor: Any = self.clock
        trigger: ITrigger = WakeUp(self.clock, resolver, WakeUpDialer(reactor))
        return super()._a_mediator(resolver=resolver, trigger=trigger, **options)

    def run(self) -> None:
        """The same, datagrams among what moves."""
        super().run()
        while self._deliver():
            super().run()

    def _deliver(self) -> bool:
        moved = False
        for port in self.clock.datagrams:
            sent, port.sent[:] = list(port.sent), []
            for data, to in sent:
                moved = True
                for other in self.clock.datagrams:
                    if other.listening and other.getHost().port == to[1]:
                        other.receive(data, ("127.0.0.1", port.getHost().port))
        return moved

    def names(self) -> dict[str, Any]:
        """What a block finds there: the page's own imports, and what it says that you have."""
        return {
            "reactor": self.clock,
            "application": self.application,
            "mediator": TCP4ClientEndpoint(self.clock, "127.0.0.1", MEDIATOR_PORT),
            "TCP4ClientEndpoint": TCP4ClientEndpoint,
            "TCP4ServerEndpoint": lambda _, port: Listener(self, port),
            "Terminal": Terminal,
            "TerminalSettings": TerminalSettings,
            "Answering": Answering,
            "Echo": Echo,
            "ICallHandler": ICallHandler,
            "IConsent": IConsent,
            "implementer": implementer,
            "factory": Saying(b"Good morning"),
        }

    def does(self, block: str, **more: Any) -> dict[str, Any]:
        """Run a block; give its names. What it waits for is ``waits`` among them, once it does."""
        names = self.names() | more
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        doing = eval(compile(block, "docs/embedding.md", "exec", flags=flags), names)
        if inspect.iscoroutine(doing):
            names["waits"] = Outcome(Deferred.fromCoroutine(doing))
        self.run()
        return names

    def started(self, block: str, name: str = "terminal", **more: Any) -> Terminal:
        """The terminal that a block makes, started."""
        terminal: Terminal = self.does(block, **more)[name]
        if not terminal.running:
            terminal.startService()
        self.run()
        return terminal

    def stop(self, *terminals: Terminal) -> None:
        """Stop terminals, and see that they do."""
        for terminal in terminals:
            stopped = Outcome(terminal.stopService())
            self.advance(1)
            assert stopped.done


def block(text: str) -> str:
    """The one block in which a text stands."""
    found: list[str] = [one for one in BLOCKS if text in one]
    (only,) = found
    return only


def answered(site: Site, protocol: Any) -> str:
    """What came back in a call that stands, of which this is the caller's protocol."""
    assert protocol is not None
    came = Outcome(protocol.answered)
    site.run()
    return str(came.value, "utf-8")


def call(site: Site, seconds: float = 0, name: str = "Ib", caller: Any = None) -> Outcome:
    """Ia says good morning to a terminal, and time passes."""
    outcome = Outcome((caller or site.terminal("Ia")).call(name, Saying(b"Good morning")))
    site.run()
    if seconds:
        site.advance(seconds)
    return outcome


class Question:
    """A question on a screen, and the user before it.

    :ivar asked: what was asked
    :ivar gone: how many questions were taken off the screen
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone = 0
        self.answer: Deferred[bool] = Deferred()

    def __call__(self, text: str) -> Deferred[bool]:
        self.asked.append(text)
        self.answer = Deferred(self._cancelled)
        return self.answer

    def _cancelled(self, _: object) -> None:
        self.gone += 1


@pytest.fixture
def site() -> Site:
    """A mediator that believes whoever connects, and a network."""
    return Site()


class BlocksTests:
    """What the page shows."""

    def test_reached(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        """The terminal at the beginning is registered, and called by whom it accepts; the channel
        tells by which candidate the two reached each other.
        """
        site.started(block('accept=["Ia"]'))
        caller = site.terminal("Ia")
        names = site.does(block("# a Deferred; the factory"), terminal=caller)
        assert answered(site, names.get("protocol")) == "Good morning"
        told = block("transport.candidate")
        capsys.readouterr()
        assert site.does(told, terminal=caller)["waits"].error is None
        (shown,) = re.findall(r"# (connected .*)", told)
        said = capsys.readouterr().out.splitlines()
        assert said[0] == shown.replace("192.0.2.7", "127.0.0.1")

    @pytest.fixture
    def asks(self, site: Site) -> Question:
        """The question of the block that asks, where the list has Ia, or Ix who is refused."""
        question = Question()
        told = block("class Asking").replace('["Ia", "@family"]', '["Ia", "Ix"]')
        made = site.does(told, question=question)
        assert verifyObject(IConsent, made["Asking"](Question(), []))
        self.callee: Terminal = made["terminal"]
        if not self.callee.running:
            self.callee.startService()
        site.run()
        return question

    @pytest.mark.parametrize(("who", "yes"), [("Ia", True), ("Ia", False), ("Ix", True)])
    def test_asking(self, site: Site, asks: Question, who: str, yes: bool) -> None:
        """The user is asked each time, and the answer decides (C3–C5). No is no, and a yes is none
        for whom the lists refuse, be it a friend (C5, C6).
        """
        caller = site.terminal(who)
        outcome = call(site, caller=caller)
        assert who == "Ix" or asks.asked == ["A call. Take it, if it is a friend?"]
        asks.answer.callback(yes)
        if who == "Ia" and yes:
            site.run()
            assert answered(site, outcome.value) == "Good morning"
            site.stop(caller, self.callee)
        else:
            site.advance(5)
            assert isinstance(outcome.error, PermissionDenied)

    def test_asking_too_long(self, site: Site, asks: Question) -> None:
        """Who doesn't answer in time has the question taken away, and accepts no call (I3)."""
        outcome = call(site, 4.9)
        assert not outcome.done
        site.advance(0.2)
        assert isinstance(outcome.error, PermissionDenied)
        site.advance(24.8)
        assert asks.gone == 0
        site.advance(0.2)
        assert asks.gone == 1

    def test_asking_without_a_line(self, site: Site, asks: Question) -> None:
        """The question is taken away, too, once the answer can't be told."""
        call(site)
        site.lose_line("Ib")
        assert (len(asks.asked), asks.gone) == (1, 1)

    def test_behind_a_router(self, site: Site) -> None:
        """The connection is closed when there is nothing to do, and a call has it made again."""
        callee = site.started(block("hold=False"))
        assert Outcome(callee.ready()).done
        Outcome(callee.edit(["Add Ia"]))
        site.advance(2 * LINGER)
        assert not site.has_line("Ib")
        assert Outcome(callee.ready()).done
        assert answered(site, call(site, 1).value) == "Good morning"

    def test_port_opened(self, site: Site) -> None:
        """Where no port can be opened the terminal is registered and called all the same (D9)."""
        names = site.does(block("make_opener("))
        terminal: Terminal = names["terminal"]
        terminal.startService()
        site.advance(20)
        Outcome(terminal.edit(["Add Ia"]))
        assert answered(site, call(site, 1).value) == "Good morning"
        site.stop(terminal)
        stopped = Outcome(names["opener"].stop())
        site.advance(20)
        assert stopped.done

    def test_named(self, site: Site) -> None:
        """A terminal is called, and permits, by names (C1)."""
        caller = site.terminal("Ia", name="TERM1")
        site.terminal("Ib", 1203, name="TERM3", accept=["TERM1"], handler=Answering())
        assert answered(site, call(site, name="TERM3", caller=caller).value) == "Good morning"

    def test_called_back(self, site: Site) -> None:
        """Who knows the call password is connected to (D3, D7)."""
        callee = site.started(block("call_password="), "callee")
        own = site.terminal("Ia")
        told = block("caller.call_back").replace("192.0.2.9", "127.0.0.1")
        names = site.does(told, caller=own)
        assert answered(site, names.get("protocol")) == "Good morning"
        names = site.does(told.replace("open sesame", "open sesam"), caller=own)
        site.advance(4.9)
        assert not names["waits"].done
        site.advance(0.2)
        assert isinstance(names["waits"].error, PermissionDenied)
        site.stop(own, callee)

    def test_logging_in(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Passwords, and TLS: each terminal is made (A19, A21)."""
        (tmp_path / "authority.pem").write_bytes(Path(Pki(tmp_path).ca).read_bytes())
        monkeypatch.chdir(tmp_path)
        site = Site(accounts={"Ib": "…"}, clear_text=True)
        site.does(block("password=read_it"), read_it=lambda: None)
        assert site.does(block("ClientTls("))["tls"].warnings() == []

    def test_a_mediator(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A mediator is made of a file of settings."""
        (tmp_path / "broker.toml").write_text(SETTINGS)
        monkeypatch.chdir(tmp_path)
        site = Site()
        site.application = MultiService()
        reactor: Any = FakeReactor()
        reactor.callFromThread = None
        names = site.does(block("MediatorService("), os=os, reactor=reactor)
        assert isinstance(names["service"], MediatorService)

    def test_all_blocks(self) -> None:
        """There is no block but those above."""
        shown = (
            'accept=["Ia"]',
            "class Answering",
            "class Asking",
            "hold=False",
            "make_opener(",
            "password=read_it",
            "ClientTls(",
            "# a Deferred; the factory",
            "transport.candidate",
            "call_password=",
            "caller.call_back",
            "MediatorService(",
        )
        assert [block(text) for text in shown] == BLOCKS

    def test_handler(self, site: Site) -> None:
        """What takes calls gives each a protocol."""
        made = site.does(block("class Answering"))["Answering"]()
        assert verifyObject(ICallHandler, made)
        assert isinstance(made.call("Ia", "s"), Echo)
