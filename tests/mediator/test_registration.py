"""Registering: permits, addresses, both at once, refusals (broker.mediator.registration)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, Final

import pytest

from broker.interfaces import StoreFailed
from broker.messages.errors import ServiceUnavailable
from broker.tables.permits import PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    DENIED,
    DONE,
    NOT_CONNECTED,
    NOT_FOUND,
    STATUS,
    SUPERSEDED,
    UNAVAILABLE,
    Scene,
    bad,
    failed,
    permits,
    query,
    register,
    with_resolver,
    with_store,
)
from tests.mediator.steps import Step, calls, connect, leaves, on_line, passes, play, says

PERMITS = "QUERY\nPERMITS\n\n"

#: Lines under Accept, one message after the other, and the list that they leave; what edits make
#: of any list is in tests/tables/test_permits.py.
LISTS = {
    "fig. 3a": (["Create Ib,If"], ["Create Ib,If"]),
    "fig. 3a again": (["Create Ib,If", "Create Ic"], ["Create Ic"]),
    "fig. 3b": (["Create Ib,If", "Add Ic,Ie"], ["Create Ib,If,Ic,Ie"]),
    "fig. 3c": (["Create Ib,If", "Delete If"], ["Create Ib"]),
    "fig. 3d": (["Create Ib,If", "Add Ic,Ie\nDelete If"], ["Create Ib,Ic,Ie"]),
    "in the order of the lines": (["Delete If\nAdd If"], ["Create If"]),
    "oneself": (["Create Ia"], ["Create Ia"]),
    "Japanese": (["Create 山田太郎 大阪府門真市大字門真1006"],) * 2,
    "a group": (["Create @family,Ib"],) * 2,
}


class ListsTests:
    """The permits of a terminal."""

    @pytest.mark.parametrize("case", LISTS)
    def test_when_lists_are_edited_then_they_are_as_the_figures_say(self, case: str) -> None:
        """Create, Add and Delete, each told done (A1–A5)."""
        edits, left = LISTS[case]
        scene = Scene()
        scene.connect("a")
        for edit in edits:
            scene.says("a", register("Ia", f"Accept:{edit}"), a=DONE)
        scene.says("a", PERMITS, a=permits(*left))

    def test_when_a_caller_is_on_the_list_then_it_may_call(self) -> None:
        """One that is not may not (A1–A4, A9)."""
        scene = Scene()
        scene.connect("a", "b", "f")
        for edits, may_b, may_f in [
            ("Create Ib,If", True, True),
            ("Delete If", True, False),
            ("Add If\nDelete Ib", False, True),
            ("Create Ib", True, False),
            ("Create", False, False),
        ]:
            scene.says("a", register("Ia", f"Accept:{edits}"), a=DONE)
            scene.says("b", query("Ib", "Ia"), b=NOT_FOUND if may_b else DENIED)
            scene.says("f", query("If", "Ia"), f=NOT_FOUND if may_f else DENIED)

    def test_when_names_are_compared_then_equality_after_nfc_counts(self) -> None:
        """And not case, pattern or group (I4)."""
        scene = Scene()
        scene.new_says("a", register("Ia", "Accept:Create I*,ib,@Ic,Caf\u00e9"), DONE)
        for number, name in enumerate(("Ib", "Ic", "I", "Ixyz", "CAFÉ")):
            scene.new_says(f"c{number}", query(name, "Ia"), DENIED)
        scene.new_says("d", query("Cafe\u0301", "Ia"), NOT_FOUND)

    def test_when_a_list_is_longer_than_a_line_then_it_has_several(self) -> None:
        """A Create and Add lines, none longer than a line may be; and it can be given so."""
        names = [f"terminal-{n:03}-{'x' * 40}" for n in range(1000)]
        scene = Scene()
        scene.new_says("a", register("Ia"), DONE)
        for start in range(0, 1000, 200):
            lines = ["Add " + ",".join(names[n : n + 10]) for n in range(start, start + 200, 10)]
            scene.says("a", register("Ia", "Accept:" + "\n".join(lines)), a=DONE)
        scene.clients["a"].type(PERMITS)
        [answer] = scene.clients["a"].received()
        edits = answer.edits("Accept")
        assert [edit.partition(" ")[0] for edit in edits] == ["Create"] + ["Add"] * (len(edits) - 1)
        assert len(edits) > 50
        assert max(len(line) for line in answer.encode().split(b"\r\n")) <= 1024
        assert [name for edit in edits for name in edit.partition(" ")[2].split(",")] == names
        scene.says("a", register("Ia", "Accept:Create"), a=DONE)
        scene.says("a", register("Ia", *answer.encode().decode().split("\r\n")[1:-2]), a=DONE)
        assert scene.context.permits.table.accepted("Ia") == tuple(names)

    def test_when_a_terminal_asks_for_permits_then_it_reads_its_own(self) -> None:
        """And no other's (I1, I4)."""
        scene = Scene()
        scene.connect("a", "b")
        scene.says("a", register("Ia", "Accept:Create Ib"), a=DONE)
        scene.says("b", "QUERY\nPERMITS\nIdentifier:Ib\n\n", b=permits("Create"))
        scene.says("b", "QUERY\nPERMITS\nIdentifier:Ia\n\n", b=DENIED)
        scene.says("b", "QUERY\nPERMITS\nCallee:Ia\n\n", b=permits("Create"))
        scene.says("a", "QUERY\nIdentifier:Ia\nPERMITS\n\n", a=permits("Create Ib"))

    def test_when_a_request_has_a_transaction_then_so_has_its_answer(self) -> None:
        """With a code, and the store's epoch (I11)."""
        scene, store = with_store()
        scene.connect("a")
        scene.says("a", register("Ia", "Accept:Add Ib", "Transaction:t"))
        told = "NOTIFY\nRegistration Completed.\nEpoch:epoch-1\nTransaction:t\nCode:200\n\n"
        scene.fires(store.pending[0], a=told)
        for asked, answer, code in (
            (PERMITS, permits("Create Ib"), 200),
            (register("Ia", "Role:Mediator"), failed("Role is not offered by this server"), 400),
            (register("Ix", "Accept:Add Ib"), failed(OTHER), 403),
        ):
            mark = "Transaction:t.2\n"
            scene.says("a", f"{asked[:-1]}{mark}\n", a=f"{answer[:-1]}{mark}Code:{code}\n\n")

    def test_when_a_register_has_an_identifier_alone_then_it_only_logs_in(self) -> None:
        scene, store = with_store()
        scene.connect("a")
        scene.says("a", "REGISTER\nIdentifier:Ia\n\n", a=DONE)
        scene.says("a", "REGISTER\n\n", a=DONE)
        assert store.commits == []
        assert scene.address("Ia") is None
        assert len(scene.context.permits.table) == 0


