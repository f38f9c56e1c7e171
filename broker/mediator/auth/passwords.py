"""Passwords: made into verifiers, and checked against them, in threads that many may not crowd.

A check costs a fiftieth of a second of a processor, and anybody may ask for one. So few run at a
time, few wait, and those that wait are taken source by source in turn (I16).
"""

from __future__ import annotations

import base64
import unicodedata
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from broker.messages.errors import ServiceUnavailable, TooManyRequests
from broker.messages.grammar import BLANKS
from broker.tables.grants import Randomness

#: Characters that a password may have.
PASSWORD_MOST: Final = 512
#: Checks that may wait for each thread: what one thread does in about 6 s, and so within the time
#: that a connection has to log in.
WAITING_A_THREAD: Final = 200
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
#: The source of what the operator asks for.
_OPERATOR: Final = "operator"


class Cost(NamedTuple):
    """What a check costs: Argon2id's parameters (RFC 9106).

    :ivar memory: KiB
    :ivar passes: over that memory
    :ivar lanes: that could be worked on at once
    """

    memory: int = 19 * 1024
    passes: int = 2
    lanes: int = 1


class Pool(Protocol):
    """Threads, such as ``twisted.python.threadpool.ThreadPool``."""

    def start(self) -> object:
        """Take work from now on."""

    def stop(self) -> object:
        """End what runs, and all threads."""

    def callInThread(self, func: Callable[..., object], *args: Any) -> object:
        """Call a function in one of them."""


def _call_here(func: Callable[..., object], *args: Any) -> object:
    return func(*args)


class PasswordRefused(ValueError):
    """A password that can't be one; the text says why, without it."""


class Passwords:
    """Makes and checks verifiers; each carries its own parameters, so that old ones go on working.

    Without a pool it does so at once, in the thread that asks.
    """

    def __init__(
        self,
        randomness: Randomness,
        *,
        pool: Pool | None = None,
        call_from_thread: Callable[..., object] = _call_here,
        threads: int = 1,
        waiting: int | None = None,
        cost: Cost | None = None,
    ) -> None:
        """
        :param call_from_thread: has the reactor call a function: ``reactor.callFromThread``; where
            the pool has no threads, nothing need be done for that
        :param threads: how many of the pool's are used at a time
        :param waiting: how many checks may wait; ``WAITING_A_THREAD`` for each thread, without
        :param cost: that of new verifiers
        """
        self._randomness = randomness
        self._pool = pool
        self._call = call_from_thread
        self._threads = threads
        self._most = WAITING_A_THREAD * threads if waiting is None else waiting
        self._cost = Cost() if cost is None else cost
        self._dummy = _no_password(randomness, self._cost)
        self._waiting: dict[str, deque[_Job]] = {}  # whose turn is next stands first
        self._count = 0
        self._running = 0
        self._stopped = False

    def start(self) -> None:
        """Take work from now on."""
        if self._pool is not None:
            self._pool.start()

    def stop(self) -> None:
        """Forget what waits, and end the threads."""
        self._stopped = True
        waiting = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        self._count = 0
        for job in waiting:
            job.done.errback(ServiceUnavailable())
        if self._pool is not None:
            self._pool.stop()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._count

    async def make(self, password: str) -> str:
        """A verifier (PHC string) of a new password.

        :raises PasswordRefused: it can't be one
        :raises TooManyRequests: too many wait already
        """
        octets = _octets(password)
        salt = self._randomness(_SALT_BYTES)
        made: str = await self._in_turn(partial(_derive, octets, salt, self._cost), _OPERATOR)
        return made

    async def check(self, password: str, verifier: str | None, source: str) -> bool:
        """Whether a password is the one that a verifier was made of.

        :param verifier: ``None`` where there is nothing to check it with: never, after as much work
        :param source: whom the work is for; each has its turn
        :raises TooManyRequests: too many wait already
        """
        against = self._dummy if verifier is None else verifier
        octets = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
        right: bool = await self._in_turn(partial(_matches, octets, against), source)
        return right and verifier is not None

    async def _in_turn(self, work: Callable[[], Any], source: str) -> Any:
        if self._stopped:
            raise ServiceUnavailable
        if self._pool is None:
            return work()
        self._make_room(source)
        job = _Job(work, source, self)
        self._waiting.setdefault(source, deque()).append(job)
        self._count += 1
        self._next()
        return await job.done

    def _make_room(self, source: str) -> None:
        """At the limit, who has most waiting gives up the newest of it for who has less (I16)."""
        if self._count < self._most:
            return
        longest = max(self._waiting.values(), key=len)
        if len(longest) <= len(self._waiting.get(source, ())) + 1:
            raise _crowded()
        job = longest[-1]
        self.drop(job)
        job.done.errback(_crowded())

    def drop(self, job: _Job) -> None:
        """Nobody waits for this any more: it is not begun, if it has not been."""
        jobs = self._waiting.get(job.source)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            self._count -= 1
            if not jobs:
                del self._waiting[job.source]

    def _next(self) -> None:
        pool = self._pool
        while pool is not None and self._running < self._threads and self._waiting:
            source, jobs = next(iter(self._waiting.items()))
            del self._waiting[source]
            job = jobs.popleft()
            self._count -= 1
            if jobs:
                self._waiting[source] = jobs  # behind all others
            self._running += 1
            pool.callInThread(self._work, job)

    def _work(self, job: _Job) -> None:
        """In a thread: do it, and hand over what came of it."""
        try:
            outcome = job.work()
        except Exception:
            outcome = Failure()
        self._call(self._done, job, outcome)

    def _done(self, job: _Job, outcome: Any) -> None:
        self._running -= 1
        if not self._stopped:
            self._next()
        if not job.done.called:
            job.done.callback(outcome)


class _Job:
    """One password to be worked on, and who waits for it."""

    __slots__ = ("done", "source", "work")

    def __init__(self, work: Callable[[], Any], source: str, passwords: Passwords) -> None:
        self.work = work
        self.source = source
        self.done: Deferred[Any] = Deferred(lambda _: passwords.drop(self))


def _crowded() -> TooManyRequests:
    return TooManyRequests("too many passwords wait to be checked: try again in a few seconds")


def _octets(password: str) -> bytes:
    """A new password as it is hashed: what can be said in a message, in Unicode's form C."""
    if not 1 <= len(password) <= PASSWORD_MOST:
        raise PasswordRefused(f"a password has 1 to {PASSWORD_MOST} characters")
    if password[0] in BLANKS or password[-1] in BLANKS:
        raise PasswordRefused("a password begins or ends with a blank")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in password):
        raise PasswordRefused("a password holds a control character")
    return unicodedata.normalize("NFC", password).encode("utf-8")


def _derive(octets: bytes, salt: bytes, cost: Cost) -> str:
    return Argon2id(
        salt=salt,
        length=_HASH_BYTES,
        iterations=cost.passes,
        lanes=cost.lanes,
        memory_cost=cost.memory,
    ).derive_phc_encoded(octets)


def _matches(octets: bytes, verifier: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(octets, verifier)
    except (InvalidKey, ValueError):  # another password, or a verifier that is none (I3)
        return False
    return True


def _no_password(randomness: Randomness, cost: Cost) -> str:
    """A verifier of the usual cost that was made of no password."""
    salt, drawn = (_base64(randomness(size)) for size in (_SALT_BYTES, _HASH_BYTES))
    return f"$argon2id$v=19$m={cost.memory},t={cost.passes},p={cost.lanes}${salt}${drawn}"


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii").rstrip("=")
