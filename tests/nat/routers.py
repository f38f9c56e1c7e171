"""A network in memory with a router, as ``broker.nat`` sees it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from broker.nat.methods import NotOpened
from tests.support.reactor import FakeDatagramPort, FakeReactor

GATEWAY: Final = "192.168.1.1"
LOCAL: Final = "192.168.1.2"
SERVER: Final = (GATEWAY, 5351)


class ConnectedPort(FakeDatagramPort):
    """A UDP port with one peer.

    :ivar broken: what writing fails with
    """

    broken: OSError | None = None
    peer: tuple[str, int] | None = None

    def connect(self, host: str, port: int) -> None:
        self.peer = (host, port)

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        assert self.listening, "the port is closed"
        assert self.peer is not None
        assert addr is None
        if self.broken is not None:
            raise self.broken
        self.sent.append((packet, self.peer))

    def answer(self, packet: bytes, source: tuple[str, int] = SERVER) -> None:
        """A datagram comes, by default from the router."""
        self.protocol.datagramReceived(packet, source)

    def refuse(self) -> None:
        """Nobody listens there: some reactors tell."""
        refusing: Any = self.protocol
        refusing.connectionRefused()

    def vanish(self) -> None:
        """Nobody listens there: others close the port."""
        self.listening = False
        self.protocol.doStop()

    def take(self) -> list[bytes]:
        """What was sent since the last time."""
        sent = [packet for packet, _ in self.sent]
        self.sent.clear()
        return sent


class Net(FakeReactor):
    """A reactor whose UDP ports can be connected."""

    datagram_port = ConnectedPort

    def callFromThread(self, function: Any, *args: Any, **kw: Any) -> None:
        """Call it: there are no threads here."""
        function(*args, **kw)

    @property
    def port(self) -> ConnectedPort:
        """The newest UDP port."""
        newest = self.datagrams[-1]
        assert isinstance(newest, ConnectedPort)
        return newest

    @property
    def pending(self) -> int:
        """How many timers run."""
        return len(self.getDelayedCalls())


def bytes_of(seed: int = 1) -> Callable[[int], bytes]:
    """Randomness that can be repeated."""
    return random.Random(seed).randbytes


class Outcome:
    """What has become of a Deferred.

    :ivar value: what it gave, in a list of one; empty until then
    :ivar failure: with what it failed, if it has
    """

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.value: list[Any] = []
        self.failure: Failure | None = None
        deferred.addCallbacks(self.value.append, self._failed)

    def _failed(self, failure: Failure) -> None:
        self.failure = failure

    @property
    def over(self) -> Any:
        """Whether it has fired."""
        return bool(self.value) or self.failure is not None

    @property
    def words(self) -> str:
        """Why it failed."""
        assert self.failure is not None, self.value
        return self.failure.getErrorMessage()

    @property
    def refused(self) -> str:
        """Why a way failed."""
        assert self.failure is not None, self.value
        assert self.failure.check(NotOpened), self.failure
        return self.words


class Device:
    """A router with UPnP, as miniupnpc would speak with it.

    :ivar url: where it is controlled; ``None``, if no device is fit
    :ivar address: its own, to the outside
    :ivar found: how many devices answer
    :ivar errors: what the next calls of each kind fail with, in order; "" for none
    :ivar calls: each call that was made
    :ivar open: which ports are open to whom, and for how long
    """

    def __init__(self) -> None:
        self.url: str | None = f"http://{GATEWAY}:5000/ctl/IPConn"
        self.address: str | None = "11.0.113.1"
        self.found = 1
        self.errors: dict[str, list[str]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.open: dict[tuple[int, str], tuple[str, int, int]] = {}
        self.before_add: Callable[[], object] = lambda: None

    def UPnP(self, **options: Any) -> Any:
        self.calls.append(("UPnP", options))
        return self

    def _called(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        error = self.errors[name].pop(0) if self.errors.get(name) else ""
        if error:
            raise Exception(error)  # noqa: TRY002 - as miniupnpc does

    def discover(self) -> int:
        self._called("discover")
        if not self.found:
            raise Exception("Success")  # noqa: TRY002
        return self.found

    def selectigd(self) -> str | None:
        self._called("selectigd")
        return self.url

    def externalipaddress(self) -> str | None:
        self._called("externalipaddress")
        return self.address

    def addportmapping(
        self, external: int, kind: str, host: str, port: int, text: str, remote: str, lease: int
    ) -> bool:
        self.before_add()
        self._called("addportmapping", external, kind, host, port, text, remote, lease)
        self.open[external, kind] = (host, port, lease)
        return True

    def deleteportmapping(self, external: int, kind: str, remote: str) -> bool:
        self._called("deleteportmapping", external, kind, remote)
        if (external, kind) not in self.open:
            raise Exception("NoSuchEntryInArray")  # noqa: TRY002
        del self.open[external, kind]
        return True

    def names(self) -> list[str]:
        """What was called since the last time."""
        called = [call[0] for call in self.calls]
        self.calls.clear()
        return called
