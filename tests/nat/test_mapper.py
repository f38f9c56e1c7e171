"""Ports opened and kept open: the race of the ways, renewal, loss, and the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from broker.nat import mapper as mapping
from broker.nat.context import NatContext
from broker.nat.gateway import NoRouter
from broker.nat.mapper import NotMapped, PortMapper
from broker.nat.methods import PortMapping
from tests.nat.routers import GATEWAY, LOCAL, Device, Net, Outcome, bytes_of
from tests.nat.test_pcp import PMP_ADDRESS, TOO_NEW, V4, pcp_answer, pmp_answer
from tests.support.clock import FakePool, advance

NONCE = bytes_of()(12)
BY_PCP = PortMapping("TCP", 7000, "11.0.113.1", 40000, 1800, 3600, "PCP", NONCE)
BY_UPNP = PortMapping("TCP", 7000, "11.0.113.1", 7000, 3600, 3600, "UPnP")


class Scene:
    """A host, its router, and the mapper."""

    def __init__(self, *, installed: bool = True) -> None:
        self.net = Net()
        self.device = Device()
        self.thread = FakePool()
        self.changes: list[tuple[Any, ...]] = []
        self.gateway: str | None = GATEWAY
        self.local = LOCAL
        context = NatContext(
            self.net,
            find_gateway=self._find_gateway,
            local_address=lambda _: self.local,
            make_igd=self.device.UPnP if installed else None,
            worker=self.thread,
            randomness=bytes_of(),
            jitter=lambda: 0.5,
        )
        self.mapper = PortMapper(context)

    def _find_gateway(self) -> str:
        if self.gateway is None:
            raise NoRouter("there is no IPv4 route to a router")
        return self.gateway

    def mapping_changed(self, before: PortMapping, now: PortMapping | None, why: str) -> None:
        """The router has it elsewhere, or not at all."""
        self.changes.append((before, now, why))

    def map(self, protocol: str = "TCP", port: int = 7000, **options: Any) -> Outcome:
        """Have a port opened."""
        return Outcome(self.mapper.map(protocol, port, events=self, **options))

    def answer(self, result: int = 0, **parts: Any) -> bytes:
        """The router answers what it was last asked by PCP, keeping to its clock."""
        packet = self.sent[-1]
        return self.answer_to(packet, result, **parts)

    @property
    def asked_to_close(self) -> bool:
        """Whether that is what the router was asked for last."""
        return self.sent[-1][4:8] == bytes(4)

    def unmap(self) -> Outcome:
        """Have port 7000 closed."""
        return Outcome(self.mapper.unmap("TCP", 7000))

    def answer_to(self, packet: bytes, result: int = 0, **parts: Any) -> bytes:
        """It answers this question."""
        closing = packet[4:8] == bytes(4)
        answer = pcp_answer(
            result,
            **{
                "nonce": packet[24:36],
                "number": packet[36],
                "port": int.from_bytes(packet[40:42]),
                "epoch": 5000 + int(self.net.seconds()),
                **({"lifetime": 0, "external": 0} if closing else {}),
                **parts,
            },
        )
        self.net.port.answer(answer)
        return answer

    @property
    def sent(self) -> list[bytes]:
        """What was sent to the router so far."""
        return [packet for packet, _ in self.net.port.sent]

    def count(self) -> int:
        """How much was sent to the router so far, from all ports."""
        return sum(len(port.sent) for port in self.net.datagrams)

    def by_pcp(self, **parts: Any) -> None:
        """Have port 7000 opened by PCP; UPnP was slower."""
        outcome = self.map()
        self.answer(**parts)
        assert outcome.value
        self.thread.run_all()
        assert self.device.calls == []

    def by_upnp(self) -> None:
        """Have it opened by UPnP; nobody listens for PCP."""
        outcome = self.map()
        self.net.port.refuse()
        self.thread.run_all()
        assert outcome.value == [BY_UPNP]
        self.device.calls.clear()


@pytest.fixture
def scene() -> Scene:
    """A host behind a router with PCP and UPnP."""
    return Scene()


@pytest.fixture
def logged(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The faults of ours that are logged."""
    faults: list[Any] = []
    monkeypatch.setattr(scene.mapper, "_unexpected", faults.append)
    return faults