def accept(edits: list[str]) -> list[str]:
    """The lines of a list that several lines are needed for."""
    return [f"Accept:{edits[0]}", *edits[1:]]


_LONG = [
    "Add " + ",".join(f"x{n}" for n in range(start, start + 100)) for start in range(0, 1000, 100)
]
_HEAVY = ["Add " + ",".join(f"{n:0125}" for n in range(s, s + 7)) for s in range(0, 480, 7)]
ALREADY = "this connection has logged in already"
OTHER = "this connection belongs to another identifier"
_ELSEWHERE = "a {0} address is accepted only over a connection from a {0} address"


#: Registrations of a terminal that accepts Ib, at 127.0.0.1 1203, and what each is answered.
# fmt: off
REFUSED: Final[dict[str, tuple[list[str], str]]] = {
    "too many": (accept(_LONG), failed("a list holds at most 1000 identifiers")),
    "too many bytes": (accept(_HEAVY), failed("a list holds at most 60000 bytes")),
    "too many, and an address": (
        [*accept(_LONG), "Address:127.0.0.1", "Port:9"],
        failed("a list holds at most 1000 identifiers"),
    ),
    "an address that is none, and permits": (
        ["Accept:Create Ix", "Address:nowhere"], failed("an Address is an IPv4 or IPv6 address"),
    ),
    "a bad edit": (["Accept:Remove Ib"], bad("Accept: must begin with Create, Add or Delete")),
    "an Add of nobody": (["Accept:Add"], bad("Accept: Add names nobody")),
    "a bad edit after a good one": (
        ["Accept:Create", "Accept:Delete"], bad("Accept: Delete names nobody"),
    ),
    "an empty name": (["Accept:Create Ix,,Iy"], bad("Accept: an identifier is empty")),
    "a Port alone": (["Port:9"], failed("Port and Expires need an Address")),
    "an Expires alone": (["Expires:9"], failed("Port and Expires need an Address")),
    "a Port of 0": (["Address:127.0.0.1", "Port:0"], bad("Port: must be from 1 to 65535")),
    "an Expires that is none": (
        ["Address:127.0.0.1", "Expires:-1"], bad("Expires: must be a number"),
    ),
    "two addresses": (["Address:127.0.0.1", "Address:127.0.0.2"], bad("Address stands twice")),
    "a body": (["Accept:Create", "Length:4"], bad("this message takes no body")),
    "a Password": (["Accept:Create", "Password:x"], failed(ALREADY)),
    "a Token": (["Accept:Create", "Token:x"], failed(ALREADY)),
    "UDP without a transaction": (
        ["Accept:Create", "UDP:Yes"],
        failed("UDP needs a Transaction: the key comes in its answer"),
    ),
    "a statement": (["Accept:Create", "STATUS"], bad("no request of this kind is known here")),
    **{
        f"a {line.partition(':')[0]}": (
            ["Accept:Create", line],
            failed(f"{line.partition(':')[0]} is not offered by this server"),
        )
        for line in ("Control:Create Ib", "Public Key:k", "Role:Mediator")
    },
}
# fmt: on


