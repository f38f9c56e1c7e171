"""Terminals that register by UDP: each sends a keepalive, and has it answered."""

from __future__ import annotations

import socket
from typing import Final

from benchmarks.counting import Broken, Load, Tally
from benchmarks.peers import PATIENCE, names, value_of
from broker.messages.message import Message
from broker.messages.signing import quick_mac_of, sign, sign_head

COMPLETED: Final = b"NOTIFY\r\nRegistration Completed.\r\nSequence:"


class Keeper:
    """One terminal, known already where its datagrams come from.

    :ivar socket: what they are sent from
    """

    __slots__ = ("_begun", "_head", "_mac", "_sequence", "_tally", "socket")

    def __init__(self, load: Load, tally: Tally, name: str) -> None:
        key_id, key = _key(load.port, name)
        self._tally = tally
        self._mac = quick_mac_of(key)
        self._begun: dict[bytes, float] = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", load.udp))
        message = Message("REGISTER", Identifier=name)
        message.fields["Key ID"] = key_id
        self._head = message.encode()[:-2] + b"Sequence:"
        self._sequence = 3
        self.socket.send(self._next())
        cookie = value_of(self.socket.recv(2000), b"Challenge:").decode()
        message.fields["Challenge"] = cookie
        message.fields["Sequence"] = "5"
        self.socket.send(sign(message, key))
        self._sequence = 5
        self.socket.send(self._next())
        for _ in range(2):
            if not self.socket.recv(2000).startswith(COMPLETED):
                raise Broken("a registration by UDP was refused")
        self.socket.setblocking(False)

    def _next(self) -> bytes:
        self._sequence += 1
        return sign_head(b"%s%d\r\n" % (self._head, self._sequence), self._mac)

    def ask(self, count: int, now: float) -> None:
        """Begin so many requests."""
        for _ in range(count):
            datagram = self._next()
            self._begun[b"%d" % self._sequence] = now
            self.socket.send(datagram)

    def open(self) -> int:
        """How many are not answered."""
        return len(self._begun)

    def readable(self) -> None:
        """Take one answer, which must be to a question of one's own."""
        tally = self._tally
        answer = self.socket.recv(2000)
        begun = self._begun.pop(answer[len(COMPLETED) : answer.find(b"\r", len(COMPLETED))], None)
        if begun is None or not answer.startswith(COMPLETED):
            tally.wrong("not the answer to a keepalive", answer)
            return
        if tally.recording:
            tally.latencies.append(tally.now - begun)
        tally.done += 1
        if tally.refill:
            self.ask(1, tally.now)


def keepers(load: Load, tally: Tally) -> list[Keeper]:
    """So many terminals."""
    return [Keeper(load, tally, name) for name in names("terminal", load.callers)]


def _key(port: int, name: str) -> tuple[str, bytes]:
    """A key, got over a connection that is closed again."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as line:
        message = Message("REGISTER", Identifier=name, UDP="Yes", Transaction="1")
        line.sendall(message.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            more = line.recv(65536)
            if not more:
                raise Broken("no key was given out")
            answer += more
    key = bytes.fromhex(value_of(answer, b"Registration Key:").decode())
    if len(key) != 32:
        raise Broken(f"no key was given out: {answer!r}")
    return value_of(answer, b"Key ID:").decode(), key
