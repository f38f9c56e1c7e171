"""TLS between real processes: who gets through to whom, and who is told why not (A21, I25)."""

from __future__ import annotations

import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.test_by_hand import program
from tests.support.certificates import Files, Pki
from tests.support.processes import (
    BROKER,
    PATIENCE,
    Processes,
    Running,
    Typing,
    environment,
    listening,
)

pytestmark = pytest.mark.integration

LOOPBACK = "tcp:0:interface=127.0.0.1"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """An authority beside the processes."""
    return Pki(tmp_path)


def server_options(own: Files) -> list[str]:
    """What a server needs to speak TLS on a free port."""
    return [
        f"--listen-tls={LOOPBACK}",
        f"--certificate={own.certificate}",
        f"--private-key={own.key}",
    ]


def listening_for_tls(running: Running) -> int:
    """Wait until a role listens for TLS; give that port."""
    return int(running.wait_for(r"Listening for TLS on .*:(\d+)$")[1])


def mediator(processes: Processes, own: Files, *arguments: str) -> tuple[Running, int]:
    """Start a mediator that speaks TLS; give that port."""
    running, _ = processes.mediator(*server_options(own), *arguments)
    return running, listening_for_tls(running)


def terminal(processes: Processes, port: int, ca: str, *arguments: str) -> Running:
    """Start Ib, whose mediator is called over TLS."""
    return processes.twistd(
        "broker-terminal",
        "--identifier=Ib",
        f"--mediator=tls:localhost:{port}",
        f"--ca={ca}",
        f"--listen={LOOPBACK}",
        *arguments,
    )


