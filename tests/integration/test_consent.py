"""Consent on demand between real processes: a file that is edited while all of it runs (C4)."""

from __future__ import annotations

import pytest

from tests.integration.site import COMPLETED, Site
from tests.support.processes import Running

pytestmark = pytest.mark.integration

#: Seconds in which a call is decided here, and after which it is refused.
DECIDED = "--status-timeout=3"
DENIED = "Permission Denied."
#: What a caller that is permitted is told of a terminal that is not connected.
NOT_THERE = "Callee not Connected."
ACCEPTED = "Request Accepted."
FILE = "Ib.consent"
ASKS = ("--policy=ask", f"--consent-file={FILE}")


def consent(site: Site, change: str, *names: str, status: int = 0) -> list[str]:
    """Edit the terminal's file by the command; give what is said."""
    return site.operate("permit", change, f"--local={FILE}", *names, status=status)


@pytest.fixture(scope="class")
def ib(shared: Site) -> Running:
    """The terminal, which says itself who may call."""
    shared.file("sent", b"hello\n")
    shared.file(FILE)
    shared.serve(DECIDED)
    return shared.callee(*ASKS)


@pytest.mark.usefixtures("ib")
class EditedTests:
    """The file, and the mediator's list, while the terminal runs."""

    def test_when_the_file_changes_then_it_decides_the_next_call(self, shared: Site) -> None:
        """Edited by the command or by hand (C4, C5); to be refused wins, and once it is taken back
        the other list counts again.
        """
        assert consent(shared, "reject", "Ix") == [f"{FILE} is changed"]
        assert shared.asks("Ia") == DENIED
        consent(shared, "add", "Ia", "Ic", "@family")
        assert shared.call("--send=sent").status == 0
        assert shared.received() == [b"hello\n"]
        assert consent(shared, "list") == ["+ Ia", "+ Ic", "+ @family", "- Ix"]
        consent(shared, "reject", "Ic")
        assert shared.asks("Ic") == DENIED
        consent(shared, "unreject", "Ic")
        assert shared.asks("Ic") == ACCEPTED
        consent(shared, "delete", "Ic")
        assert shared.asks("Ic") == DENIED
        shared.file(FILE, "# by hand\n+ Ix\n")
        assert shared.asks("Ix") == ACCEPTED
        path = shared.file(FILE, "# by hand\n+ Ix\nno such line\n")
        assert shared.asks("Ix") == DENIED
        consent(shared, "delete", "Ix", status=1)
        path.unlink()
        assert shared.asks("Ix") == DENIED

    def test_when_a_caller_is_refused_then_it_can_not_tell_why(self, shared: Site) -> None:
        """Not accepted, off line or unknown: the same words (I6)."""
        shared.file(FILE, "+ Ia\n")
        with shared.typing() as ic:
            ic.type("REGISTER\nIdentifier:Ic\nAccept:Add Ia\n\n")
            assert ic.read() == COMPLETED
        for callee in ("Ib", "nobody", "Ic"):
            assert shared.asks("Ix", callee) == DENIED

    def test_when_the_mediators_list_changes_then_it_decides_the_next_call(
        self, shared: Site
    ) -> None:
        """A caller that is refused may not call, whatever the list says; then may again (C5)."""
        with shared.typing() as other:
            other.type("REGISTER\nIdentifier:Id\nAddress:127.0.0.1\nAccept:Create Ia\n\n")
            assert other.read() == COMPLETED
            for change, expected in (
                (("reject", "Ia"), DENIED),
                (("unreject", "Ia"), NOT_THERE),
                (("policy", "ask"), DENIED),
                (("policy", "list"), NOT_THERE),
            ):
                done = shared.permit(*change, whose="Id")
                assert done == (0, "Registration Completed.\n", "")
                assert shared.asks("Ia", "Id") == expected


def test_when_the_mediator_restarts_then_policy_and_rejections_are_kept(site: Site) -> None:
    """A name is registered again (C1, I8)."""
    site.file(FILE, "+ Ia\n+ Ix\n")
    running = site.serve("--store=sqlite:kept.db", DECIDED)
    with site.typing() as ib:
        ib.type("REGISTER\nIdentifier:Ib\nReject:Create Ix\nPolicy:Ask\n\n")
        assert ib.read() == COMPLETED
    assert running.end() == 0
    site.serve("--store=sqlite:kept.db", DECIDED)
    site.callee(*ASKS, "--name=taro@example.jp")
    assert site.asks("Ix", "taro@example.jp") == DENIED
    assert site.asks("Ia", "taro@example.jp") == ACCEPTED