class RefusedTests:
    """What is refused changes nothing, and says why."""

    @pytest.mark.parametrize("case", REFUSED)
    def test_when_a_registration_is_refused_then_nothing_has_changed(self, case: str) -> None:
        """List, address, store (A5); the others read nothing, and the connection goes on (I5)."""
        lines, answer = REFUSED[case]
        scene, store = with_store(PermitChange("Ia", ("Ib",)))
        scene.connect("b")
        scene.on_line("a")
        scene.says("a", register("Ia", *lines) + ("body" if "Length:4" in lines else ""), a=answer)
        scene.says("a", PERMITS, a=permits("Create Ib"))
        assert scene.address("Ia") == ("127.0.0.1", 1203)
        assert store.commits == []
        scene.says("b", query("Ib", "Ia"), a=STATUS)

    def test_when_another_identifier_is_named_then_it_is_refused(self) -> None:
        """A connection acts as the one that it has logged in as (I4), and goes on (I5)."""
        scene = Scene()
        scene.on_line("a", "Accept:Create Ib")
        scene.on_line("c", "Accept:Create Id", port=9)
        for lines in (
            ["Accept:Create Ix"],
            ["Accept:Delete Ib,Id"],
            ["Address:127.0.0.1", "Port:7"],
            ["Expires:0"],
        ):
            scene.says("a", register("Ic", *lines), a=failed(OTHER))
        scene.says("a", query("Ic", "Ib"), a=DENIED)
        scene.says("a", "QUERY\nIdentifier:Ic\nPERMITS\n\n", a=DENIED)
        scene.says("a", PERMITS, a=permits("Create Ib"))
        scene.says("c", PERMITS, c=permits("Create Id"))
        assert scene.address("Ia") == ("127.0.0.1", 1203)
        assert scene.address("Ic") == ("127.0.0.1", 9)

    def test_when_a_query_comes_first_then_it_logs_in_too(self) -> None:
        """As a REGISTER does (I4)."""
        scene = Scene()
        scene.new_says("a", query("Ia", "Ib"), DENIED)
        scene.says("a", register("Ib", "Accept:Create Ia"), a=failed(OTHER))
        scene.says("a", query("Ib", "Ic"), a=DENIED)
        assert len(scene.context.permits.table) == 0

    def test_when_no_identifier_is_given_then_nothing_is_done(self) -> None:
        """A stranger can do nothing (I4)."""
        scene = Scene()
        login = "NOTIFY\nLogin Required.\nCause:say who you are: REGISTER with an Identifier\n\n"
        scene.connect("a")
        for text in ("REGISTER\nAccept:Create Ib\n\n", "QUERY\nCallee:Ib\n\n", PERMITS):
            scene.says("a", text, a=login)
            mark = "Transaction:7\n"
            scene.says("a", f"{text[:-1]}{mark}\n", a=f"{login[:-1]}{mark}Code:401\n\n")
        assert len(scene.context.permits.table) == 0


