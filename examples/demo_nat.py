"""The demonstration behind ``bin/demo --nat``: a call between two private networks.

The networks, their routers and an Internet between them are the laboratory that the tests use:
network namespaces of this machine, out of which nothing leads. The programs in it are real.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from examples.demo import Failed, compare, compose, say, scene
from tests.natlab.lab import (
    OUTSIDE,
    PYTHON,
    SERVER,
    SPOOF,
    SYMMETRIC,
    Datagram,
    Lab,
    Router,
    Unavailable,
    datagrams,
    flags,
)
from tests.support.processes import BROKER, TWISTD, Running

#: The exit status where it can't be shown, as test harnesses have it for what is skipped.
NOT_HERE: Final = 77
#: Seconds that all of it may take.
LIMIT: Final = 180
#: Seconds that what was sent may take to be captured.
CAPTURED: Final = 10.0

ROUTERS: Final = (
    Router("A"),
    Router("B"),
    Router("C", translation=SYMMETRIC),
    Router("D", translation=SYMMETRIC, upnp=True, natpmp=True),
)
#: Where everybody is; Ib moves.
PLACES: Final = {"mediator": "server", "Ia": "hostB1", "Ic": "outside"}
#: The cables of the Internet on which all is captured.
CABLES: Final = ("server", "outside", "routerA", "routerB")

MAP: Final = """\
    Ib  192.168.1.2 ── router 11.0.113.1 ──┐
                                           ├── mediator 11.0.113.10
    Ia  192.168.2.2 ── router 11.0.113.2 ──┤
    Ic  11.0.113.20 ───────────────────────┘"""

#: The mediator's settings: TLS for what is said, and signed datagrams.
SETTINGS: Final = f"""\
listen = []
listen-tls = ["tcp:1202:interface={SERVER}"]
certificate = "server-{SERVER}.pem"
private-key = "server-{SERVER}.key"
udp = "1200:{SERVER}"
"""

#: Ib's terminal closes its connection to the mediator while there is nothing to do.
QUIET: Final = ("--no-hold", "--linger", "1")

#: What would give away who calls, or let somebody act as another, were it not encrypted.
TELLING: Final = (
    *(b"Identifier:Ia", b"Identifier:Ic", b"Caller", b"Callee", b"Token:", b"Password:"),
    *(b"Encrypt Key:", b"Registration Key:", b"192.168."),
)


#: A program that writes each frame of an interface, in hexadecimal: ``capture INTERFACE``. What is
#: not fetched soon is lost: it writes only while nothing comes, and says how many were lost.
CAPTURE: Final = """\
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
for name in (33, socket.SO_RCVBUF):  # SO_RCVBUFFORCE, which not everybody may
    try:
        s.setsockopt(socket.SOL_SOCKET, name, 1 << 24)
        break
    except OSError:
        pass
