"""UPnP, with a device that stands for miniupnpc and a router."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from broker.nat.context import NatContext, find_miniupnpc
from broker.nat.methods import SLOWER, MappingRequest, PortMapping
from broker.nat.upnp import PORTS_TRIED, WAITING_MOST, UpnpMethod
from broker.nat.worker import OneThread
from tests.nat.routers import GATEWAY, LOCAL, Device, Net, Outcome, bytes_of
from tests.support.clock import FakePool

OPENING = PortMapping("TCP", 7000, "11.0.113.1", 7000, 1800, 1800, "UPnP")
FIND = ["UPnP", "discover", "selectigd"]
ADD = ["externalipaddress", "addportmapping"]


class Scene:
    """A device, the thread, and the way to it."""

    def __init__(self) -> None:
        self.device = Device()
        self.thread = FakePool()
        self.context = NatContext(
            Net(), make_igd=self.device.UPnP, worker=self.thread, randomness=bytes_of()
        )
        self.upnp = UpnpMethod(self.context, GATEWAY, LOCAL)

    def do(self, doing: Any) -> Outcome:
        """Have the thread do it."""
        outcome = Outcome(doing)
        assert not outcome.over
        self.thread.run_all()
        assert outcome.over
        return outcome

    def open(self, lifetime: int = 1800, request: MappingRequest | None = None) -> Outcome:
        """Have port 7000 opened."""
        return self.do(self.upnp.open(request or MappingRequest("TCP", 7000, lifetime)))


@pytest.fixture
def scene() -> Scene:
    """A router with UPnP."""
    return Scene()


class OpenTests:
    """Opening."""

    def test_open(self, scene: Scene) -> None:
        """The device is looked for from our address, then asked."""
        assert scene.open().value == [OPENING]
        assert scene.device.open == {(7000, "TCP"): (LOCAL, 7000, 1800)}
        options = scene.device.calls[0][1]
        assert options["multicastif"] == LOCAL
        assert scene.device.names() == FIND + ADD

    def test_the_device_is_kept(self, scene: Scene) -> None:
        """It is looked for once; and again when it fails: there may be another by now."""
        for errors, calls in (
            ({}, [*FIND, *ADD]),
            ({}, ADD),
            ({"externalipaddress": ["Miniupnpc HTTP error"]}, [ADD[0], *FIND, *ADD]),
            ({"addportmapping": ["Action Failed"]}, [*ADD, *FIND, *ADD]),
        ):
            scene.device.errors = errors
            assert scene.open(request=MappingRequest("UDP", 7001, 1800)).value
            assert scene.device.names() == calls

    @pytest.mark.parametrize(("asked", "lease"), [(1, 600), (600, 600), (3600, 3600), (9999, 3600)])
    def test_leases(self, scene: Scene, asked: int, lease: int) -> None:
        """Between ten minutes and an hour."""
        mapped = scene.open(asked).value[0]
        assert (mapped.lifetime, mapped.requested) == (lease, lease)
        assert scene.device.open[7000, "TCP"][2] == lease

    @pytest.mark.parametrize("conflicts", [0, 1, 2])
    @pytest.mark.parametrize("permanent", [0, 1])
    def test_conflict(self, scene: Scene, conflicts: int, permanent: int) -> None:
        """A port that somebody else has (718): another is asked for.

        A router that knows no leases (725) is asked without.
        """
        scene.device.errors = {
            "addportmapping": ["ConflictInMappingEntry"] * conflicts
            + ["OnlyPermanentLeasesSupported"] * permanent
        }
        mapped = scene.open().value[0]
        lifetime = 0 if permanent else 1800
        assert (mapped.port, mapped.lifetime, mapped.requested) == (7000, lifetime, 1800)
        assert (mapped.external == 7000) is (conflicts == 0)
        assert 1024 <= mapped.external < 65536
        assert scene.device.open == {(mapped.external, "TCP"): (LOCAL, 7000, lifetime)}
        ports = {call[1] for call in scene.device.calls if call[0] == "addportmapping"}
        assert len(ports) == conflicts + 1

    @pytest.mark.parametrize(("drawn", "port"), [(0, 1024), (64511, 65535), (64512, 1024)])
    def test_some_port(self, scene: Scene, drawn: int, port: int) -> None:
        """Any that isn't the system's."""
        context = replace(scene.context, randomness=drawn.to_bytes)
        scene.upnp = UpnpMethod(context, GATEWAY, LOCAL)
        scene.device.errors = {"addportmapping": ["ConflictInMappingEntry"]}
        assert scene.open().value[0].external == port

    def test_conflicts_without_end(self, scene: Scene) -> None:
        """It is given up after some."""
        scene.device.errors = {"addportmapping": ["ConflictInMappingEntry"] * 99}
        assert "5 ports to others" in scene.open().refused
        assert scene.device.names().count("addportmapping") == PORTS_TRIED

    @pytest.mark.parametrize("address", ["", "0.0.0.0", None, "nonsense", "::1", "1.2.3.4.5"])
    def test_no_address(self, scene: Scene, address: str | None) -> None:
        """A router that tells none is asked for nothing more."""
        scene.device.address = address
        outcome = scene.open()
        assert "has no public address" in outcome.refused
        assert "addportmapping" not in scene.device.names()

    def test_refusal(self, scene: Scene) -> None:
        """It is told; behind another router that is told too."""
        scene.device.errors = {"addportmapping": ["Action not authorized", "x" * 999, "x" * 999]}
        refused = scene.open().refused
        assert refused == f"the router {GATEWAY} refuses: Action not authorized"
        scene.device.address = "192.168.7.2"
        refused = scene.open().refused
        assert "its own address 192.168.7.2 is not public" in refused
        assert len(refused) < 300

    def test_too_many(self, scene: Scene) -> None:
        """Only so many calls wait for the thread."""
        outcomes = [Outcome(scene.upnp.renew(OPENING)) for _ in range(WAITING_MOST)]
        assert "too many requests wait" in Outcome(scene.upnp.renew(OPENING)).refused
        scene.thread.run_all()
        assert all(outcome.value for outcome in outcomes)
        assert scene.open().value


@pytest.mark.parametrize("url", [None, "", "nonsense", "http://[", "/ctl"])
def test_no_router(scene: Scene, url: str | None) -> None:
    """None answers (miniupnpc says "Success"), or what answers is of no use."""
    scene.device.url = url
    assert "no router is among" in scene.open().refused
    scene.device.errors = {"selectigd": ["No UPnP device discovered"]}
    assert "no router is among" in scene.open().refused
    scene.device.found = 0
    assert scene.open().refused == "no router answers"


def test_another(scene: Scene) -> None:
    """A device that is not the router is not asked for anything, and not kept."""
    scene.device.url = "http://192.168.1.66:5000/ctl"
    assert "another device answers" in scene.open().refused
    assert scene.device.names() == FIND
    scene.device.url = f"http://{GATEWAY}:80/ctl"
    assert scene.open().value == [OPENING]


class LaterTests:
    """What is open."""

    def test_renew(self, scene: Scene) -> None:
        """At the same port; the address may be another."""
        scene.open()
        scene.device.open.clear()
        scene.device.address = "11.0.113.77"
        mapped = PortMapping("TCP", 7000, "11.0.113.1", 41000, 0, 1800, "UPnP")
        renewed = scene.do(scene.upnp.renew(mapped)).value[0]
        assert (renewed.address, renewed.external) == ("11.0.113.77", 41000)
        assert renewed.lifetime == 1800
        assert scene.device.open == {(41000, "TCP"): (LOCAL, 7000, 1800)}

    @pytest.mark.parametrize(
        ("call", "error", "does"),
        [
            ("addportmapping", "ConflictInMappingEntry", "refuses"),
            ("externalipaddress", "Miniupnpc HTTP error", "fails"),
        ],
    )
    def test_renewal_refused(self, scene: Scene, call: str, error: str, does: str) -> None:
        """It is told, and the device is looked for again the next time."""
        scene.open()
        scene.device.names()
        scene.device.errors = {call: [error]}
        refused = scene.do(scene.upnp.renew(OPENING)).refused
        assert refused == f"the router {GATEWAY} {does}: {error}"
        assert scene.device.names() == ADD[: ADD.index(call) + 1]
        assert scene.do(scene.upnp.renew(OPENING)).value
        assert scene.device.names() == FIND + ADD

    def test_close(self, scene: Scene) -> None:
        """It is closed; also, if it is closed already."""
        scene.open()
        assert scene.do(scene.upnp.close(OPENING)).value == [None]
        assert scene.device.open == {}
        assert scene.do(scene.upnp.close(OPENING)).value == [None]
        scene.device.errors = {"deleteportmapping": ["Action not authorized"]}
        assert "Action not authorized" in scene.do(scene.upnp.close(OPENING)).refused


class GivenUpTests:
    """What is no longer wanted."""

    def test_meanwhile(self, scene: Scene) -> None:
        """What was found is not asked for it."""
        request = MappingRequest("TCP", 7000, 1800)
        find = scene.device.selectigd

        def selected() -> Any:
            request.wanted = False
            return find()

        scene.device.selectigd = selected  # type: ignore[method-assign]
        assert SLOWER in scene.open(request=request).refused
        assert scene.device.open == {}

    def test_cancelled_before(self, scene: Scene) -> None:
        """A call that has not begun asks for nothing; nor does one that isn't wanted by then."""
        assert SLOWER in scene.open(request=MappingRequest("TCP", 7000, 1, wanted=False)).refused
        mapped = scene.upnp.open(MappingRequest("TCP", 7000, 1800))
        outcome = Outcome(mapped)
        mapped.cancel()
        assert outcome.failure is not None
        assert outcome.failure.check(CancelledError)
        assert Outcome(scene.upnp.stop()).value == [None]  # it can be left to itself
        scene.thread.run_all()
        assert scene.device.names() == []

    def test_cancelled_among_others(self, scene: Scene) -> None:
        """Stopping doesn't wait for a call of which nothing comes, but for the others."""
        mapped = scene.upnp.open(MappingRequest("TCP", 7000, 1800))
        Outcome(mapped)
        Outcome(scene.upnp.close(OPENING))
        stopped = Outcome(scene.upnp.stop())
        again = Outcome(scene.upnp.stop())
        mapped.cancel()
        scene.thread.run()
        assert not stopped.over
        scene.thread.run()
        assert stopped.value == [None]
        assert again.value == [None]
        assert Outcome(scene.upnp.stop()).value == [None]

    def test_renewal_cancelled(self, scene: Scene) -> None:
        """Nobody hears what becomes of it; what was open stays so."""
        scene.open()
        renewing = scene.upnp.renew(OPENING)
        outcome = Outcome(renewing)
        renewing.cancel()
        scene.thread.run_all()
        assert outcome.failure is not None
        assert scene.device.open
        assert Outcome(scene.upnp.stop()).value == [None]


