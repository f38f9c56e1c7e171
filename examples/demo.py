"""The demonstration behind ``bin/demo``: real programs, a real call, a real file.

Every step is a command that you could type yourself; it is printed before it runs. Everything is
secured as on the Internet: TLS with a private certificate authority, and passwords.
"""

from __future__ import annotations

import hashlib
import math
import queue
import re
import secrets
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path

from tests.support.processes import TETHER

#: Seconds that a step may take.
PATIENCE = 120.0
#: Seconds of silence after which all output of the processes is there.
SILENCE = 0.15
RATE = 44100
#: The tune: (frequency in hertz, beats).
TUNE = ((392, 1), (440, 1), (494, 1), (587, 2), (494, 1), (440, 1), (392, 3), (330, 1), (392, 4))
BEAT = 0.3

PYTHON = [sys.executable, "-P"]

#: The mediator's settings: TLS only, on any free port, with the certificate from ``broker ca``.
SETTINGS = """\
listen = []
listen-tls = ["tcp:0:interface=127.0.0.1"]
certificate = "server-localhost.pem"
private-key = "server-localhost.key"
udp = "none"
"""


class Failed(Exception):
    """A step did not have the expected result; the text says which one."""


def main() -> int:
    """Run the demonstration; return the exit status."""
    say("A permitted call from end to end. Everything stays on this machine.")
    with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder, Stage(Path(folder)) as stage:
        try:
            play(stage)
        except Failed as failure:
            say(f"It did not work: {failure}")
            stage.show_logs()
            return 1
    say("\nDone: the permitted call went through, the others did not.")
    return 0


def play(stage: Stage) -> None:
    """The scenes, in order."""
    song = stage.folder / "song.wav"
    compose(song)
    say(f"The music to send: {song.stat().st_size:,} bytes of audio.")
    make_authority(stage)
    start_mediator(stage)
    make_accounts(stage)
    register_callee(stage)
    call_with_permit(stage, song)
    call_without_permit(stage)
    withdraw_permit(stage)
    show_disclosures(stage)


def make_authority(stage: Stage) -> None:
    """A certificate for the mediator."""
    scene("1. A private certificate authority issues a certificate for the mediator.")
    stage.command("ca", "init")
    stage.command("ca", "issue", "--server", "localhost")


def start_mediator(stage: Stage) -> None:
    """The mediator, over TLS only."""
    scene("2. The mediator starts, and listens for TLS. It decides who may reach whom.")
    stage.write("broker.toml", SETTINGS)
    broker = stage.start("broker", "--config", "broker.toml", "--trace")
    port = stage.wait_for(broker, r"Listening for TLS on 127\.0\.0\.1:(\d+)").group(1)
    stage.mediator = ("--mediator", f"tls:localhost:{port}", "--ca", "ca/authority.pem")
    broker.narrate = narrate


def make_accounts(stage: Stage) -> None:
    """Accounts of Ia, Ib and Ix."""
    scene(
        "3. The operator makes accounts. Each password is in a file that only its owner can read."
    )
    stage.keep_secret("Ia.password", secrets.token_urlsafe(16))
    stage.command("account", "add", "Ia", "--password-file", "Ia.password")
    for name in ("Ib", "Ix"):
        printed = stage.command("account", "add", name, "--generate")
        stage.keep_secret(f"{name}.password", printed.split()[-1])


def register_callee(stage: Stage) -> None:
    """Ib's terminal."""
    scene("4. Ib's terminal logs in and registers its address. No caller is permitted yet.")
    (stage.folder / "inbox").mkdir()
    terminal = stage.start(
        *("broker-terminal", "--identifier", "Ib", *stage.login("Ib")),
        *("--listen", "tcp:0:interface=127.0.0.1", "--receive", "inbox", "--trace"),
    )
    stage.wait_for(terminal, "Ib is registered")
    terminal.narrate = narrate_directly
    stage.catch_up()


