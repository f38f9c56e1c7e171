"""The candidates of a call, and to which terminal each is sent (broker.mediator.candidates)."""

from __future__ import annotations

from typing import Any, Final

import pytest
from twisted.internet.address import UNIXAddress

from broker.interfaces import StoreFailed
from broker.tables.address_policy import validate_local
from broker.tables.disclosures import CALLING, CONSENT, Disclosure
from broker.tables.groups import GroupChange
from broker.tables.locations import AddressRefused
from tests.mediator.scene import (
    ACCEPTED,
    CAN,
    DENIED,
    DONE,
    NOT_CONNECTED,
    NOT_FOUND,
    STATUS,
    SUPERSEDED,
    UNAVAILABLE,
    Scene,
    SlowStore,
    bad,
    failed,
    query,
    register,
    terminate,
    to_callee,
    to_caller,
)
from tests.mediator.test_consent import ASKED, lists
from tests.mediator.test_wakeup import behind
from tests.support.transport import Client

#: Where Ib's connection comes from, where it listens in its own network, and where others are.
HOME: Final = "203.0.113.8"
LOCAL: Final = "192.168.2.2 1203"
ELSEWHERE: Final = "198.51.100.7"
#: Where the mediator is.
SERVER: Final = "192.0.2.1"

#: Lines of a message.
Lines = tuple[str, ...]


class Stage(Scene):
    """Ib is on line and offers what a test says; a caller asks with what it says.

    :ivar store: what is kept
    """

    def __init__(
        self, *offers: str, home: str = HOME, a: str = "", policy: str = "", **options: Any
    ) -> None:
        """
        :param home: where Ib connects from
        :param a: where Ia connects from, if it does
        """
        self.store = SlowStore(groups=options.pop("groups", ()))
        self.store.at_once = True
        options.setdefault("own_ports", (1201, 1202))
        super().__init__(store=self.store, **options)
        self.home = home
        self.connects("b", home)
        lines = ["Accept:Create Ia,Ic", *([f"Policy:{policy}"] if policy else []), *offers]
        self.registers(*lines)
        if a:
            self.connects("a", a)

    def connects(self, name: str, host: str, arrives_at: str = SERVER) -> None:
        """A terminal connects."""
        self.connect(name, host=host, arrives_at=arrives_at)

    def registers(self, *lines: str, name: str = "b", also: dict[str, str] | None = None) -> None:
        """Ib says where it is."""
        text = register("Ib", f"Address:{self.home}", *lines)
        self.says(name, text, **{name: DONE, **(also or {})})

    def seen(self, name: str) -> str:
        """Where a connection comes from, as a candidate."""
        return source(self.clients[name])

    def asks(self, *lines: str, caller: str = "a", callee: str = "b") -> None:
        """A caller calls Ib, which is asked for its status."""
        self.says(caller, query(f"I{caller[0]}", "Ib", *lines), **{callee: STATUS})

    def told(
        self,
        caller: str = "a",
        callee: str = "b",
        to_it: Lines = (),
        to_us: Lines = (),
    ) -> dict[str, str]:
        """What the two read when the call is granted, with these lines more."""
        announced = to_callee(f"I{caller[0]}").replace("\nSession:", lines(to_it) + "\nSession:", 1)
        granted = to_caller("Ib", host=self.home)[:-1] + lines(to_us)[1:]
        granted += "\n\n" if to_us else "\n"
        return {callee: announced, caller: ACCEPTED + granted}

    def call(
        self,
        *said: str,
        caller: str = "a",
        callee: str = "b",
        to_it: Lines = (),
        to_us: Lines = (),
    ) -> None:
        """A call that is granted, with just these ways told to the callee and to the caller."""
        self.asks(*said, caller=caller, callee=callee)
        self.says(callee, CAN, **self.told(caller, callee, to_it, to_us))
        self.forget()

    def call_with_both_seen(self, callee: str = "b") -> None:
        """A call that is granted, in which each is told where the other's connection is from."""
        self.call(
            "Seen:Yes",
            callee=callee,
            to_it=(f"Caller Seen:{self.seen('a')}",),
            to_us=(f"Callee Seen:{self.seen(callee)}",),
        )

    @property
    def ledger(self) -> list[tuple[str, str, str, str]]:
        """Each disclosure: owner, recipient, address and basis, in order."""
        return [(one.owner, one.recipient, place(one), one.basis) for one in self.store.told]