NO_HOST = "an unspecified, multicast, broadcast or reserved address"
NO_ADDRESS = "an Address is an IPv4 or IPv6 address"
OWN = "the address is the server's own"
#: Where a connection comes from, what it registers, and the refusal, if any; what each kind of
#: address is, and what the server's own are, is in tests/tables/test_address_policy.py.
# fmt: off
ADDRESSES: Final[list[tuple[str, str, str | None]]] = [
    ("127.0.0.1", "127.0.0.2", None), ("::1", "::1", None),
    ("192.168.1.4", "10.1.0.9", None), ("fd00::1", "fd01::2", None),
    ("202.224.186.82", "210.149.0.1", None), ("2600::1", "2600::2", None),
    ("::ffff:202.224.186.82", "202.224.186.82", None),
    ("202.224.186.82", "::ffff:202.224.186.82", None),
    # The operator allows these from anywhere.
    ("127.0.0.1", "10.0.0.9", None), ("202.224.186.82", "10.0.0.9", None),
    ("127.0.0.1", "fd00::2", None),
    ("127.0.0.1", "10.1.0.9", _ELSEWHERE.format("private")),
    ("127.0.0.1", "fd01::2", _ELSEWHERE.format("private")),
    ("127.0.0.1", "202.224.186.82", _ELSEWHERE.format("public")),
    ("192.168.1.4", "127.0.0.1", _ELSEWHERE.format("loopback")),
    ("202.224.186.82", "127.0.0.1", _ELSEWHERE.format("loopback")),
    ("202.224.186.82", "10.1.2.3", _ELSEWHERE.format("private")),
    ("10.1.2.3", "202.224.186.82", _ELSEWHERE.format("public")),
    ("10.1.2.3", "169.254.1.1", _ELSEWHERE.format("link-local")),
    ("2600::1", "::1", _ELSEWHERE.format("loopback")),
    # Those of no host, allowed or not.
    ("127.0.0.1", "0.0.0.0", NO_HOST), ("127.0.0.1", "0.0.0.5", NO_HOST), ("::1", "::", NO_HOST),
    ("202.224.186.82", "224.0.0.1", NO_HOST), ("2600::1", "ff02::1", NO_HOST),
    ("202.224.186.82", "255.255.255.255", NO_HOST), ("202.224.186.82", "240.0.0.1", NO_HOST),
    ("fe80::1", "fe80::1%eth0", NO_ADDRESS), ("127.0.0.1", "localhost", NO_ADDRESS),
    ("127.0.0.1", "0177.0.0.1", NO_ADDRESS), ("127.0.0.1", "2130706433", NO_ADDRESS),
]
# fmt: on


FULL: Final = StoreFailed("the disk is full")
DISK_FULL: Final = failed("the disk is full")
#: Ia calls Ib, who has no address.
NOT_THERE: Final = says("a", query("Ia", "Ib"), a=NOT_FOUND)


