"""Registering: permits, addresses, both at once, refusals (broker.mediator.registration)."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from broker.interfaces import StoreFailed
from broker.tables.permits import PermitChange
from broker.wire.refusals import ServiceUnavailable
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    DENIED,
    DONE,
    NOT_FOUND,
    STATUS,
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

PERMITS = "QUERY\nPERMITS\n\n"

#: Lines under Accept, one message after the other, and the list that they leave.
LISTS = {
    "fig. 3a": (["Create Ib,If"], ["Create Ib,If"]),
    "fig. 3a again": (["Create Ib,If", "Create Ic"], ["Create Ic"]),
    "fig. 3b": (["Create Ib,If", "Add Ic,Ie"], ["Create Ib,If,Ic,Ie"]),
    "Add to nothing": (["Add Ic,Ie"], ["Create Ic,Ie"]),
    "Add of who is there": (["Create Ib,If", "Add If,Ib,Ic"], ["Create Ib,If,Ic"]),
    "fig. 3c": (["Create Ib,If", "Delete If"], ["Create Ib"]),
    "Delete of who isn't there": (["Create Ib", "Delete If"], ["Create Ib"]),
    "Delete from nothing": (["Delete If"], ["Create"]),
    "fig. 3d": (["Create Ib,If", "Add Ic,Ie\nDelete If"], ["Create Ib,Ic,Ie"]),
    "in the order of the lines": (["Delete If\nAdd If"], ["Create If"]),
    "and the other way round": (["Add If\nDelete If"], ["Create"]),
    "an empty Create": (["Create Ib,If", "Create"], ["Create"]),
    "an empty Create, then Add": (["Create Ib,If", "Create\nAdd Ic"], ["Create Ic"]),
    "twice the same": (["Create Ib,Ib"], ["Create Ib"]),
    "oneself": (["Create Ia"], ["Create Ia"]),
    "Japanese": (["Create 山田太郎 大阪府門真市大字門真1006"],) * 2,
    "a group": (["Create @family,Ib"],) * 2,
}


class ListsTests:
    """The permits of a terminal."""

    @pytest.mark.parametrize("case", LISTS)
    def test_edits(self, case: str) -> None:
        """Create, Add and Delete make the list that the figures say, each told done (A1–A5)."""
        edits, left = LISTS[case]
        scene = Scene()
        scene.connect("a")
        for edit in edits:
            scene.says("a", register("Ia", f"Accept:{edit}"), a=DONE)
        scene.says("a", PERMITS, a=permits(*left))

    def test_what_they_are_for(self) -> None:
        """Who is on the list may call, and who is off it may not (A1–A4, A9)."""
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

    def test_equality_alone(self) -> None:
        """A caller is on a list by equality after NFC, not by case, pattern or group (I4)."""
        scene = Scene()
        scene.says_on("a", register("Ia", "Accept:Create I*,ib,@Ic,Caf\u00e9"), DONE)
        for number, name in enumerate(("Ib", "Ic", "I", "Ixyz", "CAFÉ")):
            scene.says_on(f"c{number}", query(name, "Ia"), DENIED)
        scene.says_on("d", query("Cafe\u0301", "Ia"), NOT_FOUND)

    def test_long_list(self) -> None:
        """A list that one line can't hold is told in a Create and Add lines, and can be given so.

        No line of it is longer than a line may be.
        """
        names = [f"terminal-{n:03}-{'x' * 40}" for n in range(1000)]
        scene = Scene()
        scene.connect("a")
        for start in range(0, 1000, 200):
            lines = [
                "Add " + ",".join(names[n : n + 10]) for n in range(start, start + 200, 10)
            ]
            scene.says("a", register("Ia", "Accept:" + "\n".join(lines)), a=DONE)
        scene.clients["a"].type(PERMITS)
        [answer] = scene.clients["a"].received()
        edits = answer.edits("Accept")
        assert [edit.partition(" ")[0] for edit in edits] == ["Create"] + ["Add"] * (
            len(edits) - 1
        )
        assert len(edits) > 50
        assert max(len(line) for line in answer.encode().split(b"\r\n")) <= 1024
        assert [name for edit in edits for name in edit.partition(" ")[2].split(",")] == names
        scene.says(
            "a", register("Ia", "Accept:Create"), a=DONE
        )
        scene.says("a", register("Ia", *answer.encode().decode().split("\r\n")[1:-2]), a=DONE)
        assert scene.mediator.permits.accepted("Ia") == tuple(names)

    def test_ones_own_only(self) -> None:
        """PERMITS tells one's own list, and nobody else's (I1, I4)."""
        scene = Scene()
        scene.connect("a", "b")
        scene.says("a", register("Ia", "Accept:Create Ib"), a=DONE)
        scene.says("b", "QUERY\nPERMITS\nIdentifier:Ib\n\n", b=permits("Create"))
        scene.says("b", "QUERY\nPERMITS\nIdentifier:Ia\n\n", b=DENIED)
        scene.says("b", "QUERY\nPERMITS\nCallee:Ia\n\n", b=permits("Create"))
        scene.says("a", "QUERY\nIdentifier:Ia\nPERMITS\n\n", a=permits("Create Ib"))

    def test_with_a_transaction(self) -> None:
        """With a transaction an answer brings it back, with a code, and the store's epoch (I11)."""
        scene, store = with_store()
        scene.connect("a")
        scene.says("a", register("Ia", "Accept:Add Ib", "Transaction:t.1"))
        told = "NOTIFY\nRegistration Completed.\nEpoch:epoch-1\nTransaction:t.1\nCode:200\n\n"
        scene.fires(store.pending[0], a=told)
        scene.says(
            "a",
            "QUERY\nPERMITS\nTransaction:t.2\n\n",
            a="NOTIFY\nAccept:Create Ib\nTransaction:t.2\nCode:200\n\n",
        )
        scene.says(
            "a",
            register("Ia", "Name:x", "Transaction:t.3"),
            a="NOTIFY\nRegistration Failed.\nCause:Name is not offered by this server\n"
            "Transaction:t.3\nCode:400\n\n",
        )
        scene.says(
            "a",
            register("Ix", "Accept:Add Ib", "Transaction:t.4"),
            a="NOTIFY\nRegistration Failed.\nCause:this connection belongs to another identifier\n"
            "Transaction:t.4\nCode:403\n\n",
        )

    def test_nothing_at_all(self) -> None:
        """A REGISTER of an identifier alone is a login, and changes nothing."""
        scene = Scene()
        scene.connect("a")
        scene.says("a", "REGISTER\nIdentifier:Ia\n\n", a=DONE)
        scene.says("a", "REGISTER\n\n", a=DONE)
        assert scene.address("Ia") is None
        assert len(scene.mediator.permits) == 0