def source(client: Client) -> str:
    """Where a connection comes from, as a candidate."""
    peer: Any = client.transport.peer
    return f"{peer.host} {peer.port}"


def lines(fields: Lines) -> str:
    """Lines more, each begun by an end of the line before."""
    return "".join(f"\n{field}" for field in fields)


def place(told: Disclosure) -> str:
    """The address of a disclosure, as a candidate."""
    return f"{told.host} {told.port}"


#: Calls: what Ib offers, where it and Ia are, what Ia asks with; what Ib is told more, and Ia.
#: ``{a}`` and ``{b}`` are where their connections come from.
# fmt: off
SENT: Final[dict[str, tuple[Lines, str, str, Lines, Lines, Lines]]] = {
    # Both connections come from one address: the two may be behind one router.
    "local, from the same address": (
        (f"Local:{LOCAL}",), HOME, HOME, (), (), (f"Callee Local:{LOCAL}",),
    ),
    # One address is one, on whichever listener it arrives.
    "local, as IPv4 in IPv6": (
        (f"Local:{LOCAL}",), HOME, f"::ffff:{HOME}", (), (), (f"Callee Local:{LOCAL}",),
    ),
    # A caller elsewhere learns nothing of a network that it can't reach (I1).
    "local, from elsewhere": ((f"Local:{LOCAL}",), HOME, ELSEWHERE, (), (), ()),
    "nothing offered": ((), HOME, HOME, (), (), ()),
    # A terminal that does not offer it is not disclosed, and is sent nothing (I1, C12).
    "seen, by the caller alone": ((), HOME, ELSEWHERE, ("Seen:Yes",), (), ()),
    "seen, by the callee alone": (("Seen:Yes",), HOME, ELSEWHERE, (), (), ()),
    "seen": (
        ("Seen:Yes",), HOME, ELSEWHERE, ("Seen:Yes",), ("Caller Seen:{a}",), ("Callee Seen:{b}",),
    ),
    # Between an IPv4 and an IPv6 address there is no such way; between two of IPv6 there is.
    "seen, of two kinds": (("Seen:Yes",), HOME, "2a00:1450::5", ("Seen:Yes",), (), ()),
    "seen, of IPv6": (
        ("Seen:Yes",), "2a00:1450::8", "2a00:1450::5", ("Seen:Yes",),
        ("Caller Seen:{a}",), ("Callee Seen:{b}",),
    ),
    # An IPv4 address is sent as one: a socket of the other kind could not be used for it.
    "seen, as IPv4 in IPv6": (
        ("Seen:Yes",), HOME, f"::ffff:{ELSEWHERE}", ("Seen:Yes",),
        ("Caller Seen:{a}",), ("Callee Seen:{b}",),
    ),
    # Whatever the callee offers itself; the caller learns nothing by it.
    "back": ((), HOME, ELSEWHERE, ("Back:4000",), (f"Caller Back:{ELSEWHERE} 4000",), ()),
    "back, as IPv4 in IPv6": (
        (), HOME, f"::ffff:{ELSEWHERE}", ("Back:4000",), (f"Caller Back:{ELSEWHERE} 4000",), (),
    ),
    "all": (
        ("Seen:Yes", f"Local:{LOCAL}"), HOME, HOME, ("Seen:Yes", "Back:4000"),
        ("Caller Seen:{a}", f"Caller Back:{HOME} 4000"),
        (f"Callee Local:{LOCAL}", "Callee Seen:{b}"),
    ),
}
# fmt: on