def at(port: int | None) -> Step:
    """Ia is at this port, or nowhere."""

    def step(scene: Scene) -> None:
        assert scene.address("Ia") == (None if port is None else ("127.0.0.1", port))

    return step


def edit(name: str, text: str) -> Step:
    """Ia edits its list over this connection; the store takes its time."""
    return says(name, register("Ia", f"Accept:{text}"))


def moves(name: str, port: int, *lines: str, **reads: str) -> Step:
    """Ia registers an address over this connection."""
    return says(name, register("Ia", *lines, "Address:127.0.0.1", f"Port:{port}"), **reads)


def kept(number: int, error: Exception | None = None, **reads: str) -> Step:
    """A commit is done, or fails."""

    def step(scene: Scene) -> None:
        store: Any = scene.broker.store
        scene.fires(store.pending[number], error, **reads)

    return step


def commits(count: int) -> Step:
    """This number of commits was asked for."""

    def step(scene: Scene) -> None:
        store: Any = scene.broker.store
        assert len(store.commits) == count

    return step


def accepted(*entries: str) -> Step:
    """Ia's list in force."""

    def step(scene: Scene) -> None:
        assert scene.context.permits.table.accepted("Ia") == entries

    return step


def dials(port: int) -> Step:
    """One terminal is dialled."""

    def step(scene: Scene) -> None:
        assert [dial.port for dial in scene.dials] == [port]

    return step


def inactive(scene: Scene) -> None:
    """Ia is reached over no connection."""
    assert scene.context.connections.active("Ia") is None


#: Where Ia is, or Ib, who accepts Ia.
# fmt: off
LIFETIMES: Final[dict[str, list[Step]]] = {
    # The address registered last counts, from whichever connection.
    "the newest": [
        on_line("a", port=1), on_line("a", port=2), at(2), connect("b"),
        moves("b", 3, b=DONE, a=SUPERSEDED), at(3),
    ],
    "as long as its connection": [
        on_line("a", "Expires:60"), passes(1000), at(1203), leaves("a"), passes(59), at(1203),
        passes(1), at(None),
    ],
    # Without an Expires it lasts for an hour beyond its connection.
    "an hour": [on_line("a"), leaves("a"), passes(3599), at(1203), passes(1), at(None)],
    # There is none then (5g), and no one is dialled.
    "withdrawn": [
        on_line("b", "Accept:Create Ia"), connect("a"),
        says("b", register("Ib", "Expires:0"), b=DONE), NOT_THERE, leaves("b"), NOT_THERE,
    ],
    "withdrawn by an address": [
        on_line("b", "Accept:Create Ia"), connect("a"),
        says("b", register("Ib", "Address:127.0.0.1", "Expires:0"), b=DONE),
        NOT_THERE, leaves("b"), NOT_THERE,
    ],
    # It does not come back when the connection that registered it closes.
    "withdrawn over another connection": [
        on_line("b", "Accept:Create Ia", port=1), connect("a", "b2", "b3"),
        says("b2", register("Ib", "Address:127.0.0.1", "Port:2"), b2=DONE, b=SUPERSEDED),
        says("b3", register("Ib", "Expires:0"), b3=DONE),
        NOT_THERE, leaves("b2"), NOT_THERE,
    ],
}

