"""PCP and NAT-PMP: one UDP port, from which a router is asked in the newer that it speaks."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from broker.nat.methods import LIFETIME_MOST, Kind, MappingRequest, NotOpened, PortMapping
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
    Epoch,
    PcpAnswer,
    PcpMapping,
    PmpAnswer,
    Unreadable,
    pcp_request,
    pmp_address_request,
    pmp_request,
    read_answer,
)

#: Seconds for which one question is repeated. The RFCs go on for minutes; nobody waits so long.
PATIENCE: Final = 4.0
#: Seconds before a question is repeated for the first time; each later wait is twice as long.
PCP_FIRST: Final = 3.0
PMP_FIRST: Final = 0.25
_PCP_MOST: Final = 1024.0
#: By what part of it each of PCP's waits may be longer or shorter.
_SPREAD: Final = 0.1

Answer = PcpAnswer | PmpAnswer


def _agree(told: int, asked: int) -> bool:
    """Whether what was told is about opening if that was asked, and about closing if that was."""
    return (told == 0) == (asked == 0)


class NoAnswer(NotOpened):
    """The router is silent."""


class _OtherVersion(Exception):
    """The router does not speak PCP's version 2; it speaks NAT-PMP."""


class _Asked:
    """A question under way."""

    def __init__(self, packet: bytes, matches: Callable[[Answer], bool], wait: float) -> None:
        self.packet = packet
        self.matches = matches
        self.wait = wait
        self.until = 0.0
        self.timer: IDelayedCall | None = None
        self.done: Deferred[Answer] = Deferred()


