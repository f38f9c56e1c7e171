"""One UDP port that asks a router by PCP, or by NAT-PMP where it speaks no newer."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from broker.nat.context import NatContext
from broker.nat.methods import SLOWER, MappingMethod, MappingRequest, PortMapping
from broker.nat.packets import PcpAnswer, PcpMapping, pcp_request, pmp_request, read_answer
from broker.nat.pcp import PATIENCE, PcpMethod
from tests.nat.routers import GATEWAY, LOCAL, Net, Outcome, bytes_of
from tests.support.clock import advance

V4 = "00000000000000000000ffff"
NONCE = bytes_of()(12)
PMP_ADDRESS = bytes.fromhex("0080 0000 00000064 0b007101")


def pcp_answer(  # every part of an answer can be wrong
    result: int = 0,
    *,
    lifetime: int = 1800,
    epoch: int = 100,
    nonce: bytes = NONCE,
    number: int = 6,
    port: int = 7000,
    external: int = 40000,
    address: str = f"{V4}0b007101",
) -> bytes:
    """An answer to MAP."""
    return (
        bytes((2, 0x81, 0, result))
        + lifetime.to_bytes(4)
        + epoch.to_bytes(4)
        + bytes(12)
        + nonce
        + bytes((number, 0, 0, 0))
        + port.to_bytes(2)
        + external.to_bytes(2)
        + bytes.fromhex(address)
    )


def pmp_answer(
    result: int = 0,
    *,
    opcode: int = 2,
    epoch: int = 100,
    port: int = 7000,
    external: int = 40000,
    lifetime: int = 1800,
) -> bytes:
    """An answer of NAT-PMP's."""
    head = bytes((0, 0x80 | opcode)) + result.to_bytes(2) + epoch.to_bytes(4)
    return head + port.to_bytes(2) + external.to_bytes(2) + lifetime.to_bytes(4)


#: A router that speaks only NAT-PMP, asked by PCP (RFC 6886, 3.5).
TOO_NEW = bytes.fromhex("0081 0001 00000064")

PCP_OPENING = PortMapping("TCP", 7000, "11.0.113.1", 40000, 1800, 3600, "PCP", NONCE)


class Scene:
    """A router port, and what it has told."""

    def __init__(self, jitter: float = 0.5, patience: float = PATIENCE) -> None:
        self.net = Net()
        self.lost = 0
        context = NatContext(self.net, randomness=bytes_of(), jitter=lambda: jitter)
        self.router = PcpMethod(context, GATEWAY, LOCAL, self, patience)

    def mappings_lost(self, method: MappingMethod) -> None:
        """The router has restarted."""
        self.lost += 1

    @property
    def version(self) -> Any:
        """What the router is known to speak."""
        return self.router.version

    def open(self, kind: Any = "TCP", lifetime: int = 3600) -> Outcome:
        """Have port 7000 opened."""
        return Outcome(self.router.open(MappingRequest(kind, 7000, lifetime)))

    def answer(self, *answers: bytes) -> None:
        """The router answers, several times."""
        for answer in answers:
            self.net.port.answer(answer)

    def opened(self, *answers: bytes) -> PortMapping:
        """Have it opened, with these answers."""
        outcome = self.open()
        self.answer(*(answers or (pcp_answer(),)))
        self.net.port.take()
        mapped: PortMapping = outcome.value[0]
        return mapped


@pytest.fixture
def scene() -> Scene:
    """A router port in memory."""
    return Scene()


