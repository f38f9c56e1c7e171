"""Whole calls between real processes."""

from __future__ import annotations

import random
import signal
from hashlib import sha256

import pytest

from tests.integration.site import REFUSED, Site
from tests.support.processes import Running

pytestmark = pytest.mark.integration

CONTENT = random.Random(3).randbytes(3_000_000)
HAS_IT = f"Ib has {len(CONTENT)} bytes, SHA-256 {sha256(CONTENT).hexdigest()}\n"


@pytest.fixture(scope="class")
def ib(shared: Site) -> Running:
    """A terminal, at a mediator with its resolver inside."""
    shared.serve()
    shared.file("sent.wav", CONTENT)
    return shared.callee("--accept=Ic", "--accept=Id", "--max-size=4M", "--trace")


class CallTests:
    """Calls to a terminal that runs, and accepts Ic."""

    def test_when_the_list_changes_then_the_next_call_goes_by_it(
        self, shared: Site, ib: Running
    ) -> None:
        """Create replaces, add appends, delete withdraws, list shows (A1–A3); a file reaches the
        terminal that permits its sender, to the byte, and both say its digest.
        """
        assert shared.call("--send=sent.wav") == REFUSED
        assert shared.received() == []
        assert shared.permit("create", "Ic", "Id", "Ia") == (0, "Registration Completed.\n", "")
        assert shared.call("--send=sent.wav") == (0, HAS_IT, "")
        assert shared.received() == [CONTENT]
        ib.wait_for(rf"Received .*-Ia from Ia: {HAS_IT[7:-1]}")
        assert shared.permit("add", "山田太郎").status == 0
        assert shared.permit("delete", "Ia").status == 0
        assert shared.permit("list") == (0, "Ic\nId\n山田太郎\n", "")
        assert shared.call("--send=sent.wav") == REFUSED
        assert "Traceback" not in ib.said

    def test_when_standard_input_is_sent_then_only_the_callee_is_on_standard_output(
        self, shared: Site, ib: Running
    ) -> None:
        """With ``--trace`` each message is on standard error, without its secrets (I18)."""
        status, out, err = shared.call("--trace", caller="Ic", given=CONTENT)
        assert (status, out) == (0, "")
        assert shared.received() == [CONTENT]
        lines = err.splitlines()
        assert lines[0] == "mediator > QUERY / Identifier:Ic / Callee:Ib / Transaction:1"
        assert lines[1].startswith("mediator < NOTIFY / Request Accepted. / ")
        assert "Password:… / Encrypt Key:… / " in lines[2]

    def test_when_a_file_is_too_large_then_nothing_of_it_stays(
        self, shared: Site, ib: Running
    ) -> None:
        """The caller is told the cap."""
        done = shared.call(caller="Ic", given=CONTENT * 2)
        assert done.status == 1
        assert "a file here has at most 4194304 bytes" in done.err
        assert shared.received() == []

    def test_when_a_call_is_interrupted_then_it_ends_cleanly(
        self, shared: Site, ib: Running
    ) -> None:
        """Ctrl-C is status 130; the callee keeps nothing of it."""
        calling = shared.start_broker(shared.port, "call", "--as=Id", "Ib")
        calling.type("half")
        ib.wait_for("mediator < NOTIFY / Caller ID:Id ")
        ib.wait_for(r"mediator > NOTIFY / Session:\S+ / Begin\.$")
        assert calling.end(signal.SIGINT) == 130
        assert "Traceback" not in calling.said
        ib.wait_for(r"Dropped a file from Id after 4 bytes: .*the caller gave up")
        assert shared.received() == []

    def test_when_there_is_no_such_file_then_there_is_no_call(
        self, shared: Site, ib: Running
    ) -> None:
        """The file is named in a line."""
        done = shared.call("--send=none.wav", caller="Ic")
        assert done == (1, "", "broker: none.wav: No such file or directory\n")

    def test_when_the_resolver_is_apart_then_a_call_is_the_same(self, site: Site) -> None:
        """The mediator finds the callee's address there, by their secret (A15)."""
        site.file("secret", "correct horse battery\n")
        _, resolver = site.resolver("--mediator-secret=secret")
        site.serve(f"--resolver=tcp:127.0.0.1:{resolver}", "--mediator-secret=secret")
        site.callee("--accept=Ia")
        assert site.call(given=CONTENT) == (0, "", "")
        assert site.received() == [CONTENT]


@pytest.fixture(scope="class")
def served(shared: Site) -> Site:
    """A mediator."""
    shared.serve()
    return shared


class RegisterTests:
    """``broker register``."""

    def registered(self, site: Site) -> Running:
        """A terminal that is registered, and connected until it is interrupted."""
        running = site.start_broker(
            site.port, *("register", "--as=Ib", "--address=127.0.0.1", "--port=1399")
        )
        running.wait_for(r"^Registration Completed\.$")
        return running

    def test_while_it_is_connected_the_terminal_is_reached(self, served: Site) -> None:
        """Once it is interrupted, the caller is told so (fig. 19)."""
        running = self.registered(served)
        assert served.permit("create", "Ia").status == 0
        with served.typing() as ia:
            ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
            accepted, credentials, _ = ia.read(2).split("\n\n")
        assert accepted == "NOTIFY\nRequest Accepted."
        assert "Callee Port:1399" in credentials
        running.wait_for(r"^A call from Ia is announced$")
        assert running.end(signal.SIGINT) == 130
        assert running.err == []
        assert served.call() == (4, "", "broker: Callee not Connected.\n")

    def test_when_it_registers_once_then_the_command_ends(self, served: Site) -> None:
        """A registration that fails changes nothing, and its cause is told (A5); an address where
        no terminal is can't be reached, and a terminal that takes no calls is busy (fig. 17, 19).
        """
        here = ("register", "--as=Ix", "--once", "--port=9", "--expires=60")
        failed = served.broker(served.port, *here, "--address=0.0.0.0")
        assert failed.status == 4
        assert failed.err.startswith("broker: Registration Failed. (")
        done = served.broker(served.port, *here, "--address=127.0.0.1")
        assert done == (0, "Registration Completed.\n", "")
        with served.typing() as ix:
            ix.type("REGISTER\nIdentifier:Ix\nAccept:Create Ia\n\n")
            assert "Completed" in ix.read()
        assert served.asks("Ia", "Ix") == "Callee not Connected."

    def test_when_the_mediator_goes_then_the_command_says_why(self, site: Site) -> None:
        """It ends with status 3, as where no mediator is."""
        mediator = site.serve()
        running = self.registered(site)
        assert mediator.end() == 0
        assert running.wait() == 3
        assert running.err == ["broker: the mediator has closed the connection"]
        status, out, err = site.call()
        assert (status, out, err.count("\n")) == (3, "", 1)
        assert err.startswith(f"broker: the mediator at tcp:127.0.0.1:{site.port} can't be reached")
