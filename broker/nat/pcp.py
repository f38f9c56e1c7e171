"""PCP (RFC 6887) and NAT-PMP (RFC 6886): one UDP port, the newer protocol that a router has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from broker.nat.context import NatContext
from broker.nat.methods import (
    LIFETIME_MOST,
    SLOWER,
    MappingRequest,
    MethodEvents,
    NotOpened,
    PortMapping,
    TransportProtocol,
)
from broker.nat.packets import (
    NONCE_BYTES,
    PCP_PROTOCOLS,
    PCP_VERSION,
    PMP_ADDRESS,
    PMP_OPCODES,
    PMP_VERSION,
    SERVER_PORT,
    SUCCESS,
    UNSUPPORTED_VERSION,
    EpochMark,
    PcpAnswer,
    PcpMapping,
    PmpAnswer,
    Unreadable,
    pcp_request,
    pmp_address_request,
    pmp_request,
    read_answer,
)

#: Seconds for which a request is repeated. The RFCs go on for minutes; no caller waits that long.
PATIENCE: Final = 4.0
#: Seconds before a request is repeated for the first time; each later wait is twice as long.
PCP_FIRST: Final = 3.0
PMP_FIRST: Final = 0.25
_PCP_MOST: Final = 1024.0
#: By what part of it each of PCP's waits may be longer or shorter.
_SPREAD: Final = 0.1

Answer = PcpAnswer | PmpAnswer


def _agree(answered: int, requested: int) -> bool:
    """Whether an answer is about opening if the request was, and about closing if that was."""
    return (answered == 0) == (requested == 0)


class RouterSilent(NotOpened):
    """The router does not answer."""


class _OtherVersion(Exception):
    """The router does not speak PCP's version 2; it speaks NAT-PMP."""


class _RouterRequest:
    """A request that the router has not answered.

    :ivar matches: whether an answer belongs to this request
    :ivar wait: seconds before it is repeated
    :ivar until: when it is given up
    """

    def __init__(self, packet: bytes, matches: Callable[[Answer], bool], wait: float) -> None:
        self.packet = packet
        self.matches = matches
        self.wait = wait
        self.until = 0.0
        self.timer: IDelayedCall | None = None
        self.done: Deferred[Answer] = Deferred()