class PcpTests:
    """With a router that speaks PCP."""

    def test_open(self, scene: Scene) -> None:
        """The request as in the RFC, and what the router gives; then nothing is left running."""
        outcome = scene.open()
        assert scene.net.port.address.host == LOCAL
        assert scene.net.port.sent == [
            (
                bytes.fromhex(f"02010000 00000e10 {V4}c0a80102")
                + NONCE
                + bytes.fromhex(f"06000000 1b58 1b58 {V4}00000000"),
                (GATEWAY, 5351),
            )
        ]
        scene.answer(pcp_answer())
        assert outcome.value == [PCP_OPENING]
        assert scene.version == 2
        assert scene.net.pending == 0

    @pytest.mark.parametrize(
        ("before", "index", "number", "others", "own"),
        [
            ((), 36, 17, pcp_answer(), pcp_answer(number=17)),
            ((TOO_NEW, PMP_ADDRESS), 1, 1, pmp_answer(), pmp_answer(opcode=1)),
        ],
        ids=["PCP", "NAT-PMP"],
    )
    def test_udp(
        self,
        scene: Scene,
        before: tuple[bytes, ...],
        index: int,
        number: int,
        others: bytes,
        own: bytes,
    ) -> None:
        """The protocol's number, or its opcode, goes out, and must come back."""
        outcome = scene.open("UDP")
        scene.answer(*before)
        assert scene.net.port.take()[-1][index] == number
        scene.answer(others)
        assert not outcome.over
        scene.answer(own)
        assert outcome.value[0].protocol == "UDP"

    @pytest.mark.parametrize(
        ("before", "right", "answer"),
        [
            *(
                ((), pcp_answer(), answer)
                for answer in (
                    pcp_answer(nonce=b"another's ab"),
                    pcp_answer(2, nonce=b"another's ab"),
                    pcp_answer(number=17),
                    pcp_answer(port=7001),
                    pcp_answer(lifetime=0),
                    pcp_answer()[:59],
                    pcp_answer(2)[:24],
                    b"\x03" + pcp_answer()[1:],
                    pmp_answer(),
                    PMP_ADDRESS,
                    b"",
                    b"\x02",
                )
            ),
            *(
                ((TOO_NEW, PMP_ADDRESS), pmp_answer(), answer)
                for answer in (
                    pmp_answer(port=7001),
                    pmp_answer(2, port=7001),
                    pmp_answer(opcode=1),
                    pmp_answer(lifetime=0),
                    pmp_answer()[:15],
                    pmp_answer() + b"x",
                    PMP_ADDRESS,
                    pcp_answer(),
                    TOO_NEW,  # late; and about UDP
                )
            ),
        ],
    )
    def test_what_is_no_answer(
        self, scene: Scene, before: tuple[bytes, ...], right: bytes, answer: bytes
    ) -> None:
        """It changes nothing: the true answer still counts."""
        outcome = scene.open()
        scene.answer(*before, answer)
        assert not outcome.over
        assert scene.version == (0 if before else None)
        scene.answer(right)
        method = "NAT-PMP" if before else "PCP"
        assert outcome.value == [replace(PCP_OPENING, method=method)]

    @pytest.mark.parametrize(
        "source", [("192.168.1.3", 5351), (GATEWAY, 5350), ("11.0.113.1", 5351)]
    )
    def test_strangers(self, scene: Scene, source: tuple[str, int]) -> None:
        """Only the router is listened to, and only its server; what comes twice is nothing."""
        outcome = scene.open()
        scene.net.port.answer(pcp_answer(), source)
        assert not outcome.over
        scene.answer(pcp_answer(), pcp_answer(external=50000))
        assert outcome.value == [PCP_OPENING]

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (pcp_answer(2), "does not allow it"),
            (pcp_answer(4), "makes no mappings"),
            (pcp_answer(8), "no room"),
            (pcp_answer(9), "does not map this protocol"),
            (pcp_answer(12), "another translation between"),
            (pcp_answer(99), "unknown result 99"),
            (pcp_answer(external=0), "no IPv4 address and port"),
            (pcp_answer(address="20010db8" + "00" * 12), "no IPv4 address and port"),
            (bytes.fromhex("01810001") + bytes(20), "speaks version 1 of PCP, and not 2"),
        ],
    )
    def test_refusals(self, scene: Scene, answer: bytes, words: str) -> None:
        """They are told in words, and so is what is of no use; NAT-PMP is not tried."""
        outcome = scene.open()
        scene.net.port.take()
        scene.answer(answer)
        assert words in outcome.refused
        assert GATEWAY in outcome.refused
        assert scene.net.port.take() == []
        assert scene.net.pending == scene.lost == 0

    def test_renew(self, scene: Scene) -> None:
        """With the same nonce, for what it was given, and for as long as was asked for at first;
        more than a day is not believed.
        """
        mapped = scene.opened(pcp_answer(lifetime=0xFFFFFFFF))
        assert mapped.lifetime == 86400
        outcome = Outcome(scene.router.renew(mapped))
        given = PcpMapping(NONCE, 6, 7000, 40000, _address("11.0.113.1"))
        assert scene.net.port.take() == [pcp_request(_address(LOCAL), given, 3600)]
        scene.answer(pcp_answer(external=40001, lifetime=900))
        assert outcome.value[0].external == 40001
        assert outcome.value[0].lifetime == 900

    @pytest.mark.parametrize(
        ("answers", "closing", "others", "own", "refusal"),
        [
            (
                (),
                bytes.fromhex(f"02010000 00000000 {V4}c0a80102")
                + NONCE
                + bytes.fromhex(f"06000000 1b58 0000 {V4}00000000"),
                pcp_answer(),
                pcp_answer(lifetime=0, external=0),
                pcp_answer(2),
            ),
            (
                (TOO_NEW, PMP_ADDRESS, pmp_answer()),
                bytes.fromhex("00020000 1b58 0000 00000000"),
                pmp_answer(),
                pmp_answer(external=0, lifetime=0),
                pmp_answer(2),
            ),
        ],
        ids=["PCP", "NAT-PMP"],
    )
    def test_close(
        self,
        scene: Scene,
        answers: tuple[bytes, ...],
        closing: bytes,
        others: bytes,
        own: bytes,
        refusal: bytes,
    ) -> None:
        """The same nonce, no lifetime, and nothing suggested.

        A late answer about opening is none; a refusal is told. But a router that does not speak PCP
        now has kept nothing.
        """
        mapped = scene.opened(*answers)
        outcome = Outcome(scene.router.close(mapped))
        assert scene.net.port.take() == [closing]
        scene.answer(others)
        assert not outcome.over
        scene.answer(own)
        assert outcome.value == [None]
        outcome = Outcome(scene.router.close(mapped))
        scene.answer(refusal)
        assert "does not close it: it does not allow it" in outcome.refused
        if not answers:
            outcome = Outcome(scene.router.close(PCP_OPENING))
            scene.answer(TOO_NEW)
            assert outcome.value == [None]

    def test_two_at_once(self, scene: Scene) -> None:
        """Each answer goes to its question."""
        first = scene.open()
        second = Outcome(scene.router.open(MappingRequest("TCP", 7001, 3600)))
        nonce = scene.net.port.sent[1][0][24:36]
        assert nonce != NONCE
        scene.answer(pcp_answer(nonce=nonce, port=7001, external=40001))
        assert second.value[0].external == 40001
        assert not first.over
        scene.answer(pcp_answer())
        assert first.value == [PCP_OPENING]
        assert len(scene.net.datagrams) == 1


