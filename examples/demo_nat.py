"""The demonstration behind ``bin/demo --nat``: a call between two private networks.

The networks, their routers and an Internet between them are the laboratory that the tests use:
network namespaces of this machine that lead nowhere else. The programs in them are real.
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

#: The exit status if it can't run here; test harnesses use it for skipped tests.
NOT_HERE: Final = 77
#: Seconds that the whole demonstration may take.
LIMIT: Final = 180
#: Seconds until a packet that was sent must be captured.
CAPTURED: Final = 10.0

ROUTERS: Final = (
    Router("A"),
    Router("B"),
    Router("C", translation=SYMMETRIC),
    Router("D", translation=SYMMETRIC, upnp=True, natpmp=True),
)
#: Where each of them is; Ib moves.
PLACES: Final = {"mediator": "server", "Ia": "hostB1", "Ic": "outside"}
#: The cables of the Internet on which every frame is captured.
CABLES: Final = ("server", "outside", "routerA", "routerB")

MAP: Final = """\
    Ib  192.168.1.2 ── router 11.0.113.1 ──┐
                                           ├── mediator 11.0.113.10
    Ia  192.168.2.2 ── router 11.0.113.2 ──┤
    Ic  11.0.113.20 ───────────────────────┘"""

#: The mediator's settings: TLS, and signed datagrams.
SETTINGS: Final = f"""\
listen = []
listen-tls = ["tcp:1202:interface={SERVER}"]
certificate = "server-{SERVER}.pem"
private-key = "server-{SERVER}.key"
udp = "1200:{SERVER}"
"""

#: Ib's terminal closes its connection to the mediator when idle.
QUIET: Final = ("--no-hold", "--linger", "1")

#: What would reveal who calls, or let others act as a terminal, if it were not encrypted.
TELLING: Final = (
    *(b"Identifier:Ia", b"Identifier:Ic", b"Caller", b"Callee", b"Token:", b"Password:"),
    *(b"Encrypt Key:", b"Registration Key:", b"192.168."),
)


#: A program that prints each frame of an interface, in hexadecimal: ``capture INTERFACE``. The
#: kernel drops frames that are not fetched soon, so it prints only while no frame comes. It also
#: prints how many were lost.
CAPTURE: Final = """\
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
for name in (33, socket.SO_RCVBUF):  # SO_RCVBUFFORCE, which needs a privilege
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

#: The exceptions of a step that fails.
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
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
        return 128 + _no_reader().number
    except Interrupted as interruption:
        say("\nInterrupted; all that was started has been ended.")
        return 128 + interruption.number


def demonstrate(folder: Path) -> int:
    """Build the networks, play in them, and take them down; return the exit status.

    :raises Unavailable: such networks can't be made here
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
        except Interrupted as error:  # reported when the laboratory is gone
            interruption = error
        except BrokenPipeError:
            interruption = _no_reader()
        signal.alarm(0)
    if interruption is not None:
        raise interruption
    say("\nThe networks and all programs in them are gone.")
    if not failed:
        say("Done: calls came through where routers let them; Ic, not permitted, learned nothing.")
    return int(failed)


def explain(error: Unavailable) -> None:
    """Say why networks can't be made here."""
    say(f"This can't be shown here: {error}")
    if str(error).startswith("unshare"):
        say(
            "What is missing is the right to make network namespaces: run it as root, or on a"
            " kernel that lets all users make user namespaces."
        )
    say("bin/demo without --nat needs none of this.")


def play(stage: Stage) -> None:
    """The scenes, in order."""
    song = stage.folder / "song.wav"
    compose(song)
    say(f"The music to send: {song.stat().st_size:,} bytes of audio.")
    prepare(stage)
    wire = Wire(stage.lab)
    woken(stage, wire, song)
    refused(stage, wire, song)
    unreachable(stage)
    opened(stage, song)


def prepare(stage: Stage) -> None:
    """A mediator on the Internet, and accounts."""
    scene("1. A mediator on the Internet, which uses TLS; Ia, Ib and Ic have accounts.")
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
    """Ib is idle behind its router, and is called."""
    scene("2. Ib registers, from behind its router. It permits Ia, and closes its connection.")
    terminal = stage.terminal("A", *QUIET)
    found = stage.heard(stage.mediator, r"(\S+):\d+ < REGISTER / Identifier:Ib / ")
    stage.tell(f"the mediator sees it at {found[1]}; its own address is {stage.address('Ib')}")
    if found[1] != stage.lab.address("routerA"):
        raise Failed("it should be seen at its router's address")
    stage.tell_log(terminal, "Seen from outside at")
    stage.tell_log(terminal, "Idle: closing the connection")

    scene("3. Ia calls, from behind another router. Ib is woken, and both sides dial.")
    stage.call("Ia", song)
    wire.catch_up()
    notices = [datagram for datagram in wire.datagrams() if is_notice(datagram)]
    if not notices:
        raise Failed("Ib should have been woken by a datagram")
    say("Ib was woken by a signed datagram, through the NAT binding that its own datagrams keep:")
    stage.tell(in_a_line(notices[0]))
    stage.tell_log(terminal, "Woken: connecting to the mediator")
    seen = [stage.place_of("Caller Seen"), stage.place_of("Callee Seen")]
    dials = set(wire.dials())
    say("Each was told the source address of the other's connection, and dialled it:")
    for source, to in (seen, reversed(seen)):
        if (source, to) not in dials:
            raise Failed(f"{source} should have dialled {to}")
        stage.tell(f"{source} ──▶ {to}   TCP SYN")
    if "connected by hole punching" not in stage.said:
        raise Failed("they should have connected by hole punching")
    compare(song, stage.inbox)


