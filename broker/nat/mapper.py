"""Ports that routers are asked to open, kept open until they are closed."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.nat.context import NatContext
from broker.nat.gateway import NoRouter
from broker.nat.methods import (
    LIFETIME_MOST,
    MappingMethod,
    MappingRequest,
    NotOpened,
    PortMapping,
    TransportProtocol,
)
from broker.nat.pcp import PcpMethod
from broker.nat.upnp import UpnpMethod

T = TypeVar("T")

#: Seconds for which a port is requested, by default.
LIFETIME: Final = 3600
#: Seconds after which a request to a router is given up.
PATIENCE: Final = 15.0
#: Seconds that stopping may take.
STOP_PATIENCE: Final = 5.0
#: The shortest time between two renewals of a port, in seconds (RFC 6887, 11.2.1).
RENEWAL_LEAST: Final = 4.0

_NO_END: Final = f"no end after {PATIENCE:g} seconds"

#: A protocol, and a port of ours.
Key = tuple[TransportProtocol, int]


class NotMapped(Exception):
    """No router has opened the port; the text says how each method failed.

    :ivar causes: one for each method
    """

    def __init__(self, *causes: str) -> None:
        super().__init__("; ".join(causes))
        self.causes = causes


class MappingEvents(Protocol):
    """The owner of a port that is kept open."""

    def mapping_changed(self, before: PortMapping, now: PortMapping | None, why: str) -> None:
        """The router has it at another address or port, or not open at all (``None``)."""


class PortMapper:
    """Has ports opened in the router that this host is behind."""

    _log = Logger()

    def __init__(self, context: NatContext) -> None:
        self._context = context
        self._routers: dict[tuple[str, str], _Router] = {}
        self._openings: dict[Key, _Opening] = {}
        self._under_way: set[Deferred[Any]] = set()  # each method's attempt to open a port
        self._closing: dict[Deferred[None], Deferred[None]] = {}
        self._open: dict[Key, _OpenPort] = {}
        self._started = False  # the worker
        self._stopping: list[Deferred[None]] | None = None

    # For the owner.

    def map(
        self,
        protocol: str,
        port: int,
        lifetime: int = LIFETIME,
        events: MappingEvents | None = None,
    ) -> Deferred[PortMapping]:
        """Have a port opened, and kept open.

        :param protocol: ``TCP`` or ``UDP``
        :param port: ours, which is listened on
        :param lifetime: seconds to request at a time: a day, or less
        :param events: is told when the router changes or loses it
        :return: fails with ``NotMapped``; cancel it to give up
        :raises ValueError: there is no such port, or it is mapped already
        """
        possible = 0 < port < 65536 and 0 < lifetime <= LIFETIME_MOST
        if protocol not in ("TCP", "UDP") or not possible:
            raise ValueError(f"no port to map: {protocol} {port} for {lifetime} s")
        key: Key = ("TCP" if protocol == "TCP" else "UDP", port)
        if key in self._openings or key in self._open:
            raise ValueError(f"{protocol} {port} is mapped already")
        if self._stopping is not None:
            return fail(NotMapped("it is being stopped"))
        try:
            router = self._find_router()
        except NoRouter as error:
            return fail(NotMapped(str(error)))
        opening = self._openings[key] = _Opening(key, events)
        opening.done = Deferred(lambda _: self._end(opening))
        opening.timer = self._context.reactor.callLater(PATIENCE, self._give_up, opening)
        for method in router.methods:
            request = MappingRequest(key[0], port, lifetime)
            opening.causes[method] = _NO_END
            opening.pending[method] = (request, method.open(request))
        for method, (_, attempt) in list(opening.pending.items()):
            self._under_way.add(attempt)
            attempt.addBoth(self._method_done, opening, method, attempt)
        return opening.done

    def unmap(self, protocol: str, port: int) -> Deferred[None]:
        """Have a port closed, or given up; it is forgotten at once, and nothing fails.

        :return: fires when the router has answered, or has had its time
        """
        key: Any = (protocol, port)
        opening = self._openings.get(key)
        if opening is not None:
            opening.done.cancel()
        open_port = self._open.get(key)
        if open_port is None:
            return succeed(None)
        self._drop(open_port)
        return self._close(open_port.method, open_port.mapping)

    def stop(self) -> Deferred[None]:
        """Have all ports closed.

        :return: fires when they are, or after ``STOP_PATIENCE`` seconds
        """
        done: Deferred[None] = Deferred()
        if self._stopping is not None:
            if not self._routers:
                return succeed(None)
            self._stopping.append(done)
            return done
        self._stopping = [done]
        for opening in list(self._openings.values()):
            self._end(opening)
            opening.done.errback(NotMapped("it is being stopped"))
        for attempt in list(self._under_way):
            attempt.cancel()
        for open_port in list(self._open.values()):
            self._drop(open_port)
            self._close(open_port.method, open_port.mapping)
        limit = self._context.reactor.callLater(STOP_PATIENCE, self._stopped)
        closing = DeferredList(list(self._closing))

        def closed(_: object) -> None:
            DeferredList([method.stop() for method in self._methods()]).addCallback(all_quiet)

        def all_quiet(_: object) -> None:
            if limit.active():
                limit.cancel()
                self._stopped()

        closing.addCallback(closed)
        return done

    def _stopped(self) -> None:
        for closing in list(self._closing.values()):
            closing.cancel()
        for method in self._methods():
            method.stop().addErrback(self._unexpected)
        self._routers.clear()
        if self._started:
            self._context.worker.stop()
        waiting, self._stopping = self._stopping or [], []
        for done in waiting:
            done.callback(None)

    # The router.

    def _methods(self) -> list[MappingMethod]:
        return [method for router in self._routers.values() for method in router.methods]

    def _find_router(self) -> _Router:
        context = self._context
        gateway = context.find_gateway()
        local = context.local_address(gateway)
        router = self._routers.get((gateway, local))
        if router is not None:
            return router
        self._forget_routers()
        if context.make_igd is not None and not self._started:
            self._started = True
            context.worker.start()
        router = self._routers[gateway, local] = _Router(
            [PcpMethod(context, gateway, local, self), UpnpMethod(context, gateway, local)]
        )
        return router

    def _forget_routers(self) -> None:
        """Forget the routers that have nothing open for us: this host is behind another now."""
        if self._openings or self._under_way or self._closing:
            return
        used = {open_port.method for open_port in self._open.values()}
        for key, router in list(self._routers.items()):
            if not used.intersection(router.methods):
                del self._routers[key]
                for method in router.methods:
                    method.stop().addErrback(self._unexpected)

    def mappings_lost(self, method: MappingMethod) -> None:
        """A router's clock shows that it has lost what it was asked for by PCP and NAT-PMP."""
        router = next((it for it in self._routers.values() if method in it.methods), None)
        now = self._context.reactor.seconds()
        # A clock that is always wrong must not keep us busy.
        if router is None or now - router.lost_at < RENEWAL_LEAST:
            return
        router.lost_at = now
        for open_port in list(self._open.values()):
            if open_port.method is method:
                self._renew(open_port, lost=True)

    # Opening.

    def _method_done(
        self,
        outcome: PortMapping | Failure,
        opening: _Opening,
        method: MappingMethod,
        attempt: Deferred[PortMapping],
    ) -> None:
        self._under_way.discard(attempt)
        del opening.pending[method]
        if isinstance(outcome, Failure):
            self._method_failed(outcome, opening, method)
        elif opening.ended:
            self._take_back(method, outcome, opening.key)
        else:
            self._end(opening)
            open_port = _OpenPort(opening.key, opening.events, method, outcome)
            self._open[opening.key] = open_port
            self._keep(open_port)
            opening.done.callback(outcome)

    def _method_failed(self, failure: Failure, opening: _Opening, method: MappingMethod) -> None:
        if not failure.check(NotOpened, CancelledError):
            self._unexpected(failure)
        opening.causes[method] = failure.getErrorMessage()
        if not opening.ended and not opening.pending:
            self._give_up(opening)

    def _give_up(self, opening: _Opening) -> None:
        self._end(opening)
        causes = [f"{method.name}: {cause}" for method, cause in opening.causes.items()]
        opening.done.errback(NotMapped(*causes))

    def _end(self, opening: _Opening) -> None:
        opening.ended = True
        del self._openings[opening.key]
        if opening.timer is not None and opening.timer.active():
            opening.timer.cancel()
        for request, _ in opening.pending.values():
            request.wanted = False

    def _take_back(self, method: MappingMethod, mapping: PortMapping, key: Key) -> None:
        """Close what came too late.

        To the router it may have been the mapping that came in time: then that is requested again.
        """

        def closed(_: object) -> None:
            open_port = self._open.get(key)
            if open_port is not None:
                self._renew(open_port)

        self._close(method, mapping).addCallback(closed)

    # Keeping open.

    def _keep(self, open_port: _OpenPort) -> None:
        """It was just opened, or renewed."""
        lasts = open_port.mapping.lifetime or open_port.mapping.requested
        open_port.until = self._context.reactor.seconds() + lasts
        self._renew_later(open_port)

    def _renew_later(self, open_port: _OpenPort) -> None:
        reactor = self._context.reactor
        left = open_port.until - reactor.seconds()
        open_port.timer = reactor.callLater(max(RENEWAL_LEAST, left / 2), self._renew, open_port)

    def _renew(self, open_port: _OpenPort, *, lost: bool = False) -> None:
        """
        :param lost: the router has lost it: without this renewal it is not open
        """
        if open_port.renewing is not None:
            open_port.renewing.cancel()
        open_port.stop_timer()
        renewing = self._bounded(open_port.method.renew(open_port.mapping))
        open_port.renewing = renewing
        renewing.addCallbacks(
            self._renewed,
            self._not_renewed,
            callbackArgs=(open_port,),
            errbackArgs=(open_port, lost),
        )

    def _renewed(self, mapping: PortMapping, open_port: _OpenPort) -> None:
        open_port.renewing = None
        before, open_port.mapping = open_port.mapping, mapping
        self._keep(open_port)
        if (before.address, before.external) != (mapping.address, mapping.external):
            self._tell(open_port, before, mapping, "the router has another address or port")

    def _not_renewed(self, failure: Failure, open_port: _OpenPort, lost: bool) -> None:
        if failure.check(CancelledError):
            return
        open_port.renewing = None
        if not failure.check(NotOpened):
            self._unexpected(failure)
        if not lost and open_port.until - self._context.reactor.seconds() >= RENEWAL_LEAST:
            self._renew_later(open_port)
            return
        self._drop(open_port)
        if not open_port.mapping.lifetime:  # it would stay open for ever
            self._close(open_port.method, open_port.mapping)
        self._tell(open_port, open_port.mapping, None, failure.getErrorMessage())

    def _tell(
        self, open_port: _OpenPort, before: PortMapping, now: PortMapping | None, why: str
    ) -> None:
        if open_port.events is None:
            return
        try:
            open_port.events.mapping_changed(before, now, why)
        except Exception:
            self._unexpected(Failure())

    # Closing.

    def _drop(self, open_port: _OpenPort) -> None:
        del self._open[open_port.key]
        open_port.stop_timer()
        if open_port.renewing is not None:
            renewing, open_port.renewing = open_port.renewing, None
            renewing.cancel()

    def _close(self, method: MappingMethod, mapping: PortMapping) -> Deferred[None]:
        """Have it closed; what comes of it is only logged."""
        done: Deferred[None] = Deferred()

        def closed(failure: Failure | None) -> None:
            del self._closing[done]
            if failure is not None and failure.check(NotOpened):
                where = f"{mapping.protocol} {mapping.external}"
                why = failure.getErrorMessage()
                self._log.warn("The router did not close {where}: {why}", where=where, why=why)
            elif failure is not None and not failure.check(CancelledError):
                self._unexpected(failure)
            done.callback(None)

        closing = self._closing[done] = self._bounded(method.close(mapping))
        closing.addBoth(closed)
        return done

    def _bounded(self, doing: Deferred[T]) -> Deferred[T]:
        """Let it fail if it takes too long, as a thread may that a router makes block."""

        def too_long(_: object, __: float) -> T:
            raise NotOpened(_NO_END)

        return doing.addTimeout(PATIENCE, self._context.reactor, too_long)

    def _unexpected(self, failure: Failure) -> None:
        self._log.failure("A port in the router: unexpected error", failure=failure)


