"""The servers that are measured, each in processes of its own on one processor."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.counting import Broken
from tests.support.processes import TETHER

ROOT: Final = Path(__file__).resolve().parent.parent
#: Seconds for a server to come up, or to end.
PATIENCE: Final = 120.0
#: Lines of a server's output that are shown when it fails.
TAIL: Final = 20
#: Seconds beyond its own for a load to connect, finish and report.
GRACE: Final = 120.0


def processors() -> tuple[set[int], set[int]]:
    """The processor for the servers, and those for the load; the same where there is but one."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    routable_ip = sorted(os.sched_getaffinity(0))
    return {routable_ip[-1]}, set(routable_ip[:-1]) or {routable_ip[-1]}


def pin(pid: int, where: set[int]) -> None:
    """Keep a process on some processors, where the system can do that."""
    if where:
        os.sched_setaffinity(pid, where)


def raise_limit() -> int:
    """Allow this process, and those it starts, as many open files as there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A port of the loopback address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    """One server process, and the folder in which it runs.

    :ivar port: where it listens on the loopback address
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        scratch: Path | None = None,
        prepare: Callable[[Path], object] = lambda folder: None,
    ) -> None:
        """
        :param scratch: where to make its folder
        :param prepare: called with that before it starts
        """
        self.name = name
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=scratch))
        self._log = self.folder / "output"
        try:
            prepare(self.folder)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*TETHER, *command],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        pin(self._process.pid, processors()[0])
        try:
            self._await()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def _await(self) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise Broken(f"{self.name} does not come up:\n{self._tail()}") from None
            time.sleep(0.05)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-TAIL:])

    def check(self) -> None:
        """See that it runs, and has met nothing that it did not expect.

        :raises Broken: it does not, or has
        """
        ended = self._process.poll()
        if ended is not None:
            raise Broken(f"{self.name} has ended with {ended}:\n{self._tail()}")
        if "Traceback" in self._log.read_text(errors="replace"):
            raise Broken(f"{self.name} has failed at something:\n{self._tail()}")

    def end(self) -> None:
        """Let it end as it does when its operator ends it."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it, and leave nothing behind."""
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class Site:
    """The processes that serve together: the echo, a mediator, or a mediator and its resolver."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self.port = servers[-1].port
        #: Where the first of two listens: the resolver apart.
        self.resolver = servers[0].port if len(servers) > 1 else 0
        self.pids = {server.name: server.pid for server in servers}

    def check(self) -> None:
        """See that they all run."""
        for server in self._servers:
            server.check()

    def stop(self) -> None:
        """End them."""
        for server in reversed(self._servers):
            server.stop()


def start_echo() -> Site:
    """The bare echo."""
    port = free_port()
    return Site([Server("echo", [sys.executable, "-m", "benchmarks.echo", str(port)], port)])


def start_mediator(
    *,
    status: bool,
    apart: bool = False,
    options: Sequence[str] = (),
    secured: Sequence[str] = (),
    store: str = "memory:",
    auth: str = "none",
    udp: int | None = None,
    scratch: Path | None = None,
    prepare: Callable[[Path], object] = lambda folder: None,
    profile: Path | None = None,
) -> Site:
    """A mediator, as its operator starts it.

    :param status: it asks callees for their status
    :param apart: its resolver is a process of its own
    :param options: further options
    :param secured: the options of its certificate: with them it is TLS that it offers
    :param store: what it keeps in, a path of ``sqlite:`` being one in its folder
    :param auth: how it is proven to it who somebody is
    :param udp: the port at which terminals register by UDP
    :param scratch: where to make that folder
    :param prepare: called with the folder before it starts
    :param profile: where it is to write how often and how long each function ran
    """
    servers: list[Server] = []
    more = ["--store", store, "--auth", auth, *([] if status else ["--no-status"]), *options]
    if apart:
        port = free_port()
        command = _twistd("broker-resolver", ["--listen", _loopback(port), "--udp", "none"])
        servers.append(Server("resolver", command, port))
        more += ["--resolver", f"tcp:127.0.0.1:{port}"]
    else:
        more += ["--udp", "none" if udp is None else f"{udp}:127.0.0.1"]
    port = free_port()
    if secured:
        more += [*secured, "--listen-tls", _loopback(port)]
    if auth != "certificate":  # which can't be shown in clear text
        more += ["--listen", _loopback(free_port() if secured else port)]
    command = _twistd("broker", more, profile)
    try:
        servers.append(Server("mediator", command, port, scratch=scratch, prepare=prepare))
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return Site(servers)


def _loopback(port: int) -> str:
    return f"tcp:{port}:interface=127.0.0.1"


def _twistd(role: str, options: Sequence[str], profile: Path | None = None) -> list[str]:
    twistd = [str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile="]
    if profile is not None:
        twistd += ["--profiler=cprofile", f"--profile={profile}", "--savestats"]
    return [*twistd, role, *options]


def run_load(description: str) -> subprocess.Popen[str]:
    """Start a load in a process of its own, away from the servers' processor."""
    process = subprocess.Popen(
        [*TETHER, sys.executable, "-m", "benchmarks.load", description],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pin(process.pid, processors()[1])
    return process
