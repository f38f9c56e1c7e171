"""Addresses by domain name and by provider, from a real DNS server; and IPv6 from end to end."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from broker.resolver.dns import label
from tests.integration.site import Site, has_no_traceback
from tests.support.processes import TWISTD, Processes, Typing, listening

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
    """The server's process.

    :ivar running: what it says
    :ivar port: where it listens
    """

    def __init__(self, processes: Processes, interface: str = "127.0.0.1") -> None:
        self.running = processes.start(TWISTD[0], "-c", SERVER, interface)
        self.port = int(self.running.wait_for(r"^port (\d+)$")[1])
        self._numbers = itertools.count()

    def order(self, *words: str) -> None:
        """Set the records of a name (``TYPE,TTL,VALUE`` each; or ``gone``), or the mode."""
        self.running.type(" ".join(words) + "\n")
        self.running.wait_for("^done$")

    def number(self) -> int:
        """One that no name has had: answers are kept for a while."""
        return next(self._numbers)


@pytest.fixture(scope="class")
def dns(shared: Site) -> Dns:
    """A DNS server of our own."""
    return Dns(shared)


#: A mediator that asks no status and keeps nothing.
PLAIN: Final = ("--no-status", "--store=memory:", "--admin=none")


class Talk:
    """Ib and Ia at a mediator."""

    def __init__(self, port: int) -> None:
        self.callee, self.caller = Typing(port), Typing(port)

    def register(self, address: str) -> str:
        """Have Ib register an address; give the answer."""
        self.callee.type(f"REGISTER\nIdentifier:Ib\nAddress:{address}\n\n")
        return self._of(self.callee)

    def withdraw(self) -> None:
        """Have Ib withdraw its address, which a registration that fails would leave."""
        self.callee.type("REGISTER\nIdentifier:Ib\nExpires:0\n\n")
        assert "Completed" in self._of(self.callee)

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


@pytest.fixture(scope="class")
def talk(shared: Site, dns: Dns) -> Iterator[Talk]:
    """Both, at a mediator that asks it; a name's answer holds for at least five seconds."""
    shared.serve(*PLAIN, f"--dns-server=127.0.0.1:{dns.port}")
    with Talk(shared.port) as both:
        both.permit()
        yield both


class DomainNameTests:
    """Names that a real server resolves (A17). Each case has a name of its own: answers hold."""

    def test_when_a_name_has_records_then_the_address_is_told(self, dns: Dns, talk: Talk) -> None:
        """A, AAAA alone, both, by way of an alias: of the right family. An answer that is cut off
        is asked for over TCP.
        """
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
        dns.order("mode", "cut")
        dns.order("long.lab.test", "A,60,127.0.0.4")
        assert "Completed" in talk.register("long.lab.test")
        assert talk.call() == "127.0.0.4"
        dns.running.wait_for("^answered over TCP$")
        dns.order("mode", "ok")

    @pytest.mark.parametrize(
        "records",
        [
            None,  # an unknown name
            (),  # one with other records only
            # Of another kind than the registration came from (I12):
            ("A,0,10.0.0.1",),
            ("A,0,169.254.169.254",),
            ("A,0,202.224.186.82",),
            ("A,0,0.0.0.0",),
            ("AAAA,0,::ffff:10.0.0.1",),
            ("AAAA,0,fd00::1",),
            ("AAAA,0,64:ff9b::7f00:1",),
        ],
    )
    def test_when_a_name_has_no_address_then_it_is_refused(
        self, dns: Dns, talk: Talk, records: tuple[str, ...] | None
    ) -> None:
        """At once (I5)."""
        talk.withdraw()
        name = f"no-{dns.number()}.lab.test"
        if records is not None:
            dns.order(name, *records)
        assert "Cause:the domain name has no address" in talk.register(name)
        assert talk.call() == "Callee not Found."

    def test_when_a_record_changes_then_it_is_followed(self, dns: Dns, talk: Talk) -> None:
        """Once it has run out; and it is judged again (I12)."""
        dns.order("dyn.lab.test", "A,0,127.0.0.2")
        assert "Completed" in talk.register("dyn.lab.test")
        dns.order("dyn.lab.test", "A,0,127.0.0.3")
        assert talk.call() == "127.0.0.2"
        wait(5.1)
        assert talk.call() == "127.0.0.3"
        dns.order("dyn.lab.test", "A,0,169.254.169.254", "AAAA,0,::ffff:10.0.0.1")
        wait(5.1)
        assert talk.call() == "Callee not Found."

    def test_when_the_server_is_silent_then_only_who_asks_waits(self, dns: Dns, talk: Talk) -> None:
        """It costs two seconds, and holds up no other terminal (I24)."""
        talk.withdraw()
        dns.order("mode", "silent")
        talk.callee.type("REGISTER\nIdentifier:Ib\nAddress:never.lab.test\n\n")
        assert talk.call() == "Callee not Found."
        answer = talk.callee.read()
        assert "Service Unavailable." in answer
        assert "Cause:DNS does not answer" in answer
        assert dns.running.out.count("asked never.lab.test A") >= 2
        dns.order("mode", "ok")

    def test_when_there_is_no_zone_then_the_provider_is_not_asked(self, talk: Talk) -> None:
        """The cause says so (A16)."""
        said = talk.register("Provider")
        assert said.endswith("Cause:Provider is not offered by this server")


