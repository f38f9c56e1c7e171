"""The candidates of a call, and to which terminal each is sent (broker.mediator.candidates)."""

from __future__ import annotations

from functools import partial
from operator import methodcaller
from typing import Any, Final

import pytest
from twisted.internet.address import UNIXAddress

from broker.interfaces import StoreFailed
from broker.tables.address_policy import validate_local
from broker.tables.disclosures import CALLING, CONSENT
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
from tests.mediator.steps import (
    Act,
    Step,
    asks,
    connect,
    holds,
    leaves,
    passes,
    play,
    registers,
    says,
    sessions,
)
from tests.mediator.test_consent import ASKED, lists
from tests.mediator.test_wakeup import behind

#: Where Ib's connection comes from, where it listens in its own network, and where others are.
HOME: Final = "203.0.113.8"
LOCAL: Final = "192.168.2.2 1203"
ELSEWHERE: Final = "198.51.100.7"
#: Where the mediator is.
SERVER: Final = "192.0.2.1"

#: Lines of a message.
Lines = tuple[str, ...]


class Stage(Scene):
    """Ib is on line and offers what a test says.

    In what is read ``{a}`` and ``{b}`` are where those connections come from, as candidates.

    :ivar store: what is kept
    """

    def __init__(
        self, *offers: str, home: str = HOME, policy: str = "List", **options: Any
    ) -> None:
        """
        :param home: where Ib connects from
        """
        self.store = SlowStore(groups=[GroupChange("@family", ("Ia",))])
        self.store.at_once = True
        super().__init__(store=self.store, own_ports=(1201, 1202), **options)
        self.home = home
        play(self, connects("b", host=home))
        self.offers("Accept:Create Ia,Ic", f"Policy:{policy}", *offers)

    def offers(self, *lines: str, name: str = "b", **reads: str) -> None:
        """Ib says where it is, and what it offers."""
        self.registers(name, f"Address:{self.home}", *lines, **reads)

    def call(self, *said: str, callee: str = "b", to_it: Lines = (), to_us: Lines = ()) -> None:
        """A call by Ia that is granted: just these candidates are told to the two."""
        self.asks(*said, callee=callee)
        self.says(callee, CAN, **told(callee, to_it, to_us, self.home))
        self.forget()

    def reads(self, **expected: str) -> None:
        """Each terminal has read this, with the candidates filled in."""
        for name, client in self.clients.items():
            peer: Any = client.transport.peer
            if not isinstance(peer, UNIXAddress):
                seen = f"{peer.host} {peer.port}".removeprefix("::ffff:")
                expected = {
                    who: text.replace(f"{{{name}}}", seen) for who, text in expected.items()
                }
        super().reads(**expected)

    @property
    def ledger(self) -> list[tuple[str, str, str, str]]:
        """Each disclosure: owner, recipient, address and basis, in order."""
        return [
            (record.owner, record.recipient, f"{record.host} {record.port}", record.basis)
            for record in self.store.told
        ]

    def written(self, error: Exception | None = None, **reads: str) -> None:
        """The only commit that waits is done, or fails."""
        (commit,) = self.store.pending
        self.store.pending.clear()
        self.fires(commit, error, **reads)


def told(
    callee: str = "b", to_it: Lines = (), to_us: Lines = (), home: str = HOME
) -> dict[str, str]:
    """What Ib and Ia read when the call is granted, with these lines more."""
    more = "".join(f"{line}\n" for line in to_it) + "Session:"
    granted = to_caller("Ib", host=home)[:-1] + "".join(f"{line}\n" for line in to_us) + "\n"
    return {callee: to_callee("Ia").replace("Session:", more, 1), "a": ACCEPTED + granted}


connects: Final[Act] = partial(connect, arrives_at=SERVER)
offers: Final[Act] = partial(methodcaller, "offers")
call: Final[Act] = partial(methodcaller, "call")
written: Final[Act] = partial(methodcaller, "written")
#: Ia is where Ib is, or elsewhere.
HERE: Final = connects("a", host=HOME)
THERE: Final = connects("a", host=ELSEWHERE)


def store(**states: bool) -> Step:
    """From now on the store does so."""
    return lambda scene: vars(scene.broker.store).update(states)


def recorded(count: int) -> Step:
    """There are this many disclosures."""
    return holds(lambda scene: len(scene.ledger) == count)


