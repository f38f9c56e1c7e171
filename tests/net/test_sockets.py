"""The wire over real sockets: a server in a process of its own, and plain blocking sockets."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.net.server import MUCH
from tests.support.certificates import Pki
from tests.support.transport import parse_all

ROOT = Path(__file__).resolve().parents[2]

#: Seconds after which what has not come never will; less than the server's own deadlines.
DEADLINE = 8.0

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a server that runs."""
    with serving() as port:
        yield port


@contextmanager
def serving(*files: str) -> Iterator[int]:
    """A server that runs, over TLS where it has files for that."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.net.server", *files],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            assert process.wait(10) == 0


def connect(port: int, receive_buffer: int = 0) -> socket.socket:
    """A connection on which nothing waits for ever."""
    connection = socket.socket()
    connection.settimeout(DEADLINE)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    return connection


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side ends; a reset or a deadline is an error."""
    pieces = []
    while piece := connection.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


class SocketsTests:
    """What only real connections show."""

    @pytest.mark.parametrize("line_end", ["\n", "\r\n"])
    def test_pipelined_with_half_close(self, port: int, line_end: str) -> None:
        """500 requests in one piece and the end of input: 500 replies, in order, then the end."""
        requests = "".join(f"QUERY\nCallee:I{number}\n\n" for number in range(500))
        with connect(port) as connection:
            connection.sendall(requests.replace("\n", line_end).encode())
            connection.shutdown(socket.SHUT_WR)
            replies, _ = parse_all(read_all(connection))
        assert [reply.get("Cause") for reply in replies] == [f"I{n}" for n in range(500)]
        assert {reply.statement for reply in replies} == {"Request Accepted."}

    def test_byte_by_byte(self, port: int) -> None:
        """A message that comes a byte a packet is one message."""
        with connect(port) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"QUERY\r\nCallee:Ib\r\n\r\n":
                connection.sendall(bytes([byte]))
            connection.shutdown(socket.SHUT_WR)
            replies, _ = parse_all(read_all(connection))
        assert [reply.get("Cause") for reply in replies] == ["Ib"]

    def test_answer_reaches_a_peer_that_is_still_sending(self, port: int) -> None:
        """Who breaks a limit, sends on and only then reads, reads why: it met no reset."""
        with connect(port) as connection:
            connection.sendall(b"QUERY\nCallee:Ib\n\n" + b"x" * 32_000_000)
            replies, _ = parse_all(read_all(connection))
            assert [reply.statement for reply in replies] == ["Request Accepted.", "Too Large."]

    @pytest.mark.parametrize(("callee", "half_close"), [(b"\xff", False), (b"Ib", True)])
    def test_much_to_read_before_the_end(self, port: int, callee: bytes, half_close: bool) -> None:
        """A slow reader has all of it, and then the end at once, not a reset after a deadline; so
        has one that had ended its own input.
        """
        with connect(port, receive_buffer=65536) as connection:
            connection.sendall(b"QUERY\nLOOKUP\n\nQUERY\nCallee:" + callee + b"\n\n")
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            data = read_all(connection)
        assert data.startswith(b"x" * MUCH)
        replies, _ = parse_all(data[MUCH:])
        assert [reply.get("Cause") for reply in replies] == ["Ib" if half_close else "not UTF-8"]

    def test_server_goes_on(self, port: int) -> None:
        """Peers that vanish, or send what is no message, cost no other peer anything (I24)."""
        for data in (b"", b"QUERY\nCal", b"\xff" * 5000, b"\n" * 100_000):
            connection = connect(port)
            connection.sendall(data)
            connection.close()
        with connect(port) as connection:
            connection.sendall(b"QUERY\nCallee:Ib\n\n")
            connection.shutdown(socket.SHUT_WR)
            replies, _ = parse_all(read_all(connection))
        assert [reply.get("Cause") for reply in replies] == ["Ib"]

    def test_much_to_read_over_tls(self, tmp_path: Path) -> None:
        """Over TLS too all arrives, in order, though the socket takes but a part at a time."""
        pki = Pki(tmp_path)
        files = pki.server()
        context = ssl.create_default_context(cafile=pki.ca)
        with (
            serving(files.certificate, files.key) as port,
            connect(port, receive_buffer=65536) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"QUERY\nCallee:Ia\n\nQUERY\nLOOKUP\n\nQUERY\nCallee:\xff\n\n")
            data = read_all(connection)
        first, _, rest = data.partition(b"x" * MUCH)
        replies, _ = parse_all(first + rest)
        assert [reply.get("Cause") for reply in replies] == ["Ia", "not UTF-8"]
