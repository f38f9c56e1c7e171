"""Addresses by domain name and by provider, from a real DNS server; and IPv6 from end to end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Final

import pytest

from broker.resolver.dns import label
from tests.support.processes import (
    BROKER,
    PATIENCE,
    TWISTD,
    Processes,
    Running,
    Typing,
    environment,
    listening,
)

pytestmark = pytest.mark.integration

#: A DNS server whose records are what its standard input last said of a name. The modes are of
#: the server as a whole: "ok", "silent", "cut" (UDP answers are cut off, so TCP must be used).
SERVER: Final = """
import sys
from twisted.internet import reactor, stdio
from twisted.internet.defer import Deferred, fail, succeed
from twisted.names import dns, error
from twisted.names.server import DNSServerFactory
from twisted.protocols.basic import LineReceiver

records, mode, asked = {}, ["ok"], set()

class Zone:
    def query(self, query, timeout=None):
        name, kind = query.name.name.decode().lower(), query.type
        print("asked", name, dns.QUERY_TYPES.get(kind, kind), flush=True)
        if mode[0] == "silent":
            return Deferred()
        if name not in records:
            return fail(error.DomainError(name))
        answers, at = [], name
        for _ in range(3):
            for text in records.get(at, ()):
                made = {"A": dns.Record_A, "AAAA": dns.Record_AAAA, "CNAME": dns.Record_CNAME}
                typ, ttl, value = text.split(",")
                payload = made[typ](value, int(ttl))
                if payload.TYPE in (kind, dns.CNAME):
                    answers.append(dns.RRHeader(at, payload.TYPE, dns.IN, int(ttl), payload))
                if typ == "CNAME":
                    at = value
        return succeed((answers, [], []))

class Server(DNSServerFactory):
    def sendReply(self, protocol, message, address):
        if mode[0] == "cut" and address is not None:
            message.trunc, message.answers = 1, []
        print("answered over", "TCP" if address is None else "UDP", flush=True)
        super().sendReply(protocol, message, address)

class Orders(LineReceiver):
    delimiter = b"\\n"
    def lineReceived(self, line):
        word, *rest = line.decode().split()
        if word == "mode":
            mode[0] = rest[0]
        else:
            records[word] = rest
            if rest == ["gone"]:
                del records[word]
        print("done", flush=True)

server = Server(clients=[Zone()])
server.noisy = False
port = reactor.listenTCP(0, server, interface=sys.argv[1])
reactor.listenUDP(port.getHost().port, dns.DNSDatagramProtocol(server), interface=sys.argv[1])
stdio.StandardIO(Orders())
print("port", port.getHost().port, flush=True)
reactor.run()
"""


class Dns:
    """The server's process."""

    def __init__(self, processes: Processes, interface: str = "127.0.0.1") -> None:
        self._running = processes.start(TWISTD[0], "-c", SERVER, interface)
        self.port = int(self._running.wait_for(r"^port (\d+)$")[1])

    def order(self, *words: str) -> None:
        """Set the records of a name (``TYPE,TTL,VALUE`` each; or ``gone``), or the mode."""
        stdin = self._running.process.stdin
        assert stdin is not None
        stdin.write(" ".join(words) + "\n")
        stdin.flush()
        self._running.wait_for("^done$")

    def waits_for(self, pattern: str) -> None:
        """Wait until it says such a line."""
        self._running.wait_for(pattern)

    def said(self, line: str) -> int:
        """How often it has said a line."""
        return self._running.out.count(line)


@pytest.fixture
def dns(processes: Processes) -> Dns:
    """A DNS server of our own."""
    return Dns(processes)


def mediator(processes: Processes, dns: Dns, *arguments: str) -> tuple[Running, int]:
    """A mediator that asks it."""
    given = ("--auth=none", "--no-status", f"--dns-server=127.0.0.1:{dns.port}", *arguments)
    return processes.mediator(*given, "--store=memory:", "--admin=none")


