"""A role's process: how a role starts and stops in it, and ends it when it can't start."""

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

from broker.service.errors import CannotStart
from broker.service.settings.options import RoleOptions

_log = Logger(namespace="broker")


class Role(Service):
    """A role's service: it opens completely or not at all, then serves, then closes.

    :ivar owner: ends the process when the role can't start; ``None`` if the role does not own the
        process
    """

    def __init__(self, owner: ProcessOwner | None = None) -> None:
        self.owner = owner
        self._opening: Deferred[None] | None = None

    async def open(self) -> None:
        """Load what is stored, then open the ports.

        :raises CannotStart: either failed
        """
        raise NotImplementedError

    def serve(self) -> None:
        """The ports are open and the reactor runs: start timers and background work."""

    def close(self) -> object:
        """Stop all of it; may return a Deferred that fires when that is done."""

    def privilegedStartService(self) -> None:
        """Open, with the privileges that the process was started with.

        :raises CannotStart: it failed at once; what fails later ends the process
        """
        Service.privilegedStartService(self)
        self._opening = Deferred.fromCoroutine(self.open())
        # What fails at once must be raised here: twistd then ends before it becomes a daemon, and
        # the shell gets its exit status.
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
            self._opening.cancel()  # a store that still loads must not open the ports afterwards
        return self.close()

    def _failed_late(self, failure: Failure) -> None:
        if not self.running:
            return
        if not failure.check(CannotStart):
            _log.failure("A role could not be started", failure)
        if self.owner is not None:
            print(self.owner.say(str(failure.value)), file=sys.stderr)
            self.owner.give_up()


class ProcessOwner:
    """Ends the process of a role that can't start.

    :param role: the role's name
    :param logs_here: the log goes to the terminal, so a line on standard error need not be logged
        too
    """

    def __init__(self, reactor: Any, role: str, *, logs_here: bool) -> None:
        self._reactor = reactor
        self._role = role
        self._logs_here = logs_here

    def say(self, why: str) -> str:
        """Prepare standard error for a ``CannotStart``, and log it if the log goes elsewhere.

        :return: its line
        """
        line = f"{self._role}: {why}"
        if not self._logs_here:
            _log.critical("{line}", line=line)
        # Twisted's log has replaced standard error. The reason for the end of the process belongs
        # on the real one.
        if sys.__stderr__ is not None:
            sys.stderr = sys.__stderr__
        return line

    def give_up(self) -> None:
        """End the process with status 1 after an orderly stop, while the reactor runs."""
        # twistd exits with 0 after its reactor has stopped, whatever stopped it.
        atexit.register(_exit_with_failure)
        self._reactor.stop()


def _exit_with_failure() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(1)


def own_process(options: RoleOptions) -> tuple[Any, ProcessOwner]:
    """Prepare a process for the one role that runs in it, and get its reactor.

    - Its clock is the monotonic one, so that a step of the wall clock fires no timer early or late.
    - It may open as many connections as the operator's hard limit allows.
    - SIGINT and SIGTERM are the normal way to end it, and lead to exit status 0.
    - On Linux its reactor is that of ``service.reactor``, unless the operator has chosen one.
    """
    _choose_reactor()
    from twisted.internet import reactor

    the_reactor: Any = reactor
    the_reactor.seconds = time.monotonic
    raise_limit()
    handle_signals(the_reactor, partial(_stop, the_reactor))
    return the_reactor, ProcessOwner(the_reactor, options.role, logs_here=options.logs_here)


def _choose_reactor() -> None:
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from broker.service.reactor import install

        install()


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one.

    The usual soft limit of 1024 would also limit how many terminals can be connected.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.warn("Only {soft} files can be open at once: {error}", soft=soft, error=str(error))


def handle_signals(reactor: Any, stop: Callable[[signal.Signals], object]) -> None:
    """Have SIGINT and SIGTERM call ``stop`` in the reactor, as soon as that runs.

    With the reactor's own handlers, twistd would end the process by the same signal once more, as
    if it had crashed.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(stop, signal.Signals(number))

    def install() -> None:
        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)

    install()
    reactor.callWhenRunning(install)  # by then the reactor has installed its own


def _stop(reactor: Any, received: signal.Signals) -> None:
    if reactor.running:
        _log.info("Stopping on {name}", name=received.name)
        reactor.stop()