class ProviderTests:
    """Addresses that the provider knows (A16)."""

    def test_inside(self, site: Site, dns: Dns) -> None:
        """It is asked by the identifier's label; what it says must be allowed here."""
        site.serve(
            *(*PLAIN, f"--dns-server=127.0.0.1:{dns.port}"),
            *("--provider-zone=sub.lab.test", "--allow-address=127.0.0.0/28"),
        )
        name = f"{label('Ib')}.sub.lab.test"
        with Talk(site.port) as talk:
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

    def test_apart(self, site: Site, dns: Dns) -> None:
        """It is the resolver that asks, where it is another process (A15)."""
        _, resolver = site.resolver(
            *(f"--dns-server=127.0.0.1:{dns.port}", "--provider-zone=sub.lab.test"),
            "--allow-address=127.0.0.0/8",
        )
        server = f"--dns-server=127.0.0.1:{dns.port}"
        site.serve(*PLAIN, server, f"--resolver=tcp:127.0.0.1:{resolver}")
        dns.order(f"{label('Ib')}.sub.lab.test", "A,60,127.0.0.7")
        dns.order("a.lab.test", "A,60,127.0.0.2")
        with Talk(site.port) as talk:
            talk.permit()
            assert "Completed" in talk.register("Provider")
            assert talk.call() == "127.0.0.7"
            assert "Completed" in talk.register("a.lab.test")
            assert talk.call() == "127.0.0.2"


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

    def test_call(self, site: Site) -> None:
        """From register to bytes over ::1, the addresses in brackets on the command line. A DNS
        server is asked over IPv6 too, in datagrams and over TCP.
        """
        dns = Dns(site, "::1")
        here = "--listen=tcp:0:interface=[::1]"
        running = site.twistd(
            *("broker", "--auth=none", here, f"--dns-server=[::1]:{dns.port}", *PLAIN)
        )
        port = int(running.wait_for(r"Listening on \[::1\]:(\d+)$")[1])
        (site.folder / "in").mkdir()
        server = f"tcp:[::1]:{port}"
        callee = site.terminal("Ib", server, here, "--accept=Ia", "--receive=in")
        said = b"over IPv6\n" * 1000
        done = site.broker(server, "call", "--as=Ia", "Ib", given=said)
        assert done.status == 0, done.err
        assert site.received() == [said]
        for mode in ("ok", "cut"):
            dns.order("mode", mode)
            dns.order(f"{mode}.lab.test", "AAAA,60,::1")
            with Typing(port, "::1") as typing:
                typing.type(f"REGISTER\nIdentifier:Ic\nAddress:{mode}.lab.test\n\n")
                assert "Completed" in typing.read()
        for one in (callee, running):
            assert one.end() == 0
        assert has_no_traceback(callee, running)

    def test_all_of_ipv6(self, site: Site) -> None:
        """Who comes from IPv4 over [::] comes from an IPv4 address."""
        running = site.twistd(
            *("broker", "--auth=none", "--listen=tcp:0:interface=[::]", "--allow-clear-text"),
            *PLAIN,
        )
        with Typing(listening(running)) as typing:
            typing.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
            assert "Completed" in typing.read()