@pytest.mark.parametrize("case", SENT)
def test_sent(case: str) -> None:
    """Each side is sent what the other has offered, and each candidate is a disclosure (I1)."""
    offers, home, a, asked, to_it, to_us = SENT[case]
    stage = Stage(*offers, home=home, a=a)
    seen = {name: stage.seen(name).removeprefix("::ffff:") for name in "ab"}
    to_it, to_us = (tuple(line.format(**seen) for line in lines) for lines in (to_it, to_us))
    stage.call(*asked, to_it=to_it, to_us=to_us)
    stage.passes(1)
    assert stage.ledger == [
        ("Ib", "Ia", f"{home} 1203", "Ia"),
        *(("Ib", "Ia", line.partition(":")[2], "Ia") for line in to_us),
        *(("Ia", "Ib", line.partition(":")[2], CALLING) for line in to_it),
    ]
    told = stage.store.told
    assert len({(one.session, one.expires) for one in told}) == 1
    assert len({one.at for one in told}) == len(told)


class LocalTests:
    """Where a callee listens in its own network: sent only to callers that seem to be in it."""

    def test_of_the_file_system(self) -> None:
        """Connections that have no address come from this machine, as those from loopback do."""
        stage = Stage(home="127.0.0.1")
        for name in ("b2", "a"):
            stage.connects(name, "127.0.0.1")
            transport: Any = stage.clients[name].transport
            transport.peer = UNIXAddress("")
            transport.host = UNIXAddress("/run/broker")
        stage.registers("Local:127.0.0.1 1300", "Seen:Yes", name="b2", also={"b": SUPERSEDED})
        stage.call(
            "Seen:Yes", "Back:4000",
            callee="b2",
            to_it=("Caller Back:127.0.0.1 4000",),
            to_us=("Callee Local:127.0.0.1 1300",),
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("host", "source"),
        [
            ("192.168.2.2", HOME),
            ("10.1.2.3", HOME),
            ("172.16.0.9", "127.0.0.1"),
            ("fd00::7", "2a00:1450::5"),
            ("203.0.114.9", HOME),
            ("127.0.0.1", "127.0.0.1"),
            ("169.254.7.7", "169.254.7.8"),
            ("::ffff:192.168.2.2", HOME),
        ],
    )
    def test_what_may_be_offered(self, host: str, source: str) -> None:
        """A private address from anywhere; any other from a connection of its own kind (I12)."""
        public = {HOME: "198.50.100.8"}  # the tests' own networks count as private ones
        admitted = validate_local(
            host, 1203, source=public.get(source, source), own="", own_ports=()
        )
        assert admitted == host.removeprefix("::ffff:")

    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1", "169.254.7.7"],
    )
    def test_what_may_not(self, host: str) -> None:
        """What would send a caller to itself, to everyone, or nowhere (I12)."""
        with pytest.raises(AddressRefused):
            validate_local(host, 1203, source="198.50.100.8", own="198.50.100.1")

    def test_not_public_from_within(self) -> None:
        """Nor from a private network to where others are."""
        with pytest.raises(AddressRefused):
            validate_local("198.50.100.8", 1203, source="10.1.2.3", own="")

    def test_not_the_server(self) -> None:
        """Nor to this server's own ports (I12)."""
        own: dict[str, Any] = {"source": "10.1.2.3", "own": "10.0.0.1", "own_ports": (1201,)}
        with pytest.raises(AddressRefused, match="server's own"):
            validate_local("10.0.0.1", 1201, **own)
        assert validate_local("10.0.0.1", 1203, **own) == "10.0.0.1"
        assert validate_local("10.0.0.2", 1201, **own) == "10.0.0.2"


class SeenTests:
    """Where connections come from: told only if both have said so."""

    def test_by_a_group(self) -> None:
        """The reason is the entry of the list that permits the call."""
        stage = Stage("Seen:Yes", groups=[GroupChange("@family", ("Ia",))])
        stage.registers("Accept:Create @family", "Seen:Yes")
        stage.connects("a", ELSEWHERE)
        stage.call_with_both_seen()
        stage.passes(1)
        assert [why for whose, _, _, why in stage.ledger if whose == "Ib"] == ["@family"] * 2

    def test_no_port(self) -> None:
        """A connection of the file system comes from no port: there is no such way."""
        stage = Stage("Seen:Yes", home="127.0.0.1", a="127.0.0.1")
        transport: Any = stage.clients["a"].transport
        transport.peer = UNIXAddress("")
        stage.call("Seen:Yes")

    def test_where_it_is_reached(self) -> None:
        """It is the connection over which the callee is reached now that counts."""
        stage = Stage("Seen:Yes")
        stage.connects("b2", HOME)
        stage.connects("a", ELSEWHERE)
        stage.registers(f"Local:{LOCAL}", "Seen:Yes", name="b2", also={"b": SUPERSEDED})
        assert stage.seen("b") != stage.seen("b2")
        stage.call_with_both_seen(callee="b2")
        stage.leaves("b2")
        stage.call_with_both_seen()


