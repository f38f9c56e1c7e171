"""The demonstration behind ``bin/demo``: real programs, a real call, a real file.

Every step is a command that you could type yourself; it is printed before it runs. It is the
secured way, as over the Internet: TLS with an authority of one's own, and a password for each.
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

#: Seconds that any one step may take.
PATIENCE = 120.0
#: Seconds of silence after which nothing more is expected of the processes.
SILENCE = 0.15
RATE = 44100
#: The tune: (frequency in hertz, beats).
TUNE = ((392, 1), (440, 1), (494, 1), (587, 2), (494, 1), (440, 1), (392, 3), (330, 1), (392, 4))
BEAT = 0.3

PYTHON = [sys.executable, "-P"]

#: The mediator's settings: TLS alone, on ports that are free, with what ``broker ca`` has issued.
SETTINGS = """\
listen = []
listen-tls = ["tcp:0:interface=127.0.0.1"]
certificate = "server-localhost.pem"
private-key = "server-localhost.key"
udp = "none"
"""


class Failed(Exception):
    """A step did not go as it must; the text says which."""


def main() -> int:
    """Run the demonstration; return the exit code."""
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
    """The scenes."""
    song = stage.folder / "song.wav"
    compose(song)
    say(f"A piece of music was made: {song.stat().st_size:,} bytes of audio.")

    scene("1. An authority of our own issues a certificate for the mediator.")
    stage.command("ca", "init")
    stage.command("ca", "issue", "--server", "localhost")

    scene("2. The mediator starts. It will decide who may reach whom, and is spoken to over TLS.")
    stage.write("broker.toml", SETTINGS)
    broker = stage.start("broker", "--config", "broker.toml", "--trace")
    port = stage.wait_for(broker, r"Listening for TLS on 127\.0\.0\.1:(\d+)").group(1)
    mediator = ("--mediator", f"tls:localhost:{port}", "--ca", "ca/authority.pem")
    broker.narrate = narrate

    def logged_in(name: str) -> tuple[str, ...]:
        """The options of somebody who speaks with the mediator."""
        return *mediator, "--password-file", f"{name}.password"

    scene("3. The operator makes accounts. Passwords stand in files that nobody else can read.")
    stage.keep_secret("Ia.password", secrets.token_urlsafe(16))
    stage.command("account", "add", "Ia", "--password-file", "Ia.password")
    for name in ("Ib", "Ix"):
        told = stage.command("account", "add", name, "--generate")
        stage.keep_secret(f"{name}.password", told.split()[-1])

    scene("4. Ib's terminal logs in and registers where it is. Nobody may call it yet.")
    inbox = stage.folder / "inbox"
    inbox.mkdir()
    terminal = stage.start(
        *("broker-terminal", "--identifier", "Ib", *logged_in("Ib")),
        *("--listen", "tcp:0:interface=127.0.0.1", "--receive", "inbox", "--trace"),
    )
    stage.wait_for(terminal, "Ib is registered")
    terminal.narrate = narrate_directly
    stage.catch_up()

    scene("5. Ib permits Ia to call it.")
    stage.command("permit", "add", "--as", "Ib", "Ia", *logged_in("Ib"))

    scene("6. Ia calls Ib and sends the music, directly and encrypted.")
    stage.command("call", "--as", "Ia", "Ib", "--send", "song.wav", *logged_in("Ia"))
    compare(song, inbox)

    scene("7. Ix, whom Ib has not permitted, tries the same, and learns nothing.")
    stage.command(*("call", "--as", "Ix", "Ib", "--send", "song.wav", *logged_in("Ix")), expected=4)
    say("Whether Ib exists, or is there, Ix can't tell: somebody unknown gives the same answer.")
    stage.command(
        *("call", "--as", "Ix", "nobody", "--send", "song.wav", *logged_in("Ix")), expected=4
    )

    scene("8. Ib withdraws the permit; now Ia is refused as well.")
    stage.command("permit", "delete", "--as", "Ib", "Ia", *logged_in("Ib"))
    stage.command(*("call", "--as", "Ia", "Ib", "--send", "song.wav", *logged_in("Ia")), expected=4)

    scene("9. Ib looks who was told where it is. Ia was, once; nobody else ever was.")
    told = stage.command("disclosures", "--as", "Ib", *logged_in("Ib"))
    if [line.split("\t")[1] for line in told.splitlines()] != ["Ia"]:
        raise Failed("Ia alone should have been told, and once")
    say("The operator sees the same, with the session for which it was told.")
    stage.command("who-knows", "Ib")


def compare(sent: Path, inbox: Path) -> None:
    """See that what was sent has arrived, and nothing else."""
    received = [path for path in inbox.iterdir() if path.suffix != ".part"]
    if len(received) != 1:
        raise Failed(f"Ib should have one file, and has {len(received)}")
    sent_digest, received_digest = digest(sent), digest(received[0])
    print(f"    sent      sha256 {sent_digest}")
    print(f"    received  sha256 {received_digest}")
    if sent_digest != received_digest:
        raise Failed("what arrived is not what was sent")
    print("    the same, bit by bit")


class Stage:
    """All processes of the demonstration, ended when it is over.

    :ivar folder: where they keep their files
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._players: list[Player] = []
        self._said: queue.Queue[tuple[Player, str]] = queue.Queue()  # by all, as it comes

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
        """Write a password to a file that nobody else can read."""
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

    def hear(self, player: Player, line: str) -> None:
        """A process has said a line."""
        self._said.put((player, line))

    def wait_for(self, player: Player, pattern: str) -> re.Match[str]:
        """Wait until a process says a line that matches."""
        deadline = time.monotonic() + PATIENCE
        while True:
            heard = self._next(deadline - time.monotonic())
            if heard is None:
                raise Failed(f"{player.name} did not say {pattern!r}")
            found = re.search(pattern, heard[1]) if heard[0] is player else None
            if found:
                return found

    def catch_up(self) -> None:
        """Hear what has been said meanwhile, until all are silent for a moment."""
        while self._next(SILENCE) is not None:
            pass

    def _next(self, seconds: float) -> tuple[Player, str] | None:
        try:
            player, line = self._said.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        player.lines.append(line)
        if player.narrate is not None:
            player.narrate(line)
        return player, line

    def show_logs(self) -> None:
        """Print what the processes said, for whoever has to find out what went wrong."""
        for player in self._players:
            print(f"--- {player.name}")
            for line in player.lines[-20:]:
                print(f"    {line}")


