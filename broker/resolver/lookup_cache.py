"""Answers of a source of addresses, kept for as long as they hold: one question for all who ask."""

from __future__ import annotations

from typing import Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IAddressSource, SourceFailed
from broker.net.timers import DeadlineQueue
from broker.tables.locations import ResolvedHost

#: Seconds for which an answer is taken for true, at the least and at the most, whatever it says;
#: that there is no address, or no answer, is taken for true for the least.
HOLDS: Final = (5.0, 3600.0)
#: Seconds that somebody waits for an answer: a part of the five in which a call is decided.
PATIENCE: Final = 2.0
#: Seconds after which a question is over, answered or not.
OVER: Final = 10.0
#: Answers that are remembered; beyond, the oldest are forgotten (I15).
REMEMBERED_MOST: Final = 10_000
#: Questions under way at a time, and those who wait for the answer to one (I15).
QUESTIONS_MOST: Final = 100
WAITING_MOST: Final = 100
#: Addresses that one name may have; more are not looked at (I24).
HOSTS_MOST: Final = 16


class _Answer(NamedTuple):
    """What a source said: the addresses, or ``None`` where it gave no answer; and until when."""

    hosts: tuple[str, ...] | None
    until: float


class LookupCache:
    """Asks a source once for all who want to know, and not again while its answer holds."""

    log = Logger()

    def __init__(
        self,
        source: IAddressSource,
        clock: IReactorTime,
        *,
        patience: float = PATIENCE,
        most: int = REMEMBERED_MOST,
        at_a_time: int = QUESTIONS_MOST,
    ) -> None:
        self._source = source
        self._clock = clock
        self._most = most
        self._at_a_time = at_a_time
        self._answers: dict[str, _Answer] = {}
        self._asking: dict[str, Deferred[None]] = {}
        self._waiting: dict[str, set[Deferred[tuple[str, ...]]]] = {}
        self._over: DeadlineQueue[str] = DeadlineQueue(clock, OVER, self._give_up)
        self._patience: DeadlineQueue[Deferred[tuple[str, ...]]] = DeadlineQueue(
            clock, patience, lambda waiting: waiting.cancel()
        )

    async def hosts(self, name: str) -> tuple[str, ...]:
        """The addresses that a name has.

        :raises SourceFailed: there is no answer, or none in good time
        """
        answer = self._answers.get(name)
        if answer is None or answer.until <= self._clock.seconds():
            asking = name in self._asking
            if not asking and len(self._asking) >= self._at_a_time:
                raise SourceFailed("too many questions at a time")
            waiting: Deferred[tuple[str, ...]] = Deferred()
            waiters = self._waiting.setdefault(name, set())
            if len(waiters) >= WAITING_MOST:
                raise SourceFailed("too many wait for the same answer")
            waiters.add(waiting)
            self._patience.add(waiting)
            if not asking:
                self._ask(name)
            try:
                return await waiting
            except CancelledError:
                if waiting in self._patience:
                    raise  # who wanted to know gave up
                raise SourceFailed("no answer in time") from None
            finally:
                self._patience.discard(waiting)
                waiters.discard(waiting)
        if answer.hosts is None:
            raise SourceFailed("there was no answer just now")
        return answer.hosts

    def stop(self) -> None:
        """Forget everything, and leave no timer behind; who waits is told so."""
        for asking in list(self._asking.values()):
            asking.cancel()
        self._source.stop()
        self._over.stop()
        self._patience.stop()
        self._answers.clear()

    def __len__(self) -> int:
        return len(self._answers)

    def _ask(self, name: str) -> None:
        async def steps() -> None:
            hosts: tuple[str, ...] | None = None
            seconds = 0.0
            try:
                located = list(await self._source.locate(name))[:HOSTS_MOST]
                hosts, seconds = _hosts(located)
            except (SourceFailed, CancelledError):
                pass
            except Exception:
                self.log.failure("A source of addresses failed", Failure())
            self._answered(name, hosts, seconds)

        # Known as asked before it is: the answer may come at once.
        placeholder: Deferred[None] = Deferred()
        self._asking[name] = placeholder
        self._over.add(name)
        asking = Deferred.fromCoroutine(steps())
        if self._asking.get(name) is placeholder:
            self._asking[name] = asking

    def _give_up(self, name: str) -> None:
        self._asking[name].cancel()

    def _answered(self, name: str, hosts: tuple[str, ...] | None, seconds: float) -> None:
        least, most = HOLDS
        holds = min(max(seconds, least), most) if hosts else least
        del self._asking[name]
        self._over.discard(name)
        self._answers.pop(name, None)
        if len(self._answers) >= self._most:
            del self._answers[next(iter(self._answers))]
        self._answers[name] = _Answer(hosts, self._clock.seconds() + holds)
        for waiting in list(self._waiting.pop(name, ())):
            if waiting.called:
                continue
            if hosts is None:
                waiting.errback(SourceFailed("no answer"))
            else:
                waiting.callback(hosts)


def _hosts(located: list[ResolvedHost]) -> tuple[tuple[str, ...], float]:
    return tuple(one.host for one in located), min((one.seconds for one in located), default=0.0)