class MapTests:
    """Opening."""

    @pytest.mark.parametrize("lifetime", [1, 3600, 86400])
    @pytest.mark.parametrize(
        ("address", "claimed", "public"),
        [("0b007101", "11.0.113.1", True), ("c0a80766", "192.168.7.102", False)],
    )
    def test_both_are_asked(
        self, scene: Scene, lifetime: int, address: str, claimed: str, public: bool
    ) -> None:
        """At once; PCP, being first, wins, and UPnP asks for nothing more.

        The address that the router claims is told, and whether it is public.
        """
        outcome = scene.map(lifetime=lifetime)
        assert len(scene.sent) == len(scene.thread.jobs) == 1
        assert int.from_bytes(scene.sent[0][4:8]) == lifetime
        assert scene.thread.started
        scene.answer(address=f"{V4}{address}")
        assert outcome.value == [replace(BY_PCP, address=claimed, requested=lifetime)]
        assert outcome.value[0].is_public is public
        scene.thread.run_all()
        assert scene.device.calls == scene.changes == []

    @pytest.mark.parametrize("refused", [False, True])
    def test_upnp_wins(self, scene: Scene, refused: bool) -> None:
        """PCP is silent; or it has failed, and one failure is no failure."""
        outcome = scene.map()
        if refused:
            scene.net.port.refuse()
            assert not outcome.over
        scene.thread.run_all()
        assert outcome.value == [BY_UPNP]
        advance(scene.net, 10)
        assert scene.device.open
        assert scene.changes == []

    def test_both_fail(self, scene: Scene) -> None:
        """Each cause is told, in the same order whoever fails first."""
        scene.device.found = 0
        expected = (
            f"PCP and NAT-PMP: the router {GATEWAY} does not offer it; UPnP: no router answers"
        )
        for upnp_first in (True, False):
            outcome = scene.map()
            if upnp_first:
                scene.thread.run_all()
                scene.net.port.refuse()
            else:
                scene.net.port.refuse()
                scene.thread.run_all()
            assert outcome.words == expected
            assert outcome.failure is not None
            assert isinstance(outcome.failure.value, NotMapped)
            assert outcome.failure.value.causes == tuple(expected.split("; "))
        assert scene.net.pending == 0

    def test_without_miniupnpc(self) -> None:
        """That it is missing is told where nothing else helped, and does no harm where it did."""
        scene = Scene(installed=False)
        outcome = scene.map()
        scene.net.port.refuse()
        assert "UPnP: miniupnpc is not installed" in outcome.words
        scene.by_pcp()
        assert not scene.thread.started

    def test_too_late(self, scene: Scene) -> None:
        """After a while it is given up; what comes then is closed again."""
        outcome = scene.map()
        advance(scene.net, mapping.PATIENCE - 0.1)
        assert not outcome.over
        advance(scene.net, 0.2)
        assert f"PCP and NAT-PMP: the router {GATEWAY} does not answer" in outcome.words
        assert "UPnP: no end after 15 seconds" in outcome.words
        scene.thread.run_all()
        assert scene.device.open == {}
        assert not scene.map().over

    @pytest.mark.parametrize(
        "arguments",
        [
            ("tcp", 1, 1),
            ("SCTP", 1, 1),
            ("TCP", 0, 1),
            ("TCP", 65536, 1),
            ("UDP", 1, 0),
            ("UDP", 1, 86401),
        ],
    )
    def test_impossible(self, scene: Scene, arguments: tuple[str, int, int]) -> None:
        """No port can be opened so."""
        with pytest.raises(ValueError, match="no port to map"):
            scene.mapper.map(*arguments)
        assert scene.net.datagrams == []

    def test_twice(self, scene: Scene) -> None:
        """A port is mapped once, whether it is yet or will be; its neighbour is another."""
        scene.map()
        with pytest.raises(ValueError, match="mapped already"):
            scene.mapper.map("TCP", 7000)
        scene.answer()
        with pytest.raises(ValueError, match="mapped already"):
            scene.mapper.map("TCP", 7000)
        udp = scene.map("UDP")
        scene.answer(external=40001)
        assert udp.value[0].external == 40001
        assert len(scene.net.datagrams) == 1

    def test_no_router(self, scene: Scene) -> None:
        """Then nothing can be asked."""
        scene.gateway = None
        assert scene.map().words == "there is no IPv4 route to a router"
        assert scene.net.pending == 0

    @pytest.mark.parametrize("how", ["cancelled", "closed"])
    def test_given_up(self, scene: Scene, how: str) -> None:
        """What comes of it is closed."""
        mapping = scene.mapper.map("TCP", 7000)
        outcome = Outcome(mapping)
        if how == "cancelled":
            mapping.cancel()
        else:
            scene.unmap()
        assert outcome.failure is not None
        assert outcome.failure.check(CancelledError) or how == "closed"
        scene.answer()
        assert scene.asked_to_close
        scene.answer()
        scene.thread.run_all()
        assert scene.device.calls == []
        assert scene.net.pending == 0

    def test_another_router(self, scene: Scene) -> None:
        """Where we are is looked up each time; a router of which nothing is wanted is left."""
        scene.by_pcp()
        first = scene.net.port
        scene.gateway, scene.local = "10.0.0.1", "10.0.0.2"
        scene.map("UDP")
        assert scene.net.port is not first
        assert scene.net.port.peer == ("10.0.0.1", 5351)
        assert scene.net.port.address.host == "10.0.0.2"
        assert first.listening
        scene.net.port.refuse()
        scene.thread.run_all()
        unmapped = scene.unmap()
        advance(scene.net, 10)
        assert unmapped.value == [None]
        scene.gateway = "10.0.0.9"
        scene.map("UDP", 7001)
        assert not first.listening

    @pytest.mark.parametrize("what", ["race", "loser", "closing"])
    def test_another_router_meanwhile(self, scene: Scene, what: str) -> None:
        """One of which something is still to come is not left."""
        outcome = scene.map()
        first = scene.net.port
        if what == "loser":
            scene.answer()
            scene.unmap()
            scene.answer()
        elif what == "closing":
            scene.answer()
            scene.thread.run_all()
            scene.unmap()
        assert outcome.over is (what != "race")
        scene.gateway = "10.0.0.1"
        scene.map("UDP")
        assert first.listening


