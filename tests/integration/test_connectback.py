"""Connect-back between real processes: by a call password alone, where no permit is given."""

from __future__ import annotations

import random
import socket
import time
from hashlib import sha256

import pytest

from tests.cli.shell import Shell
from tests.integration.site import REFUSED, Site, account
from tests.support.processes import LOOPBACK, PATIENCE, Done, Running

pytestmark = pytest.mark.integration

#: Seconds in which a request is decided here, and after which it is refused.
DECIDED = 3.0
CONTENT = random.Random(4).randbytes(2_000_000)
SECRET = "open sesame, said he"
#: What a terminal with a call password is told of it.
POLICY = ("--policy=password", "--call-password-file=Ib.call")


def back(site: Site, password: str = "Ib.call") -> tuple[str, ...]:
    """The options of a caller that asks the callee to connect to it."""
    return (
        *("--connect-back", f"--call-password-file={password}", f"--listen={LOOPBACK}"),
        *("--verbose", "--send=sent", site.login),
    )


@pytest.fixture(scope="class")
def ib(shared: Site) -> Running:
    """Ib, which is reached by its call password."""
    account(shared.folder, "Ia", "Ib", "Ic", "Id")
    shared.file("sent", CONTENT)
    shared.file("Ib.call", f"{SECRET}\n")
    shared.file("guess", "open barley\n")
    shared.serve_accounts(f"--status-timeout={DECIDED}")
    return shared.callee(*POLICY, shared.login)


class WholeWayTests:
    """A caller to whom nothing is permitted (D3–D8), where there are logins: each has its own
    password beside the call password.
    """

    def call_back(self, site: Site, password: str = "Ib.call", *more: str) -> Done:
        """Ia asks Ib to come for a file."""
        return site.call(*back(site, password), *more)

    def test_when_the_password_is_right_then_the_callee_comes(
        self, shared: Site, ib: Running
    ) -> None:
        """The file is whole, and the disclosure is told; without the password it is refused."""
        assert shared.call("--send=sent", shared.login) == REFUSED
        status, out, err = self.call_back(shared)
        digest = sha256(CONTENT).hexdigest()
        assert (status, out) == (0, f"Ib has {len(CONTENT)} bytes, SHA-256 {digest}\n")
        assert err.startswith("connected by connecting back to us at 127.0.0.1:")
        assert shared.received() == [CONTENT]
        told = shared.broker(shared.port, "disclosures", "--as=Ia", shared.login).out.split("\t")
        assert (told[1], told[3]) == ("Ib", "connect-back\n")
        assert SECRET not in ib.said
        assert "Traceback" not in ib.said

    def test_when_the_password_is_wrong_then_the_call_is_refused(
        self, shared: Site, ib: Running
    ) -> None:
        """The callee's log says why (D7). A password that is changed is in force at once."""
        assert self.call_back(shared, "guess") == REFUSED
        assert shared.received() == []
        ib.wait_for("Ia showed a wrong call password")
        assert "barley" not in ib.said
        shared.file("Ib.call", "open barley\n")
        assert self.call_back(shared, "guess").status == 0
        assert shared.received() == [CONTENT]
        shared.file("Ib.call", f"{SECRET}\n")

    def test_when_the_caller_is_not_where_it_says_then_it_is_told_at_once(
        self, shared: Site, ib: Running
    ) -> None:
        """The callee says so in its log (C12)."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            nowhere = free.getsockname()[1]
        done = self.call_back(shared, "Ib.call", f"--outside=127.0.0.1:{nowhere}")
        assert (done.status, done.err) == (1, "broker: Ib could not connect to us\n")
        ib.wait_for("Ia could not be reached at 127.0.0.1")

    @pytest.mark.slow  # tests/terminal/calls/test_connect_back.py: a busy callee denies
    def test_when_the_callee_is_in_a_call_then_it_does_not_come(
        self, shared: Site, ib: Running
    ) -> None:
        """It takes one at a time (A25, B1)."""
        shared.callee(*POLICY, shared.login, "--one-at-a-time", identifier="Id")
        options = [one for one in back(shared) if one != "--send=sent"]
        first = shared.start_broker(shared.port, "call", "--as=Ic", "Id", *options)
        deadline = time.monotonic() + PATIENCE
        while not list((shared.folder / "in").iterdir()):
            assert time.monotonic() < deadline, first.said
            time.sleep(0.05)
        assert shared.call(*back(shared), callee="Id") == REFUSED
        assert first.process.stdin is not None
        first.process.stdin.close()
        assert first.wait() == 0, first.said
        assert shared.received() == [b""]

    def test_when_the_callee_lives_on_keepalives_then_a_notice_wakes_it(
        self, shared: Site, ib: Running
    ) -> None:
        """It comes over a connection that it makes for this call (D1, D4, D5)."""
        udp = next(line.rpartition(":")[2] for line in shared.running.out if "datagrams" in line)
        quiet = (f"--udp=127.0.0.1:{udp}", "--no-hold", "--linger=1")
        callee = shared.callee(*POLICY, *quiet, shared.login, identifier="Ic")
        callee.wait_for("Idle: closing the connection to the mediator")
        assert shared.call(*back(shared), callee="Ic").status == 0
        assert shared.received() == [CONTENT]


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--call-password-file=x", 2, "--call-password-file goes with --connect-back"),
        # It finds out its address.
        (
            "--open-port --outside=127.0.0.1:1",
            2,
            "--open-port finds the outside address itself",
        ),
        # There is no person to ask.
        ("--connect-back", 1, "name a --call-password-file"),
        # A call password that others can read (I18).
        (
            "--connect-back --call-password-file=README.md",
            1,
            "README.md: others can read or change it",
        ),
    ],
)
def test_when_the_options_are_wrong_then_the_command_says_why(
    options: str, status: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent."""
    done = Shell(capsys)(f"call --as=Ia Ib {options}")
    assert done.status == status
    assert why in done.err