class VersionTests:
    """With one that speaks NAT-PMP, or something else."""

    def test_older(self, scene: Scene) -> None:
        """It says so; then NAT-PMP is spoken, now and later."""
        outcome = scene.open()
        scene.net.port.take()
        scene.answer(TOO_NEW)
        assert scene.version == 0
        assert scene.net.port.take() == [bytes.fromhex("0000")]
        scene.answer(PMP_ADDRESS)
        assert scene.net.port.take() == [bytes.fromhex("00020000 1b58 1b58 00000e10")]
        scene.answer(pmp_answer())
        mapped = PortMapping("TCP", 7000, "11.0.113.1", 40000, 1800, 3600, "NAT-PMP", NONCE)
        assert outcome.value == [mapped]
        assert scene.net.pending == 0
        renewed = Outcome(scene.router.renew(mapped))
        assert scene.net.port.take() == [bytes.fromhex("0000")]
        scene.answer(PMP_ADDRESS)
        assert scene.net.port.take() == [bytes.fromhex("00020000 1b58 9c40 00000e10")]
        scene.answer(pmp_answer(external=40001))
        assert renewed.value[0].external == 40001

    def test_refusals(self, scene: Scene) -> None:
        """They are told in words, whether they say what of or not."""
        outcome = scene.open()
        scene.answer(TOO_NEW, bytes.fromhex("0080 0003 00000064"))
        assert "gives no address: it has no connection itself" in outcome.refused
        for answer in (pmp_answer(2), pmp_answer(2)[:8], pmp_answer(2, port=0)):
            outcome = scene.open()
            scene.answer(PMP_ADDRESS)
            scene.answer(answer)
            assert "does not allow it" in outcome.refused
        outcome = scene.open()
        scene.answer(PMP_ADDRESS, pmp_answer(external=0))
        assert "gives no port" in outcome.refused
        assert scene.net.pending == 0

    def test_no_longer_wanted(self, scene: Scene) -> None:
        """If another way was faster, NAT-PMP is not begun."""
        request = MappingRequest("TCP", 7000, 3600)
        outcome = Outcome(scene.router.open(request))
        scene.net.port.take()
        request.wanted = False
        scene.answer(TOO_NEW)
        assert SLOWER in outcome.refused
        assert scene.net.port.take() == []