class RaceTests:
    """The second to come is taken back."""

    def test_upnp_second(self, scene: Scene) -> None:
        """It is closed; the first is asked for again: both may have been one to the router."""
        outcome = scene.map()

        def pcp_answers() -> None:
            scene.answer()

        scene.device.before_add = pcp_answers
        scene.thread.run()
        assert outcome.value == [BY_PCP]
        assert scene.device.open
        before = len(scene.sent)
        scene.thread.run_all()
        assert scene.device.open == {}
        assert len(scene.sent) == before + 1
        assert scene.sent[-1][24:36] == scene.sent[0][24:36]
        scene.answer()
        assert scene.changes == []
        assert scene.net.pending == 1

    def test_pcp_second(self, scene: Scene) -> None:
        """The same the other way round."""
        outcome = scene.map()
        scene.thread.run_all()
        assert outcome.value == [BY_UPNP]
        scene.answer()
        assert scene.asked_to_close
        assert scene.sent[-1][24:36] == scene.sent[0][24:36]
        scene.device.open.clear()  # to this router both were one
        scene.answer()
        scene.thread.run_all()
        assert scene.device.open
        assert scene.changes == []

    def test_second_to_what_is_no_longer_wanted(self, scene: Scene) -> None:
        """It is only closed."""
        scene.map()
        scene.thread.run_all()
        scene.unmap()
        scene.thread.run_all()
        scene.answer()
        scene.answer()
        scene.thread.run_all()
        assert scene.device.open == {}