def call_with_permit(stage: Stage, song: Path) -> None:
    """A call that goes through."""
    scene("5. Ib permits Ia to call it.")
    stage.command("permit", "add", "--as", "Ib", "Ia", *stage.login("Ib"))

    scene("6. Ia calls Ib and sends the music, directly and encrypted.")
    stage.call("Ia", "Ib")
    compare(song, stage.folder / "inbox")


def call_without_permit(stage: Stage) -> None:
    """A caller that is refused, and learns nothing."""
    scene("7. Ix has no permit. It tries the same, and learns nothing.")
    stage.call("Ix", "Ib", expected=4)
    say("Ix can't tell whether Ib exists or is online: an unknown callee gives the same answer.")
    stage.call("Ix", "nobody", expected=4)


def withdraw_permit(stage: Stage) -> None:
    """The first caller is refused too."""
    scene("8. Ib withdraws the permit. Now Ia is refused as well.")
    stage.command("permit", "delete", "--as", "Ib", "Ia", *stage.login("Ib"))
    stage.call("Ia", "Ib", expected=4)


def show_disclosures(stage: Stage) -> None:
    """The ledger, as Ib and as the operator see it."""
    scene("9. Ib asks who was told where it is: only Ia, once.")
    printed = stage.command("disclosures", "--as", "Ib", *stage.login("Ib"))
    if [line.split("\t")[1] for line in printed.splitlines()] != ["Ia"]:
        raise Failed("only Ia should have been told, once")
    say("The operator sees the same, with the session that it was for.")
    stage.command("who-knows", "Ib")


def compare(sent: Path, inbox: Path) -> None:
    """See that exactly the file that was sent has arrived."""
    received = [path for path in inbox.iterdir() if path.suffix != ".part"]
    if len(received) != 1:
        raise Failed(f"Ib should have one file, and has {len(received)}")
    sent_digest, received_digest = digest(sent), digest(received[0])
    print(f"    sent      sha256 {sent_digest}")
    print(f"    received  sha256 {received_digest}")
    if sent_digest != received_digest:
        raise Failed("the file that arrived differs from the one that was sent")
    print("    the same, bit by bit")


class Stage:
    """All processes of the demonstration. They end with it.

    :ivar folder: where they keep their files
    :ivar mediator: the options that name the mediator
    """

    mediator: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._players: list[Player] = []
        self._lines: queue.Queue[tuple[Player, str]] = queue.Queue()  # of all processes

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for player in reversed(self._players):
            player.end()

    def start(self, role: str, *options: str) -> Player:
        """Start a role with ``twistd``."""
        show("twistd", "-n", role, *options)
        player = Player(role, [*_twistd(), "-n", role, *options], self)
        self._players.append(player)
        return player

    def write(self, name: str, text: str) -> None:
        """Write a file, and show it."""
        show("cat", name)
        (self.folder / name).write_text(text, encoding="utf-8")
        for line in text.splitlines():
            print(f"    {line}")

    def keep_secret(self, name: str, password: str) -> None:
        """Write a password to a file that only its owner can read."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(f"{password}\n", encoding="utf-8")

    def command(self, *arguments: str, expected: int = 0) -> str:
        """Run ``broker`` with these arguments, and see that it exits as expected.

        :return: what it printed
        """
        show("broker", *arguments)
        done = subprocess.run(
            [*TETHER, *PYTHON, "-m", "broker.cli.main", *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.catch_up()
        for line in (done.stdout + done.stderr).splitlines():
            print(f"    {mask(line)}")
        if done.returncode:
            print(f"    exit code {done.returncode}")
        if done.returncode != expected:
            raise Failed(f"the exit code should be {expected}")
        return done.stdout

    def login(self, name: str) -> tuple[str, ...]:
        """The options of a terminal that connects to the mediator."""
        return *self.mediator, "--password-file", f"{name}.password"

    def call(self, caller: str, callee: str, expected: int = 0) -> None:
        """Call, and send the music."""
        arguments = ("call", "--as", caller, callee, "--send", "song.wav", *self.login(caller))
        self.command(*arguments, expected=expected)

    def hear(self, player: Player, line: str) -> None:
        """A process has printed a line."""
        self._lines.put((player, line))

    def wait_for(self, player: Player, pattern: str) -> re.Match[str]:
        """Wait until a process prints a line that matches."""
        deadline = time.monotonic() + PATIENCE
        while True:
            heard = self._next(deadline - time.monotonic())
            if heard is None:
                raise Failed(f"{player.name} did not print {pattern!r}")
            found = re.search(pattern, heard[1]) if heard[0] is player else None
            if found:
                return found

    def catch_up(self) -> None:
        """Take what the processes have printed, until all are silent for a moment."""
        while self._next(SILENCE) is not None:
            pass

    def _next(self, seconds: float) -> tuple[Player, str] | None:
        try:
            player, line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        player.lines.append(line)
        if player.narrate is not None:
            player.narrate(line)
        return player, line

    def show_logs(self) -> None:
        """Print the last lines of the processes, to find out what went wrong."""
        for player in self._players:
            print(f"--- {player.name}")
            for line in player.lines[-20:]:
                print(f"    {line}")


class Player:
    """A running process and its output.

    :ivar lines: all lines so far
    :ivar narrate: prints the messages that the process traces, in a form for newcomers
    """

    def __init__(self, name: str, command: list[str], stage: Stage) -> None:
        self.name = name
        self.lines: list[str] = []
        self.narrate: Callable[[str], None] | None = None
        self._stage = stage
        self._process = subprocess.Popen(
            [*TETHER, *command],
            cwd=stage.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def end(self) -> None:
        """End the process as an operator would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._stage.hear(self, line.rstrip())