s.bind((sys.argv[1], 0))
print("ready", flush=True)
while True:
    frames = [s.recv(1 << 18)]
    try:
        while True:
            frames.append(s.recv(1 << 18, socket.MSG_DONTWAIT))
    except BlockingIOError:
        pass
    _, lost = struct.unpack("II", s.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
    if lost:
        print("lost", lost)
    for frame in frames:
        print(frame.hex())
    sys.stdout.flush()
"""

#: What a step fails with.
FAILURES: Final = (Failed, AssertionError, subprocess.TimeoutExpired)


class Interrupted(BaseException):
    """A signal has come.

    :ivar number: its number
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> int:
    """Run the demonstration; return the exit status."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, _interrupted)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT)
    try:
        with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
            return demonstrate(Path(folder))
    except Unavailable as error:
        explain(error)
        return NOT_HERE
    except FAILURES as failure:
        say(f"The networks could not be made: {failure}")
        return 1
    except BrokenPipeError:
        return 128 + _unheard().number
    except Interrupted as interruption:
        say("\nInterrupted; all that was started has been ended.")
        return 128 + interruption.number


def demonstrate(folder: Path) -> int:
    """Build the networks, play in them, and take them down; return the exit status.

    :raises Unavailable: there can be no such networks here
    """
    allowed = flags()
    say(
        "A call between two private networks. Everything stays in networks made for it on this"
        " machine; it takes about half a minute."
    )
    say(MAP)
    interruption: Interrupted | None = None
    failed = False
    with Lab(folder, allowed, *ROUTERS) as lab:
        stage = Stage(lab)
        try:
            play(stage)
        except FAILURES as failure:
            failed = True
            say(f"It did not work: {failure}")
            stage.show_logs()
        except Interrupted as error:  # told outside, where the laboratory is down
            interruption = error
        except BrokenPipeError:
            interruption = _unheard()
        signal.alarm(0)
    if interruption is not None:
        raise interruption
    say("\nThe networks and all programs in them are gone.")
    if not failed:
        say("Done: calls came through where routers let them; Ic, not permitted, learned nothing.")
    return int(failed)


def explain(error: Unavailable) -> None:
    """Say why there can be no networks here."""
    say(f"This can't be shown here: {error}")
    if str(error).startswith("unshare"):
        say(
            "What is missing is the right to make network namespaces: run it as root, or on a"
            " kernel that lets everybody make user namespaces."
        )
    say("bin/demo without --nat needs nothing of that.")


def play(stage: Stage) -> None:
    """The scenes."""
    song = stage.folder / "song.wav"
    compose(song)
    say(f"A piece of music was made: {song.stat().st_size:,} bytes of audio.")
    prepare(stage)
    wire = Wire(stage.lab)
    woken(stage, wire, song)
    refused(stage, wire, song)
    unreachable(stage)
    opened(stage, song)


def prepare(stage: Stage) -> None:
    """A mediator on the Internet, and accounts."""
    scene("1. A mediator on the Internet, spoken to over TLS; Ia, Ib and Ic have accounts.")
    stage.command("mediator", "ca", "init")
    stage.command("mediator", "ca", "issue", "--server", SERVER)
    (stage.folder / "broker.toml").write_text(SETTINGS, encoding="utf-8")
    stage.show("mediator", "cat", "broker.toml")
    stage.tell(*SETTINGS.splitlines())
    stage.mediator = stage.start("mediator", "broker", "--config", "broker.toml", "--trace")
    stage.mediator.wait_for("Listening for datagrams")
    for name in stage.passwords:
        stage.keep_secret(name)
        stage.command("mediator", "account", "add", name, "--password-file", f"{name}.password")


def woken(stage: Stage, wire: Wire, song: Path) -> None:
    """Ib is quiet behind its router, and called."""
    scene("2. Ib registers, from behind its router. It permits Ia, and closes its connection.")
    terminal = stage.terminal("A", *QUIET)
    found = stage.heard(stage.mediator, r"(\S+):\d+ < REGISTER / Identifier:Ib / ")
    stage.tell(f"the mediator sees it at {found[1]}; of itself it knows {stage.address('Ib')}")
    if found[1] != stage.lab.address("routerA"):
        raise Failed("it should be seen at its router's address")
    stage.tell_log(terminal, "Seen from outside at")
    stage.tell_log(terminal, "Idle: closing the connection")

    scene("3. Ia calls, from behind another router. Ib is woken, and both sides dial.")
    stage.call("Ia", song)
    wire.catch_up()
    notices = [one for one in wire.datagrams() if is_notice(one)]
    if not notices:
        raise Failed("Ib should have been woken by a datagram")
    say("Ib was woken by a signed datagram, along the way that its own have opened:")
    stage.tell(told(notices[0]))
    stage.tell_log(terminal, "Woken: connecting to the mediator")
    seen = [stage.place_of("Caller Seen"), stage.place_of("Callee Seen")]
    dials = set(wire.dials())
    say("Each was told where the other's connection comes from, and dialled that from its own:")
    for source, to in (seen, reversed(seen)):
        if (source, to) not in dials:
            raise Failed(f"{source} should have dialled {to}")
        stage.tell(f"{source} ──▶ {to}   TCP SYN")
    if "connected by hole punching" not in stage.said:
        raise Failed("they should have met by both dialling")
    compare(song, stage.inbox)


def refused(stage: Stage, wire: Wire, song: Path) -> None:
    """Ic is not permitted; and what others on the way could read."""
    scene("4. Ic, whom Ib has not permitted, learns nothing: not even whether there is an Ib.")
    before = sum(map(is_notice, wire.datagrams()))
    for callee in ("Ib", "nobody"):
        stage.call("Ic", song, callee, expected=4)
    wire.catch_up()
    if sum(map(is_notice, wire.datagrams())) != before:
        raise Failed("Ib should not have been woken")
    stage.tell("Ib was not even woken.")

    scene("5. What has been captured on the Internet meanwhile, on four cables.")
    frames = wire.frames()
    stage.tell(f"{len(frames):,} frames, {sum(map(len, frames)):,} bytes")
    if wire.lost:
        stage.tell(f"{wire.lost:,} more were too fast to be captured")
    audio = song.read_bytes()
    sounds = [audio[at : at + 32] for at in range(0, len(audio) - 32, len(audio) // 16)]
    secret = [password.encode() for password in stage.passwords.values()]
    for names, searched in (
        ("a telling field", TELLING),
        ("a password", secret),
        ("the music", sounds),
    ):
        if any(what in frame for frame in frames for what in searched):
            raise Failed(f"others should not be able to read {names}")
    stage.tell("nowhere in them: a password, the music, a private address, or a field that tells")
    stage.tell("a key, a token or who calls; all that goes encrypted")
    router = stage.lab.address("routerA")
    for one in wire.datagrams():
        lines = one.data.decode().split("\r\n")
        telling = {line for line in lines if line.startswith(("Identifier:", "Address:"))}
        itself = {f"Address:{router}"} if one.to[0] == router else set()
        if not telling <= {"Identifier:Ib", *itself}:
            raise Failed(f"by UDP should go nothing like {telling}")
    stage.tell("in clear by UDP: that Ib registers, or is wanted; and to Ib, its own address")
    if any(b"\r\nSession:" in frame for frame in frames):
        stage.tell("in clear between Ia and Ib: the number of their session")
    stage.tell("who carries packets sees from which address to which they go, here as anywhere")


def unreachable(stage: Stage) -> None:
    """A router that gives each peer another port, and opens none."""
    scene("6. Ib moves behind a router that shows another port to each whom it speaks with.")
    terminal = stage.terminal("C", *QUIET)
    stage.tell_log(terminal, "Idle: closing the connection")
    say("It can be woken there, but not dialled. Ia finds out in up to 12 seconds, and why.")
    stage.call("Ia", stage.folder / "song.wav", expected=1)
    if "could not be reached: directly at" not in stage.said:
        raise Failed("it should have been told which ways were tried")


def opened(stage: Stage, song: Path) -> None:
    """The same kind of router, which opens ports for whoever asks."""
    scene("7. Ib moves behind another one of that kind, which opens ports on request.")
    terminal = stage.terminal("D", "--open-port")
    stage.tell_log(terminal, "The router has opened its port")
    stage.tell_log(terminal, "Reached from outside at")
    say("The mediator has tried it before anybody is told.")
    stage.call("Ia", song)
    if "connected directly at" not in stage.said:
        raise Failed("Ia should have come through the port")
    compare(song, stage.inbox)
    stage.leave()
    if "dnat" in stage.lab.openings("D"):
        raise Failed("the router should have closed the port")
    stage.tell("Ib's terminal has ended, and its router has closed the port again")


class Stage:
    """Who does what in the laboratory, and what of it is shown.

    :ivar folder: where all keep their files
    :ivar inbox: where Ib keeps what it is sent, where it is now
    :ivar mediator: the mediator's process
    :ivar passwords: whose password is which
    :ivar said: what the last command said on standard error
    """

    mediator: Running

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder
        self.inbox = lab.folder
        self.passwords = {name: secrets.token_urlsafe(16) for name in ("Ia", "Ib", "Ic")}
        self.said = ""
        self._places = dict(PLACES)
        self._running: dict[str, Running] = {}  # by role, the last of each

    def address(self, who: str) -> str:
        """Where somebody is."""
        return self.lab.address(self._places[who])

    # What is shown.

    def show(self, who: str, *command: str) -> None:
        """Print a command as one would type it there."""
        print(f"  {who} {self.address(who)} $ {shlex.join(command)}", flush=True)

    def tell(self, *lines: str) -> None:
        """Print what came of it."""
        for line in lines:
            print(f"    {line}", flush=True)

    def tell_log(self, running: Running, pattern: str) -> None:
        """Wait until a process logs something, and print that."""
        self.tell(self.heard(running, pattern).string.partition("] ")[2])

    def show_logs(self) -> None:
        """Print what the processes said, for whoever has to find out what went wrong."""
        for role, running in self._running.items():
            print(f"--- {role}")
            self.tell(*[*running.out, *running.err][-20:])

    # What is done.

    def heard(self, running: Running, pattern: str) -> re.Match[str]:
        """The first line of a process that matches; it is waited for."""
        matches = (re.search(pattern, line) for line in list(running.out))
        return next(filter(None, matches), None) or running.wait_for(pattern)

    def keep_secret(self, name: str) -> None:
        """Write a password to a file that nobody else can read."""
        path = self.folder / f"{name}.password"
        path.touch(mode=0o600)
        path.write_text(f"{self.passwords[name]}\n", encoding="utf-8")

    def start(self, who: str, role: str, *options: str) -> Running:
        """Start a role with ``twistd``."""
        self.show(who, "twistd", "-n", role, *options)
        running = self.lab.start(self._places[who], *TWISTD, "-n", role, *options)
        self._running[role] = running
        return running

    def command(self, who: str, *arguments: str, expected: int = 0) -> None:
        """Run ``broker`` with these arguments, and see that it exits as expected."""
        self.show(who, "broker", *arguments)
        done = self.lab.start(self._places[who], *BROKER, *arguments)
        status = done.wait()
        self.said = "\n".join(done.err)
        self.tell(*done.out, *done.err)
        if status:
            self.tell(f"exit code {status}")
        if status != expected:
            raise Failed(f"the exit code should be {expected}")

    def terminal(self, router: str, *options: str) -> Running:
        """Ib's terminal goes behind a router, and registers from there."""
        self.leave()
        self._places["Ib"] = f"host{router}1"
        self.inbox = self.folder / f"inbox-{router}"
        self.inbox.mkdir()
        terminal = self.start(
            *("Ib", "broker-terminal", "--identifier", "Ib", "--accept", "Ia", "--udp", "auto"),
            *("--receive", self.inbox.name, *options, *self._logged_in("Ib")),
        )
        self.heard(terminal, "Ib is registered")
        return terminal

    def leave(self) -> None:
        """End Ib's terminal, if there is one, as a person would."""
        terminal = self._running.get("broker-terminal")
        if terminal is not None and terminal.process.poll() is None:
            terminal.end()

    def call(self, who: str, song: Path, callee: str = "Ib", expected: int = 0) -> None:
        """Somebody calls, and sends the music."""
        arguments = ("call", "--verbose", "--as", who, callee, "--send", song.name)
        self.command(who, *arguments, *self._logged_in(who), expected=expected)

    def place_of(self, field: str) -> str:
        """The address and port that the mediator first told somebody in such a field."""
        host, port = self.heard(self.mediator, f" / {field}:([^ ]+ [0-9]+)")[1].split()
        return f"{host}:{port}"

    def _logged_in(self, who: str) -> tuple[str, ...]:
        mediator = ("--mediator", f"tls:{SERVER}:1202", "--ca", "ca/authority.pem")
        return *mediator, "--password-file", f"{who}.password"


class Wire:
    """What passes the cables of the Internet."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._cables = {cable: lab.start("inet", *PYTHON, CAPTURE, cable) for cable in CABLES}
        for sniffing in self._cables.values():
            sniffing.wait_for("ready")
        self._marks = 0

    def catch_up(self) -> None:
        """Wait until all that has passed is captured: a datagram that follows it is."""
        self._marks += 1
        mark = f"mark {self._marks}".encode().hex()
        for cable in CABLES:
            to = self._lab.address(cable)
            source = SERVER if cable == "outside" else OUTSIDE
            self._lab.run(
                "server" if cable == "outside" else "outside",
                *(*PYTHON, SPOOF, source, "9", to, "9", mark),
            )
        deadline = time.monotonic() + CAPTURED
        while not all(any(line.endswith(mark) for line in self._lines(cable)) for cable in CABLES):
            if time.monotonic() > deadline:
                raise Failed("what passes the cables is not captured")
            time.sleep(0.05)

    def frames(self) -> list[bytes]:
        """All frames."""
        return [bytes.fromhex(line) for cable in CABLES for line in self._lines(cable)[1:]]

    @property
    def lost(self) -> int:
        """How many frames have passed that were not captured."""
        lines = [line for sniffing in self._cables.values() for line in list(sniffing.out)]
        return sum(int(line.split()[1]) for line in lines if line.startswith("lost "))

    def datagrams(self) -> list[Datagram]:
        """The datagrams to and from the mediator."""
        caught = datagrams(self._lines("server"))
        return [one for one in caught if 1200 in (one.source[1], one.to[1])]

    def _lines(self, cable: str) -> list[str]:
        """What was written of a cable: that it is ready, and then the frames."""
        return [line for line in list(self._cables[cable].out) if not line.startswith("lost ")]

    def dials(self) -> Iterator[tuple[str, str]]:
        """Who has begun a TCP connection, and to where."""
        for frame in self.frames():
            if frame[12:14] != b"\x08\x00" or frame[23] != 6:
                continue
            tcp = frame[14 + 4 * (frame[14] & 15) :]
            if tcp[13] & 0x12 == 0x02:  # SYN, and not ACK
                hosts = [".".join(map(str, frame[at : at + 4])) for at in (26, 30)]
                ports = [int.from_bytes(tcp[at : at + 2], "big") for at in (0, 2)]
                yield f"{hosts[0]}:{ports[0]}", f"{hosts[1]}:{ports[1]}"


def is_notice(datagram: Datagram) -> bool:
    """Whether it asks a terminal to connect."""
    return datagram.data.startswith(b"NOTIFY\r\nConnection Requested.\r\n")


def told(datagram: Datagram) -> str:
    """A datagram in a line, with the beginning of its signature."""
    lines = datagram.data.decode().rstrip("\r\n").split("\r\n")
    shown = [f"{one[:18]}…" if one.startswith("Signature:") else one for one in lines]
    (host, port), (to, to_port) = datagram.source, datagram.to
    return f"{host}:{port} ──▶ {to}:{to_port}   {'  '.join(shown)}"


def _interrupted(number: int, _: object) -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(one, signal.SIG_IGN)  # the rest is short, and is not to be left half done
    raise Interrupted(number)


def _unheard() -> Interrupted:
    """Nobody reads what is said any more: it goes nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Interrupted(signal.SIGPIPE)


def _late(*_: object) -> None:
    raise Failed(f"it has taken longer than {LIMIT} seconds")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Whatever was just being started ends with this process, so there is nothing to wait for.
    os._exit(status)