class RouterPort(DatagramProtocol):
    """Asks one router.

    :ivar name: for messages
    :ivar version: the protocol's that it speaks; ``None`` until it has answered
    """

    noisy = False
    name = "PCP and NAT-PMP"

    def __init__(
        self,
        reactor: Any,
        gateway: str,
        local: str,
        *,
        randomness: Callable[[int], bytes],
        jitter: Callable[[], float],
        lost: Callable[[], object],
        patience: float = PATIENCE,
    ) -> None:
        """
        :param local: our own address towards it
        :param randomness: gives so many unpredictable bytes
        :param jitter: random numbers from 0 to 1
        :param lost: called when its clock shows that it has lost its mappings
        :param patience: seconds for which one question is repeated
        """
        self.version: int | None = None
        self._reactor = reactor
        self._gateway = gateway
        self._local = local
        self._randomness = randomness
        self._jitter = jitter
        self._lost = lost
        self._patience = patience
        self._epoch = Epoch()
        self._asked: list[_Asked] = []
        self._port: Any = None

    # As a way.

    def open(self, wish: MappingRequest) -> Deferred[PortMapping]:
        """Have a port opened; cancel to take it back, whether it was or not."""
        opening = PortMapping(
            wish.kind,
            wish.port,
            "0.0.0.0",
            wish.port,
            wish.lifetime,
            wish.lifetime,
            "",
            self._randomness(NONCE_BYTES),
        )

        async def opened() -> PortMapping:
            try:
                return await self._open(opening, wish)
            except CancelledError:
                self._forget(opening)
                raise

        return Deferred.fromCoroutine(opened())

    def renew(self, opening: PortMapping) -> Deferred[PortMapping]:
        """Have it kept open, at the same port if possible."""
        return Deferred.fromCoroutine(self._open(opening, None))

    def close(self, opening: PortMapping) -> Deferred[None]:
        """Have it closed."""
        return Deferred.fromCoroutine(self._close(opening))

    def stop(self) -> Deferred[None]:
        """Close the port; what is under way fails."""
        for asked in list(self._asked):
            asked.done.cancel()
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        stopped: Deferred[None] = port.stopListening() or succeed(None)
        return stopped

    # In which version.

    async def _open(self, opening: PortMapping, wish: MappingRequest | None) -> PortMapping:
        if self.version != PMP_VERSION:
            try:
                return await self._open_pcp(opening)
            except _OtherVersion:
                pass
            except NoAnswer:
                if self.version is not None:
                    self.version = None  # perhaps it is another router by now
                    raise
        if wish is not None and not wish.wanted:
            raise NotOpened("another way was faster")
        try:
            return await self._open_pmp(opening)
        except NoAnswer:
            self.version = None
            raise

    async def _close(self, opening: PortMapping) -> None:
        if opening.how == "NAT-PMP":
            answer = await self._ask_pmp_mapping(opening.kind, opening.port, 0, 0)
            if answer.result != SUCCESS:
                raise NotOpened(f"the router {self._gateway} does not close it: {answer.words}")
            return
        mapping = PcpMapping(
            opening.nonce, PCP_PROTOCOLS[opening.kind], opening.port, 0, IPv4Address(0)
        )
        try:
            told = await self._ask_pcp(mapping, 0)
        except _OtherVersion:
            return  # a router that speaks no PCP keeps nothing made by it
        if told.result != SUCCESS:
            raise NotOpened(f"the router {self._gateway} does not close it: {told.words}")

    def _forget(self, opening: PortMapping) -> None:
        """Have closed what may have been opened; nobody waits for an answer."""
        if self._port is None:
            return
        if self.version != PMP_VERSION:
            number = PCP_PROTOCOLS[opening.kind]
            mapping = PcpMapping(opening.nonce, number, opening.port, 0, IPv4Address(0))
            self._write(pcp_request(IPv4Address(self._local), mapping, 0))
        if self.version != PCP_VERSION:
            self._write(pmp_request(PMP_OPCODES[opening.kind], opening.port, 0, 0))

    # PCP.

    async def _open_pcp(self, opening: PortMapping) -> PortMapping:
        mapping = PcpMapping(
            opening.nonce,
            PCP_PROTOCOLS[opening.kind],
            opening.port,
            opening.external,
            IPv4Address(opening.address),
        )
        told = await self._ask_pcp(mapping, opening.asked)
        if told.result != SUCCESS:
            raise NotOpened(f"the router {self._gateway} refuses: {told.words}")
        given = told.mapping
        if given is None or given.address is None or not given.external:
            raise NotOpened(f"the router {self._gateway} gives no IPv4 address and port")
        return self._opened(opening, given.address, given.external, told.lifetime, "PCP")

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

    async def _open_pmp(self, opening: PortMapping) -> PortMapping:
        def matches(answer: Answer) -> bool:
            return isinstance(answer, PmpAnswer) and answer.opcode == PMP_ADDRESS

        answer = await self._ask(pmp_address_request(), matches, PMP_FIRST)
        assert isinstance(answer, PmpAnswer)
        if answer.result != SUCCESS or answer.address is None:
            raise NotOpened(f"the router {self._gateway} tells no address: {answer.words}")
        address = answer.address
        told = await self._ask_pmp_mapping(
            opening.kind, opening.port, opening.external, opening.asked
        )
        if told.result != SUCCESS:
            raise NotOpened(f"the router {self._gateway} refuses: {told.words}")
        if not told.external:
            raise NotOpened(f"the router {self._gateway} gives no port")
        return self._opened(opening, address, told.external, told.lifetime, "NAT-PMP")

    async def _ask_pmp_mapping(
        self, kind: Kind, port: int, external: int, lifetime: int
    ) -> PmpAnswer:
        opcode = PMP_OPCODES[kind]

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

    def _opened(
        self, opening: PortMapping, address: IPv4Address, external: int, lifetime: int, how: str
    ) -> PortMapping:
        return PortMapping(
            opening.kind,
            opening.port,
            str(address),
            external,
            min(lifetime, LIFETIME_MOST),
            opening.asked,
            how,
            opening.nonce,
        )

    # Questions and answers.

    async def _ask(self, packet: bytes, matches: Callable[[Answer], bool], wait: float) -> Answer:
        self._bind()
        asked = _Asked(packet, matches, wait)
        asked.until = self._reactor.seconds() + self._patience
        self._asked.append(asked)
        try:
            self._send(asked)
            return await asked.done
        finally:
            self._asked.remove(asked)
            if asked.timer is not None and asked.timer.active():
                asked.timer.cancel()

    def _bind(self) -> None:
        if self._port is not None:
            return
        try:
            self._port = self._reactor.listenUDP(0, self, interface=self._local)
        except CannotListenError as error:
            raise NotOpened(f"no UDP port at {self._local}: {error.socketError}") from None
        # From a connected port nobody else is heard, and it is told when nobody listens there.
        self._port.connect(self._gateway, SERVER_PORT)

    def _send(self, asked: _Asked) -> None:
        left = asked.until - self._reactor.seconds()
        if asked.wait < left:
            asked.timer = self._reactor.callLater(asked.wait, self._send, asked)
        else:
            silent = NoAnswer(f"the router {self._gateway} does not answer")
            asked.timer = self._reactor.callLater(max(0.0, left), asked.done.errback, silent)
        if asked.packet[0] == PCP_VERSION:
            asked.wait = self._spread(min(2 * asked.wait, _PCP_MOST))
        else:
            asked.wait *= 2
        self._write(asked.packet)

    def _write(self, packet: bytes) -> None:
        try:
            self._port.write(packet)
        except OSError as error:
            self._fail(f"there is no way to the router {self._gateway}: {error.strerror}")

    def _spread(self, wait: float) -> float:
        return wait * (1 + _SPREAD * (2 * self._jitter() - 1))

    def _fail(self, why: str) -> None:
        for asked in list(self._asked):
            asked.done.errback(NotOpened(why))

    def connectionRefused(self) -> None:
        """Nobody listens there."""
        self._fail(f"the router {self._gateway} does not offer it")

    def stopProtocol(self) -> None:
        """The port is gone: some reactors close a connected one when nobody listens there."""
        if self._port is not None:
            self._port = None
            self.connectionRefused()

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """An answer: one of the router's, to a question of ours, or nothing."""
        if addr != (self._gateway, SERVER_PORT):
            return
        try:
            answer = read_answer(datagram)
        except Unreadable:
            return
        asked = next((one for one in self._asked if one.matches(answer)), None)
        if asked is None:
            return
        version = PMP_VERSION if isinstance(answer, PmpAnswer) else answer.version
        lost = False
        if version in (PMP_VERSION, PCP_VERSION):
            self.version = version
            lost = self._epoch.heard(version, answer.epoch, self._reactor.seconds())
        asked.done.callback(answer)
        if lost:
            self._lost()