def test_there() -> None:
    """It has what is called here."""
    pytest.importorskip("miniupnpc")
    make = find_miniupnpc()
    assert make is not None
    made = make(multicastif="127.0.0.1", discoverdelay=1)
    for name in (*FIND[1:], *ADD, "deleteportmapping"):
        assert callable(getattr(made, name))


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be installed."""
    monkeypatch.setitem(sys.modules, "miniupnpc", None)
    assert find_miniupnpc() is None


def test_in_order() -> None:
    """One job after the other, in one thread, that nobody waits for; then it ends."""
    worker = OneThread("a test's")
    worker.start()
    worker.stop()
    worker.callInThread(lambda: 1 // 0)
    assert not any(thread.name == "a test's" for thread in threading.enumerate())
    worker = OneThread("a test's")
    done: list[tuple[int, threading.Thread]] = []
    over = threading.Event()
    for index in range(5):
        worker.callInThread(lambda index: done.append((index, threading.current_thread())), index)
    worker.callInThread(over.set)
    assert over.wait(10)
    assert [index for index, _ in done] == [0, 1, 2, 3, 4]
    (thread,) = {thread for _, thread in done}
    assert thread.daemon
    assert thread is not threading.current_thread()
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()
    worker.callInThread(done.clear)
    assert len(done) == 5
