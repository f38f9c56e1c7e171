"""UPnP's Internet gateway device, by ``miniupnpc``, whose calls wait: they are made in a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Final
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, fail, succeed

from broker.nat.gateway import is_public
from broker.nat.methods import MappingRequest, NotOpened, PortMapping
from broker.nat.worker import Worker

#: Leases are asked for in these bounds, in seconds: some routers take no others.
LEASE_LEAST: Final = 600
LEASE_MOST: Final = 3600
#: Milliseconds for which devices may answer. Where none does, a few kinds are asked for in turn.
DISCOVERY: Final = 1000
#: How many calls may wait for the thread.
WAITING_MOST: Final = 32
#: How many ports are tried where others have theirs.
PORTS_TRIED: Final = 5
#: What routers show in their lists.
DESCRIPTION: Final = "broker"

_PORTS_FROM: Final = 1024
# The texts that miniupnpc has for the errors 718 and 725, and for what isn't open any more.
_CONFLICT: Final = "ConflictInMappingEntry"
_PERMANENT_ONLY: Final = "OnlyPermanentLeasesSupported"
_NOT_THERE: Final = ("NoSuchEntry", "PortMappingNotFound")

#: Makes one of miniupnpc's ``UPnP``.
MakeIgd = Callable[..., Any]


def find_miniupnpc() -> MakeIgd | None:
    """What makes ``miniupnpc.UPnP``; ``None`` where it isn't installed."""
    try:
        import miniupnpc
    except ImportError:
        return None
    made: MakeIgd = miniupnpc.UPnP
    return made