class BackTests:
    """Where a caller waits for its callee: at the address that it is seen at, and no other."""

    def test_no_other_address(self) -> None:
        """A caller can't name another address: a callee is sent to no third terminal (I12)."""
        stage = Stage(a=ELSEWHERE)
        stage.says(
            "a",
            query("Ia", "Ib", f"Back:{HOME} 4000"),
            a=bad("Back: must be a number"),
        )
        stage.call(
            "Back:4000", "Caller Back:203.0.113.99 1", "Address:203.0.113.99",
            to_it=(f"Caller Back:{ELSEWHERE} 4000",),
        )  # fmt: skip

    @pytest.mark.parametrize("arrives_at", [ELSEWHERE, SERVER])
    def test_not_at_the_server(self, arrives_at: str) -> None:
        """From the server's own machine, its own ports are not a caller's; and the callee is not
        asked for its status (I5, I12).
        """
        stage = Stage()
        stage.connects("a", ELSEWHERE, arrives_at)
        for port in (1201, 1202):
            refused = bad("Back: the address is the server's own")
            stage.says("a", query("Ia", "Ib", f"Back:{port}"), a=refused)
        stage.call("Back:1203", to_it=(f"Caller Back:{ELSEWHERE} 1203",))

    def test_not_permitted(self) -> None:
        """A caller that is not permitted can't tell a callee from none, whatever it says of itself
        (I5, I6).
        """
        stage = Stage()
        stage.connects("x", ELSEWHERE)
        own = bad("Back: the address is the server's own")
        for line, refused in (("Back:1201", own), ("Back:4000", DENIED), ("Seen:Yes", DENIED)):
            stage.says("x", query("Ix", "Ib", line), x=refused)
            stage.says("x", query("Ix", "Iz", line), x=refused)

    def test_a_use_is_given_back(self) -> None:
        """What is refused spends no use of a permit that has few."""
        stage = Stage()
        stage.registers("Accept:Create Ia;uses=1")
        stage.connects("a", ELSEWHERE)
        refused = bad("Back: the address is the server's own")
        stage.says("a", query("Ia", "Ib", "Back:1201"), a=refused)
        stage.call("Back:4000", to_it=(f"Caller Back:{ELSEWHERE} 4000",))
        stage.says("a", query("Ia", "Ib"), a=DENIED)