class PcpMethod(DatagramProtocol):
    """Asks one router.

    :ivar name: for messages
    :ivar version: of the protocol that it speaks; ``None`` until it has answered
    """

    noisy = False
    name = "PCP and NAT-PMP"

    def __init__(
        self,
        context: NatContext,
        gateway: str,
        local: str,
        events: MethodEvents,
        patience: float = PATIENCE,
    ) -> None:
        """
        :param gateway: the router's address
        :param local: our own address towards it
        :param patience: seconds for which a request is repeated
        """
        self.version: int | None = None
        self._context = context
        self._gateway = gateway
        self._local = local
        self._events = events
        self._patience = patience
        self._epoch = EpochMark()
        self._requests: list[_RouterRequest] = []
        self._port: Any = None

    # As a mapping method.

    def open(self, request: MappingRequest) -> Deferred[PortMapping]:
        """Have a port opened; cancel to take it back, whether it was opened or not."""
        nonce = self._context.randomness(NONCE_BYTES)
        port, lifetime = request.port, request.lifetime
        wanted = PortMapping(request.protocol, port, "0.0.0.0", port, lifetime, lifetime, "", nonce)

        async def opened() -> PortMapping:
            try:
                return await self._open(wanted, request)
            except CancelledError:
                self._forget(wanted)
                raise

        return Deferred.fromCoroutine(opened())

    def renew(self, mapping: PortMapping) -> Deferred[PortMapping]:
        """Have it kept open, at the same port if possible."""
        return Deferred.fromCoroutine(self._open(mapping, None))

    def close(self, mapping: PortMapping) -> Deferred[None]:
        """Have it closed."""
        return Deferred.fromCoroutine(self._close(mapping))

    def stop(self) -> Deferred[None]:
        """Close the port; what is under way fails."""
        for request in list(self._requests):
            request.done.cancel()
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        stopped: Deferred[None] = port.stopListening() or succeed(None)
        return stopped

    # Which of the two versions.

    async def _open(self, mapping: PortMapping, request: MappingRequest | None) -> PortMapping:
        """Open or renew.

        :param request: what is opened; given up between the two versions if it is not wanted now
        """
        if self.version != PMP_VERSION:
            try:
                return await self._open_pcp(mapping)
            except _OtherVersion:
                pass
            except RouterSilent:
                if self.version is not None:
                    self.version = None  # another router may have taken its place
                    raise
        if request is not None and not request.wanted:
            raise NotOpened(SLOWER)
        try:
            return await self._open_pmp(mapping)
        except RouterSilent:
            self.version = None
            raise

    async def _close(self, mapping: PortMapping) -> None:
        answer: Answer
        if mapping.method == "NAT-PMP":
            answer = await self._ask_pmp_mapping(mapping.protocol, mapping.port, 0, 0)
        else:
            try:
                answer = await self._ask_pcp(_removal(mapping), 0)
            except _OtherVersion:
                return  # a router that speaks no PCP keeps nothing made by it
        if answer.result != SUCCESS:
            raise NotOpened(f"the router {self._gateway} does not close it: {answer.words}")

    def _forget(self, mapping: PortMapping) -> None:
        """Have closed what may have been opened, without waiting for an answer."""
        if self._port is None:
            return
        if self.version != PMP_VERSION:
            self._write(pcp_request(IPv4Address(self._local), _removal(mapping), 0))
        if self.version != PCP_VERSION:
            self._write(pmp_request(PMP_OPCODES[mapping.protocol], mapping.port, 0, 0))

    # PCP.

    async def _open_pcp(self, mapping: PortMapping) -> PortMapping:
        wanted = PcpMapping(
            mapping.nonce,
            PCP_PROTOCOLS[mapping.protocol],
            mapping.port,
            mapping.external,
            IPv4Address(mapping.address),
        )
        answer = await self._ask_pcp(wanted, mapping.requested)
        if answer.result != SUCCESS:
            raise NotOpened(f"the router {self._gateway} refuses: {answer.words}")
        given = answer.mapping
        if given is None or given.address is None or not given.external:
            raise NotOpened(f"the router {self._gateway} gives no IPv4 address and port")
        return _granted(mapping, given.address, given.external, answer.lifetime, "PCP")

    async def _ask_pcp(self, mapping: PcpMapping, lifetime: int) -> PcpAnswer:
        packet = pcp_request(IPv4Address(self._local), mapping, lifetime)

        def matches(answer: Answer) -> bool:
            if answer.result == UNSUPPORTED_VERSION:
                return True
            if not isinstance(answer, PcpAnswer) or answer.mapping is None:
                return False
            if answer.mapping[:3] != mapping[:3]:
                return False
            return answer.result != SUCCESS or _agree(answer.lifetime, lifetime)

        answer = await self._ask(packet, matches, self._spread(PCP_FIRST))
        if isinstance(answer, PmpAnswer):
            raise _OtherVersion
        if answer.result == UNSUPPORTED_VERSION:
            raise NotOpened(
                f"the router {self._gateway} speaks version {answer.version} of PCP, and not 2"
            )
        return answer

    # NAT-PMP.

    async def _open_pmp(self, mapping: PortMapping) -> PortMapping:
        def matches(answer: Answer) -> bool:
            return isinstance(answer, PmpAnswer) and answer.opcode == PMP_ADDRESS

        where = await self._ask(pmp_address_request(), matches, PMP_FIRST)
        assert isinstance(where, PmpAnswer)
        if where.result != SUCCESS or where.address is None:
            raise NotOpened(f"the router {self._gateway} gives no address: {where.words}")
        answer = await self._ask_pmp_mapping(
            mapping.protocol, mapping.port, mapping.external, mapping.requested
        )
        if answer.result != SUCCESS:
            raise NotOpened(f"the router {self._gateway} refuses: {answer.words}")
        if not answer.external:
            raise NotOpened(f"the router {self._gateway} gives no port")
        return _granted(mapping, where.address, answer.external, answer.lifetime, "NAT-PMP")

    async def _ask_pmp_mapping(
        self, protocol: TransportProtocol, port: int, external: int, lifetime: int
    ) -> PmpAnswer:
        opcode = PMP_OPCODES[protocol]

        def matches(answer: Answer) -> bool:
            if not isinstance(answer, PmpAnswer) or answer.opcode != opcode:
                return False
            if answer.result != SUCCESS:
                return answer.port in (port, 0)
            return answer.port == port and _agree(answer.lifetime, lifetime)

        packet = pmp_request(opcode, port, external, lifetime)
        answer = await self._ask(packet, matches, PMP_FIRST)
        assert isinstance(answer, PmpAnswer)
        return answer

    # Requests and answers.

    async def _ask(self, packet: bytes, matches: Callable[[Answer], bool], wait: float) -> Answer:
        self._bind()
        request = _RouterRequest(packet, matches, wait)
        request.until = self._context.reactor.seconds() + self._patience
        self._requests.append(request)
        try:
            self._send(request)
            return await request.done
        finally:
            self._requests.remove(request)
            if request.timer is not None and request.timer.active():
                request.timer.cancel()

    def _bind(self) -> None:
        if self._port is not None:
            return
        try:
            self._port = self._context.reactor.listenUDP(0, self, interface=self._local)
        except CannotListenError as error:
            raise NotOpened(f"no UDP port at {self._local}: {error.socketError}") from None
        # A connected port takes nothing from other hosts, and hears of a router that refuses.
        self._port.connect(self._gateway, SERVER_PORT)

    def _send(self, request: _RouterRequest) -> None:
        """Send it, and set the timer for its repetition or its end."""
        reactor = self._context.reactor
        left = request.until - reactor.seconds()
        if request.wait < left:
            request.timer = reactor.callLater(request.wait, self._send, request)
        else:
            silent = RouterSilent(f"the router {self._gateway} does not answer")
            request.timer = reactor.callLater(max(0.0, left), request.done.errback, silent)
        if request.packet[0] == PCP_VERSION:
            request.wait = self._spread(min(2 * request.wait, _PCP_MOST))
        else:
            request.wait *= 2
        self._write(request.packet)

    def _write(self, packet: bytes) -> None:
        try:
            self._port.write(packet)
        except OSError as error:
            self._fail(f"no route to the router {self._gateway}: {error.strerror}")

    def _spread(self, wait: float) -> float:
        return wait * (1 + _SPREAD * (2 * self._context.jitter() - 1))

    def _fail(self, why: str) -> None:
        for request in list(self._requests):
            request.done.errback(NotOpened(why))

    def connectionRefused(self) -> None:
        """The router has nothing that listens there."""
        self._fail(f"the router {self._gateway} does not offer it")

    def stopProtocol(self) -> None:
        """The port is gone: some reactors close a connected port when the router refuses."""
        if self._port is not None:
            self._port = None
            self.connectionRefused()

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """An answer of the router's to a request of ours; all else is ignored."""
        if addr != (self._gateway, SERVER_PORT):
            return
        try:
            answer = read_answer(datagram)
        except Unreadable:
            return
        request = next((it for it in self._requests if it.matches(answer)), None)
        if request is None:
            return
        version = PMP_VERSION if isinstance(answer, PmpAnswer) else answer.version
        lost = False
        if version in (PMP_VERSION, PCP_VERSION):
            self.version = version
            lost = self._epoch.update(version, answer.epoch, self._context.reactor.seconds())
        request.done.callback(answer)
        if lost:
            self._events.mappings_lost(self)


def _removal(mapping: PortMapping) -> PcpMapping:
    number = PCP_PROTOCOLS[mapping.protocol]
    return PcpMapping(mapping.nonce, number, mapping.port, 0, IPv4Address(0))


def _granted(
    mapping: PortMapping, address: IPv4Address, external: int, lifetime: int, method: str
) -> PortMapping:
    """The mapping as the router has granted it."""
    return replace(
        mapping,
        address=str(address),
        external=external,
        lifetime=min(lifetime, LIFETIME_MOST),
        method=method,
    )