def broker(processes: Processes, server: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the ``broker`` command to its end."""
    mediator = [f"--mediator={server}"] if server else []
    return subprocess.run(
        [*BROKER, *arguments, *mediator],
        cwd=processes.folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def shown_by(port: int, ca: str) -> str:
    """The certificate that the server shows to ``openssl``."""
    done = subprocess.run(
        [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", ca],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return done.stdout.partition(begin)[2].partition(end)[0]


class CallTests:
    """A call whose signalling goes over TLS."""

    def test_from_nothing(self, processes: Processes) -> None:
        """Authority and certificate by ``broker ca``, then a file crosses, with TLS to the
        mediator from terminal and command (A21, D2).
        """
        assert broker(processes, "", "ca", "init").returncode == 0
        assert broker(processes, "", "ca", "issue", "--server", "localhost").returncode == 0
        folder = processes.folder
        own = Files(*(str(folder / f"server-localhost.{end}") for end in ("pem", "key")))
        _, port = mediator(processes, own)
        ca = str(folder / "ca" / "authority.pem")
        (folder / "in").mkdir()
        (folder / "sent").write_bytes(bytes(range(256)) * 1000)
        callee = terminal(processes, port, ca, "--receive=in", "--accept=Ia")
        callee.wait_for(r"is registered$")
        done = broker(
            processes, f"tls:localhost:{port}", "call", "--as=Ia", "Ib", "--send=sent", f"--ca={ca}"
        )
        assert done.returncode == 0, done.stderr
        (received,) = (folder / "in").iterdir()
        assert received.read_bytes() == (folder / "sent").read_bytes()

    def test_typed(self, processes: Processes, pki: Pki) -> None:
        """``openssl s_client -quiet -crlf`` does over TLS what telnet does without (A2)."""
        _, port = mediator(processes, pki.server())
        typing = subprocess.Popen(
            [
                *(program("openssl"), "s_client", "-quiet", "-crlf", "-verify_return_error"),
                *("-CAfile", pki.ca, "-connect", f"127.0.0.1:{port}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert typing.stdin is not None
            assert typing.stdout is not None
            typing.stdin.write("REGISTER\nIdentifier:Ia\nAccept:Create Ib\n\n")
            typing.stdin.flush()
            lines = [typing.stdout.readline().strip() for _ in range(3)]
            assert lines == ["NOTIFY", "Registration Completed.", ""]
        finally:
            typing.kill()
            typing.communicate()


class RefusalTests:
    """Who isn't who he should be."""

    @pytest.mark.parametrize("case", ["authority", "name", "expired", "pin"])
    def test_wrong_server(self, processes: Processes, pki: Pki, case: str) -> None:
        """A server with the wrong chain, name, time or key is refused in a line, status 3, before
        anything is said to it (D2, I26).
        """
        own, options = pki.server(), [f"--ca={pki.ca}"]
        if case == "authority":
            options = [f"--ca={Pki(processes.folder, 'Other').ca}"]
            why = "it was not issued by a trusted authority"
        elif case == "name":
            own = pki.server("elsewhere.example")
            why = "it is for elsewhere.example, not for localhost"
        elif case == "pin":
            options.append(f"--pin={'0' * 64}")
            why = "its key is not the one that is pinned"
        else:
            why = "it has expired"
        if case == "expired":  # which no mediator of ours would show
            old = pki.server(age=timedelta(days=500))
            server = processes.start(
                *(program("openssl"), "s_server", "-accept", "0", "-naccept", "1"),
                *("-cert", old.certificate, "-key", old.key),
            )
            port = int(server.wait_for(r"ACCEPT .*:(\d+)$")[1])
        else:
            server, port = mediator(processes, own, "--trace")
        done = broker(processes, f"tls:localhost:{port}", "permit", "list", "--as=Ib", *options)
        assert done.returncode == 3
        prefix = "broker: no TLS connection to the mediator: the peer's certificate is"
        assert done.stderr == f"{prefix} refused: {why}\n"
        assert "Ib" not in server.said

    def test_terminal(self, processes: Processes, pki: Pki) -> None:
        """A terminal that finds the wrong server says so, says nothing to it, and tries again."""
        server, port = mediator(processes, pki.server("elsewhere.example"), "--trace")
        running = terminal(processes, port, pki.ca)
        for _ in range(2):
            running.wait_for("refused: it is for elsewhere.example, not for localhost$")
        assert "Ib" not in server.said

    def test_own_certificate_expired(self, processes: Processes, pki: Pki) -> None:
        """A mediator doesn't start with a certificate that every terminal would refuse."""
        own = pki.server(age=timedelta(days=500))
        running = processes.twistd("broker", f"--listen={LOOPBACK}", *server_options(own))
        assert running.wait() == 1
        (line,) = running.err
        assert line.startswith(f"broker: --listen-tls: {own.certificate}: has expired on ")

    def test_old_version(self, processes: Processes, pki: Pki) -> None:
        """TLS 1.1 is refused, and the log says so."""
        running, port = mediator(processes, pki.server())
        done = subprocess.run(
            [
                *(program("openssl"), "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
                *("-connect", f"127.0.0.1:{port}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode != 0
        assert "alert protocol version" in done.stderr
        running.wait_for("TLS with this machine failed: the peer speaks too old a version of TLS$")

    def test_an_authority_needs_tls(self, processes: Processes) -> None:
        """``--ca`` with a server that is called in clear is wrong usage, not a false comfort."""
        done = broker(processes, "tcp:127.0.0.1:9", "permit", "list", "--as=Ib", "--ca=x")
        assert done.returncode == 2
        assert "--ca and --pin go with --mediator tls:HOST:PORT" in done.stderr

    def test_no_authority(self, processes: Processes) -> None:
        """A file that isn't there is named in a line."""
        done = broker(processes, "tls:127.0.0.1:9", "permit", "list", "--as=Ib", "--ca=none")
        assert done.returncode == 1
        assert done.stderr == "broker: none: No such file or directory\n"


class ResolverTests:
    """Mediator and resolver over mutual TLS."""

    def start(self, processes: Processes, pki: Pki, shown: Files) -> tuple[Running, int]:
        """A resolver that takes the mediator ``east``; a mediator that shows a certificate."""
        resolver, _ = processes.resolver(
            *server_options(pki.server()), f"--client-ca={pki.ca}", "--mediators=east"
        )
        resolver_port = listening_for_tls(resolver)
        return processes.mediator(
            f"--resolver=tls:localhost:{resolver_port}",
            f"--resolver-ca={pki.ca}",
            f"--resolver-certificate={shown.certificate}",
            f"--resolver-key={shown.key}",
        )

    def test_a_mediator(self, processes: Processes, pki: Pki) -> None:
        """The one that is listed registers and finds addresses there (A15)."""
        _, port = self.start(processes, pki, pki.mediator("east"))
        with Typing(port) as typing:
            typing.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
            assert typing.read() == "NOTIFY\nRegistration Completed.\n\n"

    @pytest.mark.parametrize("whose", ["another mediator", "a terminal"])
    def test_others(self, processes: Processes, pki: Pki, whose: str) -> None:
        """Another's certificate, and a terminal's, never pass (A15, I1)."""
        shown = pki.mediator("west") if whose == "another mediator" else pki.terminal("east")
        running, _ = self.start(processes, pki, shown)
        running.wait_for("The resolver does not accept this mediator's link")


class HangupTests:
    """SIGHUP."""

    def test_reload(self, processes: Processes, pki: Pki) -> None:
        """New connections see the new certificate, those that stand go on; bad files change
        nothing and are told (A21, I3).
        """
        own = pki.server()
        running, port = mediator(processes, own)
        callee = terminal(processes, port, pki.ca)
        callee.wait_for(r"is registered$")
        before = shown_by(port, pki.ca)
        new = pki.server()
        Path(own.key).write_bytes(Path(new.key).read_bytes())
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("the old ones stay in use: .* is not the certificate of the key in ")
        assert shown_by(port, pki.ca) == before != ""
        Path(own.certificate).write_bytes(Path(new.certificate).read_bytes())
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("The certificates were read again")
        assert shown_by(port, pki.ca) not in {before, ""}
        listing = broker(
            *(processes, f"tls:localhost:{port}", "permit", "list", "--as=Ib", f"--ca={pki.ca}")
        )
        assert listing.returncode == 0
        assert running.end() == 0
        assert callee.end() == 0
        assert sum("is registered" in line for line in callee.out) == 1

    def test_without_tls(self, processes: Processes) -> None:
        """Without certificates to read again, SIGHUP ends the process, as for any program."""
        running = processes.twistd("broker", f"--listen={LOOPBACK}")
        listening(running)
        assert running.end(signal.SIGHUP) == -signal.SIGHUP