def times_of(scene: Scene, seconds: float) -> list[tuple[float, int]]:
    """When what was sent, and in which version."""
    sent = []
    step = 1 / 64
    for index in range(int(seconds / step) + 1):
        if index:
            advance(scene.net, step)
        sent += [(round(scene.net.seconds(), 2), packet[0]) for packet in scene.net.port.take()]
    return sent


class RepetitionTests:
    """What is not answered is asked again (RFC 6887, 8.1.1; RFC 6886, 3.1)."""

    @pytest.mark.parametrize(
        ("jitter", "expected"),
        [(0.5, [0, 3, 9, 21, 45]), (0.0, [0, 2.7, 7.56, 16.31]), (1.0, [0, 3.3, 10.56, 26.53])],
    )
    def test_pcp(self, jitter: float, expected: list[float]) -> None:
        """After three seconds, and each time twice as long, give or take a tenth."""
        scene = Scene(jitter, patience=60.0)
        outcome = scene.open()
        times = [time for time, version in times_of(scene, 59) if version == 2]
        assert times[: len(expected)] == pytest.approx(expected, abs=0.05)
        scene.answer(pcp_answer())
        assert outcome.value == [PCP_OPENING]
        assert scene.net.pending == 0

    def test_pmp(self) -> None:
        """After a quarter of a second, and each time twice as long."""
        scene = Scene(patience=60.0)
        outcome = scene.open()
        scene.net.port.take()
        scene.answer(TOO_NEW)
        times = [time for time, _ in times_of(scene, 59)]
        assert times == pytest.approx([0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75], abs=0.02)
        assert not outcome.over

    def test_silence(self, scene: Scene) -> None:
        """PCP for four seconds, then NAT-PMP for four; then it is given up."""
        outcome = scene.open()
        sent = times_of(scene, 7.9)
        assert [time for time, version in sent if version == 2] == pytest.approx([0, 3], abs=0.02)
        times = [time for time, version in sent if version == 0]
        assert times == pytest.approx([4, 4.25, 4.75, 5.75, 7.75], abs=0.02)
        assert not outcome.over
        assert times_of(scene, 0.2) == []
        assert f"the router {GATEWAY} does not answer" in outcome.refused
        assert scene.net.pending == 0

    @pytest.mark.parametrize(
        ("answers", "version"), [((), 2), ((TOO_NEW, PMP_ADDRESS, pmp_answer()), 0)]
    )
    def test_silence_of_one_that_was_known(
        self, scene: Scene, answers: tuple[bytes, ...], version: int
    ) -> None:
        """Who spoke PCP is not asked in NAT-PMP; but next time he may be somebody else."""
        mapped = scene.opened(*answers)
        outcome = Outcome(scene.router.renew(mapped))
        assert {sent for _, sent in times_of(scene, 4.1)} == {version}
        assert "does not answer" in outcome.refused
        assert scene.version is None


