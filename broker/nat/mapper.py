"""Ports that routers have been asked to open, kept open until they are no longer wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.nat.gateway import NoRouter, find_gateway, is_public, local_address
from broker.nat.methods import LIFETIME_MOST, Kind, MappingRequest, NotOpened, PortMapping, Way
from broker.nat.pcp import RouterPort
from broker.nat.upnp import MakeIgd, Upnp, find_miniupnpc
from broker.nat.worker import OneThread, Worker

T = TypeVar("T")

#: Seconds for which a port is asked for, unless told otherwise.
LIFETIME: Final = 3600
#: Seconds after which what a router was asked for is given up.
PATIENCE: Final = 15.0
#: Seconds that stopping takes at the most.
STOP_PATIENCE: Final = 5.0
#: Seconds between two attempts to keep a port open, at the least (RFC 6887, 11.2.1).
RENEWAL_LEAST: Final = 4.0


class Mapped(NamedTuple):
    """A port that a router says it has opened.

    Nothing of it is proven: compare the address with what a server sees, and connect.

    :ivar address: the router's to the outside, by its own claim
    :ivar port: there
    :ivar lifetime: seconds, after which the router closes it unless it is renewed, as it will be;
        0, where it stays open until it is closed
    :ivar how: ``PCP``, ``NAT-PMP`` or ``UPnP``
    """

    address: str
    port: int
    lifetime: int
    how: str

    @property
    def public(self) -> bool:
        """Whether the address could be reached from everywhere.

        Where it could not, the router is behind another, which has opened nothing.
        """
        return is_public(self.address)


class NotMapped(Exception):
    """No router has opened the port; the text says what became of each way.

    :ivar causes: the same, a way each
    """

    def __init__(self, *causes: str) -> None:
        super().__init__("; ".join(causes))
        self.causes = causes


_NO_END: Final = f"no end after {PATIENCE:g} seconds"

Key = tuple[Kind, int]
#: Told what was open, what is instead (``None``, if nothing is), and why.
Changed = Callable[[Key, Mapped, Mapped | None, str], object]


class _Place:
    """A router, and the ways to ask it."""

    def __init__(self, gateway: str, local: str) -> None:
        self.key = (gateway, local)
        self.ways: list[Way] = []
        self.forgot_at: float | None = None


class _Race:
    """A port that is to be opened, in all ways at once."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.over = False
        self.causes: dict[Way, str] = {}
        self.pending: dict[Way, tuple[MappingRequest, Deferred[PortMapping]]] = {}
        self.timer: IDelayedCall | None = None
        self.done: Deferred[Mapped]


class _Held:
    """A port that is open."""

    def __init__(self, key: Key, way: Way, opening: PortMapping) -> None:
        self.key = key
        self.way = way
        self.opening = opening
        self.until = 0.0
        self.timer: IDelayedCall | None = None
        self.renewing: Deferred[PortMapping] | None = None


