"""The terminal's setting that has its port opened in the router."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, execute, succeed

from broker.service.terminal import TerminalService
from tests.service.test_connectback import refused
from tests.service.test_connectback import settle as settings
from tests.support.reactor import FakeReactor


class SettingTests:
    """``open-port`` (D9)."""

    def service(self, *arguments: str) -> TerminalService:
        """A terminal with these options."""
        reactor: Any = FakeReactor()
        return TerminalService(reactor, settings(*arguments), execute)

    def test_off(self) -> None:
        """Nothing in the router is changed unless that is asked for."""
        terminal = self.service().terminal
        assert (terminal.settings.opener, terminal.settings.open_port) == (None, False)

    def test_on(self) -> None:
        """It is asked for by one word."""
        terminal = self.service("--open-port").terminal
        assert terminal.settings.opener is not None
        assert terminal.settings.open_port

    def test_with_an_address(self) -> None:
        """An address that is told and one that is found out are one too many."""
        said = refused("--open-port", "--address=203.0.113.7")
        assert "--open-port: finds out the address itself: leave out address" in said

    def test_stopped_last(self) -> None:
        """What opens ports is stopped once the terminal has given back its own."""
        service = self.service("--open-port")
        order: list[str] = []
        stopping: Deferred[None] = Deferred()
        opener: Any = service._opener

        def stop_terminal() -> Deferred[None]:
            order.append("terminal")
            return stopping

        def stop_opener() -> Deferred[None]:
            order.append("opener")
            return succeed(None)

        service.terminal.stopService = stop_terminal  # type: ignore[method-assign]
        opener.stop = stop_opener
        closed = service.close()
        assert order == ["terminal"]
        stopping.callback(None)
        assert order == ["terminal", "opener"]
        assert closed.called