#: Ia edits its list, on which Ix is; the store takes its time.
EDITS: Final[dict[str, list[Step]]] = {
    # Neither in force nor told before it is kept; then both (I8).
    "kept": [
        connect("a", "b"), edit("a", "Create Ib"), says("b", query("Ib", "Ia"), b=DENIED),
        kept(0, a=DONE), says("b", query("Ib", "Ia"), b=NOT_FOUND), accepted("Ib"),
    ],
    # A withdrawal holds from its answer on (I2, I8).
    "withdrawn": [
        connect("a", "x"), edit("a", "Delete Ix"), says("x", query("Ix", "Ia"), x=NOT_FOUND),
        kept(0, a=DONE), says("x", query("Ix", "Ia"), x=DENIED),
    ],
    # A commit that fails is told, with its cause; nothing has changed (A5).
    "fails": [
        connect("a"), edit("a", "Create Ib"), kept(0, FULL, a=DISK_FULL),
        says("a", PERMITS, a=permits("Create Ix")), edit("a", "Add Ic"), kept(1, a=DONE),
        says("a", PERMITS, a=permits("Create Ix,Ic")),
    ],
    # Two edits in flight do not lose one another (I9).
    "several at once": [
        connect("a1", "a2", "a3"), edit("a1", "Add Ib"), edit("a2", "Add Ic"), edit("a3", "Add Id"),
        commits(1), kept(0, a1=DONE), kept(1, FULL, a2=DISK_FULL),
        kept(2, a3=DONE), accepted("Ix", "Ib", "Id"),
    ],
    # A list asked for behind an edit is the list that the edit leaves (I8, I11).
    "asked for behind it": [
        connect("a"), edit("a", "Add Ic"), says("a", PERMITS),
        kept(0, a=DONE + permits("Create Ix,Ic")),
    ],
    # One identifier's slow commit keeps no other identifier waiting (I24).
    "of two terminals": [
        connect("a", "b"), edit("a", "Add Ib"), says("b", register("Ib", "Accept:Add Ia")),
        kept(1, b=DONE), kept(0, a=DONE),
    ],
    # A terminal that leaves has changed its list even so, once it is kept (I9).
    "the terminal leaves": [
        connect("a"), says("a", register("Ia", "Accept:Add Ib", "Address:127.0.0.1", "Expires:60")),
        leaves("a"), passes(1000), kept(0), connect("b"), says("b", query("Ib", "Ia")), dials(1203),
        passes(60, b=NOT_CONNECTED), at(None),
    ],
    # A connection that leaves before its address is in force leaves reach, and the address, as they
    # were: reach returned to an older connection in the meantime (I12).
    "the connection leaves": [
        connect("x", "a2"), on_line("a", port=1), moves("a2", 2, "Accept:Add Ib"), leaves("a2"),
        kept(0), calls("x", "a", port=1),
    ],
}

#: Ia registers a list and an address in one message: both or neither (A5).
BOTH: Final[dict[str, list[Step]]] = {
    # Only then is it told (I8).
    "kept": [
        connect("a"), moves("a", 1, "Accept:Add Ib"), inactive, kept(0, a=DONE), at(1),
        accepted("Ix", "Ib"),
    ],
    "no address before": [
        connect("a"), moves("a", 1, "Accept:Add Ib"), kept(0, FULL, a=DISK_FULL),
        at(None), inactive, accepted("Ix"),
    ],
    # The address that an open connection holds is back, and expires with it.
    "an address before": [
        on_line("a", "Expires:60", port=1), moves("a", 2, "Accept:Add Ib"),
        kept(0, FULL, a=DISK_FULL), at(1), passes(1000), at(1), leaves("a"),
        passes(60), at(None),
    ],
    # If the connection that held it went in the meantime, it expires as if it went now.
    "its holder leaves": [
        on_line("a1", "Expires:60", port=1), connect("a2"), moves("a2", 2, "Accept:Add Ib"),
        leaves("a1"), kept(0, FULL, a2=DISK_FULL), at(1), passes(60), at(None),
    ],
    # An expiring address lasts no longer than it would have (I10).
    "an expiring address before": [
        on_line("a", "Expires:60", port=1), leaves("a"), passes(50), connect("a"),
        moves("a", 2, "Accept:Add Ib"), passes(4), kept(0, FULL, a=DISK_FULL),
        at(1), passes(5), at(1), passes(1), at(None),
    ],
    # An address that is registered behind a slow one is the one that stays (A7, I10).
    "the next address": [
        connect("a"), moves("a", 1, "Accept:Add Ib"), moves("a", 2, "Expires:60"),
        kept(0, a=DONE + DONE), at(2), leaves("a"), passes(60), at(None),
    ],
    # The taking back of one registration does not take back the next one's address.
    "the next address after a failure": [
        connect("a1", "a2"), moves("a1", 1, "Accept:Add Ib"), moves("a2", 2),
        kept(0, FULL, a1=DISK_FULL, a2=DONE), at(2),
    ],
    # An address that had to wait is as new as its turn, not as its message (A7).
    "an address that waits": [
        connect("x", "a1", "a2", "a3"), moves("a1", 1, a1=DONE),
        moves("a2", 2, a2=DONE, a1=SUPERSEDED), edit("a1", "Add Ib"), moves("a3", 3), passes(1),
        leaves("a2"), kept(0, a1=DONE + SUPERSEDED, a3=DONE), at(3), calls("x", "a3", port=3),
    ],
}
# fmt: on