class LedgerTests:
    """No candidate leaves before its record (I1)."""

    FULL: Final = ("Seen:Yes", f"Local:{LOCAL}")

    def a_stage(self, **options: Any) -> Stage:
        """Ib offers all, and Ia is in its network."""
        stage = Stage(*self.FULL, **options, a=HOME)
        stage.store.slow_ledger = True
        stage.store.at_once = False
        return stage

    def answered(self, stage: Stage, **reads: str) -> None:
        """Ia calls, and Ib answers."""
        stage.asks("Seen:Yes", "Back:4000")
        stage.says("b", CAN, **reads)

    def told(self, stage: Stage) -> dict[str, str]:
        """What both read once it is granted."""
        return stage.told(
            to_it=(f"Caller Seen:{stage.seen('a')}", f"Caller Back:{HOME} 4000"),
            to_us=(f"Callee Local:{LOCAL}", f"Callee Seen:{stage.seen('b')}"),
        )

    def test_first(self) -> None:
        """All are on the disk, in one commit, before either side is told anything."""
        stage = self.a_stage(ledger_first=True)
        self.answered(stage)
        (commit,) = stage.store.pending
        assert stage.ledger == []
        stage.fires(commit, **self.told(stage))
        assert len(stage.ledger) == 5

    def test_first_and_the_disk_is_full(self) -> None:
        """Then neither side is told anything, and no session is granted."""
        stage = self.a_stage(ledger_first=True)
        self.answered(stage)
        stage.fires(stage.store.pending[0], StoreFailed("full"), a=UNAVAILABLE)
        assert len(stage.context.sessions) == 0

    def test_behind(self) -> None:
        """They are noted in the very turn, and written soon."""
        stage = self.a_stage()
        self.answered(stage, **self.told(stage))
        assert stage.store.pending == []
        stage.passes(0.25)
        (commit,) = stage.store.pending
        stage.fires(commit)
        assert len(stage.ledger) == 5

    @pytest.mark.parametrize(("room", "enough"), [(5, True), (4, False)])
    def test_no_room(self, room: int, enough: bool) -> None:
        """There must be room for all of them, or there is no call."""
        stage = self.a_stage()
        stage.context.disclosures._waiting_most = room
        self.answered(stage, **(self.told(stage) if enough else {"a": UNAVAILABLE}))

    def test_withdrawn_while_it_answers(self) -> None:
        """A permit that is withdrawn before it is told tells none of it (I2)."""
        stage = self.a_stage()
        stage.store.at_once = True
        stage.asks("Seen:Yes", "Back:4000")
        stage.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        stage.says("b", CAN, a=DENIED)
        stage.passes(1)
        assert stage.ledger == []

    def test_withdrawn_while_it_is_written(self) -> None:
        """Nor does one that is withdrawn while the records are (I2)."""
        stage = self.a_stage(ledger_first=True)
        self.answered(stage)
        (commit,) = stage.store.pending
        stage.store.at_once = True
        stage.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        stage.fires(commit, a=DENIED)

    @pytest.mark.parametrize("again", [("Seen:Yes",), ()])
    def test_registered_again_while_it_is_written(self, again: Lines) -> None:
        """What it offers now is not what was recorded: nothing is told."""
        stage = self.a_stage(ledger_first=True)
        self.answered(stage)
        stage.registers(*again)
        stage.fires(stage.store.pending[0], a=NOT_CONNECTED)

    def test_the_caller_leaves_while_it_is_written(self) -> None:
        """The callee is told nothing then."""
        stage = self.a_stage(ledger_first=True)
        self.answered(stage)
        stage.leaves("a")
        (commit,) = stage.store.pending
        if not commit.called:
            stage.fires(commit)

    def test_taken_back_while_it_answers(self) -> None:
        """It is what it offers when it is told that counts."""
        stage = Stage(*self.FULL, a=HOME)
        stage.asks("Seen:Yes")
        stage.registers()
        stage.says("b", CAN, **stage.told())