def refused(stage: Stage, wire: Wire, song: Path) -> None:
    """Ic is not permitted; and what others on the path could read."""
    scene("4. Ic has no permit of Ib. It learns nothing, not even whether Ib exists.")
    before = sum(map(is_notice, wire.datagrams()))
    for callee in ("Ib", "nobody"):
        stage.call("Ic", song, callee, expected=4)
    wire.catch_up()
    if sum(map(is_notice, wire.datagrams())) != before:
        raise Failed("Ib should not have been woken")
    stage.tell("Ib was not even woken.")

    scene("5. What was captured on four cables of the Internet.")
    frames = wire.frames()
    stage.tell(f"{len(frames):,} frames, {sum(map(len, frames)):,} bytes")
    if wire.lost:
        stage.tell(f"{wire.lost:,} more were lost by the capture")
    audio = song.read_bytes()
    sounds = [audio[at : at + 32] for at in range(0, len(audio) - 32, len(audio) // 16)]
    secret = [password.encode() for password in stage.passwords.values()]
    for what, searched in (
        ("a telling field", TELLING),
        ("a password", secret),
        ("the music", sounds),
    ):
        if any(text in frame for frame in frames for text in searched):
            raise Failed(f"others should not be able to read {what}")
    stage.tell(
        "They contain no password, no music, no private address, and no field that tells a key,"
    )
    stage.tell("a token or who calls: all of that is encrypted.")
    router = stage.lab.address("routerA")
    for datagram in wire.datagrams():
        lines = datagram.data.decode().split("\r\n")
        telling = {line for line in lines if line.startswith(("Identifier:", "Address:"))}
        itself = {f"Address:{router}"} if datagram.to[0] == router else set()
        if not telling <= {"Identifier:Ib", *itself}:
            raise Failed(f"UDP should not carry {telling}")
    stage.tell("In clear by UDP: that Ib registers or is woken; and, to Ib, its own address.")
    if any(b"\r\nSession:" in frame for frame in frames):
        stage.tell("In clear between Ia and Ib: the number of their session.")
    stage.tell("As everywhere, the source and destination address of each packet can be seen.")


def unreachable(stage: Stage) -> None:
    """A router with a different port for each peer (symmetric NAT), and no port opening."""
    scene("6. Ib moves behind a router with symmetric NAT: each peer sees another port.")
    terminal = stage.terminal("C", *QUIET)
    stage.tell_log(terminal, "Idle: closing the connection")
    say("It can be woken there, but not dialled. Ia learns that in up to 12 seconds, and why.")
    stage.call("Ia", stage.folder / "song.wav", expected=1)
    if "could not be reached: directly at" not in stage.said:
        raise Failed("it should have been told which candidates were tried")


def opened(stage: Stage, song: Path) -> None:
    """A router of the same kind that opens ports on request."""
    scene("7. Ib moves behind another router with symmetric NAT, which opens ports on request.")
    terminal = stage.terminal("D", "--open-port")
    stage.tell_log(terminal, "The router has opened its port")
    stage.tell_log(terminal, "Reached from outside at")
    say("The mediator tries the port before any caller is told.")
    stage.call("Ia", song)
    if "connected directly at" not in stage.said:
        raise Failed("Ia should have come through the port")
    compare(song, stage.inbox)
    stage.leave()
    if "dnat" in stage.lab.openings("D"):
        raise Failed("the router should have closed the port")
    stage.tell("Ib's terminal has ended, and its router has closed the port again")


class Stage:
    """The actors in the laboratory, and what is shown of them.

    :ivar folder: where all of them keep their files
    :ivar inbox: where Ib stores what it is sent, at its current place
    :ivar mediator: the mediator's process
    :ivar passwords: the password of each
    :ivar said: what the last command printed on standard error
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
        """The address of one of them."""
        return self.lab.address(self._places[who])

    # What is shown.

    def show(self, who: str, *command: str) -> None:
        """Print a command as you would type it there."""
        print(f"  {who} {self.address(who)} $ {shlex.join(command)}", flush=True)

    def tell(self, *lines: str) -> None:
        """Print a result."""
        for line in lines:
            print(f"    {line}", flush=True)

    def tell_log(self, running: Running, pattern: str) -> None:
        """Wait until a process logs something, and print that."""
        self.tell(self.heard(running, pattern).string.partition("] ")[2])

    def show_logs(self) -> None:
        """Print the last lines of the processes, to find out what went wrong."""
        for role, running in self._running.items():
            print(f"--- {role}")
            self.tell(*[*running.out, *running.err][-20:])

    # What is done.

    def heard(self, running: Running, pattern: str) -> re.Match[str]:
        """Wait for the first line of a process that matches."""
        matches = (re.search(pattern, line) for line in list(running.out))
        return next(filter(None, matches), None) or running.wait_for(pattern)

    def keep_secret(self, name: str) -> None:
        """Write a password to a file that only its owner can read."""
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
        """Move Ib's terminal behind a router, from where it registers."""
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
        """End Ib's terminal, if there is one, as its user would."""
        terminal = self._running.get("broker-terminal")
        if terminal is not None and terminal.process.poll() is None:
            terminal.end()

    def call(self, who: str, song: Path, callee: str = "Ib", expected: int = 0) -> None:
        """Call, and send the music."""
        arguments = ("call", "--verbose", "--as", who, callee, "--send", song.name)
        self.command(who, *arguments, *self._logged_in(who), expected=expected)

    def place_of(self, field: str) -> str:
        """The first address and port that the mediator sent in a field."""
        host, port = self.heard(self.mediator, f" / {field}:([^ ]+ [0-9]+)")[1].split()
        return f"{host}:{port}"

    def _logged_in(self, who: str) -> tuple[str, ...]:
        mediator = ("--mediator", f"tls:{SERVER}:1202", "--ca", "ca/authority.pem")
        return *mediator, "--password-file", f"{who}.password"


class Wire:
    """The packets on the cables of the Internet."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._cables = {cable: lab.start("inet", *PYTHON, CAPTURE, cable) for cable in CABLES}
        for capture in self._cables.values():
            capture.wait_for("ready")
        self._marks = 0

    def catch_up(self) -> None:
        """Wait until all earlier packets are captured, by sending a datagram after them."""
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
                raise Failed("the packets on the cables are not captured")
            time.sleep(0.05)

    def frames(self) -> list[bytes]:
        """All frames."""
        return [bytes.fromhex(line) for cable in CABLES for line in self._lines(cable)[1:]]

    @property
    def lost(self) -> int:
        """How many frames the captures have lost."""
        lines = [line for capture in self._cables.values() for line in list(capture.out)]
        return sum(int(line.split()[1]) for line in lines if line.startswith("lost "))

    def datagrams(self) -> list[Datagram]:
        """The datagrams to and from the mediator."""
        caught = datagrams(self._lines("server"))
        return [found for found in caught if 1200 in (found.source[1], found.to[1])]

    def _lines(self, cable: str) -> list[str]:
        """The output of a cable's capture: that it is ready, and then the frames."""
        return [line for line in list(self._cables[cable].out) if not line.startswith("lost ")]

    def dials(self) -> Iterator[tuple[str, str]]:
        """The source and destination of each TCP connection that was begun."""
        for frame in self.frames():
            if frame[12:14] != b"\x08\x00" or frame[23] != 6:
                continue
            tcp = frame[14 + 4 * (frame[14] & 15) :]
            if tcp[13] & 0x12 == 0x02:  # SYN, and not ACK
                hosts = [".".join(map(str, frame[at : at + 4])) for at in (26, 30)]
                ports = [int.from_bytes(tcp[at : at + 2], "big") for at in (0, 2)]
                yield f"{hosts[0]}:{ports[0]}", f"{hosts[1]}:{ports[1]}"


def is_notice(datagram: Datagram) -> bool:
    """Whether a datagram asks a terminal to connect."""
    return datagram.data.startswith(b"NOTIFY\r\nConnection Requested.\r\n")


def in_a_line(datagram: Datagram) -> str:
    """A datagram in a line, with the beginning of its signature."""
    lines = datagram.data.decode().rstrip("\r\n").split("\r\n")
    shown = [f"{line[:18]}…" if line.startswith("Signature:") else line for line in lines]
    (host, port), (to, to_port) = datagram.source, datagram.to
    return f"{host}:{port} ──▶ {to}:{to_port}   {'  '.join(shown)}"


def _interrupted(number: int, _: object) -> None:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(other, signal.SIG_IGN)  # the rest is short, and must be completed
    raise Interrupted(number)


def _no_reader() -> Interrupted:
    """The reader of our output has gone: discard the rest of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Interrupted(signal.SIGPIPE)


def _late(*_: object) -> None:
    raise Failed(f"it has taken longer than {LIMIT} seconds")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # A program that was just being started ends with this process: there is nothing to wait for.
    os._exit(status)