class Talk:
    """Ib and Ia at a mediator."""

    def __init__(self, port: int) -> None:
        self.callee, self.caller = Typing(port), Typing(port)

    def register(self, address: str) -> str:
        """Have Ib register an address; give the answer."""
        self.callee.type(f"REGISTER\nIdentifier:Ib\nAddress:{address}\n\n")
        return self._of(self.callee)

    def permit(self) -> None:
        """Have Ib accept Ia."""
        self.callee.type("REGISTER\nIdentifier:Ib\nAccept:Add Ia\n\n")
        assert "Completed" in self.callee.read()

    def call(self) -> str:
        """Have Ia call Ib; give the address that it is told, or the refusal."""
        self.caller.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        said = self.caller.read()
        if "Request Accepted." not in said:
            return said.split("\n")[1]
        said += self.caller.read() if "Callee Address:" not in said else ""
        return said.partition("Callee Address:")[2].partition("\n")[0]

    def _of(self, typing: Typing) -> str:
        """The next answer, past what is announced."""
        while True:
            for said in typing.read().split("\n\n"):
                if "Registration" in said or "Unavailable" in said:
                    return said

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.callee.__exit__()
        self.caller.__exit__()


@pytest.fixture
def talk(processes: Processes, dns: Dns) -> Iterator[Talk]:
    """Both, at a mediator that asks it; a name's answer holds for five seconds at the least."""
    _, port = mediator(processes, dns)
    with Talk(port) as both:
        both.permit()
        yield both


class DomainNameTests:
    """Names that a real server resolves (A17). Each case has a name of its own: answers hold."""

    def test_records(self, dns: Dns, talk: Talk) -> None:
        """A, AAAA alone, both, by way of an alias: the address is told, of the right family."""
        dns.order("a.lab.test", "A,60,127.0.0.2")
        dns.order("six.lab.test", "AAAA,60,::1")
        dns.order("both.lab.test", "AAAA,60,::1", "A,60,127.0.0.3")
        dns.order("alias.lab.test", "CNAME,60,a.lab.test")
        for name, host in (
            ("a", "127.0.0.2"),
            ("six", "::1"),
            ("both", "127.0.0.3"),
            ("alias", "127.0.0.2"),
        ):
            assert talk.register(f"{name}.lab.test") == "NOTIFY\nRegistration Completed."
            assert talk.call() == host

    def test_none(self, dns: Dns, talk: Talk) -> None:
        """An unknown name, and one with other records only, are refused at once (I5)."""
        dns.order("empty.lab.test")
        for name in ("unknown.lab.test", "empty.lab.test"):
            assert "Cause:the domain name has no address" in talk.register(name)
        assert talk.call() == "Callee not Found."

    @pytest.mark.parametrize(
        "record",
        [
            "A,0,10.0.0.1",
            "A,0,169.254.169.254",
            "A,0,202.224.186.82",
            "A,0,0.0.0.0",
            "AAAA,0,::ffff:10.0.0.1",
            "AAAA,0,fd00::1",
            "AAAA,0,64:ff9b::7f00:1",
        ],
    )
    def test_other_kinds(self, dns: Dns, talk: Talk, record: str) -> None:
        """A name leads to nothing of another kind than its registration came from (I12)."""
        dns.order("x.lab.test", record)
        assert "Cause:the domain name has no address" in talk.register("x.lab.test")
        assert talk.call() == "Callee not Found."

    def test_dynamic_and_rebound(self, dns: Dns, talk: Talk) -> None:
        """A record that changes is followed once it has run out, and judged anew (I12)."""
        dns.order("dyn.lab.test", "A,0,127.0.0.2")
        assert "Completed" in talk.register("dyn.lab.test")
        dns.order("dyn.lab.test", "A,0,127.0.0.3")
        assert talk.call() == "127.0.0.2"
        wait(5.1)
        assert talk.call() == "127.0.0.3"
        dns.order("dyn.lab.test", "A,0,169.254.169.254", "AAAA,0,::ffff:10.0.0.1")
        wait(5.1)
        assert talk.call() == "Callee not Found."

    def test_cut_off(self, dns: Dns, talk: Talk) -> None:
        """An answer that is cut off is asked for over TCP."""
        dns.order("mode", "cut")
        dns.order("long.lab.test", "A,60,127.0.0.4")
        assert "Completed" in talk.register("long.lab.test")
        assert talk.call() == "127.0.0.4"
        dns.waits_for("^answered over TCP$")

    def test_silent(self, dns: Dns, talk: Talk) -> None:
        """A server that never answers costs two seconds, and holds up nobody else (I24)."""
        dns.order("mode", "silent")
        talk.callee.type("REGISTER\nIdentifier:Ib\nAddress:never.lab.test\n\n")
        assert talk.call() == "Callee not Found."
        answer = talk.callee.read()
        assert "Service Unavailable." in answer
        assert "Cause:DNS does not answer" in answer
        assert dns.said("asked never.lab.test A") >= 2