class OfferTests:
    """What a registration offers, and for how long."""

    @pytest.mark.parametrize(
        "lines", [["Seen:Yes"], [f"Local:{LOCAL}"], ["Seen:Yes", "Accept:Create Ia"]]
    )
    def test_goes_with_an_address(self, lines: list[str]) -> None:
        """A terminal without an address has nothing to offer; nothing of the message is done."""
        stage = Stage()
        refused = failed("Local and Seen need an Address or UDP")
        stage.connects("c", ELSEWHERE)
        stage.says("c", register("Ic", *lines), c=refused)
        stage.says("c", "QUERY\nPERMITS\n\n", c="NOTIFY\nAccept:Create\n\n")

    def test_by_udp(self) -> None:
        """Or it is found where its datagrams come from."""
        stage = behind()
        stage.connect("b2")
        stage.gets_a_key("b2", "Seen:Yes", f"Local:{LOCAL}")
        asked = "QUERY\nSTATUS\nTransaction:1\n\n"
        stage.says("a", query("Ia", "Ib", "Seen:Yes"), b2=asked)
        stage.clients["b2"].type("NOTIFY\nSTATUS Acceptable.\nTransaction:1\n\n")
        ours, theirs = (source(stage.clients[name]) for name in ("a", "b2"))
        assert f"\nCaller Seen:{ours}\n" in stage.heard("b2")
        assert f"\nCallee Local:{LOCAL}\nCallee Seen:{theirs}\n" in stage.heard("a")

    @pytest.mark.parametrize(
        ("line", "cause"),
        [
            ("Seen:No", "Seen: must be Yes"),
            ("Seen:Yes,", "Seen: must be Yes"),
            ("Local:192.168.2.2", "Local: must be an IP address, a blank and a port"),
            ("Local:192.168.2.2:1203", "Local: must be an IP address, a blank and a port"),
            ("Local:home 1203", "Local: must be an IP address, a blank and a port"),
            ("Local:abc.de 1203", "Local: must be an IP address, a blank and a port"),
            ("Local:192.168.2.2 0", "Local: must be from 1 to 65535"),
            ("Local:192.168.2.2 65536", "Local: must be from 1 to 65535"),
            ("Local:fe80::1%eth0 1203", "Local: must be an IP address, a blank and a port"),
        ],
    )
    def test_bad_values(self, line: str, cause: str) -> None:
        """A value that is not a candidate makes the message malformed."""
        stage = Stage()
        stage.says("b", register("Ib", f"Address:{HOME}", line), b=bad(cause))

    @pytest.mark.parametrize("line", ["Local:127.0.0.1 80", "Local:224.0.0.1 80", "Local:::1 80"])
    def test_refused(self, line: str) -> None:
        """A candidate that is none for others is refused, and nothing has changed (A5, I12)."""
        stage = Stage("Seen:Yes", a=ELSEWHERE)
        text = register("Ib", "Address:203.0.113.9", "Port:99", line, "Accept:Delete Ia")
        stage.clients["b"].type(text)
        assert "Registration Failed." in stage.heard("b")
        assert stage.address("Ib") == (HOME, 1203)
        stage.call_with_both_seen()

    def test_refused_for_another_reason(self) -> None:
        """What stands goes on standing where the list can't be kept."""
        stage = Stage(f"Local:{LOCAL}", a=HOME)
        stage.store.at_once = False
        text = register("Ib", f"Address:{HOME}", "Accept:Delete Ic")
        stage.says("b", text)
        stage.fires(stage.store.pending[0], StoreFailed("full"), b=failed("full"))
        stage.call(to_us=(f"Callee Local:{LOCAL}",))

    def test_not_before_it_is_done(self) -> None:
        """What is offered is in force with the registration that offers it, and not before."""
        stage = Stage(a=HOME)
        stage.store.at_once = False
        text = register("Ib", f"Address:{HOME}", f"Local:{LOCAL}", "Accept:Delete Ic")
        stage.says("b", text)
        stage.call()
        stage.fires(stage.store.pending[0], b=DONE)
        stage.call(to_us=(f"Callee Local:{LOCAL}",))

    def test_taken_back(self) -> None:
        """The next registration says it again, or takes it back."""
        stage = Stage("Seen:Yes", f"Local:{LOCAL}", a=HOME)
        stage.registers(f"Local:{LOCAL}")
        stage.call("Seen:Yes", to_us=(f"Callee Local:{LOCAL}",))
        stage.registers()
        stage.call("Seen:Yes")

    def test_an_edit_takes_nothing_back(self) -> None:
        """Who only changes its list says nothing of where it is."""
        stage = Stage(f"Local:{LOCAL}", a=HOME)
        stage.says("b", register("Ib", "Accept:Delete Ic"), b=DONE)
        stage.call(to_us=(f"Callee Local:{LOCAL}",))

    def test_each_connection_its_own(self) -> None:
        """What was offered over one holds there, and returns with it."""
        stage = Stage(f"Local:{LOCAL}", a=HOME)
        stage.connects("b2", HOME)
        stage.registers(name="b2", also={"b": SUPERSEDED})
        stage.call(callee="b2")
        stage.leaves("b2")
        stage.call(to_us=(f"Callee Local:{LOCAL}",))

    def test_withdrawn(self) -> None:
        """With its address goes all that it has offered."""
        stage = Stage(f"Local:{LOCAL}", "Seen:Yes", a=HOME)
        stage.says("b", register("Ib", "Expires:0"), b=DONE)
        stage.says("a", query("Ia", "Ib", "Seen:Yes"), a=NOT_FOUND)
        stage.registers()
        stage.call("Seen:Yes")

    def test_woken_for_a_call(self) -> None:
        """A call that waits for its callee is told what that offers as it comes (A11)."""
        stage = Stage("Seen:Yes", ask_status=False, a=HOME)
        stage.leaves("b")
        stage.says("a", query("Ia", "Ib", "Seen:Yes"))
        stage.connects("b2", HOME)
        text = register("Ib", f"Address:{HOME}", f"Local:{LOCAL}", "Seen:Yes")
        reads = stage.told(
            callee="b2",
            to_it=(f"Caller Seen:{stage.seen('a')}",),
            to_us=(f"Callee Local:{LOCAL}", f"Callee Seen:{stage.seen('b2')}"),
        )
        stage.says("b2", text, b2=reads["b2"] + DONE, a=reads["a"])


