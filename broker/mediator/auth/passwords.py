"""Passwords are checked in threads, fairly: many checks of one source do not delay the others.

A check costs a fiftieth of a second of a processor, and any stranger can cause one. So only as many
run as there are threads, a limited number waits, and the sources take turns (I16).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from broker.mediator.auth.verifiers import (
    SALT_BYTES,
    Cost,
    derive,
    dummy_verifier,
    given_password_octets,
    matches,
    new_password_octets,
)
from broker.messages.errors import ServiceUnavailable, TooManyRequests
from broker.tables.grants import Randomness

#: Checks that may wait for each thread: what one thread does in about 6 s, which is less than a
#: connection has to log in.
WAITING_A_THREAD: Final = 200
#: The source of what the operator asks for.
_OPERATOR: Final = "operator"


class Pool(Protocol):
    """Threads, such as ``twisted.python.threadpool.ThreadPool``."""

    def start(self) -> object:
        """Take work from now on."""

    def stop(self) -> object:
        """End what runs, and all threads."""

    def callInThread(self, func: Callable[..., object], *args: Any) -> object:
        """Call a function in one of them."""


class Passwords:
    """Makes and checks verifiers, by default at once and in the caller's thread."""

    def __init__(
        self,
        randomness: Randomness,
        *,
        pool: Pool | None = None,
        reactor: IReactorFromThreads | None = None,
        threads: int = 1,
        waiting: int | None = None,
        cost: Cost | None = None,
    ) -> None:
        """
        :param pool: does the work in threads
        :param reactor: brings results back to its own thread; not needed where the pool has none
        :param threads: the number of the pool's threads that are used at a time
        :param waiting: checks that may wait; by default ``WAITING_A_THREAD`` for each thread
        :param cost: that of new verifiers
        """
        self._randomness = randomness
        self._pool = pool
        self._reactor = reactor
        self._threads = threads
        self._waiting_most = WAITING_A_THREAD * threads if waiting is None else waiting
        self._cost = Cost() if cost is None else cost
        self._dummy = dummy_verifier(randomness, self._cost)
        # By source; the source whose turn is next stands first.
        self._waiting: dict[str, deque[_Job]] = {}
        self._waiting_count = 0
        self._running = 0
        self._is_stopped = False

    def start(self) -> None:
        """Take work from now on."""
        if self._pool is not None:
            self._pool.start()

    def stop(self) -> None:
        """Fail what waits, and end the threads."""
        self._is_stopped = True
        waiting = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        self._waiting_count = 0
        for job in waiting:
            job.done.errback(ServiceUnavailable())
        if self._pool is not None:
            self._pool.stop()

    @property
    def waiting(self) -> int:
        """The number of checks that wait for a thread."""
        return self._waiting_count

    async def make(self, password: str) -> str:
        """Make a verifier (PHC string) of a new password.

        :raises PasswordRefused: it can't be a password
        :raises TooManyRequests: too many checks wait
        """
        octets = new_password_octets(password)
        salt = self._randomness(SALT_BYTES)
        made: str = await self._run(partial(derive, octets, salt, self._cost), _OPERATOR)
        return made

    async def check(self, password: str, verifier: str | None, source: str) -> bool:
        """Whether a verifier was made of this password.

        :param verifier: ``None`` where there is no account: the answer is no, after the same work
        :param source: where the login comes from; the sources take turns
        :raises TooManyRequests: too many checks wait
        """
        against = self._dummy if verifier is None else verifier
        octets = given_password_octets(password)
        right: bool = await self._run(partial(matches, octets, against), source)
        return right and verifier is not None

    async def _run(self, work: Callable[[], Any], source: str) -> Any:
        if self._is_stopped:
            raise ServiceUnavailable
        if self._pool is None:
            return work()
        self._make_room(source)
        job = _Job(work, source, self)
        self._waiting.setdefault(source, deque()).append(job)
        self._waiting_count += 1
        self._next()
        return await job.done

    def _make_room(self, source: str) -> None:
        """At the limit, the source with the longest queue loses its newest job to a shorter one."""
        if self._waiting_count < self._waiting_most:
            return
        longest = max(self._waiting.values(), key=len)
        if len(longest) <= len(self._waiting.get(source, ())) + 1:
            raise _too_many()
        job = longest[-1]
        self.drop(job)
        job.done.errback(_too_many())

    def drop(self, job: _Job) -> None:
        """A job is given up: it is not begun if it has not been."""
        jobs = self._waiting.get(job.source)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            self._waiting_count -= 1
            if not jobs:
                del self._waiting[job.source]

    def _next(self) -> None:
        pool = self._pool
        while pool is not None and self._running < self._threads and self._waiting:
            source, jobs = next(iter(self._waiting.items()))
            del self._waiting[source]
            job = jobs.popleft()
            self._waiting_count -= 1
            if jobs:
                self._waiting[source] = jobs  # behind all other sources
            self._running += 1
            pool.callInThread(self._work, job)

    def _work(self, job: _Job) -> None:
        """In a thread: do the work, and hand its result to the reactor."""
        try:
            outcome = job.work()
        except Exception:
            outcome = Failure()
        if self._reactor is None:
            self._done(job, outcome)
        else:
            self._reactor.callFromThread(self._done, job, outcome)

    def _done(self, job: _Job, outcome: Any) -> None:
        self._running -= 1
        if not self._is_stopped:
            self._next()
        if not job.done.called:
            job.done.callback(outcome)


class _Job:
    """One password to be worked on.

    :ivar done: fires with the result; cancel it to give up
    """

    __slots__ = ("done", "source", "work")

    def __init__(self, work: Callable[[], Any], source: str, passwords: Passwords) -> None:
        self.work = work
        self.source = source
        self.done: Deferred[Any] = Deferred(lambda _: passwords.drop(self))


def _too_many() -> TooManyRequests:
    return TooManyRequests("too many passwords wait to be checked: try again in a few seconds")