class ProviderTests:
    """Addresses that the provider knows (A16)."""

    def test_inside(self, processes: Processes, dns: Dns) -> None:
        """It is asked by the identifier's label; what it says must be allowed here."""
        zone = ("--provider-zone=sub.lab.test", "--allow-address=127.0.0.0/28")
        _, port = mediator(processes, dns, *zone)
        name = f"{label('Ib')}.sub.lab.test"
        with Talk(port) as talk:
            talk.permit()
            dns.order(name, "A,0,127.0.0.99")
            assert "Cause:the provider has no address" in talk.register("Provider")
            wait(5.1)
            dns.order(name, "A,0,127.0.0.7")
            assert "Completed" in talk.register("Provider")
            assert talk.call() == "127.0.0.7"
            dns.order(name, "A,0,127.0.0.8")
            wait(5.1)
            assert talk.call() == "127.0.0.8"

    def test_apart(self, processes: Processes, dns: Dns) -> None:
        """It is the resolver that asks, where it is another process (A15)."""
        _, resolver = processes.resolver(
            f"--dns-server=127.0.0.1:{dns.port}",
            "--provider-zone=sub.lab.test",
            "--allow-address=127.0.0.0/8",
        )
        _, port = mediator(processes, dns, f"--resolver=tcp:127.0.0.1:{resolver}")
        dns.order(f"{label('Ib')}.sub.lab.test", "A,60,127.0.0.7")
        dns.order("a.lab.test", "A,60,127.0.0.2")
        with Talk(port) as talk:
            talk.permit()
            assert "Completed" in talk.register("Provider")
            assert talk.call() == "127.0.0.7"
            assert "Completed" in talk.register("a.lab.test")
            assert talk.call() == "127.0.0.2"

    def test_none(self, talk: Talk) -> None:
        """Without a zone the cause says so."""
        said = talk.register("Provider")
        assert said.endswith("Cause:Provider is not offered by this server")


def wait(seconds: float) -> None:
    """Let an answer run out."""
    time.sleep(seconds)


def has_ipv6() -> bool:
    """Whether ::1 is there."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
class Ipv6Tests:
    """All of it over IPv6."""

    def test_call(self, processes: Processes) -> None:
        """From register to bytes over ::1, the addresses in brackets on the command line."""
        running = processes.twistd(
            "broker",
            "--auth=none",
            "--listen=tcp:0:interface=[::1]",
            "--store=memory:",
            "--admin=none",
        )
        port = int(running.wait_for(r"Listening on \[::1\]:(\d+)$")[1])
        (processes.folder / "in").mkdir()
        callee = processes.twistd(
            "broker-terminal",
            "--identifier=Ib",
            f"--mediator=tcp:[::1]:{port}",
            "--listen=tcp:0:interface=[::1]",
            "--accept=Ia",
            "--receive=in",
        )
        callee.wait_for(r"Listening on \[::1\]:\d+$")
        callee.wait_for(r"is registered$")
        said = b"over IPv6\n" * 1000
        done = subprocess.run(
            [*BROKER, "call", "--as", "Ia", "Ib", f"--mediator=tcp:[::1]:{port}"],
            cwd=processes.folder,
            env=environment(),
            input=said,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (kept,) = (processes.folder / "in").iterdir()
        assert kept.read_bytes() == said
        for one in (callee, running):
            assert one.end() == 0
            assert "Traceback" not in one.said

    @pytest.mark.parametrize("mode", ["ok", "cut"])
    def test_dns(self, processes: Processes, mode: str) -> None:
        """A DNS server is asked over IPv6 too, in datagrams and over TCP."""
        dns = Dns(processes, "::1")
        dns.order("mode", mode)
        dns.order("six.lab.test", "AAAA,60,::1")
        _, port = processes.mediator(
            "--auth=none", f"--dns-server=[::1]:{dns.port}", "--store=memory:", "--admin=none"
        )
        with Talk(port) as talk:
            assert "Completed" in talk.register("six.lab.test")

    def test_all_of_ipv6(self, processes: Processes) -> None:
        """Who comes from IPv4 over [::] comes from an IPv4 address."""
        running = processes.twistd(
            "broker",
            "--auth=none",
            "--listen=tcp:0:interface=[::]",
            "--allow-clear-text",
            "--store=memory:",
            "--admin=none",
        )
        with Typing(listening(running)) as typing:
            typing.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
            assert "Completed" in typing.read()
