"""The process that a role has to itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

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


class CannotStartTests:
    """The exception that ends a process in good order."""

    def test_both(self) -> None:
        """Twistd tidies up after it as after any ``Exception``; Python prints just its line."""
        error = CannotStart("why")
        assert isinstance(error, Exception)
        assert isinstance(error, SystemExit)
        assert error.code == "why"


class RoleTests:
    """Opened as a whole, then served, then closed."""

    def test_at_once(self) -> None:
        """What is opened at once is open before the reactor runs, and served when it does."""
        role = FakeRole()
        role.ready.callback(None)
        role.privilegedStartService()
        assert role.done == ["opened"]
        role.startService()
        assert role.done == ["opened", "serving"]
        role.stopService()
        assert role.done == ["opened", "serving", "closed"]

    def test_later(self) -> None:
        """A store may take its time: what it is loaded for begins when it is."""
        role = FakeRole()
        role.privilegedStartService()
        role.startService()
        assert role.done == []
        role.ready.callback(None)
        assert role.done == ["opened", "serving"]

    def test_embedded_without_privileges(self) -> None:
        """A service that is started only in the ordinary way opens as well."""
        role = FakeRole()
        role.ready.callback(None)
        role.startService()
        assert role.done == ["opened", "serving"]

    def test_stopped_before_it_was_open(self) -> None:
        """Stopping ends the opening too, and begins nothing."""
        role = FakeRole(owner := FakeOwner())
        role.privilegedStartService()
        role.startService()
        role.stopService()
        assert role.done == ["closed"]
        assert not owner.given_up

    def test_fails_at_once(self) -> None:
        """What can't be opened is raised where twistd starts it, with the role's name."""
        role = FakeRole(FakeOwner())
        role.ready.errback(CannotStart("port in use"))
        with pytest.raises(CannotStart, match=r"\Abroker: port in use\Z"):
            role.privilegedStartService()

    def test_fails_at_once_elsewhere(self) -> None:
        """In a process that it does not own, it only raises the exception."""
        role = FakeRole()
        role.ready.errback(CannotStart("port in use"))
        before = sys.stderr
        with pytest.raises(CannotStart, match=r"\Aport in use\Z"):
            role.privilegedStartService()
        assert sys.stderr is before

    def test_our_fault(self) -> None:
        """What was not foreseen is not hidden behind a line."""
        role = FakeRole(FakeOwner())
        role.ready.errback(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            role.privilegedStartService()

    def test_fails_later(self) -> None:
        """What fails when the reactor runs already ends the process too, not serving anything."""
        role = FakeRole(owner := FakeOwner())
        role.privilegedStartService()
        role.startService()
        role.ready.errback(CannotStart("the store is damaged"))
        assert owner.given_up
        assert role.done == []

    @pytest.mark.parametrize("logs_here", [True, False])
    def test_told_where_it_is_seen(self, logs_here: bool) -> None:
        """A log that is elsewhere has the line too; one that is on the terminal not twice."""
        with capturedLogs() as events:
            line = FakeOwner(logs_here=logs_here).say("port {in} use")
        assert line == "broker: port {in} use"
        assert [formatEvent(event) for event in events] == ([] if logs_here else [line])
        assert sys.stderr is sys.__stderr__


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