def mask(line: str) -> str:
    """A line of a command, without the password that it prints once."""
    said, found, _ = line.partition("not shown again: ")
    return f"{said}{found}…" if found else line


_TRACED = re.compile(r"\[broker\.trace#\w+\] (?P<peer>.*?) (?P<way>[<>]) (?P<message>[A-Z]+.*)")


def narrate(line: str) -> None:
    """Print a traced message: its sender, its receiver, and its lines."""
    found = _TRACED.search(line)
    if not found:
        return
    verb, *fields = found["message"].split(" / ")
    named = next((field[11:] for field in fields if field.startswith("Identifier:")), "?")
    peer = found["peer"] if found["peer"].startswith("I") else named  # this message identifies it
    shown = [field for field in fields if not field.startswith(("Transaction:", "Code:", "Epoch:"))]
    arrow = f"{peer} ──▶ mediator" if found["way"] == "<" else f"{peer} ◀── mediator"
    print(f"    {arrow}   {verb:8} {'  '.join(shown)}")


def narrate_directly(line: str) -> None:
    """Print what caller and callee send each other directly, without the mediator."""
    found = _TRACED.search(line)
    if found and found["peer"] != "mediator":
        verb, *fields = found["message"].split(" / ")
        arrow = "Ia ──▶ Ib      " if found["way"] == "<" else "Ia ◀── Ib      "
        print(f"    {arrow}   {verb:8} {'  '.join(fields)}  (directly, the rest is encrypted)")


def compose(path: Path) -> None:
    """Write a little tune, in stereo, as a WAV file."""
    frames = bytearray()
    for frequency, beats in TUNE:
        length = int(RATE * BEAT * beats)
        for n in range(length):
            loudness = 12000 * math.exp(-2.0 * n / length)
            value = int(loudness * math.sin(2 * math.pi * frequency * n / RATE))
            echo = int(loudness * math.sin(2 * math.pi * frequency * 1.5 * n / RATE) / 2)
            frames += struct.pack("<hh", value, echo)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(frames))


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def say(text: str) -> None:
    """Print a line of the narration."""
    print(text, flush=True)


def scene(text: str) -> None:
    """Begin a scene."""
    print(f"\n{text}", flush=True)


def show(*command: str) -> None:
    """Print a command as you would type it."""
    print(f"  $ {shlex.join(command)}", flush=True)


def _twistd() -> list[str]:
    return [str(Path(sys.executable).with_name("twistd"))]


if __name__ == "__main__":
    sys.exit(main())