class RenewalTests:
    """Kept open."""

    def test_at_half(self, scene: Scene) -> None:
        """Of what was given, each time; no more often than is needed, if that is a second."""
        scene.by_pcp(lifetime=1800)
        given = 1800
        for lifetime in (200, 1, 1, 1, 1800):
            before = len(scene.sent)
            due = max(given / 2, mapping.RENEWAL_LEAST)
            advance(scene.net, due - 0.1)
            assert len(scene.sent) == before
            advance(scene.net, 0.2)
            assert len(scene.sent) == before + 1
            scene.answer(lifetime=lifetime)
            given = lifetime
        assert scene.changes == []

    def test_upnp(self, scene: Scene) -> None:
        """At half of its lease, also where it has none."""
        scene.by_upnp()
        for _ in range(2):
            advance(scene.net, 1799)
            assert scene.thread.jobs == []
            scene.device.errors = {"addportmapping": ["OnlyPermanentLeasesSupported"]}
            advance(scene.net, 1.1)
            scene.thread.run_all()
            assert scene.device.names() == ["externalipaddress", "addportmapping", "addportmapping"]
        assert scene.changes == []

    def test_failures(self, scene: Scene) -> None:
        """Each time at half of what is left, until nothing is; then it is lost, and told."""
        scene.by_pcp(lifetime=64)
        for due in (32, 48, 56, 60):
            advance(scene.net, due - scene.net.seconds() - 0.01)
            before = len(scene.sent)
            advance(scene.net, 0.02)
            assert len(scene.sent) == before + 1
            if due < 60:
                assert scene.changes == []
            scene.answer(2)
        ((before_it, now, why),) = scene.changes
        assert (before_it, now) == (replace(BY_PCP, lifetime=64), None)
        assert "does not allow it" in why
        assert scene.net.pending == 0
        again = scene.map()
        scene.answer()
        assert again.value

    def test_a_thread_that_is_kept(self, scene: Scene) -> None:
        """A renewal that has no end has failed."""
        scene.by_upnp()
        advance(scene.net, 3620)
        assert len(scene.changes) == 1
        assert scene.changes[0][1:] == (None, "no end after 15 seconds")
        assert scene.net.pending == 0

    def test_a_failure_between(self, scene: Scene) -> None:
        """It counts no longer once one has succeeded."""
        scene.by_pcp(lifetime=64)
        advance(scene.net, 32)
        scene.answer(8)
        advance(scene.net, 16)
        scene.answer(lifetime=64)
        advance(scene.net, 31)
        assert len(scene.sent) == 3
        advance(scene.net, 1)
        assert len(scene.sent) == 4
        assert scene.changes == []

    def test_permanent_and_lost(self, scene: Scene) -> None:
        """What would stay open for ever is closed, if it still can be."""
        outcome = scene.map()
        scene.net.port.refuse()
        scene.device.errors = {"addportmapping": ["OnlyPermanentLeasesSupported"]}
        scene.thread.run_all()
        assert outcome.value[0].lifetime == 0
        scene.device.errors = {"externalipaddress": ["Miniupnpc HTTP error"] * 99}
        for _ in range(3600):
            advance(scene.net, 1)
            scene.thread.run_all()
        assert len(scene.changes) == 1
        assert scene.device.open == {}

    def test_moved(self, scene: Scene) -> None:
        """Another address or port is told."""
        scene.by_pcp()
        advance(scene.net, 900)
        scene.answer(external=41000)
        moved = replace(BY_PCP, external=41000)
        assert scene.changes.pop()[:2] == (BY_PCP, moved)
        advance(scene.net, 900)
        scene.answer(external=41000, address=f"{V4}0b00714d")
        elsewhere = replace(moved, address="11.0.113.77")
        assert scene.changes.pop()[:2] == (moved, elsewhere)

    def test_faults_of_ours(
        self, scene: Scene, logged: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An owner's, or one of a way: it is logged, and nothing else comes of it."""
        scene.by_pcp()
        with monkeypatch.context() as broken:
            broken.setattr(scene, "mapping_changed", lambda *_: 1 // 0)
            advance(scene.net, 900)
            scene.answer(external=41000)
            assert logged.pop().check(ZeroDivisionError)
        with monkeypatch.context() as broken:
            broken.setattr("broker.nat.pcp.pcp_request", lambda *_: 1 // 0)
            advance(scene.net, 900)
            assert logged.pop().check(ZeroDivisionError)
            assert len(scene.sent) == 2
        advance(scene.net, 450)
        assert len(scene.sent) == 3
        with monkeypatch.context() as broken:
            broken.setattr("broker.nat.pcp.pcp_request", lambda *_: 1 // 0)
            assert scene.unmap().value == [None]
            assert logged.pop().check(ZeroDivisionError)
        scene.by_pcp()
        scene.mapper.stop()  # what was only given up is none
        advance(scene.net, 10)
        assert logged == []


class ForgottenTests:
    """A router that has lost what it knew."""

    def test_made_anew(self, scene: Scene) -> None:
        """One answer with a clock that has begun anew: all are asked for again, at once."""
        scene.by_pcp()
        scene.map("UDP", 7001)
        scene.answer(external=40001)
        scene.thread.run_all()
        advance(scene.net, 900)
        before = scene.count() - 2
        scene.answer_to(scene.sent[before], epoch=3)
        requested = scene.sent[before + 2 :]
        assert {packet[36] for packet in requested} == {6, 17}
        for packet in requested:
            external = 40000 if packet[36] == 6 else 40001
            scene.answer_to(packet, epoch=3, external=external)
        assert scene.changes == []
        assert scene.count() == before + 4
        assert scene.net.pending == 2

    def test_and_refused(self, scene: Scene) -> None:
        """What the router won't make again is lost."""
        scene.by_pcp()
        advance(scene.net, 900)
        scene.answer(epoch=3)
        scene.answer(8, epoch=3)
        assert scene.changes[0][1] is None

    def test_not_by_upnp(self, scene: Scene) -> None:
        """What was opened by UPnP is no matter of this clock."""
        scene.by_upnp()
        other = scene.map("UDP", 7001)
        scene.answer(epoch=5000)
        assert other.value
        scene.thread.run_all()
        advance(scene.net, 900)
        scene.answer(epoch=3)
        assert scene.thread.jobs == []

    def test_a_clock_that_is_always_astray(self, scene: Scene) -> None:
        """It doesn't keep us busy."""
        scene.by_pcp()
        advance(scene.net, 900)
        scene.answer(epoch=3)
        before = len(scene.sent)
        scene.answer(epoch=999_999)
        assert len(scene.sent) == before
        advance(scene.net, 900)
        scene.answer(epoch=5)
        assert len(scene.sent) == before + 2


class UnmapTests:
    """Closing."""

    @pytest.mark.parametrize("method", ["PCP", "NAT-PMP", "UPnP"])
    def test_by_each_method(self, scene: Scene, method: str) -> None:
        """The router is told; it is forgotten at once, and can be mapped again."""
        if method == "UPnP":
            scene.by_upnp()
        elif method == "PCP":
            scene.by_pcp()
        else:
            mapped = scene.map()
            for answer in (TOO_NEW, PMP_ADDRESS, pmp_answer()):
                scene.net.port.answer(answer)
            assert mapped.value[0].method == method
        outcome = scene.unmap()
        assert not outcome.over
        if method == "UPnP":
            scene.thread.run_all()
        elif method == "PCP":
            assert scene.asked_to_close
            scene.answer()
        else:
            assert scene.sent[-1][-4:] == bytes(4)
            scene.net.port.answer(pmp_answer(lifetime=0, external=0))
        assert outcome.value == [None]
        assert scene.device.open == {}
        assert scene.net.pending == 0
        assert not scene.map().over

    @pytest.mark.parametrize("how", ["not mapped", "refused", "silent", "thread kept"])
    def test_it_does_not_fail(self, scene: Scene, how: str) -> None:
        """Whatever the router says, or doesn't: it is not waited for without end."""
        if how == "thread kept":
            scene.by_upnp()
        elif how != "not mapped":
            scene.by_pcp()
        outcome = scene.unmap()
        if how == "refused":
            scene.answer(2)
        elif how != "not mapped":
            advance(scene.net, 10 if how == "silent" else mapping.PATIENCE)
        assert outcome.value == [None]
        scene.thread.run_all()
        assert scene.device.open == {}

    @pytest.mark.parametrize("stop", [False, True])
    def test_while_it_is_renewed(self, scene: Scene, stop: bool) -> None:
        """The answer to the renewal comes too late to keep anything; so it does when all ends."""
        scene.by_pcp()
        advance(scene.net, 900)
        renewal = scene.sent[-1]
        outcome = Outcome(scene.mapper.stop()) if stop else scene.unmap()
        scene.answer_to(renewal)
        assert not outcome.over
        scene.answer()
        assert outcome.value == [None]
        assert scene.net.pending == 0
        assert scene.changes == []


class StopTests:
    """The end."""

    def test_all_are_closed(self, scene: Scene) -> None:
        """In each way; then nothing is left."""
        scene.by_upnp()
        scene.map("UDP", 7001)
        scene.answer()
        scene.thread.run_all()
        outcome = Outcome(scene.mapper.stop())
        assert scene.asked_to_close
        scene.answer()
        assert not outcome.over
        scene.thread.run_all()
        assert outcome.value == [None]
        assert scene.device.open == {}
        assert not scene.net.port.listening
        assert not scene.thread.started
        assert scene.net.pending == 0
        assert Outcome(scene.mapper.stop()).value == [None]  # with nothing to do, at once
        assert "stopped" in scene.map().words

    def test_bounded(self, scene: Scene) -> None:
        """A router that says nothing, and a thread that is kept, are not waited for long."""
        scene.by_upnp()
        scene.map("UDP", 7001)
        scene.answer()
        first = Outcome(scene.mapper.stop())
        second = Outcome(scene.mapper.stop())
        advance(scene.net, mapping.STOP_PATIENCE - 0.1)
        assert not first.over
        advance(scene.net, 0.1)
        assert first.value == [None]
        assert second.value == [None]
        assert not scene.net.port.listening
        assert scene.net.pending == 0
        scene.thread.run_all()

    def test_while_it_is_opened(self, scene: Scene) -> None:
        """It fails, and what may have been opened is closed without waiting."""
        mapped = scene.map()
        outcome = Outcome(scene.mapper.stop())
        assert "stopped" in mapped.words
        assert scene.sent[-2][4:8] == bytes(4)
        assert [packet[0] for packet in scene.sent] == [2, 2, 0]
        assert outcome.value == [None]
        scene.thread.run_all()
        assert scene.device.calls == []
        assert scene.net.pending == 0

    def test_while_upnp_opens(self, scene: Scene) -> None:
        """It is closed again before stopping is over."""
        mapped = scene.map()
        stopping: list[Outcome] = []

        def stop() -> None:
            stopping.append(Outcome(scene.mapper.stop()))

        scene.device.before_add = stop
        scene.thread.run()
        assert mapped.failure is not None
        assert not stopping[0].over
        scene.thread.run_all()
        assert scene.device.open == {}
        assert stopping[0].value == [None]
