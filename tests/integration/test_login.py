"""Logging in, with real processes: passwords, tokens, certificates, and what is refused (A19)."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker.mediator.auth.passwords import Passwords
from broker.store.sqlite import SqliteStore
from broker.tables.accounts import AccountChange
from tests.integration.test_operator import operate
from tests.integration.test_tls import LOOPBACK, listening_for_tls, server_options
from tests.store.waiting import Pump
from tests.support.certificates import Files, Pki
from tests.support.processes import (
    BROKER,
    PATIENCE,
    Processes,
    Running,
    environment,
    listening,
)

pytestmark = pytest.mark.integration

PASSWORD = "correct horse"
DATABASE = "--store=sqlite:broker.db"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """An authority beside the processes."""
    return Pki(tmp_path)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Processes in another folder, of another operator's."""
    with Processes(tmp_path_factory.mktemp("elsewhere")) as running:
        yield running


def account(folder: Path, *identifiers: str, password: str = PASSWORD) -> None:
    """Give terminals accounts, in the database of a mediator that does not run."""
    pump = Pump()
    store = SqliteStore(str(folder / "broker.db"), pump, os.urandom)
    pump.result(store.load())
    for identifier in identifiers:
        verifier = pump.result(Passwords(os.urandom).make(password))
        generation = os.urandom(8).hex()
        pump.result(store.commit([AccountChange(identifier, verifier, generation)]))
    pump.result(store.stop())


def password_file(folder: Path, password: str = PASSWORD) -> str:
    """The option that names a file of a password."""
    path = folder / f"password-{len(list(folder.iterdir()))}"
    path.write_text(f"{password}\n")
    path.chmod(0o600)
    return f"--password-file={path}"


def mediator(processes: Processes, *arguments: str) -> tuple[Running, int]:
    """A mediator that asks for passwords; its port."""
    return processes.mediator("--auth=password", DATABASE, "--trace", *arguments)