def call_with_both_seen(callee: str = "b") -> Step:
    """A call that is granted, in which each is told where the other's connection is from."""
    return call(
        "Seen:Yes",
        callee=callee,
        to_it=("Caller Seen:{a}",),
        to_us=(f"Callee Seen:{{{callee}}}",),
    )


#: Calls: what Ib offers, where it and Ia are, what Ia asks with; what Ib is told more, and Ia.
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
    offered, home, a, asked, to_it, to_us = SENT[case]
    stage = Stage(*offered, home=home)
    play(stage, connects("a", host=a))
    play(stage, call(*asked, to_it=to_it, to_us=to_us), passes(1))
    transports: Any = [stage.clients[name].transport for name in "ab"]
    ours, theirs = (f"{one.peer.host} {one.peer.port}" for one in transports)
    seen = {"a": ours.removeprefix("::ffff:"), "b": theirs}
    assert stage.ledger == [
        ("Ib", "Ia", f"{home} 1203", "Ia"),
        *(("Ib", "Ia", line.partition(":")[2].format(**seen), "Ia") for line in to_us),
        *(("Ia", "Ib", line.partition(":")[2].format(**seen), CALLING) for line in to_it),
    ]
    records = stage.store.told
    assert len({(record.session, record.expires) for record in records}) == 1
    assert len({record.at for record in records}) == len(records)


def test_of_the_file_system() -> None:
    """Connections that have no address come from this machine, as those from loopback do.

    They come from no port: where such a connection is from is told to no terminal.
    """
    stage = Stage("Seen:Yes", home="127.0.0.1")
    for name in ("a", "b2"):
        stage.connect(name)
        transport: Any = stage.clients[name].transport
        transport.peer = UNIXAddress("")
        transport.host = UNIXAddress("/run/broker")
    stage.call("Seen:Yes")
    stage.offers("Local:127.0.0.1 1300", "Seen:Yes", name="b2", b=SUPERSEDED)
    back, local = ("Caller Back:127.0.0.1 4000",), ("Callee Local:127.0.0.1 1300",)
    stage.call("Seen:Yes", "Back:4000", callee="b2", to_it=back, to_us=local)


#: A public address; the tests' own networks count as private ones.
PUBLIC: Final = "198.50.100.8"


@pytest.mark.parametrize(
    ("host", "source", "port", "taken"),
    [
        # A private address from anywhere; any other from a connection of its own kind (I12).
        ("192.168.2.2", PUBLIC, 1203, True),
        ("10.1.2.3", PUBLIC, 1203, True),
        ("172.16.0.9", "127.0.0.1", 1203, True),
        ("fd00::7", "2a00:1450::5", 1203, True),
        ("203.0.114.9", PUBLIC, 1203, True),
        ("127.0.0.1", "127.0.0.1", 1203, True),
        ("169.254.7.7", "169.254.7.8", 1203, True),
        ("::ffff:192.168.2.2", PUBLIC, 1203, True),
        # What would send a caller to itself, to everyone, or nowhere (I12).
        ("127.0.0.1", PUBLIC, 1203, False),
        ("::1", PUBLIC, 1203, False),
        ("0.0.0.0", PUBLIC, 1203, False),
        ("224.0.0.1", PUBLIC, 1203, False),
        ("255.255.255.255", PUBLIC, 1203, False),
        ("fe80::1", PUBLIC, 1203, False),
        ("169.254.7.7", PUBLIC, 1203, False),
        # Nor from a private network to where others are.
        (PUBLIC, "10.1.2.3", 1203, False),
        # Nor to this server's own ports (I12).
        ("10.0.0.1", "10.1.2.3", 1201, False),
        ("10.0.0.1", "10.1.2.3", 1203, True),
        ("10.0.0.2", "10.1.2.3", 1201, True),
    ],
)
def test_local_addresses(host: str, source: str, port: int, taken: bool) -> None:
    """Which address a terminal may offer as one in its own network."""
    own: dict[str, Any] = {"own": "10.0.0.1", "own_ports": (1201,)}
    if taken:
        assert validate_local(host, port, source=source, **own) == host.removeprefix("::ffff:")
    else:
        with pytest.raises(AddressRefused, match="server's own" if port == 1201 else None):
            validate_local(host, port, source=source, **own)


