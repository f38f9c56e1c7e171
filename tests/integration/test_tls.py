"""TLS between real processes: who gets through to whom, and who is told why not (A21, I25)."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.shell import Shell
from tests.integration.site import Site, listening_for_tls, program, server_options
from tests.support.certificates import Files, Pki
from tests.support.processes import LOOPBACK, PATIENCE, Running, listening

pytestmark = pytest.mark.integration


class Secure(NamedTuple):
    """A mediator that speaks TLS.

    :ivar port: where it does
    """

    site: Site
    pki: Pki
    own: Files
    running: Running
    port: int

    @property
    def server(self) -> str:
        """Its endpoint."""
        return f"tls:localhost:{self.port}"

    def openssl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Connect to it by ``openssl s_client``."""
        return subprocess.run(
            [program("openssl"), "s_client", "-connect", f"127.0.0.1:{self.port}", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def shown(self) -> str:
        """The certificate that it shows."""
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        return self.openssl("-CAfile", self.pki.ca).stdout.partition(begin)[2].partition(end)[0]

    def hang_up(self) -> None:
        """SIGHUP."""
        self.running.process.send_signal(signal.SIGHUP)


def secure(site: Site, pki: Pki, own: Files) -> Secure:
    """Start a mediator."""
    running = site.serve(*server_options(own), "--trace")
    return Secure(site, pki, own, running, listening_for_tls(running))


@pytest.fixture(scope="class")
def mediator(shared: Site) -> Secure:
    """One with a certificate for this machine."""
    pki = Pki(shared.folder)
    return secure(shared, pki, pki.server())


@pytest.fixture(scope="class")
def other(tmp_path_factory: pytest.TempPathFactory, mediator: Secure) -> Iterator[Secure]:
    """One with a certificate for another machine."""
    with Site(tmp_path_factory.mktemp("other")) as site:
        yield secure(site, mediator.pki, mediator.pki.server("elsewhere.example"))


def test_when_an_authority_is_made_then_a_call_goes_over_tls(site: Site) -> None:
    """Authority and certificate by ``broker ca``; a file crosses, with TLS to the mediator from
    terminal and command (A21, D2). ``openssl s_client -quiet -crlf`` types as telnet does (A2).
    """
    site.operate("ca", "init")
    site.operate("ca", "issue", "--server", "localhost")
    own = Files(*(str(site.folder / f"server-localhost.{end}") for end in ("pem", "key")))
    port = listening_for_tls(site.serve(*server_options(own)))
    ca = f"--ca={site.folder / 'ca' / 'authority.pem'}"
    content = bytes(range(256)) * 1000
    site.file("sent", content)
    (site.folder / "in").mkdir()
    site.terminal("Ib", f"tls:localhost:{port}", ca, "--receive=in", "--accept=Ia")
    server = f"tls:localhost:{port}"
    done = site.broker(server, "call", "--as=Ia", "Ib", "--send=sent", ca)
    assert done.status == 0, done.err
    assert site.received() == [content]
    typing = site.start(
        *(program("openssl"), "s_client", "-quiet", "-crlf", "-verify_return_error"),
        *("-CAfile", ca.removeprefix("--ca="), "-connect", f"localhost:{port}"),
    )
    typing.type("REGISTER\nIdentifier:Ic\nAccept:Create Ib\n\n")
    typing.wait_for("^NOTIFY\r?$")
    typing.wait_for("^Registration Completed.\r?$")


class RefusalTests:
    """A server that isn't the one it should be, and options that don't go with it."""

    @pytest.mark.parametrize(
        ("case", "why"),
        [
            ("name", "it is for elsewhere.example, not for localhost"),
            ("expired", "it has expired"),
            ("revoked", "it has been revoked"),
            # Slow: tests/net/tls/test_handshakes.py refuses these without processes.
            *(
                pytest.param(case, why, marks=pytest.mark.slow)
                for case, why in (
                    ("authority", "it was not issued by a trusted authority"),
                    ("pin", "its key is not the one that is pinned"),
                )
            ),
        ],
    )
    def test_when_the_server_is_wrong_then_nothing_is_said_to_it(
        self, mediator: Secure, other: Secure, case: str, why: str
    ) -> None:
        """The wrong chain, name, time or key is refused in a line, status 3 (D2, I26)."""
        site, pki = mediator.site, mediator.pki
        server, running, options = mediator.server, mediator.running, [f"--ca={pki.ca}"]
        if case == "name":
            server, running = other.server, other.running
        elif case == "authority":
            options = [f"--ca={Pki(site.folder, 'Other').ca}"]
        elif case == "pin":
            options.append(f"--pin={'0' * 64}")
        elif case == "revoked":
            revocations = site.folder / "revoked"
            pki.revoke(mediator.own)
            revocations.write_bytes(Path(pki.crl).read_bytes())
            options.append(f"--revocation-list={revocations}")
        else:  # expired, which no mediator of ours would show
            old = pki.server(age=timedelta(days=500))
            running = site.start(
                *(program("openssl"), "s_server", "-accept", "0", "-naccept", "1"),
                *("-cert", old.certificate, "-key", old.key),
            )
            server = f"tls:localhost:{running.wait_for(r'ACCEPT .*:([0-9]+)$')[1]}"
        done = site.broker(server, "permit", "list", "--as=Ib", *options)
        prefix = "broker: no TLS connection to the mediator: the peer's certificate is"
        assert done == (3, "", f"{prefix} refused: {why}\n")
        assert "Ib" not in running.said

    def test_when_a_terminal_finds_the_wrong_server_then_it_tries_again(
        self, other: Secure
    ) -> None:
        """It says so, and says nothing to it."""
        running = other.site.twistd(
            *("broker-terminal", "--identifier=Ib", f"--mediator={other.server}"),
            *(f"--ca={other.pki.ca}", f"--listen={LOOPBACK}"),
        )
        for _ in range(2):
            running.wait_for("refused: it is for elsewhere.example, not for localhost$")
        assert "Ib" not in other.running.said

    def test_when_the_version_is_old_then_it_is_refused(self, site: Site, mediator: Secure) -> None:
        """TLS 1.1; the log says so."""
        # A server of its own: the log has a line a second for all that fail at one.
        alone = secure(site, mediator.pki, mediator.own)
        done = alone.openssl("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
        assert done.returncode != 0
        assert "alert protocol version" in done.stderr
        alone.running.wait_for(
            "TLS with this machine failed: the peer speaks too old a version of TLS$"
        )

    @pytest.mark.parametrize(
        ("options", "status", "why"),
        [
            # Wrong usage, not a false comfort.
            (
                "--mediator=tcp:127.0.0.1:9 --ca=x",
                2,
                "--ca and --pin go with --mediator tls:HOST:PORT",
            ),
            ("--mediator=tls:127.0.0.1:9 --ca=none", 1, "none: No such file or directory\n"),
        ],
    )
    def test_when_an_option_is_wrong_then_the_command_says_why(
        self, options: str, status: int, why: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nothing is connected to."""
        done = Shell(capsys)(f"permit list --as=Ib {options}")
        assert done.status == status
        assert why in done.err


@pytest.fixture(scope="class")
def resolver(shared: Site) -> tuple[Pki, int]:
    """A resolver that takes the mediator ``east``: its authority, and where it is."""
    pki = Pki(shared.folder)
    running, _ = shared.resolver(
        *server_options(pki.server()), f"--client-ca={pki.ca}", "--mediators=east"
    )
    return pki, listening_for_tls(running)


class ResolverTests:
    """Mediator and resolver over mutual TLS."""

    @pytest.mark.parametrize(
        "whose", ["east", "west", pytest.param("a terminal", marks=pytest.mark.slow)]
    )  # slow: tests/service/test_tls.py refuses a terminal's without processes
    def test_only_the_mediator_that_is_listed_finds_addresses_there(
        self, site: Site, resolver: tuple[Pki, int], whose: str
    ) -> None:
        """Another mediator's certificate never passes, nor does a terminal's (A15, I1)."""
        pki, port = resolver
        shown = pki.terminal("east") if whose == "a terminal" else pki.mediator(whose)
        running = site.serve(
            *(f"--resolver=tls:localhost:{port}", f"--resolver-ca={pki.ca}"),
            *(f"--resolver-certificate={shown.certificate}", f"--resolver-key={shown.key}"),
        )
        if whose == "east":
            with site.typing() as typing:
                typing.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
                assert typing.read() == "NOTIFY\nRegistration Completed.\n\n"
        else:
            running.wait_for("The resolver does not accept this mediator's link")


class HangupTests:
    """SIGHUP."""

    def test_when_certificates_are_read_again_then_new_connections_see_them(
        self, site: Site, pki: Pki
    ) -> None:
        """Those that stand go on; bad files change nothing and are told (A21, I3)."""
        own = pki.server()
        mediator = secure(site, pki, own)
        callee = site.terminal("Ib", mediator.server, f"--ca={pki.ca}")
        before = mediator.shown()
        new = pki.server()
        Path(own.key).write_bytes(Path(new.key).read_bytes())
        mediator.hang_up()
        mediator.running.wait_for("old ones stay in use: .* is not the certificate of the key in ")
        assert mediator.shown() == before != ""
        Path(own.certificate).write_bytes(Path(new.certificate).read_bytes())
        mediator.hang_up()
        mediator.running.wait_for("The certificates were read again")
        assert mediator.shown() not in {before, ""}
        assert mediator.running.end() == 0
        assert callee.end() == 0
        assert sum("is registered" in line for line in callee.out) == 1

    def test_without_tls_it_ends_the_process(self, site: Site) -> None:
        """As for any program."""
        running = site.twistd("broker", f"--listen={LOOPBACK}")
        listening(running)
        assert running.end(signal.SIGHUP) == -signal.SIGHUP
