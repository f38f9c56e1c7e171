"""UPnP's Internet gateway device, by ``miniupnpc``, whose calls block: a thread makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Final
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, fail, succeed

from broker.nat.context import NatContext
from broker.nat.gateway import is_public
from broker.nat.methods import SLOWER, MappingRequest, NotOpened, PortMapping

#: Leases are requested within these bounds, in seconds: some routers take no others.
LEASE_LEAST: Final = 600
LEASE_MOST: Final = 3600
#: Milliseconds that devices have to answer. If none does, several device types are tried in turn.
DISCOVERY: Final = 1000
#: How many calls may wait for the thread.
WAITING_MOST: Final = 32
#: How many ports are tried, where others have theirs.
PORTS_TRIED: Final = 5
#: What routers show in their lists.
DESCRIPTION: Final = "broker"

_PORTS_FROM: Final = 1024
# The texts that miniupnpc has for the errors 718 and 725, and for a port that is not open.
_CONFLICT: Final = "ConflictInMappingEntry"
_PERMANENT_ONLY: Final = "OnlyPermanentLeasesSupported"
_NOT_THERE: Final = ("NoSuchEntry", "PortMappingNotFound")


class UpnpMethod:
    """Asks one router by UPnP.

    The device, once found, is kept with its addresses; the thread alone touches it.

    :ivar name: for messages
    """

    name = "UPnP"

    def __init__(self, context: NatContext, gateway: str, local: str) -> None:
        """
        :param gateway: the router's address
        :param local: our own address towards it
        """
        self._context = context
        self._gateway = gateway
        self._local = local
        self._igd: Any = None
        self._running = 0
        self._awaited: set[object] = set()  # the jobs that may still open something
        self._stopped: Deferred[None] | None = None

    # As a mapping method.

    def open(self, request: MappingRequest) -> Deferred[PortMapping]:
        """Have a port opened; cancel to take it back, whether it was opened or not."""
        lease = min(max(request.lifetime, LEASE_LEAST), LEASE_MOST)

        def given_up(_: object) -> None:
            request.wanted = False
            if not request.asking:  # and, not being wanted, it won't
                self._ended(request)

        def too_late(outcome: PortMapping | NotOpened) -> None:
            if isinstance(outcome, PortMapping):
                self._submit(object(), lambda: self._close(outcome), lambda _: None)

        done: Deferred[PortMapping] = Deferred(given_up)
        return self._do(request, lambda: self._open(request, lease), done, too_late)

    def renew(self, mapping: PortMapping) -> Deferred[PortMapping]:
        """Have it kept open, at the same port."""
        return self._do(object(), lambda: self._renew(mapping), Deferred())

    def close(self, mapping: PortMapping) -> Deferred[None]:
        """Have it closed."""
        return self._do(object(), lambda: self._close(mapping), Deferred())

    def stop(self) -> Deferred[None]:
        """Fires when the thread has nothing left to do that could open a port."""
        if not self._awaited:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
        return self._stopped

    # To the thread, and back.

    def _do(
        self,
        job: object,
        work: Callable[[], Any],
        done: Deferred[Any],
        too_late: Callable[[Any], object] = lambda _: None,
    ) -> Deferred[Any]:
        """Have the thread work; ``done`` fires with the outcome.

        :param job: what stands for the work in ``_awaited``
        :param too_late: takes the outcome if ``done`` was cancelled
        """
        if self._context.make_igd is None:
            return fail(NotOpened("miniupnpc is not installed"))
        if self._running >= WAITING_MOST:
            return fail(NotOpened("too many requests wait for the router"))

        def finished(outcome: Any) -> None:
            if done.called:  # it was cancelled
                too_late(outcome)
            elif isinstance(outcome, Exception):
                done.errback(outcome)
            else:
                done.callback(outcome)

        self._submit(job, work, finished)
        return done

    def _submit(
        self, job: object, work: Callable[[], Any], finished: Callable[[Any], object]
    ) -> None:
        self._running += 1
        self._awaited.add(job)

        def back(outcome: Any) -> None:
            finished(outcome)
            self._running -= 1
            self._ended(job)

        def run() -> None:
            outcome: Any
            try:
                outcome = work()
            except NotOpened as error:
                outcome = error
            except Exception as error:
                self._igd = None
                outcome = NotOpened(f"the router {self._gateway} fails: {_words(error)}")
            self._context.reactor.callFromThread(back, outcome)

        self._context.worker.callInThread(run)

    def _ended(self, job: object) -> None:
        self._awaited.discard(job)
        if not self._awaited and self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    # In the thread.

    def _open(self, request: MappingRequest, lease: int) -> PortMapping:
        kept = self._igd is not None
        try:
            return self._try_open(request, lease)
        except Exception:
            if not kept:
                raise
        self._igd = None  # it may have another address now
        return self._try_open(request, lease)

    def _try_open(self, request: MappingRequest, lease: int) -> PortMapping:
        igd = self._find(request)
        address = self._outside(igd)
        port = request.port
        mapping = PortMapping(request.protocol, port, address, port, lease, lease, self.name)
        request.asking = True  # set before the check, since the reactor's thread reads it
        for _ in range(PORTS_TRIED):
            if not request.wanted:
                raise NotOpened(SLOWER)
            try:
                return self._add(igd, mapping)
            except Exception as error:
                if _CONFLICT not in str(error):
                    raise NotOpened(self._refusal(error, address)) from None
            mapping = replace(mapping, external=self._some_port())
        raise NotOpened(f"the router {self._gateway} has given {PORTS_TRIED} ports to others")

    def _renew(self, mapping: PortMapping) -> PortMapping:
        igd = self._find(None)
        address = self._outside(igd)
        try:
            return self._add(igd, replace(mapping, address=address, lifetime=mapping.requested))
        except Exception as error:
            self._igd = None
            raise NotOpened(self._refusal(error, address)) from None

    def _close(self, mapping: PortMapping) -> None:
        igd = self._find(None)
        try:
            igd.deleteportmapping(mapping.external, mapping.protocol, "")
        except Exception as error:
            if not any(text in str(error) for text in _NOT_THERE):
                raise

    def _find(self, request: MappingRequest | None) -> Any:
        """The device; searched for, if it isn't known.

        :param request: what it is searched for; not searched for if it is not wanted now
        """
        if self._igd is not None:
            return self._igd
        make_igd = self._context.make_igd
        assert make_igd is not None
        if request is not None and not request.wanted:
            raise NotOpened(SLOWER)
        igd = make_igd(multicastif=self._local, discoverdelay=DISCOVERY)
        try:
            found = igd.discover()
        except Exception:
            found = 0
        if not found:
            raise NotOpened("no router answers")
        try:
            url = igd.selectigd()
            host = urlsplit(url or "").hostname
        except Exception:
            host = None
        if host is None:
            raise NotOpened("no router is among the devices that answer")
        if host != self._gateway:
            # Any device in the network may answer; a port that it opens would lead nowhere.
            raise NotOpened(f"another device answers than the router {self._gateway}")
        self._igd = igd
        return igd

    def _outside(self, igd: Any) -> str:
        """The router's own address, by its own claim."""
        try:
            address = IPv4Address(igd.externalipaddress())
        except ValueError:
            address = IPv4Address(0)
        if not int(address):
            self._igd = None
            raise NotOpened(
                f"the router {self._gateway} has no public address:"
                " it is not connected, or behind another router"
            )
        return str(address)

    def _add(self, igd: Any, mapping: PortMapping) -> PortMapping:
        """
        :raises Exception: with miniupnpc's text for the error
        """
        lease = mapping.lifetime
        try:
            self._add_for(igd, mapping, lease)
        except Exception as error:
            if _PERMANENT_ONLY not in str(error):
                raise
            lease = 0
            self._add_for(igd, mapping, lease)
        return replace(mapping, lifetime=lease)

    def _add_for(self, igd: Any, mapping: PortMapping, lease: int) -> None:
        igd.addportmapping(
            mapping.external, mapping.protocol, self._local, mapping.port, DESCRIPTION, "", lease
        )

    def _some_port(self) -> int:
        drawn = int.from_bytes(self._context.randomness(4))
        return _PORTS_FROM + drawn % (65536 - _PORTS_FROM)

    def _refusal(self, error: Exception, address: str) -> str:
        refusal = f"the router {self._gateway} refuses: {_words(error)}"
        if not is_public(address):
            refusal += f" (it is behind another router: its own address {address} is not public)"
        return refusal


def _words(error: Exception) -> str:
    return str(error)[:100]
