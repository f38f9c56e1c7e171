"""The process that a role has to itself, and its reactor (broker.service.reactor)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure

from broker.service.errors import CannotStart
from broker.service.process import ProcessOwner, Role
from tests.service.scene import python
from tests.support.reactor import FakeReactor


class FakeRole(Role):
    """A role whose opening ends when a test says so."""

    def __init__(self, owner: ProcessOwner | None = None) -> None:
        super().__init__(owner)
        self.ready: Deferred[None] = Deferred()
        self.done: list[str] = []

    async def open(self) -> None:
        await self.ready
        self.done.append("opened")

    def serve(self) -> None:
        self.done.append("serving")

    def close(self) -> None:
        self.done.append("closed")


class FakeOwner(ProcessOwner):
    """An owner that gives up in words only."""

    def __init__(self, *, logs_here: bool = True) -> None:
        super().__init__(FakeReactor(), "broker", logs_here=logs_here)
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True


@pytest.fixture(autouse=True)
def _keep_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ProcessOwner.say`` replaces standard error, for good in a process that ends."""
    monkeypatch.setattr(sys, "stderr", sys.stderr)


def test_cannot_start() -> None:
    """Twistd tidies up after it as after any ``Exception``; Python prints just its line."""
    error = CannotStart("why")
    assert isinstance(error, Exception)
    assert isinstance(error, SystemExit)
    assert error.code == "why"


class RoleTests:
    """Opened as a whole, then served, then closed."""

    @pytest.mark.parametrize(
        ("steps", "done"),
        [
            # What is opened at once is open before the reactor runs, and served when it does.
            ("ready privileged", "opened"),
            ("ready privileged start", "opened serving"),
            ("ready privileged start stop", "opened serving closed"),
            # A store may take its time: what it is loaded for begins when it is.
            ("privileged start", ""),
            ("privileged start ready", "opened serving"),
            # A service that is started only in the ordinary way opens as well.
            ("ready start", "opened serving"),
            # Stopping ends the opening too, and begins nothing.
            ("privileged start stop", "closed"),
            ("privileged start stop ready", "closed"),
            # What fails when the reactor runs already ends the process too, not serving anything.
            ("privileged start fail", "given-up"),
        ],
    )
    def test_steps(self, steps: str, done: str) -> None:
        """Each step has done what it should, and nothing else."""
        role = FakeRole(owner := FakeOwner())
        for step in steps.split():
            {
                "ready": lambda: role.ready.callback(None),
                "fail": lambda: role.ready.errback(CannotStart("the store is damaged")),
                "privileged": role.privilegedStartService,
                "start": role.startService,
                "stop": role.stopService,
            }[step]()
        assert role.done + ["given-up"] * owner.given_up == done.split()

    @pytest.mark.parametrize(
        ("owned", "error", "why"),
        [
            pytest.param(
                True, CannotStart("port in use"), r"\Abroker: port in use\Z", id="its role is named"
            ),
            pytest.param(
                False,
                CannotStart("port in use"),
                r"\Aport in use\Z",
                id="in a process that it does not own, it only raises the exception",
            ),
            pytest.param(
                True,
                ZeroDivisionError(),
                r"\A\Z",
                id="what was not foreseen is not hidden by a line",
            ),
        ],
    )
    def test_fails_at_once(self, owned: bool, error: BaseException, why: str) -> None:
        """What can't be opened is raised where twistd starts it."""
        role = FakeRole(FakeOwner() if owned else None)
        role.ready.errback(error)
        before = sys.stderr
        with pytest.raises(type(error), match=why):
            role.privilegedStartService()
        assert owned or sys.stderr is before

    @pytest.mark.parametrize("logs_here", [True, False])
    def test_told_where_it_is_seen(self, logs_here: bool) -> None:
        """A log that is elsewhere has the line too; one that is on the terminal not twice."""
        with capturedLogs() as events:
            line = FakeOwner(logs_here=logs_here).say("port {in} use")
        assert line == "broker: port {in} use"
        assert [formatEvent(event) for event in events] == ([] if logs_here else [line])
        assert sys.stderr is sys.__stderr__


EPOLL = pytest.mark.skipif(sys.platform != "linux", reason="there is no epoll")
LATE = """\
import sys
from twisted.internet.defer import Deferred
from twisted.application.service import Application
from broker.service.errors import CannotStart
from broker.service.process import Role, own_process

class Options:
    role, logs_here = "broker", True

class Late(Role):
    async def open(self):
        later = Deferred()
        reactor.callLater(0, later.errback, CannotStart("the store is damaged"))
        await later

reactor, owner = own_process(Options)
application = Application("late")
Late(owner).setServiceParent(application)
"""
LIMIT = """\
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
from broker.service.process import raise_limit
raise_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""
CLOCK = """\
import time
from broker.service.process import own_process
class Options:
    role, logs_here = "broker", True
reactor, owner = own_process(Options)
assert reactor.seconds is time.monotonic
began = time.monotonic()
call = reactor.callLater(5, print)
assert 0 < call.getTime() - began < 6
"""


@pytest.mark.integration
class OwnProcessTests:
    """What a role does to a process that it owns."""

    @pytest.mark.parametrize("code", [LIMIT, CLOCK], ids=["limit", "clock"])
    def test_prepared(self, code: str) -> None:
        """The soft limit of open files is raised to the hard one; timers use the monotonic clock,
        so that a step of the wall clock moves none (I10).
        """
        python("-c", code)

    def test_late_failure(self, tmp_path: Path) -> None:
        """A failure after the start ends twistd with status 1, a line, and no pid file."""
        (tmp_path / "late.py").write_text(LATE)
        run = "import sys; from twisted.scripts.twistd import run; run()"
        done = python("-c", run, "-noy", "late.py", cwd=tmp_path, status=1)
        assert done.stderr == "broker: the store is damaged\n"
        assert "Traceback" not in done.stdout
        assert not (tmp_path / "twistd.pid").exists()


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


class Reader:
    """One end of a pair of sockets, at which something can be read."""

    def __init__(self, read: Callable[[], Exception | None]) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.send(b"x")
        self.fileno = self.ours.fileno
        self.read = read
        self.reads = 0

    def doRead(self) -> Any:
        self.reads += 1
        self.ours.recv(1)
        return self.read()

    def connectionLost(self, reason: Failure) -> None:
        raise ZeroDivisionError  # it is not well made

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Site:
    """A reactor that is not installed, and what it watches."""

    def __init__(self) -> None:
        from broker.service.reactor import EpollReactor  # only on Linux

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


@EPOLL
@pytest.mark.integration
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


@EPOLL
@pytest.mark.integration
class ChoiceTests:
    """Which reactor a process has."""

    @pytest.mark.parametrize(
        ("before", "chosen"),
        [("", "broker.service.reactor"), (OTHER, "twisted.internet.selectreactor")],
    )
    def test_chosen(self, before: str, chosen: str) -> None:
        """Ours, unless the operator has chosen another, as with ``twistd --reactor``."""
        assert python("-c", before + CHOSEN).stdout.strip() == chosen