class ConsentTests:
    """A call that the callee was asked for (C3, C7)."""

    def test_with_the_address_too(self) -> None:
        """The callee is told where its caller is registered, and by what other ways to meet it."""
        stage = Stage("Seen:Yes", f"Local:{LOCAL}", policy="Ask", a=HOME)
        stage.says("a", register("Ia", f"Address:{HOME}", "Port:1300"), a=DONE)
        stage.says("a", query("Ia", "Ib", "Seen:Yes", "Back:4000"), b=ASKED)
        stage.says("b", lists("Ia"), b=STATUS)
        ours, theirs = stage.seen("a"), stage.seen("b")
        reads = stage.told(
            to_it=(
                f"Caller Address:{HOME}",
                "Caller Port:1300",
                f"Caller Seen:{ours}",
                f"Caller Back:{HOME} 4000",
            ),
            to_us=(f"Callee Local:{LOCAL}", f"Callee Seen:{theirs}"),
        )
        stage.says("b", CAN, **reads)
        stage.passes(1)
        assert stage.ledger == [
            ("Ib", "Ia", f"{HOME} 1203", CONSENT),
            ("Ia", "Ib", f"{HOME} 1300", CALLING),
            ("Ib", "Ia", LOCAL, CONSENT),
            ("Ib", "Ia", theirs, CONSENT),
            ("Ia", "Ib", ours, CALLING),
            ("Ia", "Ib", f"{HOME} 4000", CALLING),
        ]

    def test_not_asked(self) -> None:
        """It is not asked about a caller that no callee can connect to (I5, I12)."""
        stage = Stage(policy="Ask", a=ELSEWHERE)
        refused = bad("Back: the address is the server's own")
        stage.says("a", query("Ia", "Ib", "Back:1201"), a=refused)
        stage.passes(5)
        stage.says("a", query("Ia", "Ib", "Back:4000"), b=ASKED)

    def test_denied(self) -> None:
        """A caller that is not accepted is told nothing, and no terminal is told of it."""
        stage = Stage("Seen:Yes", f"Local:{LOCAL}", policy="Ask", a=HOME)
        stage.says("a", query("Ia", "Ib", "Seen:Yes", "Back:4000"), b=ASKED)
        stage.says("b", lists("Ix"))
        stage.passes(5, a=DENIED)
        stage.passes(1)
        assert stage.ledger == []


class AfterwardsTests:
    """What is told is of one session."""

    def test_the_next_call(self) -> None:
        """A caller that calls again has new credentials, and the old ones are void."""
        stage = Stage("Seen:Yes", a=ELSEWHERE)
        for _ in range(2):
            stage.call_with_both_seen()
        stage.call()
        assert len(stage.context.sessions) == 1

    def test_terminated(self) -> None:
        """A permit that is withdrawn later ends the session, however the two meet (I2)."""
        stage = Stage("Seen:Yes", a=ELSEWHERE)
        stage.asks("Seen:Yes")
        ours, theirs = stage.seen("a"), stage.seen("b")
        reads = stage.told(to_it=(f"Caller Seen:{ours}",), to_us=(f"Callee Seen:{theirs}",))
        stage.says("b", CAN, **reads)
        gone = register("Ib", "Accept:Delete Ia")
        stage.says("b", gone, b=terminate() + DONE, a=terminate())