def broker(processes: Processes, server: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the ``broker`` command to its end; there is nobody whom it could ask."""
    return subprocess.run(
        [*BROKER, *arguments, f"--mediator={server}"],
        cwd=processes.folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        start_new_session=True,
    )


def shown(running: Running, *fields: str) -> tuple[int, ...]:
    """How often a mediator was shown each field, once it has answered."""
    running.wait_for(" > NOTIFY / (?!Login Required)")
    return tuple(
        sum(f" < REGISTER / Identifier:Ib / {field}:" in line for line in running.out)
        for field in fields
    )


class PasswordTests:
    """Identifier and password."""

    def test_call(self, processes: Processes) -> None:
        """Two terminals log in, and a file crosses; no password is in any log (A19, I18)."""
        account(processes.folder, "Ia", "Ib")
        secret = password_file(processes.folder)
        running, port = mediator(processes)
        (processes.folder / "in").mkdir()
        (processes.folder / "sent").write_bytes(bytes(range(256)) * 100)
        callee = processes.terminal("Ib", port, "--receive=in", "--accept=Ia", secret, "--trace")
        server = f"tcp:127.0.0.1:{port}"
        done = broker(processes, server, "call", "--as=Ia", "Ib", "--send=sent", secret, "--trace")
        assert done.returncode == 0, done.stderr
        (received,) = (processes.folder / "in").iterdir()
        assert received.read_bytes() == (processes.folder / "sent").read_bytes()
        for said in (running.said, callee.said, done.stdout, done.stderr):
            assert PASSWORD not in said

    def test_call_by_name(self, processes: Processes) -> None:
        """Each side logs in by a name of its, and calls by one; what they agree on holds (C1, A12).

        So it does when the callee comes back with its token.
        """
        account(processes.folder, "Ia", "Ib")
        secret = password_file(processes.folder)
        running, port = mediator(processes)
        operate(processes.folder, "account", "name", "add", "Ia", "taro@example.jp")
        operate(processes.folder, "account", "name", "add", "Ib", "the office")
        (processes.folder / "in").mkdir()
        (processes.folder / "sent").write_bytes(b"hello")
        callee = processes.terminal(
            "the office", port, "--receive=in", "--accept=taro@example.jp", secret
        )
        server = f"tcp:127.0.0.1:{port}"

        def call() -> None:
            done = broker(
                processes,
                server,
                *("call", "--as=taro@example.jp", "the office", "--send=sent", secret),
            )
            assert done.returncode == 0, done.stderr

        call()
        running.end(signal.SIGKILL)
        again, _ = processes.mediator(
            "--auth=password", DATABASE, "--trace", f"--listen=tcp:{port}:interface=127.0.0.1"
        )
        callee.wait_for(r"is registered$")
        call()
        assert len(list((processes.folder / "in").iterdir())) == 2
        assert any("< REGISTER / Identifier:the office / Token:" in line for line in again.out)

    def test_wrong(self, processes: Processes) -> None:
        """A wrong password, and somebody whom nobody knows, are refused in the same words, status 4
        (I6); nothing at all says what to do.
        """
        account(processes.folder, "Ib")
        _, port = mediator(processes)
        server = f"tcp:127.0.0.1:{port}"
        wrong = password_file(processes.folder, "incorrect horse")
        said = []
        for identifier in ("Ib", "nobody"):
            done = broker(processes, server, "permit", "list", f"--as={identifier}", wrong)
            assert done.returncode == 4
            said.append(done.stderr.replace(identifier, "ID"))
        assert said[0] == said[1]
        assert said[0].startswith("broker: the identifier or the password is wrong: it is the one")
        done = broker(processes, server, "permit", "list", "--as=Ib")
        assert done.returncode == 4
        assert done.stderr.startswith("broker: the mediator wants a login: ")
        assert f"broker login --as Ib --mediator {server} asks for the password" in done.stderr

    def test_terminal_with_a_wrong_one(self, processes: Processes) -> None:
        """A terminal says so, once, and tries again, but not soon (I23)."""
        account(processes.folder, "Ib")
        running, port = mediator(processes)
        terminal = processes.twistd(
            "broker-terminal",
            "--identifier=Ib",
            f"--mediator=tcp:127.0.0.1:{port}",
            f"--listen={LOOPBACK}",
            password_file(processes.folder, "incorrect horse"),
        )
        terminal.wait_for("Ib could not log in and .* the identifier or the password is wrong$")
        assert terminal.end() == 0
        assert shown(running, "Password") == (1,)
        assert "incorrect" not in terminal.said

    def test_resumed(self, processes: Processes) -> None:
        """After a restart of the mediator the terminal is back by its token: no password is checked
        again (A19); what is done meanwhile to the database voids it.
        """
        account(processes.folder, "Ib")
        running, port = mediator(processes)
        callee = processes.terminal("Ib", port, password_file(processes.folder))
        assert shown(running, "Password") == (1,)
        assert running.end() == 0
        running, _ = mediator(processes, f"--listen=tcp:{port}:interface=127.0.0.1")
        callee.wait_for("Ib is registered$")
        assert shown(running, "Token", "Password") == (1, 0)
        assert running.end() == 0
        account(processes.folder, "Ib")  # the same password, but set anew
        running, _ = mediator(processes, f"--listen=tcp:{port}:interface=127.0.0.1")
        callee.wait_for("Ib is registered$")
        assert shown(running, "Token", "Password") == (1, 1)


class LimitTests:
    """What a terminal's user sees of limits and disclosures."""

    def test_one_call(self, processes: Processes) -> None:
        """A permit for one call lets one through, and is gone; who was told is told (A1, I2)."""
        account(processes.folder, "Ia", "Ib")
        secret = password_file(processes.folder)
        _, port = mediator(processes)
        server = f"tcp:127.0.0.1:{port}"
        (processes.folder / "in").mkdir()
        (processes.folder / "sent").write_bytes(b"hello")
        processes.terminal("Ib", port, "--receive=in", secret)
        add = ["permit", "add", "--as=Ib", "--expires=3600", "--uses=1", "Ia", secret]
        assert broker(processes, server, *add).returncode == 0
        listed = broker(processes, server, "permit", "list", "--as=Ib", secret)
        assert listed.stdout in {
            "Ia (60 min left, 1 call left)\n",
            "Ia (59 min left, 1 call left)\n",
        }
        plain = broker(processes, server, "permit", "list", "--as=Ib", secret, "--plain")
        assert re.fullmatch(r"Ia;expires=3[56]\d\d;uses=1\n", plain.stdout)
        call = ["call", "--as=Ia", "Ib", "--send=sent", secret]
        done = broker(processes, server, *call)
        assert done.returncode == 0, done.stderr
        done = broker(processes, server, *call)
        assert done.returncode == 4
        assert done.stderr == "broker: Permission Denied.\n"
        assert broker(processes, server, "permit", "list", "--as=Ib", secret).stdout == ""
        done = broker(processes, server, "disclosures", "--as=Ib", secret)
        assert re.fullmatch(r"[-\d]+T[:.\d]+Z\tIa\t127\.0\.0\.1:\d+\tIa\n", done.stdout)
        assert broker(processes, server, "disclosures", "--as=Ia", secret).stdout == ""


class KeptTests:
    """``broker login``."""

    def test_kept(self, processes: Processes, no_passwords_of_ours: Path) -> None:
        """What it keeps serves commands and terminals, until it is forgotten (A19, I18)."""
        account(processes.folder, "Ib")
        secret = password_file(processes.folder)
        running, port = mediator(processes)
        server = f"tcp:127.0.0.1:{port}"
        assert broker(processes, server, "permit", "list", "--as=Ib").returncode == 4
        done = broker(processes, server, "login", "--as=Ib", secret)
        assert done.returncode == 0, done.stderr
        (kept,) = [path for path in no_passwords_of_ours.rglob("*") if path.is_file()]
        assert str(kept) in done.stdout
        assert kept.stat().st_mode & 0o777 == 0o600
        assert broker(processes, server, "permit", "list", "--as=Ib").returncode == 0
        processes.terminal("Ib", port)
        assert broker(processes, server, "logout", "--as=Ib").returncode == 0
        assert broker(processes, server, "permit", "list", "--as=Ib").returncode == 4
        assert PASSWORD not in running.said + done.stdout + done.stderr

    def test_wrong(
        self, processes: Processes, elsewhere: Processes, no_passwords_of_ours: Path
    ) -> None:
        """A wrong one is not kept; nor is any where the mediator checks none."""
        account(processes.folder, "Ib")
        _, port = mediator(processes)
        _, believing = elsewhere.mediator("--store=memory:")
        wrong = password_file(processes.folder, "incorrect horse")
        done = broker(processes, f"tcp:127.0.0.1:{port}", "login", "--as=Ib", wrong)
        assert done.returncode == 4
        reason = "the identifier or the password is wrong: it is the one in"
        assert done.stderr.startswith(f"broker: {reason}")
        done = broker(processes, f"tcp:127.0.0.1:{believing}", "login", "--as=Ib", wrong)
        assert done.returncode == 1
        assert "did not check" in done.stderr
        assert not no_passwords_of_ours.exists()

    def test_for_one_mediator(self, processes: Processes, elsewhere: Processes) -> None:
        """It is sent to no other mediator, not even one on another port (I26)."""
        account(processes.folder, "Ib")
        _, port = mediator(processes)
        secret = password_file(processes.folder)
        done = broker(processes, f"tcp:127.0.0.1:{port}", "login", "--as=Ib", secret)
        assert done.returncode == 0
        other, port = elsewhere.mediator("--store=memory:", "--trace")
        done = broker(processes, f"tcp:127.0.0.1:{port}", "permit", "list", "--as=Ib")
        assert done.returncode == 0
        assert shown(other, "Password") == (0,)


class AskedTests:
    """A person at a terminal."""

    def run(
        self, processes: Processes, port: int, *arguments: str, typed: bytes
    ) -> tuple[int, str]:
        """Run the command on a terminal, where this is typed when it asks.

        :return: its status, and all that was shown
        """
        line = [*BROKER, *arguments, f"--mediator=tcp:127.0.0.1:{port}"]
        process, terminal = pty.fork()
        if not process:
            os.chdir(processes.folder)
            os.execve(line[0], line, environment())
        said = b""
        deadline = time.monotonic() + PATIENCE
        answered = False
        try:
            while time.monotonic() < deadline:
                if not select.select([terminal], [], [], 0.1)[0]:
                    continue
                try:
                    said += os.read(terminal, 4096)
                except OSError:  # it has ended
                    break
                if not answered and b"Password of Ib: " in said:
                    answered = True
                    os.write(terminal, typed)
        finally:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            os.close(terminal)
        return os.waitstatus_to_exitcode(status), said.decode()

    def test_asked(self, processes: Processes) -> None:
        """Who has kept no password is asked for it, and it is not shown (I18)."""
        account(processes.folder, "Ib")
        _, port = mediator(processes)
        typed = f"{PASSWORD}\n".encode()
        add = ["permit", "add", "--as=Ib", "Ia"]
        status, said = self.run(processes, port, *add, typed=typed)
        assert (status, said.split("\r\n")[1:]) == (0, ["Registration Completed.", ""])
        assert PASSWORD not in said
        status, said = self.run(processes, port, "permit", "list", "--as=Ib", typed=b"wrong\n")
        assert status == 4
        assert "the identifier or the password is wrong: broker login" in said

    @pytest.mark.parametrize("typed", [b"\x03", b"\x04"], ids=["interrupt", "end"])
    @pytest.mark.parametrize("command", ["login", "permit list"])
    def test_given_up(self, processes: Processes, command: str, typed: bytes) -> None:
        """Who doesn't answer ends it, status 130, without a traceback."""
        _, port = mediator(processes)
        status, said = self.run(processes, port, *command.split(), "--as=Ib", typed=typed)
        assert status == 130
        assert "Traceback" not in said

    def test_not_asked_in_vain(self, processes: Processes) -> None:
        """A mediator that asks for no login leaves the person in peace."""
        _, port = processes.mediator("--store=memory:")
        status, said = self.run(processes, port, "permit", "list", "--as=Ib", typed=b"x\n")
        assert (status, said) == (0, "")


class CertificateTests:
    """A certificate in place of a password."""

    def start(self, processes: Processes, pki: Pki, *arguments: str) -> tuple[Running, str]:
        """A mediator that takes nothing else; where it is."""
        running = processes.twistd(
            "broker",
            "--auth=certificate",
            DATABASE,
            f"--client-ca={pki.ca}",
            f"--revocation-list={pki.crl}",
            *server_options(pki.server()),
            *arguments,
        )
        return running, f"tls:localhost:{listening_for_tls(running)}"

    def own(self, pki: Pki, files: Files) -> list[str]:
        """A terminal's options."""
        return [
            f"--ca={pki.ca}",
            f"--certificate={files.certificate}",
            f"--private-key={files.key}",
        ]

    def test_call(self, processes: Processes, pki: Pki) -> None:
        """Who has a certificate of the authority is whom it names; no password is needed (A19)."""
        _, server = self.start(processes, pki)
        (processes.folder / "in").mkdir()
        (processes.folder / "sent").write_bytes(b"hello")
        callee = processes.twistd(
            "broker-terminal",
            *("--identifier=Ib", f"--mediator={server}", f"--listen={LOOPBACK}"),
            *("--receive=in", "--accept=Ia", f"--revocation-list={pki.crl}"),
            *self.own(pki, pki.terminal("Ib")),
        )
        callee.wait_for("Ib is registered$")
        options = self.own(pki, pki.terminal("Ia"))
        done = broker(processes, server, "call", "--as=Ia", "Ib", "--send=sent", *options)
        assert done.returncode == 0, done.stderr

    def test_another(self, processes: Processes, pki: Pki) -> None:
        """A certificate is good for its own identifier alone (I4)."""
        _, server = self.start(processes, pki)
        options = self.own(pki, pki.terminal("Ia"))
        assert broker(processes, server, "permit", "list", "--as=Ia", *options).returncode == 0
        done = broker(processes, server, "permit", "add", "--as=Ib", "Ia", *options)
        assert done.returncode == 4

    @pytest.mark.parametrize("case", ["authority", "expired", "revoked", "server", "none"])
    def test_wrong(self, processes: Processes, pki: Pki, case: str) -> None:
        """One of another authority, or for a server, or that has ended, or was revoked, logs nobody
        in; nor does none at all (A19, I3).
        """
        mine = pki.terminal("Ib")
        options = self.own(pki, mine)
        if case == "authority":
            options[1:] = self.own(pki, Pki(processes.folder, "Other").terminal("Ib"))[1:]
        elif case == "expired":
            options[1:] = self.own(pki, pki.terminal("Ib", age=timedelta(days=500)))[1:]
        elif case == "revoked":
            pki.revoke(mine)
        elif case == "server":
            options[1:] = self.own(pki, pki.server())[1:]
        else:
            del options[1:]
        _, server = self.start(processes, pki, "--trace")
        done = broker(processes, server, "permit", "add", "--as=Ib", "Ia", *options)
        assert done.returncode != 0
        assert done.stdout == ""
        told = {
            "authority": "no authority that it trusts has issued our certificate",
            "expired": "has expired",
            "revoked": "our certificate has been revoked",
            "server": "is not a certificate for a client",
            "none": "the mediator wants a login: show a certificate",
        }
        assert told[case] in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_a_key_that_others_can_read(self, processes: Processes, pki: Pki) -> None:
        """Such a key is refused, by the command and by the terminal (I18)."""
        files = pki.terminal("Ib")
        Path(files.key).chmod(0o644)
        options = self.own(pki, files)
        done = broker(processes, "tls:localhost:9", "permit", "list", "--as=Ib", *options)
        assert done.returncode == 1
        assert f"{files.key}: others can read or change it" in done.stderr
        running = processes.twistd(
            "broker-terminal", "--identifier=Ib", "--mediator=tls:localhost:9", *options
        )
        assert running.wait() == 1
        (line,) = running.err
        assert f"{files.key}: others can read or change it" in line

    def test_server_revoked(self, processes: Processes, pki: Pki) -> None:
        """A mediator whose certificate is revoked is not spoken to (D2, I26)."""
        server_files = pki.server()
        running = processes.twistd(
            "broker",
            "--auth=none",
            "--store=memory:",
            f"--listen={LOOPBACK}",
            *server_options(server_files),
        )
        listening(running)
        server = f"tls:localhost:{listening_for_tls(running)}"
        options = [f"--ca={pki.ca}", f"--revocation-list={pki.crl}"]
        assert broker(processes, server, "permit", "list", "--as=Ib", *options).returncode == 0
        pki.revoke(server_files)
        done = broker(processes, server, "permit", "list", "--as=Ib", *options)
        assert done.returncode == 3
        assert "it has been revoked" in done.stderr


class ClearTextTests:
    """Nothing goes to another machine in clear text (I25)."""

    def test_command(self, processes: Processes) -> None:
        """The command refuses, as wrong usage."""
        secret = password_file(processes.folder)
        done = broker(processes, "tcp:192.0.2.1:1201", "permit", "list", "--as=Ib", secret)
        assert done.returncode == 2
        assert "name it as tls:HOST:PORT, or use --allow-clear-text" in done.stderr

    def test_terminal(self, processes: Processes) -> None:
        """The terminal doesn't start."""
        running = processes.twistd(
            "broker-terminal", "--identifier=Ib", "--mediator=tcp:192.0.2.1:1201"
        )
        assert running.wait() == 1
        (line,) = running.err
        assert line == (
            "broker-terminal: --mediator: tcp:192.0.2.1:1201 is another machine, and the login and"
            " all messages would go there in clear text: name it as tls:HOST:PORT, or use"
            " --allow-clear-text"
        )

    def test_a_password_that_others_can_read(self, processes: Processes) -> None:
        """Nor does it with such a password (I18)."""
        secret = password_file(processes.folder)
        path = secret.partition("=")[2]
        Path(path).chmod(0o604)
        running = processes.twistd("broker-terminal", "--identifier=Ib", secret)
        assert running.wait() == 1
        (line,) = running.err
        assert line == (
            f"broker-terminal: --password-file: {path}: others can read or change it:"
            f" chmod 600 {path}"
        )
