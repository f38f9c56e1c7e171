"""The reactor of a role's process (broker.service.reactor)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.service.scene import python

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="there is no epoll"),
]

CHOSEN = """\
from broker.service.process import own_process
class Options:
    role, logs_here = "broker", True
reactor, owner = own_process(Options)
print(type(reactor).__module__)
"""
OTHER = """\
from twisted.internet import selectreactor
selectreactor.install()
"""


@implementer(IReadDescriptor)
class Reader:
    """One end of a pair of sockets, at which something can be read."""

    def __init__(self, read: Callable[[], Exception | None]) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.send(b"x")
        self._read = read
        self.reads = 0

    def fileno(self) -> int:
        """That of the socket."""
        return self.ours.fileno()

    def logPrefix(self) -> str:
        """Nothing asks for it."""
        raise AssertionError

    def doRead(self) -> Any:
        """It can be read."""
        self.reads += 1
        self.ours.recv(1)
        return self._read()

    def connectionLost(self, reason: Failure) -> None:
        """It is not well made."""
        raise ZeroDivisionError

    def close(self) -> None:
        """Leave nothing behind."""
        self.ours.close()
        self.theirs.close()


class Site:
    """A reactor that is not installed, and what it watches."""

    def __init__(self) -> None:
        from broker.service.reactor import EpollReactor

        make: Any = EpollReactor  # carries no annotations
        self.reactor: Any = make()
        self.readers: list[Reader] = []

    def reader(self, read: Callable[[], Exception | None] = lambda: None) -> Reader:
        """One that is watched."""
        reader = Reader(read)
        self.readers.append(reader)
        self.reactor.addReader(reader)
        return reader

    def close(self) -> None:
        """Leave nothing behind."""
        self.reactor.removeAll()
        self.reactor._poller.close()
        for reader in self.readers:
            reader.close()
        for waker in self.reactor._internalReaders:
            with suppress(OSError):
                waker.connectionLost(None)


@pytest.fixture
def site() -> Iterator[Site]:
    """A reactor of a test's own."""
    site = Site()
    yield site
    site.close()


class EpollReactorTests:
    """Twisted's own, but for the context around each event."""

    def test_events(self, site: Site) -> None:
        """What can be read is read, once; without an event, it waits as long as asked. This is how
        the reactor's own loop waits.
        """
        readers = [site.reader() for _ in range(5)]
        site.reactor.doPoll(1)
        site.reactor.doPoll(0)
        late = site.reader()
        site.reactor.doIteration(None)
        assert [reader.reads for reader in (*readers, late)] == [1] * 6

    def test_failures(self, site: Site) -> None:
        """What fails at one is logged, and keeps no other waiting (I24)."""
        lost = ConnectionError()
        readers = [site.reader(), site.reader(lambda: lost), site.reader()]
        with capturedLogs() as events:
            site.reactor.doPoll(1)
        (event,) = events
        assert event["log_level"] == LogLevel.critical
        assert event["log_failure"].check(ZeroDivisionError)
        assert [reader.reads for reader in readers] == [1, 1, 1]

    def test_closed_meanwhile(self, site: Site) -> None:
        """What was closed by the handling of another event is not handled."""
        pair: list[Reader] = []

        def close_other() -> None:
            (other,) = [reader for reader in pair if not reader.reads]
            site.reactor.removeReader(other)

        pair += [site.reader(close_other), site.reader(close_other)]
        site.reactor.doPoll(1)
        assert sum(reader.reads for reader in pair) == 1


class ChoiceTests:
    """Which reactor a process has."""

    @pytest.mark.parametrize(
        ("before", "chosen"),
        [("", "broker.service.reactor"), (OTHER, "twisted.internet.selectreactor")],
    )
    def test_chosen(self, before: str, chosen: str) -> None:
        """Ours, unless the operator has chosen another, as with ``twistd --reactor``."""
        assert python("-c", before + CHOSEN).stdout.strip() == chosen
