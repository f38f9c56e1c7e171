"""Addresses that are registered by name: found out when they are told, and judged each time (I12).

``LookupCache`` keeps what a source says for as long as it holds; both kinds of resolvers ask a
``NameLookup`` about an address that is no IP address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

import psutil
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IAddressSource, SourceFailed
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.net.timers import DeadlineQueue
from broker.tables.locations import (
    PROVIDER,
    Address,
    AddressRefused,
    Ip,
    Located,
    Network,
    parse_ip,
    settle,
)

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
#: Seconds for which this machine's own addresses are taken for known.
OWN_SECONDS: Final = 60.0


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


def _hosts(located: list[Located]) -> tuple[tuple[str, ...], float]:
    return tuple(one.host for one in located), min((one.seconds for one in located), default=0.0)


def own_addresses() -> frozenset[Ip]:
    """The addresses of this machine."""
    found = set()
    for interface in psutil.net_if_addrs().values():
        for one in interface:
            try:
                found.add(parse_ip(one.address.partition("%")[0]))
            except AddressRefused:  # of hardware
                continue
    return frozenset(found)


class NameLookup:
    """Finds out what stands behind an address that is no IP address, and judges it.

    An IP address never comes here, so that it costs a look-up nothing.
    """

    def __init__(
        self,
        clock: IReactorTime,
        names: LookupCache | None = None,
        provider: LookupCache | None = None,
        *,
        allowed: Collection[Network] = (),
        own: Callable[[], Collection[Ip]] = own_addresses,
        own_ports: Collection[int] = (),
    ) -> None:
        """
        :param names: knows domain names; without it, none are taken
        :param provider: knows identifiers; without it, there is no provider
        :param allowed: networks in which an address may be whatever it was registered from
        :param own: gives the addresses of this machine
        :param own_ports: the ports of this server, at which no terminal is
        """
        self._clock = clock
        self._names = names
        self._provider = provider
        self._allowed = allowed
        self._own = own
        self._own_ports = own_ports
        self._ours: tuple[Collection[Ip], float] = ((), -1.0)  # until when
        #: The registration by name that is being checked, of those for whom one is.
        self._checking: dict[str, Address] = {}

    async def check(self, identifier: str, address: Address) -> None:
        """Find out whether an address may be registered that is no IP address.

        :raises RegistrationFailed: it may not, or another registration has come meanwhile
        :raises ServiceUnavailable: it can't be found out now
        """
        if address.origin is None:
            raise ValueError("an IP address needs no finding out")
        self._checking[identifier] = address
        try:
            if not address.origin.checked:
                await self._find(identifier, address)
                address.origin.checked = True
            if self._checking.get(identifier) is not address:
                raise RegistrationFailed("a newer registration has come meanwhile")
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        except SourceFailed:
            who = "the provider" if address.host == PROVIDER else "DNS"
            raise ServiceUnavailable(f"{who} does not answer") from None
        finally:
            if self._checking.get(identifier) is address:
                del self._checking[identifier]

    def overtake(self, identifier: str) -> None:
        """What a terminal registered by name, and is still being checked, is in force no more."""
        self._checking.pop(identifier, None)

    async def told(self, identifier: str, address: Address) -> Address:
        """An address as it is told: with an IP address, that was judged just now.

        :raises CalleeNotFound: it leads to none that may be told
        :raises ServiceUnavailable: it can't be found out now
        """
        try:
            return await self._find(identifier, address)
        except AddressRefused:
            raise CalleeNotFound from None
        except SourceFailed:
            raise ServiceUnavailable from None

    def stop(self) -> None:
        """Leave no timer behind."""
        for one in (self._names, self._provider):
            if one is not None:
                one.stop()

    async def _find(self, identifier: str, address: Address) -> Address:
        by_provider = address.host == PROVIDER
        source = self._provider if by_provider else self._names
        if source is None:
            what = "Provider" if by_provider else "a domain name"
            raise AddressRefused(f"{what} is not offered by this server")
        hosts = await source.hosts(identifier if by_provider else address.host)
        return settle(
            address,
            hosts,
            own=self._own_now(),
            allowed=self._allowed,
            own_ports=self._own_ports,
        )

    def _own_now(self) -> Collection[Ip]:
        if not self._own_ports:
            return ()
        now = self._clock.seconds()
        if self._ours[1] <= now:
            self._ours = (self._own(), now + OWN_SECONDS)
        return self._ours[0]