class Player:
    """One running process and what it says.

    :ivar lines: all lines so far
    :ivar narrate: prints the messages that it traces, in a newcomer's form
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
    """What a command says, without the password that it says once."""
    said, found, _ = line.partition("not shown again: ")
    return f"{said}{found}…" if found else line


_TRACED = re.compile(r"\[broker\.trace#\w+\] (?P<peer>.*?) (?P<way>[<>]) (?P<message>[A-Z]+.*)")


def narrate(line: str) -> None:
    """Print a traced message: who sends it to whom, and its lines."""
    found = _TRACED.search(line)
    if not found:
        return
    verb, *fields = found["message"].split(" / ")
    named = next((field[11:] for field in fields if field.startswith("Identifier:")), "?")
    peer = found["peer"] if found["peer"].startswith("I") else named  # it is binding itself
    shown = [field for field in fields if not field.startswith(("Transaction:", "Code:", "Epoch:"))]
    arrow = f"{peer} ──▶ mediator" if found["way"] == "<" else f"{peer} ◀── mediator"
    print(f"    {arrow}   {verb:8} {'  '.join(shown)}")


def narrate_directly(line: str) -> None:
    """Print what a caller and a callee say to each other; the mediator has no part in it."""
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
    """Tell the audience something."""
    print(text, flush=True)


def scene(text: str) -> None:
    """Begin a scene."""
    print(f"\n{text}", flush=True)


def show(*command: str) -> None:
    """Print a command as one would type it."""
    print(f"  $ {shlex.join(command)}", flush=True)


def _twistd() -> list[str]:
    return [str(Path(sys.executable).with_name("twistd"))]


if __name__ == "__main__":
    sys.exit(main())
