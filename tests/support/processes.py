"""Real processes for tests, demos and benchmarks: started, waited for by what they print, ended."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: What the ``twistd`` script does, by this very interpreter.
TWISTD: Final = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
BROKER: Final = (sys.executable, "-P", "-m", "broker.cli.main")
LOOPBACK: Final = "tcp:0:interface=127.0.0.1"
_SETPRIV: Final = shutil.which("setpriv")
#: Before a command: the kernel kills it when the process that started it ends, however that ends.
#: A test, demo or benchmark that is killed leaves nothing behind. Without Linux's setpriv: nothing.
TETHER: Final = () if _SETPRIV is None else (_SETPRIV, "--pdeathsig", "KILL", "--")
#: Seconds after which a process that should have said or done something is taken for hung. A busy
#: machine gets there late, so nothing is taken for hung soon.
PATIENCE: Final = 120.0


def environment() -> dict[str, str]:
    """The environment of a process: this one's, with the checkout's plugins, and UTF-8."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "COLUMNS": "100",
    }


class Running:
    """One process.

    :ivar out: the lines of its standard output so far
    :ivar err: those of its standard error
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.process = subprocess.Popen(
            [*TETHER, *arguments],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out, True)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err, False)),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str], fresh: bool) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))
                if fresh:
                    self._fresh.put(lines[-1])
        if fresh:
            self._fresh.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line of standard output that matches; lines before it are passed over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._fresh.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {pattern!r} in time:\n{self.said}") from None
            if line is None:
                raise AssertionError(f"ended without a line {pattern!r}:\n{self.said}")
            found = re.search(pattern, line)
            if found is not None:
                return found

    def type(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    @property
    def said(self) -> str:
        """All it has said, for the message of a failure."""
        return "\n".join([*self.out, "-- standard error:", *self.err])

    def wait(self) -> int:
        """Wait for its end; give its exit status, negative for a signal."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.said}") from None
        for reader in self._readers:
            reader.join(PATIENCE)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return status

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; give its exit status."""
        self.process.send_signal(by)
        return self.wait()

    def kill(self) -> None:
        """End it whatever it does, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


class Done(NamedTuple):
    """What became of a command."""

    status: int
    out: str
    err: str


class Processes(ExitStack):
    """The processes of a test, or of a class of tests; they end with it.

    :ivar folder: where they run
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def start(self, *arguments: str) -> Running:
        """Start a process."""
        running = Running(arguments, self.folder)
        self.callback(running.kill)
        return running

    def twistd(self, role: str, *arguments: str) -> Running:
        """Start a role in the foreground; it may not be ready yet.

        Without an option that says otherwise, its port for datagrams is any that is free.
        """
        given = any(argument.startswith(("--udp", "--resolver")) for argument in arguments)
        if role in ("broker", "broker-resolver") and not given:
            arguments = (*arguments, "--udp=0:127.0.0.1")
        return self.start(*TWISTD, "-n", role, *arguments)

    def mediator(self, *arguments: str) -> tuple[Running, int]:
        """Start a mediator on a port that is free; wait until it listens; give its port."""
        running = self.twistd("broker", f"--listen={LOOPBACK}", "--auth=none", *arguments)
        return running, listening(running)

    def resolver(self, *arguments: str) -> tuple[Running, int]:
        """Start a resolver likewise."""
        running = self.twistd("broker-resolver", f"--listen={LOOPBACK}", *arguments)
        return running, listening(running)

    def terminal(self, identifier: str, mediator: int | str, *arguments: str) -> Running:
        """Start a terminal, and wait until it is registered.

        :param mediator: its endpoint, or its port on this machine
        """
        running = self.twistd(
            "broker-terminal",
            *(f"--identifier={identifier}", f"--mediator={endpoint(mediator)}"),
            *(f"--listen={LOOPBACK}", *arguments),
        )
        running.wait_for(r"is registered$")
        return running

    def start_broker(self, mediator: int | str, *arguments: str) -> Running:
        """Start a ``broker`` command that goes to a mediator."""
        return self.start(*BROKER, *arguments, f"--mediator={endpoint(mediator)}")

    def broker(self, mediator: int | str, *arguments: str, given: bytes = b"") -> Done:
        """Run such a command to its end."""
        return self.run(*arguments, f"--mediator={endpoint(mediator)}", given=given)

    def run(self, *arguments: str, given: bytes = b"") -> Done:
        """Run a ``broker`` command to its end; it has no terminal on which it could ask."""
        done = subprocess.run(
            [*TETHER, *BROKER, *arguments],
            cwd=self.folder,
            env=environment(),
            input=given,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            start_new_session=True,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err, err
        return Done(done.returncode, out, err)

    def file(self, name: str, content: str | bytes = "") -> Path:
        """Write a file that only its owner can read."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o600)
        return path


def endpoint(mediator: int | str) -> str:
    """A mediator's endpoint: as it is given, or of a port on this machine."""
    return f"tcp:127.0.0.1:{mediator}" if isinstance(mediator, int) else mediator


def listening(running: Running) -> int:
    """Wait until a role listens; give the port."""
    return int(running.wait_for(r"Listening on .*:(\d+)$")[1])


class Typing:
    """A person at a telnet, who reads and types bytes."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), PATIENCE)

    def __enter__(self) -> Typing:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def type(self, text: str) -> None:
        """Type."""
        self._socket.sendall(text.encode())

    def read(self, count: int = 1) -> str:
        """The next ``count`` messages; lines end in LF."""
        data = b""
        while data.count(b"\r\n\r\n") < count:
            more = self._socket.recv(65536)
            assert more, f"the connection ended after {data!r}"
            data += more
        return data.decode().replace("\r\n", "\n")

    def read_to_end(self) -> str:
        """All that comes until the server closes."""
        data = b""
        while more := self._socket.recv(65536):
            data += more
        return data.decode().replace("\r\n", "\n")

    def end_input(self) -> None:
        """Type no more, and read on."""
        self._socket.shutdown(socket.SHUT_WR)