class PortMapper:
    """Has ports opened in the router that this host is behind."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        randomness: Callable[[int], bytes],
        jitter: Callable[[], float],
        changed: Changed = lambda *_: None,
        gateway: Callable[[], str] = find_gateway,
        local: Callable[[str], str] = local_address,
        igd: Callable[[], MakeIgd | None] = find_miniupnpc,
        worker: Worker | None = None,
    ) -> None:
        """
        :param randomness: gives so many unpredictable bytes
        :param jitter: random numbers from 0 to 1
        :param changed: told of each port that is lost, or has moved
        :param gateway: finds the router
        :param local: finds our own address towards a router
        :param igd: finds miniupnpc
        :param worker: where UPnP's calls wait
        """
        self._reactor = reactor
        self._randomness = randomness
        self._jitter = jitter
        self._changed = changed
        self._gateway = gateway
        self._local = local
        self._igd = igd()
        self._worker = worker or OneThread("upnp")
        self._places: dict[tuple[str, str], _Place] = {}
        self._races: dict[Key, _Race] = {}
        self._losers: set[Deferred[Any]] = set()
        self._closing: dict[Deferred[None], Deferred[None]] = {}
        self._held: dict[Key, _Held] = {}
        self._started = False
        self._stopping: list[Deferred[None]] | None = None

    # For the owner.

    def map(self, protocol: str, port: int, lifetime: int = LIFETIME) -> Deferred[Mapped]:
        """Have a port opened, and kept open.

        :param protocol: ``TCP`` or ``UDP``
        :param port: ours, on which someone listens
        :param lifetime: seconds to ask for at a time, a day at the most
        :return: fails with ``NotMapped``; cancel it to give up
        :raises ValueError: there is no such port, or it is mapped already
        """
        possible = 0 < port < 65536 and 0 < lifetime <= LIFETIME_MOST
        if protocol not in ("TCP", "UDP") or not possible:
            raise ValueError(f"no port to map: {protocol} {port} for {lifetime} s")
        key: Key = ("TCP" if protocol == "TCP" else "UDP", port)
        if key in self._races or key in self._held:
            raise ValueError(f"{protocol} {port} is mapped already")
        if self._stopping is not None:
            return fail(NotMapped("it is being stopped"))
        try:
            place = self._here()
        except NoRouter as error:
            return fail(NotMapped(str(error)))
        race = self._races[key] = _Race(key)
        race.done = Deferred(lambda _: self._end_race(race))
        race.timer = self._reactor.callLater(PATIENCE, self._give_up, race)
        for way in place.ways:
            wish = MappingRequest(key[0], port, lifetime)
            race.causes[way] = _NO_END
            race.pending[way] = (wish, way.open(wish))
        for way, (_, opened) in list(race.pending.items()):
            self._losers.add(opened)
            opened.addBoth(self._opened, race, way, opened)
        return race.done

    def unmap(self, protocol: str, port: int) -> Deferred[None]:
        """Have a port closed, or given up; it is forgotten at once, and nothing fails.

        :return: fires when the router has answered, or has had its time
        """
        key: Any = (protocol, port)
        race = self._races.get(key)
        if race is not None:
            race.done.cancel()
        held = self._held.get(key)
        if held is None:
            return succeed(None)
        self._drop(held)
        return self._close(held.way, held.opening)

    def stop(self) -> Deferred[None]:
        """Have all ports closed.

        :return: fires when they are, and after ``STOP_PATIENCE`` seconds whatever has become of it
        """
        done: Deferred[None] = Deferred()
        if self._stopping is not None:
            if not self._places:
                return succeed(None)
            self._stopping.append(done)
            return done
        self._stopping = [done]
        for race in list(self._races.values()):
            self._end_race(race)
            race.done.errback(NotMapped("it is being stopped"))
        for opened in list(self._losers):
            opened.cancel()
        for held in list(self._held.values()):
            self._drop(held)
            self._close(held.way, held.opening)
        limit = self._reactor.callLater(STOP_PATIENCE, self._stopped)
        closing = DeferredList(list(self._closing))

        def closed(_: object) -> None:
            ways = [way for place in self._places.values() for way in place.ways]
            DeferredList([way.stop() for way in ways]).addCallback(all_quiet)

        def all_quiet(_: object) -> None:
            if limit.active():
                limit.cancel()
                self._stopped()

        closing.addCallback(closed)
        return done

    def _stopped(self) -> None:
        for closing in list(self._closing.values()):
            closing.cancel()
        for place in self._places.values():
            for way in place.ways:
                way.stop().addErrback(self._unexpected)
        self._places.clear()
        if self._started:
            self._worker.stop()
        waiting, self._stopping = self._stopping or [], []
        for done in waiting:
            done.callback(None)

    # Where we are.

    def _here(self) -> _Place:
        gateway = self._gateway()
        local = self._local(gateway)
        place = self._places.get((gateway, local))
        if place is not None:
            return place
        self._leave_places()
        place = _Place(gateway, local)
        place.ways.append(
            RouterPort(
                self._reactor,
                gateway,
                local,
                randomness=self._randomness,
                jitter=self._jitter,
                lost=lambda: self._router_forgot(place),
            )
        )
        if self._igd is not None and not self._started:
            self._started = True
            self._worker.start()
        place.ways.append(
            Upnp(
                self._igd,
                gateway,
                local,
                worker=self._worker,
                call_from_thread=self._reactor.callFromThread,
                randomness=self._randomness,
            )
        )
        self._places[place.key] = place
        return place

    def _leave_places(self) -> None:
        """Forget the routers of which nothing is wanted any more."""
        if self._races or self._losers or self._closing:
            return
        used = {held.way for held in self._held.values()}
        for key, place in list(self._places.items()):
            if not used.intersection(place.ways):
                del self._places[key]
                for way in place.ways:
                    way.stop().addErrback(self._unexpected)

    # Opening.

    def _opened(
        self, outcome: PortMapping | Failure, race: _Race, way: Way, opened: Deferred[PortMapping]
    ) -> None:
        self._losers.discard(opened)
        del race.pending[way]
        if isinstance(outcome, Failure):
            self._not_opened(outcome, race, way)
        elif race.over:
            self._take_back(way, outcome, race.key)
        else:
            self._end_race(race)
            held = self._held[race.key] = _Held(race.key, way, outcome)
            self._keep(held)
            race.done.callback(_mapped(outcome))

    def _not_opened(self, failure: Failure, race: _Race, way: Way) -> None:
        if not failure.check(NotOpened, CancelledError):
            self._unexpected(failure)
        race.causes[way] = failure.getErrorMessage()
        if not race.over and not race.pending:
            self._give_up(race)

    def _give_up(self, race: _Race) -> None:
        self._end_race(race)
        causes = [f"{way.name}: {cause}" for way, cause in race.causes.items()]
        race.done.errback(NotMapped(*causes))

    def _end_race(self, race: _Race) -> None:
        race.over = True
        del self._races[race.key]
        if race.timer is not None and race.timer.active():
            race.timer.cancel()
        for wish, _ in race.pending.values():
            wish.wanted = False

    def _take_back(self, way: Way, opening: PortMapping, key: Key) -> None:
        """Close what came too late.

        To the router it may have been the same as what came in time: that is asked for once more.
        """

        def closed(_: object) -> None:
            held = self._held.get(key)
            if held is not None:
                self._renew(held)

        self._close(way, opening).addCallback(closed)

    # Keeping open.

    def _keep(self, held: _Held) -> None:
        """It was just opened, or renewed."""
        lasts = held.opening.lifetime or held.opening.asked
        held.until = self._reactor.seconds() + lasts
        self._renew_later(held)

    def _renew_later(self, held: _Held) -> None:
        left = held.until - self._reactor.seconds()
        held.timer = self._reactor.callLater(max(RENEWAL_LEAST, left / 2), self._renew, held)

    @staticmethod
    def _unschedule(held: _Held) -> None:
        if held.timer is not None and held.timer.active():
            held.timer.cancel()
        held.timer = None

    def _renew(self, held: _Held, *, forgotten: bool = False) -> None:
        if held.renewing is not None:
            held.renewing.cancel()
        self._unschedule(held)
        renewing = held.renewing = self._bounded(held.way.renew(held.opening))

        def renewed(opening: PortMapping) -> None:
            held.renewing = None
            before, held.opening = held.opening, opening
            self._keep(held)
            if (before.address, before.external) != (opening.address, opening.external):
                self._tell(held.key, before, opening, "the router has another address or port")

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError):
                return
            held.renewing = None
            if not failure.check(NotOpened):
                self._unexpected(failure)
            left = held.until - self._reactor.seconds()
            if forgotten or left < RENEWAL_LEAST:
                self._drop(held)
                if not held.opening.lifetime:  # it would stay open for ever
                    self._close(held.way, held.opening)
                self._tell(held.key, held.opening, None, failure.getErrorMessage())
            else:
                self._renew_later(held)

        renewing.addCallbacks(renewed, failed)

    def _router_forgot(self, place: _Place) -> None:
        """A router's clock shows that it has lost what was asked of it by PCP and NAT-PMP.

        A clock that is always astray must not keep us busy.
        """
        now = self._reactor.seconds()
        if place.forgot_at is not None and now - place.forgot_at < RENEWAL_LEAST:
            return
        place.forgot_at = now
        for held in list(self._held.values()):
            if held.way is place.ways[0]:
                self._renew(held, forgotten=True)

    def _tell(self, key: Key, before: PortMapping, now: PortMapping | None, why: str) -> None:
        try:
            self._changed(key, _mapped(before), None if now is None else _mapped(now), why)
        except Exception:
            self._unexpected(Failure())

    # Closing.

    def _drop(self, held: _Held) -> None:
        del self._held[held.key]
        self._unschedule(held)
        if held.renewing is not None:
            renewing, held.renewing = held.renewing, None
            renewing.cancel()

    def _close(self, way: Way, opening: PortMapping) -> Deferred[None]:
        """Have it closed; what comes of it is only logged."""
        done: Deferred[None] = Deferred()

        def closed(failure: Failure | None) -> None:
            del self._closing[done]
            if failure is not None and failure.check(NotOpened):
                where = f"{opening.kind} {opening.external}"
                why = failure.getErrorMessage()
                self._log.warn("{where} was not closed: {why}", where=where, why=why)
            elif failure is not None and not failure.check(CancelledError):
                self._unexpected(failure)
            done.callback(None)

        closing = self._closing[done] = self._bounded(way.close(opening))
        closing.addBoth(closed)
        return done

    def _bounded(self, doing: Deferred[T]) -> Deferred[T]:
        """Let it fail if it takes too long, as a thread may that a router keeps waiting."""

        def too_long(_: object, __: float) -> T:
            raise NotOpened(_NO_END)

        return doing.addTimeout(PATIENCE, self._reactor, too_long)

    def _unexpected(self, failure: Failure) -> None:
        self._log.failure("a port of the router's", failure=failure)


def _mapped(opening: PortMapping) -> Mapped:
    return Mapped(opening.address, opening.external, opening.lifetime, opening.how)