_LONG = ["Add " + ",".join(f"x{n}" for n in range(start, start + 100)) for start in range(0, 999, 100)]
_HEAVY = ["Add " + ",".join(f"{n:0125}" for n in range(s, s + 7)) for s in range(0, 480, 7)]
OTHER = "this connection belongs to another identifier"
ELSEWHERE = "address is not taken from a connection that comes from elsewhere"

#: Registrations of a terminal that accepts Ib, at 127.0.0.1 1203, and what each is answered.
REFUSED = {
    "too many": ([*_edits("Accept", _LONG)], failed("a list holds at most 1000 identifiers")),
    "too many bytes": (
        [*_edits("Accept", _HEAVY)],
        failed("a list holds at most 60000 bytes"),
    ),
    "too many, and an address": (
        [*_edits("Accept", _LONG), "Address:127.0.0.1", "Port:9"],
        failed("a list holds at most 1000 identifiers"),
    ),
    "an address that is none, and permits": (
        ["Accept:Create Ix", "Address:nowhere"],
        failed("an Address is an IPv4 or IPv6 address"),
    ),
    "a bad edit": (["Accept:Remove Ib"], bad("Accept: must begin with Create, Add or Delete")),
    "an Add of nobody": (["Accept:Add"], bad("Accept: Add names nobody")),
    "a bad edit after a good one": (
        ["Accept:Create", "Accept:Delete"],
        bad("Accept: Delete names nobody"),
    ),
    "an empty name": (["Accept:Create Ix,,Iy"], bad("Accept: an identifier is empty")),
    "a Port alone": (["Port:9"], failed("a Port or Expires goes with an Address")),
    "an Expires alone": (["Expires:9"], failed("a Port or Expires goes with an Address")),
    "a Port of 0": (
        ["Address:127.0.0.1", "Port:0"],
        bad("Port: must be from 1 to 65535"),
    ),
    "an Expires that is none": (
        ["Address:127.0.0.1", "Expires:-1"],
        bad("Expires: must be a number"),
    ),
    "two addresses": (
        ["Address:127.0.0.1", "Address:127.0.0.2"],
        bad("Address: Address stands twice"),
    ),
    "a body": (["Accept:Create", "Length:4"], bad("this message takes no body")),
    "a statement": (["Accept:Create", "STATUS"], bad("no request of this kind is known here")),
    **{
        f"a {name}": (
            ["Accept:Create", f"{name}:{value}"],
            failed(f"{name} is not offered by this server"),
        )
        for name, value in {
            "Name": "taro",
            "Reject": "Create Ib",
            "Control": "Create Ib",
            "Policy": "Ask",
            "UDP": "Yes",
            "Public Key": "k",
            "Token": "t",
            "Role": "Mediator",
        }.items()
    },
}