class _Router:
    """A router, and the methods to ask it.

    :ivar lost_at: when it last showed that it has lost its mappings
    """

    def __init__(self, methods: list[MappingMethod]) -> None:
        self.methods = methods
        self.lost_at = float("-inf")


class _Opening:
    """A port that is being opened, by all methods at once: the first one counts.

    :ivar causes: why each method has failed so far
    :ivar pending: the methods that are under way
    :ivar ended: one has opened it, all have failed, or it is not wanted now
    """

    done: Deferred[PortMapping]

    def __init__(self, key: Key, events: MappingEvents | None) -> None:
        self.key = key
        self.events = events
        self.ended = False
        self.causes: dict[MappingMethod, str] = {}
        self.pending: dict[MappingMethod, tuple[MappingRequest, Deferred[PortMapping]]] = {}
        self.timer: IDelayedCall | None = None


class _OpenPort:
    """A port that is open.

    :ivar until: when the router closes it
    :ivar timer: of its next renewal
    """

    def __init__(
        self, key: Key, events: MappingEvents | None, method: MappingMethod, mapping: PortMapping
    ) -> None:
        self.key = key
        self.events = events
        self.method = method
        self.mapping = mapping
        self.until = 0.0
        self.timer: IDelayedCall | None = None
        self.renewing: Deferred[PortMapping] | None = None

    def stop_timer(self) -> None:
        """Don't renew it by itself."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None