class Upnp:
    """Asks one router by UPnP.

    The device, once found, is kept with its addresses; only the thread touches it.

    :ivar name: for messages
    """

    name = "UPnP"

    def __init__(
        self,
        make: MakeIgd | None,
        gateway: str,
        local: str,
        *,
        worker: Worker,
        call_from_thread: Callable[..., object],
        randomness: Callable[[int], bytes],
    ) -> None:
        """
        :param make: makes one of miniupnpc's ``UPnP``; nothing, where it isn't installed
        :param local: our own address towards the router
        :param call_from_thread: has the reactor call a function: ``reactor.callFromThread``
        :param randomness: gives so many unpredictable bytes
        """
        self._make = make
        self._gateway = gateway
        self._local = local
        self._worker = worker
        self._call = call_from_thread
        self._randomness = randomness
        self._igd: Any = None
        self._running = 0
        self._awaited: set[object] = set()  # the jobs of which something may come
        self._stopped: Deferred[None] | None = None

    # As a way.

    def open(self, wish: MappingRequest) -> Deferred[PortMapping]:
        """Have a port opened; cancel to take it back, whether it was or not."""
        lease = min(max(wish.lifetime, LEASE_LEAST), LEASE_MOST)

        def given_up(_: object) -> None:
            wish.wanted = False
            if not wish.asking:  # and, not being wanted, it won't
                self._ended(wish)

        def too_late(outcome: PortMapping | NotOpened) -> None:
            if isinstance(outcome, PortMapping):
                self._submit(object(), lambda: self._close(outcome), lambda _: None)

        done: Deferred[PortMapping] = Deferred(given_up)
        return self._do(wish, lambda: self._open(wish, lease), done, too_late)

    def renew(self, opening: PortMapping) -> Deferred[PortMapping]:
        """Have it kept open, at the same port."""
        return self._do(object(), lambda: self._renew(opening), Deferred())

    def close(self, opening: PortMapping) -> Deferred[None]:
        """Have it closed."""
        return self._do(object(), lambda: self._close(opening), Deferred())

    def stop(self) -> Deferred[None]:
        """Fires when nothing can come any more of what the thread does."""
        if not self._awaited:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
        return self._stopped

    # To the thread, and back.

    def _do(
        self,
        name: object,
        job: Callable[[], Any],
        done: Deferred[Any],
        too_late: Callable[[Any], object] = lambda _: None,
    ) -> Deferred[Any]:
        if self._make is None:
            return fail(NotOpened("miniupnpc is not installed"))
        if self._running >= WAITING_MOST:
            return fail(NotOpened("too much waits for the router"))

        def came(outcome: Any) -> None:
            if done.called:  # it was cancelled
                too_late(outcome)
            elif isinstance(outcome, Exception):
                done.errback(outcome)
            else:
                done.callback(outcome)

        self._submit(name, job, came)
        return done

    def _submit(self, name: object, job: Callable[[], Any], came: Callable[[Any], object]) -> None:
        self._running += 1
        self._awaited.add(name)

        def ended(outcome: Any) -> None:
            came(outcome)
            self._running -= 1
            self._ended(name)

        def run() -> None:
            outcome: Any
            try:
                outcome = job()
            except NotOpened as error:
                outcome = error
            except Exception as error:
                self._igd = None
                outcome = NotOpened(f"the router {self._gateway} fails: {_words(error)}")
            self._call(ended, outcome)

        self._worker.callInThread(run)

    def _ended(self, name: object) -> None:
        self._awaited.discard(name)
        if not self._awaited and self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    # In the thread.

    def _open(self, wish: MappingRequest, lease: int) -> PortMapping:
        kept = self._igd is not None
        try:
            return self._try_open(wish, lease)
        except NotOpened:
            if not kept:
                raise
        except Exception:
            if not kept:
                raise
        self._igd = None  # perhaps it has another address by now
        return self._try_open(wish, lease)

    def _try_open(self, wish: MappingRequest, lease: int) -> PortMapping:
        igd = self._find(wish)
        address = self._outside(igd)
        opening = PortMapping(wish.kind, wish.port, address, wish.port, lease, lease, self.name)
        wish.asking = True  # first this, then the look whether it is wanted
        for _ in range(PORTS_TRIED):
            if not wish.wanted:
                raise NotOpened("another way was faster")
            try:
                return self._add(igd, opening)
            except Exception as error:
                if _CONFLICT not in str(error):
                    raise NotOpened(self._refusal(error, address)) from None
            opening = replace(opening, external=self._some_port())
        raise NotOpened(f"the router {self._gateway} has given {PORTS_TRIED} ports to others")

    def _renew(self, opening: PortMapping) -> PortMapping:
        igd = self._find(None)
        address = self._outside(igd)
        try:
            return self._add(igd, replace(opening, address=address, lifetime=opening.asked))
        except Exception as error:
            self._igd = None
            raise NotOpened(self._refusal(error, address)) from None

    def _close(self, opening: PortMapping) -> None:
        igd = self._find(None)
        try:
            igd.deleteportmapping(opening.external, opening.kind, "")
        except Exception as error:
            if not any(text in str(error) for text in _NOT_THERE):
                raise

    def _find(self, wish: MappingRequest | None) -> Any:
        """The device; looked for, where it isn't known."""
        if self._igd is not None:
            return self._igd
        assert self._make is not None
        if wish is not None and not wish.wanted:
            raise NotOpened("another way was faster")
        igd = self._make(multicastif=self._local, discoverdelay=DISCOVERY)
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
            # Any device in the network may answer; what it opened would lead nowhere.
            raise NotOpened(f"another device answers than the router {self._gateway}")
        self._igd = igd
        return igd

    def _outside(self, igd: Any) -> str:
        """The router's own address, as it says."""
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

    def _add(self, igd: Any, opening: PortMapping) -> PortMapping:
        """
        :raises Exception: with miniupnpc's text for the error
        """
        lease = opening.lifetime
        try:
            self._add_for(igd, opening, lease)
        except Exception as error:
            if _PERMANENT_ONLY not in str(error):
                raise
            lease = 0
            self._add_for(igd, opening, lease)
        return replace(opening, lifetime=lease)

    def _add_for(self, igd: Any, opening: PortMapping, lease: int) -> None:
        igd.addportmapping(
            opening.external, opening.kind, self._local, opening.port, DESCRIPTION, "", lease
        )

    def _some_port(self) -> int:
        drawn = int.from_bytes(self._randomness(4))
        return _PORTS_FROM + drawn % (65536 - _PORTS_FROM)

    def _refusal(self, error: Exception, address: str) -> str:
        refusal = f"the router {self._gateway} refuses: {_words(error)}"
        if not is_public(address):
            refusal += f" (it is behind another router: its own address {address} is not public)"
        return refusal


def _words(error: Exception) -> str:
    return str(error)[:100]
