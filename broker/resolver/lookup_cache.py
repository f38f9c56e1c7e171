"""Answers of a source of addresses, kept for as long as they hold; one question for all callers."""

from __future__ import annotations

from typing import Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IAddressSource, SourceFailed
from broker.net.timers import DeadlineQueue
from broker.tables.locations import ResolvedHost

#: The shortest and the longest time to live of an answer, in seconds, whatever it says itself.
#: "No address" and "no answer" live for the shortest.
TTL_SECONDS: Final = (5.0, 3600.0)
#: Seconds that a caller waits for an answer: a part of the five in which a call is decided.
PATIENCE: Final = 2.0
#: Seconds after which a question is given up; its answer may still be of use to later callers.
QUESTION_SECONDS: Final = 10.0
#: Answers that are kept; beyond that the oldest are dropped (I15).
ANSWERS_MAX: Final = 10_000
#: Questions under way at a time, and callers that wait for the answer to one (I15).
QUESTIONS_MAX: Final = 100
WAITING_MAX: Final = 100
#: Addresses that one name may have; more are ignored (I24).
HOSTS_MAX: Final = 16


class _Answer(NamedTuple):
    """What a source said.

    :ivar hosts: the addresses; ``None`` where it gave no answer
    :ivar until: when the source must be asked again
    """

    hosts: tuple[str, ...] | None
    until: float


class LookupCache:
    """Asks a source once for all callers, and not again while its answer holds."""

    log = Logger()

    def __init__(
        self,
        source: IAddressSource,
        clock: IReactorTime,
        *,
        patience: float = PATIENCE,
        answers_max: int = ANSWERS_MAX,
        questions_max: int = QUESTIONS_MAX,
    ) -> None:
        """
        :param patience: seconds that a caller waits
        :param answers_max: answers that are kept
        :param questions_max: questions under way at a time
        """
        self._source = source
        self._clock = clock
        self._answers_max = answers_max
        self._questions_max = questions_max
        self._answers: dict[str, _Answer] = {}
        self._asking: dict[str, Deferred[None]] = {}
        self._waiting: dict[str, set[Deferred[tuple[str, ...]]]] = {}
        self._questions: DeadlineQueue[str] = DeadlineQueue(clock, QUESTION_SECONDS, self._give_up)
        self._patience: DeadlineQueue[Deferred[tuple[str, ...]]] = DeadlineQueue(
            clock, patience, lambda waiting: waiting.cancel()
        )

    async def hosts(self, name: str) -> tuple[str, ...]:
        """The addresses that a name has.

        :raises SourceFailed: there is no answer, or none in time
        """
        answer = self._answers.get(name)
        if answer is None or answer.until <= self._clock.seconds():
            return await self._wait(name)
        if answer.hosts is None:
            raise SourceFailed("there was no answer just now")
        return answer.hosts

    async def _wait(self, name: str) -> tuple[str, ...]:
        """Wait for the answer to a question, and ask it unless it is asked already."""
        is_asked = name in self._asking
        if not is_asked and len(self._asking) >= self._questions_max:
            raise SourceFailed("too many questions at a time")
        waiting: Deferred[tuple[str, ...]] = Deferred()
        callers = self._waiting.setdefault(name, set())
        if len(callers) >= WAITING_MAX:
            raise SourceFailed("too many wait for the same answer")
        callers.add(waiting)
        self._patience.add(waiting)
        if not is_asked:
            self._ask(name)
        try:
            return await waiting
        except CancelledError:
            if waiting in self._patience:
                raise  # the caller gave up
            raise SourceFailed("no answer in time") from None
        finally:
            self._patience.discard(waiting)
            callers.discard(waiting)

    def stop(self) -> None:
        """Forget everything, and leave no timer behind; callers that wait get no answer."""
        for asking in list(self._asking.values()):
            asking.cancel()
        self._source.stop()
        self._questions.stop()
        self._patience.stop()
        self._answers.clear()

    def __len__(self) -> int:
        return len(self._answers)

    def _ask(self, name: str) -> None:
        async def steps() -> None:
            hosts: tuple[str, ...] | None = None
            seconds = 0.0
            try:
                located = list(await self._source.locate(name))[:HOSTS_MAX]
                hosts, seconds = _hosts(located)
            except (SourceFailed, CancelledError):
                pass
            except Exception:
                self.log.failure("A source of addresses failed", Failure())
            self._answered(name, hosts, seconds)

        # Noted before it is asked: the answer may come at once.
        placeholder: Deferred[None] = Deferred()
        self._asking[name] = placeholder
        self._questions.add(name)
        asking = Deferred.fromCoroutine(steps())
        if self._asking.get(name) is placeholder:
            self._asking[name] = asking

    def _give_up(self, name: str) -> None:
        self._asking[name].cancel()

    def _answered(self, name: str, hosts: tuple[str, ...] | None, seconds: float) -> None:
        shortest, longest = TTL_SECONDS
        ttl = min(max(seconds, shortest), longest) if hosts else shortest
        del self._asking[name]
        self._questions.discard(name)
        self._answers.pop(name, None)
        if len(self._answers) >= self._answers_max:
            del self._answers[next(iter(self._answers))]
        self._answers[name] = _Answer(hosts, self._clock.seconds() + ttl)
        for waiting in list(self._waiting.pop(name, ())):
            if waiting.called:
                continue
            if hosts is None:
                waiting.errback(SourceFailed("no answer"))
            else:
                waiting.callback(hosts)


def _hosts(located: list[ResolvedHost]) -> tuple[tuple[str, ...], float]:
    seconds = min((address.seconds for address in located), default=0.0)
    return tuple(address.host for address in located), seconds