FULL: Final = ("Seen:Yes", f"Local:{LOCAL}")
OUR_LOCAL: Final = (f"Callee Local:{LOCAL}",)
BACK_THERE: Final = (f"Caller Back:{ELSEWHERE} 4000",)
OWN: Final = bad("Back: the address is the server's own")
DELETE_IC: Final = register("Ib", f"Address:{HOME}", f"Local:{LOCAL}", "Accept:Delete Ic")
# fmt: off
CASES: Final[dict[str, list[Step]]] = {
    # The reason is the entry of the list that permits the call.
    "by a group": [
        offers("Accept:Create @family", "Seen:Yes"), THERE, call_with_both_seen(), passes(1),
        holds(lambda scene: [row[3] for row in scene.ledger if row[0] == "Ib"]
              == 2 * ["@family"]),
    ],
    # It is the connection over which the callee is reached now that counts.
    "where it is reached": [
        offers("Seen:Yes"), connects("b2", host=HOME), THERE,
        offers(*FULL, name="b2", b=SUPERSEDED), call_with_both_seen("b2"), leaves("b2"),
        call_with_both_seen(),
    ],
    # A caller waits where it is seen: a callee is sent to no third terminal (I12).
    "back to another address": [
        THERE, says("a", query("Ia", "Ib", f"Back:{HOME} 4000"), a=bad("Back: must be a number")),
        call(
            "Back:4000", "Caller Back:203.0.113.99 1", "Address:203.0.113.99", to_it=BACK_THERE,
        ),
    ],
    # From the server's own machine its own ports are not a caller's; the callee is not asked for
    # its status (I5, I12).
    **{
        f"back to the server, which is at {server}": [
            connect("a", host=ELSEWHERE, arrives_at=server),
            *(says("a", query("Ia", "Ib", f"Back:{port}"), a=OWN) for port in (1201, 1202)),
            call("Back:1203", to_it=(f"Caller Back:{ELSEWHERE} 1203",)),
        ]
        for server in (ELSEWHERE, SERVER)
    },
    # It can't tell a callee from none, whatever it says of itself (I5, I6).
    "not permitted": [
        connects("x", host=ELSEWHERE),
        *(
            says("x", query("Ix", callee, line), x=refused)
            for line, refused in (("Back:1201", OWN), ("Back:4000", DENIED), ("Seen:Yes", DENIED))
            for callee in ("Ib", "Iz")
        ),
    ],
    # What is refused spends no use of a permit that has few.
    "a use is given back": [
        offers("Accept:Create Ia;uses=1"), THERE, says("a", query("Ia", "Ib", "Back:1201"), a=OWN),
        call("Back:4000", to_it=BACK_THERE), says("a", query("Ia", "Ib"), a=DENIED),
    ],
    # A terminal without an address has nothing to offer; nothing of the message is done.
    **{
        f"without an address, {lines}": [
            connects("c", host=ELSEWHERE),
            says("c", register("Ic", *lines), c=failed("Local and Seen need an Address or UDP")),
            says("c", "QUERY\nPERMITS\n\n", c="NOTIFY\nAccept:Create\n\n"),
        ]
        for lines in (FULL[:1], FULL[1:], ("Seen:Yes", "Accept:Create Ia"))
    },
    # What stands goes on standing where the list can't be kept.
    "the list is not kept": [
        offers(FULL[1]), HERE, store(at_once=False),
        says("b", register("Ib", f"Address:{HOME}", "Accept:Delete Ic")),
        written(StoreFailed("full"), b=failed("full")), call(to_us=OUR_LOCAL),
    ],
    # What is offered is in force with the registration that offers it, and not before.
    "not before it is done": [
        HERE, store(at_once=False), says("b", DELETE_IC), call(), written(b=DONE),
        call(to_us=OUR_LOCAL),
    ],
    # The next registration says it again, or takes it back.
    "taken back": [
        offers(*FULL), HERE, offers(FULL[1]), call("Seen:Yes", to_us=OUR_LOCAL), offers(),
        call("Seen:Yes"),
    ],
    # Who only changes its list says nothing of where it is.
    "an edit takes nothing back": [
        offers(FULL[1]), HERE, registers("b", "Accept:Delete Ic"), call(to_us=OUR_LOCAL),
    ],
    # What was offered over one holds there, and returns with it.
    "each connection its own": [
        offers(FULL[1]), HERE, connects("b2", host=HOME), offers(name="b2", b=SUPERSEDED),
        call(callee="b2"), leaves("b2"), call(to_us=OUR_LOCAL),
    ],
    # With its address goes all that it has offered.
    "withdrawn": [
        offers(*FULL), HERE, registers("b", "Expires:0"),
        says("a", query("Ia", "Ib", "Seen:Yes"), a=NOT_FOUND), offers(), call("Seen:Yes"),
    ],
    # A caller that calls again has new credentials, and the old ones are void.
    "the next call": [
        offers("Seen:Yes"), THERE, call_with_both_seen(), call_with_both_seen(), call(),
        sessions(1),
    ],
    # A permit that is withdrawn later ends the session, however the two meet (I2).
    "terminated": [
        offers("Seen:Yes"), THERE, asks("Seen:Yes"),
        says("b", CAN, **told("b", ("Caller Seen:{a}",), ("Callee Seen:{b}",))),
        registers("b", "Accept:Delete Ia", b=terminate() + DONE, a=terminate()),
    ],
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_candidates(case: str) -> None:
    """What is told of candidates when registrations, connections and permits change."""
    play(Stage(), *CASES[case])


TOLD: Final = told(
    "b",
    ("Caller Seen:{a}", f"Caller Back:{HOME} 4000"),
    (*OUR_LOCAL, "Callee Seen:{b}"),
)
ASKS: Final = asks("Seen:Yes", "Back:4000")
ANSWERED: Final = [ASKS, says("b", CAN)]
#: Ib offers all, and Ia is in its network: whether the ledger is first, and what happens.
# fmt: off
LEDGER: Final[dict[str, tuple[bool, list[Step]]]] = {
    # All are on the disk, in one commit, before either side is told anything.
    "first": (True, [*ANSWERED, recorded(0), written(**TOLD), recorded(5)]),
    # A permit that is withdrawn before it is told tells none of it, nor does one that is withdrawn
    # while the records are written (I2).
    "withdrawn while it answers": (
        False,
        [ASKS, store(at_once=True), registers("b", "Accept:Delete Ia"), says("b", CAN, a=DENIED),
         passes(1), recorded(0)],
    ),
    "withdrawn while it is written": (
        True,
        [*ANSWERED, store(at_once=True), registers("b", "Accept:Delete Ia"), written(a=DENIED)],
    ),
    # What it offers now is not what was recorded: nothing is told.
    "offers less while it is written": (
        True, [*ANSWERED, offers("Seen:Yes"), written(a=NOT_CONNECTED)],
    ),
    "offers nothing while it is written": (True, [*ANSWERED, offers(), written(a=NOT_CONNECTED)]),
    # The callee is told nothing then.
    "the caller leaves while it is written": (True, [*ANSWERED, leaves("a"), written()]),
    # It is what it offers when it is told that counts.
    "taken back while it answers": (
        False, [asks("Seen:Yes"), offers(), says("b", CAN, **told())],
    ),
}
# fmt: on


class LedgerTests:
    """No candidate leaves before its record (I1)."""

    @pytest.mark.parametrize("case", LEDGER)
    def test_ledger(self, case: str) -> None:
        """Each is recorded before it is told, and what is told is what was recorded."""
        first, steps = LEDGER[case]
        slow = store(at_once=False, slow_ledger=True)
        play(Stage(*FULL, ledger_first=first), HERE, slow, *steps)

    @pytest.mark.parametrize("room", [5, 4])
    def test_no_room(self, room: int) -> None:
        """There must be room for all of them, or there is no call."""
        stage = Stage(*FULL)
        stage.context.disclosures._waiting_most = room
        play(stage, HERE, ASKS, says("b", CAN, **(TOLD if room == 5 else {"a": UNAVAILABLE})))


class OfferTests:
    """What a registration offers, and for how long."""

    def test_by_udp(self) -> None:
        """Or it is found where its datagrams come from."""
        stage = behind()
        stage.connect("b2")
        stage.gets_a_key("b2", "Seen:Yes", f"Local:{LOCAL}")
        asked = "QUERY\nSTATUS\nTransaction:1\n\n"
        stage.says("a", query("Ia", "Ib", "Seen:Yes"), b2=asked)
        stage.clients["b2"].type("NOTIFY\nSTATUS Acceptable.\nTransaction:1\n\n")
        peers: Any = [stage.clients[name].transport.peer for name in ("a", "b2")]
        ours, theirs = (f"{peer.host} {peer.port}" for peer in peers)
        assert f"\nCaller Seen:{ours}\n" in stage.heard("b2")
        assert f"\nCallee Local:{LOCAL}\nCallee Seen:{theirs}\n" in stage.heard("a")

    @pytest.mark.parametrize(
        ("line", "cause"),
        [
            ("Seen:No", "Seen: must be Yes"),
            ("Seen:Yes,", "Seen: must be Yes"),
            *(
                (f"Local:{value}", "Local: must be an IP address, a blank and a port")
                for value in (
                    "192.168.2.2",
                    "192.168.2.2:1203",
                    "home 1203",
                    "abc.de 1203",
                    "fe80::1%eth0 1203",
                )
            ),
            ("Local:192.168.2.2 0", "Local: must be from 1 to 65535"),
            ("Local:192.168.2.2 65536", "Local: must be from 1 to 65535"),
        ],
    )
    def test_bad_values(self, line: str, cause: str) -> None:
        """A value that is not a candidate makes the message malformed."""
        Stage().says("b", register("Ib", f"Address:{HOME}", line), b=bad(cause))

    @pytest.mark.parametrize("line", ["Local:127.0.0.1 80", "Local:224.0.0.1 80", "Local:::1 80"])
    def test_refused(self, line: str) -> None:
        """A candidate that is none for others is refused, and nothing has changed (A5, I12)."""
        stage = Stage("Seen:Yes")
        text = register("Ib", "Address:203.0.113.9", "Port:99", line, "Accept:Delete Ia")
        stage.clients["b"].type(text)
        assert "Registration Failed." in stage.heard("b")
        assert stage.address("Ib") == (HOME, 1203)
        play(stage, THERE, call_with_both_seen())

    def test_woken_for_a_call(self) -> None:
        """A call that waits for its callee is told what that offers as it comes (A11)."""
        stage = Stage("Seen:Yes", ask_status=False)
        play(stage, HERE, leaves("b"), says("a", query("Ia", "Ib", "Seen:Yes")))
        stage.connect("b2", host=HOME, arrives_at=SERVER)
        reads = told("b2", ("Caller Seen:{a}",), (*OUR_LOCAL, "Callee Seen:{b2}"))
        stage.offers(*FULL, name="b2", b2=reads["b2"] + DONE, a=reads["a"])


class ConsentTests:
    """A call that the callee was asked for (C3, C7)."""

    def test_with_the_address_too(self) -> None:
        """The callee is told where its caller is registered, and by what other ways to meet it."""
        stage = Stage(*FULL, policy="Ask")
        play(stage, HERE, registers("a", f"Address:{HOME}", "Port:1300"))
        stage.says("a", query("Ia", "Ib", "Seen:Yes", "Back:4000"), b=ASKED)
        registered = f"Caller Address:{HOME}\nCaller Port:1300\n"
        expected = {**TOLD, "b": TOLD["b"].replace("Caller Seen:", registered + "Caller Seen:")}
        play(stage, says("b", lists("Ia"), b=STATUS), says("b", CAN, **expected), passes(1))
        peers: Any = [stage.clients[name].transport.peer for name in "ab"]
        ours, theirs = (f"{peer.host} {peer.port}" for peer in peers)
        assert stage.ledger == [
            ("Ib", "Ia", f"{HOME} 1203", CONSENT),
            ("Ia", "Ib", f"{HOME} 1300", CALLING),
            ("Ib", "Ia", LOCAL, CONSENT),
            ("Ib", "Ia", theirs, CONSENT),
            ("Ia", "Ib", ours, CALLING),
            ("Ia", "Ib", f"{HOME} 4000", CALLING),
        ]

    def test_not_asked(self) -> None:
        """It is not asked about a caller that no callee can connect to (I5, I12).

        A caller that is not accepted is told nothing, and no terminal is told of it.
        """
        stage = Stage(*FULL, policy="Ask")
        play(stage, HERE, says("a", query("Ia", "Ib", "Back:1201"), a=OWN), passes(5))
        stage.says("a", query("Ia", "Ib", "Seen:Yes", "Back:4000"), b=ASKED)
        play(stage, says("b", lists("Ix")), passes(5, a=DENIED), passes(1), recorded(0))