class AddressesTests:
    """Which addresses are taken (I12), and what becomes of them."""

    @pytest.mark.parametrize(("source", "host", "cause"), ADDRESSES)
    def test_when_an_address_is_of_another_kind_than_its_source_then_it_is_refused(
        self, source: str, host: str, cause: str | None
    ) -> None:
        """And one that is no host's; the operator may allow networks (I12)."""
        allowed = ["10.0.0.0/24", "fd00::/16", "0.0.0.0/8", "255.255.255.255/32"]
        scene = Scene(allowed_networks=[ip_network(network) for network in allowed])
        answer = DONE if cause is None else failed(cause)
        scene.new_says("a", register("Ia", f"Address:{host}"), answer, host=source)
        taken = None if cause else (host.removeprefix("::ffff:"), 1203)
        assert scene.address("Ia") == taken

    @pytest.mark.parametrize("clothing", ["", "::ffff:"])
    def test_when_an_address_is_the_servers_own_then_it_is_refused(self, clothing: str) -> None:
        """As where the connection comes from or arrives, however it is written (I12)."""
        scene = Scene(own_ports=[1200, 1201])
        here, arrived = f"{clothing}202.224.186.82", f"{clothing}202.224.186.1"
        scene.connect("a", host=here)
        scene.connect("b", host="202.224.186.82", arrives_at=arrived)
        for name, host, port, answer in (
            ("a", here, 1201, failed(OWN)),
            ("a", here, 1200, failed(OWN)),
            ("a", here, 1202, DONE),
            ("b", "202.224.186.1", 1201, failed(OWN)),
            ("b", "::ffff:202.224.186.1", 1201, failed(OWN)),
            ("b", f"{clothing}127.0.0.1", 1201, failed(_ELSEWHERE.format("loopback"))),
        ):
            text = register(f"I{name}", f"Address:{host}", f"Port:{port}")
            scene.says(name, text, **{name: answer})

    def test_when_no_port_is_given_then_it_is_the_default_one(self) -> None:
        """Or the terminal's own choice (A22)."""
        for lines, port in (((), 1203), (("Port:5060",), 5060), (("Port:65535",), 65535)):
            scene = Scene()
            scene.connect("a", "b")
            lines = ("Accept:Create Ia", "Address:127.0.0.1", *lines)
            scene.says("b", register("Ib", *lines), b=DONE)
            assert scene.address("Ib") == ("127.0.0.1", port)

    @pytest.mark.parametrize("case", LIFETIMES)
    def test_when_time_passes_then_the_address_is_the_last_one_or_none(self, case: str) -> None:
        """It lasts as long as its connection, and then for its Expires (A7, A16)."""
        scene = Scene()
        play(scene, *LIFETIMES[case])
        assert scene.dials == []

    def test_when_the_table_of_addresses_is_full_then_the_registration_fails(self) -> None:
        """Reach has not changed (A5, I15)."""
        scene, resolver = with_resolver()
        resolver.table._most = 0
        scene.connect("a")
        answer = failed("the table of addresses is full")
        scene.says("a", register("Ia", "Address:127.0.0.1"), a=answer)
        assert scene.context.connections.active("Ia") is None