class PortTests:
    """The UDP port itself."""

    @pytest.mark.parametrize("how", ["refuse", "vanish"])
    def test_nobody_listens(self, scene: Scene, how: str) -> None:
        """It is told at once; the next question has a port again."""
        outcome = scene.open()
        getattr(scene.net.port, how)()
        assert f"the router {GATEWAY} does not offer it" in outcome.refused
        assert scene.net.pending == 0
        again = scene.open()
        assert len(scene.net.datagrams) == (1 if how == "refuse" else 2)
        answer = pcp_answer(nonce=scene.net.port.take()[-1][24:36])
        scene.answer(answer)
        assert again.value

    def test_no_way(self, scene: Scene) -> None:
        """The network is down; or no port can be had at our address."""
        mapped = scene.opened()
        scene.net.port.broken = OSError(errno.ENETUNREACH, "Network is unreachable")
        assert "Network is unreachable" in Outcome(scene.router.renew(mapped)).refused
        scene.router.stop()
        scene.net.cannot_listen = True
        assert f"no UDP port at {LOCAL}" in scene.open().refused
        assert scene.net.pending == 0

    @pytest.mark.parametrize(
        ("answers", "versions"),
        [(None, [2, 0]), ((), [2]), ((TOO_NEW, PMP_ADDRESS, pmp_answer()), [0])],
    )
    def test_cancel(
        self, scene: Scene, answers: tuple[bytes, ...] | None, versions: list[int]
    ) -> None:
        """What was asked for is taken back, in each version that may have been understood."""
        if answers is not None:
            scene.opened(*answers)
        mapped = scene.router.open(MappingRequest("TCP", 7000, 3600))
        outcome = Outcome(mapped)
        nonce = scene.net.port.take()[0][24:36]
        mapped.cancel()
        assert outcome.failure is not None
        assert outcome.failure.check(CancelledError)
        closing = {
            2: pcp_request(_address(LOCAL), PcpMapping(nonce, 6, 7000, 0, None), 0),
            0: pmp_request(2, 7000, 0, 0),
        }
        assert scene.net.port.take() == [closing[version] for version in versions]
        assert scene.net.pending == 0

    def test_stop(self, scene: Scene) -> None:
        """What is under way ends, and what may have been opened is closed."""
        outcome = scene.open()
        renewal = Outcome(scene.router.renew(PCP_OPENING))
        scene.net.port.take()
        assert Outcome(scene.router.stop()).value == [None]
        assert outcome.over
        assert renewal.over
        closing = pcp_request(_address(LOCAL), PcpMapping(NONCE, 6, 7000, 0, None), 0)
        assert scene.net.port.take()[0] == closing
        assert scene.net.pending == 0


class EpochTests:
    """The router's clock."""

    def test_lost(self, scene: Scene) -> None:
        """When it has begun anew, its mappings are gone; the answer that tells it counts.

        What answers nothing is not believed about the time either.
        """
        mapped = scene.opened(pcp_answer(epoch=5000))
        advance(scene.net, 900)
        scene.answer(pcp_answer(epoch=20))
        outcome = Outcome(scene.router.renew(mapped))
        scene.answer(pcp_answer(epoch=20, nonce=b"another's ab"), pcp_answer(epoch=5900))
        assert scene.lost == 0
        assert outcome.value
        advance(scene.net, 900)
        outcome = Outcome(scene.router.renew(mapped))
        scene.answer(pcp_answer(epoch=20))
        assert outcome.value
        assert scene.lost == 1

    def test_older(self, scene: Scene) -> None:
        """The same of NAT-PMP."""
        mapped = scene.opened(TOO_NEW, PMP_ADDRESS, pmp_answer())
        advance(scene.net, 900)
        Outcome(scene.router.renew(mapped))
        scene.net.port.answer(PMP_ADDRESS)  # with the time it had nine hundred seconds ago
        assert scene.lost == 1


def _address(text: str) -> Any:
    answer = read_answer(pcp_answer(address=V4 + bytes(map(int, text.split("."))).hex()))
    assert isinstance(answer, PcpAnswer)
    assert answer.mapping is not None
    return answer.mapping.address
