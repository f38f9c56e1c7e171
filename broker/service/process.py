"""What a role does to the process that it has to itself, and how it gives up."""

from __future__ import annotations

import atexit
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.service.settings.options import RoleOptions

_log = Logger(namespace="broker")


class CannotStart(SystemExit, Exception):
    """A role can't start; the text is the one line that says why.

    As an ``Exception`` it makes ``twistd`` remove the pid file and tell the process that waits for
    a daemon; as a ``SystemExit`` it then ends the process with status 1 and that line, where any
    other would end it with a traceback.
    """


class Role(Service):
    """A role's service: opened as a whole, then served, then closed.

    :ivar owner: ends the process when the role can't start; ``None`` where the process is another's
    """

    def __init__(self, owner: Owner | None = None) -> None:
        self.owner = owner
        self._opening: Deferred[None] | None = None

    async def open(self) -> None:
        """Load what there is to load, then open the ports.

        :raises CannotStart: either can't be done
        """
        raise NotImplementedError

    def serve(self) -> None:
        """The ports are open and the reactor runs: begin all that goes on by itself."""

    def close(self) -> object:
        """End all that was begun; may return a Deferred that fires when that is done."""

    def privilegedStartService(self) -> None:
        """Open, with the privileges of the start.

        :raises CannotStart: it can't be done, and that is known already
        """
        Service.privilegedStartService(self)
        self._opening = Deferred.fromCoroutine(self.open())
        failed: list[Failure] = []
        if self._opening.called:
            self._opening.addErrback(failed.append)
        if failed:
            if self.owner is not None and failed[0].check(CannotStart):
                raise CannotStart(self.owner.say(str(failed[0].value)))
            failed[0].raiseException()

    def startService(self) -> None:
        Service.startService(self)
        if self._opening is None:
            self.privilegedStartService()
        if self._opening is not None:
            self._opening.addCallback(lambda _: self.serve()).addErrback(self._failed_late)

    def stopService(self) -> object:
        Service.stopService(self)
        if self._opening is not None:
            self._opening.cancel()
        return self.close()

    def _failed_late(self, failure: Failure) -> None:
        if not self.running:
            return
        if not failure.check(CannotStart):
            _log.failure("A role could not be started", failure)
        if self.owner is not None:
            print(self.owner.say(str(failure.value)), file=sys.stderr)
            self.owner.give_up()


class Owner:
    """Who has the process to itself.

    :param role: the role's name
    :param logs_here: the log is on the terminal already, so that what is said on standard error
        need not be in it too
    """

    def __init__(self, reactor: Any, role: str, *, logs_here: bool) -> None:
        self._reactor = reactor
        self._role = role
        self._logs_here = logs_here

    def say(self, why: str) -> str:
        """Make a ``CannotStart`` go to standard error, and also to a log that is elsewhere.

        :return: its line
        """
        line = f"{self._role}: {why}"
        if not self._logs_here:
            _log.critical("{line}", line=line)
        # The log has taken the place of standard error; what ends the process belongs on the real
        # one.
        if sys.__stderr__ is not None:
            sys.stderr = sys.__stderr__
        return line

    def give_up(self) -> None:
        """End the process with status 1, in good order, though the reactor runs already."""
        # twistd ends with 0 whenever its reactor is stopped, once all is tidied up.
        atexit.register(_exit_with_failure)
        self._reactor.stop()


def _exit_with_failure() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(1)


def own_process(options: RoleOptions) -> tuple[Any, Owner]:
    """The reactor of a process that is this role's alone, with the process made ready for it.

    - Its clock is the monotonic one, so that a step of the wall clock fires no timer early or late.
    - It may have as many connections open as the operator's hard limit allows.
    - SIGINT and SIGTERM are the ordinary way to end it, and so lead to exit status 0.
    - On Linux its reactor is ``service.reactor``'s, unless the operator has chosen one.
    """
    _choose_reactor()
    from twisted.internet import reactor

    the_reactor: Any = reactor
    the_reactor.seconds = time.monotonic
    raise_limit()
    handle_signals(the_reactor, partial(_stop, the_reactor))
    return the_reactor, Owner(the_reactor, options.role, logs_here=options.logs_here)


def _choose_reactor() -> None:
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from broker.service.reactor import install

        install()


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.warn(
            "No more than {soft} files can be open at once: {error}", soft=soft, error=str(error)
        )


def handle_signals(reactor: Any, stop: Callable[[signal.Signals], object]) -> None:
    """Have SIGINT and SIGTERM call ``stop`` in the reactor, as soon as that runs.

    The reactor's own handlers would make twistd end the process by the same signal once more, as
    if it had not ended in good order.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(stop, signal.Signals(number))

    def install() -> None:
        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)

    install()
    reactor.callWhenRunning(install)  # the reactor has put its own in their place by then


def _stop(reactor: Any, received: signal.Signals) -> None:
    if reactor.running:
        _log.info("Stopping on {name}", name=received.name)
        reactor.stop()