class DurabilityTests:
    """An acknowledgement follows the commit (I8), and a change is whole or not at all (A5)."""

    @pytest.mark.parametrize("case", EDITS)
    def test_when_an_edit_is_being_kept_then_it_is_neither_in_force_nor_told(
        self, case: str
    ) -> None:
        """Whatever happens in the meantime (A5, I2, I8, I9, I11, I12, I24)."""
        scene, _ = with_store(PermitChange("Ia", ("Ix",)))
        play(scene, *EDITS[case])

    @pytest.mark.parametrize("case", BOTH)
    def test_when_a_list_and_an_address_are_registered_then_both_are_in_force_or_none(
        self, case: str
    ) -> None:
        """Whatever happens until they are kept (A5, A7, I8, I10)."""
        scene, _ = with_store(PermitChange("Ia", ("Ix",)))
        play(scene, *BOTH[case])

    def test_when_there_is_a_bug_then_there_is_no_address_either(self, logged: Logged) -> None:
        """As if the store had failed."""
        scene, _ = with_store()
        bug = RuntimeError("a bug")
        play(scene, connect("a"), moves("a", 1, "Accept:Add Ib"), kept(0, bug, a=UNAVAILABLE))
        play(scene, at(None), inactive, accepted())
        assert len(logged.failures()) == 1

    def test_when_a_list_has_grown_too_long_then_the_edit_is_refused(self) -> None:
        """By the time that its turn comes (I15)."""
        scene, _ = with_store(PermitChange("Ia", tuple(f"x{n}" for n in range(999))))
        why = failed("a list holds at most 1000 identifiers")
        play(scene, connect("a1", "a2"), edit("a1", "Add Ib"), edit("a2", "Add Ic"))
        play(scene, kept(0, a1=DONE, a2=why), commits(1))

    def test_when_the_resolver_is_away_then_a_registration_with_an_address_fails(self) -> None:
        """All of it (A5); permits alone can be edited. The resolver has the addresses (A16)."""
        scene, resolver = with_resolver()
        resolver.errors = dict.fromkeys(("lookup", "register", "withdraw"), ServiceUnavailable())
        scene.new_says("a", register("Ia", "Accept:Create Ib"), DONE)
        for away in ("lookup", "register"):
            resolver.errors = {away: ServiceUnavailable()}
            lines = ("Accept:Create Ix", "Address:127.0.0.1")
            scene.says("a", register("Ia", *lines), a=UNAVAILABLE)
            scene.says("a", PERMITS, a=permits("Create Ib"))
            assert scene.context.connections.active("Ia") is None
        resolver.errors = {"withdraw": ServiceUnavailable()}
        scene.says("a", register("Ia", "Accept:Create Ix", "Expires:0"), a=UNAVAILABLE)
        scene.says("a", PERMITS, a=permits("Create Ib"))


def test_when_a_name_is_taken_while_the_resolver_is_waited_for_then_it_is_deleted() -> None:
    """A withdrawal means what it names when it is stored: the permit is gone with its answer (I2).

    So do limits count from then.
    """
    scene, resolver = with_resolver()
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ic,Ia")
    scene.registers("c")
    resolver.hold = {"register"}
    lines = ("Address:127.0.0.1", "Accept:Delete nick", "Add Id;expires=100")
    scene.clients["b"].type(register("Ib", *lines))
    scene.registers("c", "Name:nick")
    scene.clock.advance(2)
    resolver.held.pop().callback(None)
    scene.clock.advance(0)
    scene.reads(b=DONE)
    scene.says("b", PERMITS, b=permits("Create Ia,Id;expires=100"))
    scene.says("c", query("Ic", "Ib"), c=DENIED)
