"""A laboratory of routers and hosts, in network namespaces of its own.

A *holder* process owns the namespaces: what runs in them is entered through it, and all of it goes
when it ends. Nothing in it has a way out to any real network.

The Internet of the laboratory is 11.0.113.0/24: a block that looks public to everybody, as a
documentation block would not. ``server`` is .10 in it and ``outside`` .20; router number n is .n,
and behind it is 192.168.n.0/24, with the router at .1 and its hosts from .2 on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from tests.support.processes import PATIENCE, TETHER, Running

INTERNET: Final = "11.0.113"
SERVER: Final = f"{INTERNET}.10"
OUTSIDE: Final = f"{INTERNET}.20"

#: How a router translates: what it does to the packets that leave.
NOT: Final = ""
CONE: Final = "masquerade"  # keeps the port while it is free, whoever is spoken to
SYMMETRIC: Final = "masquerade fully-random"  # another port for each that is spoken to

_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")

#: Unsolicited packets from outside are dropped. To accept them would make entries that defeat a
#: later way through; to reject them would break two ends that open at the same time.
_RULES: Final = """\
table inet filter {{
    chain miniupnpd {{ }}
    chain prerouting_miniupnpd {{ }}
    chain postrouting_miniupnpd {{ }}
    chain fault {{ }}
    chain input {{
        type filter hook input priority 0; policy accept;
        jump fault
        iifname "lan" accept
        ct state established,related accept
        iifname "wan" drop
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        jump fault
        ct state established,related accept
        iifname "lan" accept
        ct status dnat accept
        jump miniupnpd
    }}
    chain prerouting {{
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
        oifname "wan" {translation}
    }}
}}
"""

_IGD: Final = """\
ext_ifname=wan
listening_ip=lan
http_port=5000
enable_natpmp={natpmp}
enable_upnp={upnp}
secure_mode=yes
system_uptime=yes
notify_interval=60
uuid=00000000-0000-4000-8000-00000000000{number}
allow 1024-65535 192.168.{number}.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Unavailable(Exception):
    """There can be no laboratory here; the text says why."""


@dataclass(frozen=True)
class Router:
    """One router and what is behind it.

    :ivar name: ``A`` makes ``routerA``, and ``hostA1`` and so on behind it
    :ivar translation: what it does to packets that leave; nothing, where it only routes
    :ivar hosts: how many there are behind it
    :ivar upnp: whether it opens ports by UPnP
    :ivar natpmp: whether it opens them by NAT-PMP and PCP
    :ivar behind: the router whose network its own outside is in; the Internet, without
    :ivar udp_timeout: seconds for which it remembers who spoke by UDP; the kernel's own, without
    :ivar claims: the outside address that it says it has, where that is not so
    """

    name: str
    translation: str = CONE
    hosts: int = 1
    upnp: bool = False
    natpmp: bool = False
    behind: str | None = None
    udp_timeout: int | None = None
    claims: str | None = None


def flags() -> list[str]:
    """How namespaces can be had here.

    :raises Unavailable: they can't, or a tool is missing
    """
    for tool, package in (
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("nsenter", "util-linux"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("conntrack", "conntrack"),
        ("miniupnpd", "miniupnpd-nftables"),
    ):
        if shutil.which(tool, path=_PATH) is None:
            raise Unavailable(f"{tool} is not installed (Debian's package {package})")
    trial = (
        "mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip netns add a"
        " && ip link add v0 netns a type veth peer name v1 && ip link add b0 type bridge"
        " && ip netns exec a sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'"
        " && echo 'table inet t { chain c { type nat hook postrouting priority 100;"
        " oifname v0 masquerade; }; }' | ip netns exec a nft -f -"
    )
    reasons = []
    as_root = ["--net", "--mount"]
    as_anybody = ["--user", "--map-root-user", "--net", "--mount"]
    for tried in [as_root, as_anybody] if os.geteuid() == 0 else [as_anybody]:
        done = subprocess.run(
            ["unshare", *tried, "sh", "-c", trial],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return tried
        reasons.append(f"unshare {' '.join(tried)}: {(done.stderr or done.stdout).strip()[-200:]}")
    raise Unavailable("; ".join(reasons))


class Lab:
    """The laboratory, from its building to its end.

    :ivar folder: where its processes run
    """

    def __init__(self, folder: Path, flags: Sequence[str], *routers: Router) -> None:
        self.folder = folder
        self._flags = flags
        self._routers = {router.name: router for router in routers}
        self._numbers = {router.name: index + 1 for index, router in enumerate(routers)}
        self._holder: subprocess.Popen[str] | None = None
        self._running: list[Running] = []
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as ends:  # each, last first, whatever becomes of those before
            if error is not None:  # said when all is over: nobody may be there to read it
                ends.callback(self.tell)
            if self._holder is not None:
                ends.callback(_end_holder, self._holder)
            for daemon in self._daemons:
                ends.callback(_end_daemon, daemon)
            for running in self._running:
                ends.callback(running.kill)

    def tell(self) -> None:
        """Print all that its processes have said."""
        for running in self._running:
            print(running.said)

    # Where things are.

    def address(self, place: str) -> str:
        """The address of ``server``, ``outside``, ``hostA1``, or of ``routerA`` to the outside."""
        if place in ("server", "outside"):
            return SERVER if place == "server" else OUTSIDE
        if place.startswith("router"):
            name = place.removeprefix("router")
            behind = self._routers[name].behind
            number = self._numbers[name]
            if behind is None:
                return f"{INTERNET}.{number}"
            return f"192.168.{self._numbers[behind]}.{100 + number}"
        name = place.removeprefix("host").rstrip("0123456789")
        index = int(place.removeprefix("host").removeprefix(name))
        return f"192.168.{self._numbers[name]}.{1 + index}"

    # What is done there.

    def enter(self, place: str | None = None) -> list[str]:
        """The words before a command that is to run at a place."""
        assert self._holder is not None
        words = ["nsenter", "-t", str(self._holder.pid), "-n", "-m"]
        if "--user" in self._flags:
            words += ["-U", "--preserve-credentials"]
        return [*words, "ip", "netns", "exec", place] if place is not None else words

    def start(self, place: str, *command: str) -> Running:
        """Start a program at a place; it ends with the laboratory."""
        here = ("env", "-C", str(self.folder))  # to enter is to leave the working directory
        running = Running([*self.enter(place), *here, *command], self.folder)
        self._running.append(running)
        return running

    def run(
        self, place: str | None, *command: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command at a place to its end."""
        done = subprocess.run(
            [*self.enter(place), *command],
            env=_environment(),
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{place}: {command}: {done.stdout}{done.stderr}"
        return done

    # Faults.

    def forget_mappings(self, router: str) -> None:
        """What a router's restart does to what it remembers."""
        self.run(f"router{router}", "conntrack", "-F", check=False)

    def lose(self, router: str, percent: int) -> None:
        """Let a router lose so many of a hundred packets, whichever way they go."""
        rule = f"add rule inet filter fault numgen random mod 100 < {percent} drop"
        self.run(f"router{router}", "nft", rule)

    def block(self, router: str, protocol: str) -> None:
        """Let a router pass on nothing of a protocol, such as ``udp``."""
        rule = f"add rule inet filter fault meta l4proto {protocol} drop"
        self.run(f"router{router}", "nft", rule)

    def cut(self, router: str) -> None:
        """Let nothing through."""
        self.run(f"router{router}", "nft", "add rule inet filter fault drop")

    def heal(self, router: str) -> None:
        """Let all through again."""
        self.run(f"router{router}", "nft", "flush chain inet filter fault")

    def renumber(self, router: str, address: str) -> None:
        """Give a router another address on the Internet; what went through the old one is dead."""
        old = self.address(f"router{router}")
        commands = f"addr del {old}/24 dev wan\naddr add {address}/24 dev wan\n"
        self.run(f"router{router}", "ip", "-batch", "-", given=commands)
        self.forget_mappings(router)

    def open_port(self, router: str, protocol: str, port: int, place: str) -> None:
        """Let a router pass what comes to a port of its on to a host: a static entry."""
        to = f"{self.address(place)}:{port}"
        rule = (
            f"add rule inet filter prerouting iifname wan {protocol} dport {port} dnat ip to {to}"
        )
        self.run(f"router{router}", "nft", rule)

    def only_route(self) -> None:
        """Let each router pass all on, and know where the others' networks are."""
        for name, number in self._numbers.items():
            others = [one for one in self._numbers.values() if one != number]
            self.run(f"router{name}", "nft", "insert rule inet filter forward accept")
            routes = (f"route add 192.168.{one}.0/24 via {INTERNET}.{one}" for one in others)
            self._ip(f"router{name}", *routes)

    def openings(self, router: str) -> str:
        """The ports that a router has been made to open."""
        return self.run(
            f"router{router}", "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"
        ).stdout

    # Building it.

    def _build(self) -> None:
        script = (
            "mount -t tmpfs tmpfs /run && mkdir -p /run/netns /run/lock && echo ready && exec cat"
        )
        self._holder = subprocess.Popen(
            [*TETHER, "unshare", *self._flags, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise Unavailable("the holder of the namespaces did not start")
        places = ["inet", "server", "outside"]
        for router in self._routers.values():
            places += [f"router{router.name}", *self._hosts(router)]
        self._ip(None, *(f"netns add {place}" for place in places))
        self._ip("inet", "link add br0 type bridge", "link set br0 up")
        for place in ("server", "outside"):
            self._plug(place, "wan", "inet", "br0", f"{self.address(place)}/24")
        for router in self._routers.values():
            self._build_lan(router)
        for router in self._routers.values():
            self._build_router(router)

    def _hosts(self, router: Router) -> list[str]:
        return [f"host{router.name}{index + 1}" for index in range(router.hosts)]

    def _build_lan(self, router: Router) -> None:
        place = f"router{router.name}"
        lan = f"192.168.{self._numbers[router.name]}"
        self._ip(
            place, "link add lan type bridge", "link set lan up", f"addr add {lan}.1/24 dev lan"
        )
        for host in self._hosts(router):
            self._plug(host, "eth0", place, "lan", f"{self.address(host)}/24")
            self._ip(host, f"route add default via {lan}.1")

    def _build_router(self, router: Router) -> None:
        place = f"router{router.name}"
        network, bridge = (
            ("inet", "br0") if router.behind is None else (f"router{router.behind}", "lan")
        )
        self._plug(place, "wan", network, bridge, f"{self.address(place)}/24")
        if router.behind is not None:
            self._ip(place, f"route add default via 192.168.{self._numbers[router.behind]}.1")
        settings = {"net/ipv4/ip_forward": 1}
        if router.udp_timeout is not None:
            settings["net/netfilter/nf_conntrack_udp_timeout"] = router.udp_timeout
            settings["net/netfilter/nf_conntrack_udp_timeout_stream"] = router.udp_timeout
        self.run(place, "nft", "-f", "-", given=_RULES.format(translation=router.translation))
        lines = "; ".join(f"echo {value} > /proc/sys/{name}" for name, value in settings.items())
        self.run(place, "sh", "-ec", lines)
        if router.upnp or router.natpmp:
            self._start_igd(router)

    def _start_igd(self, router: Router) -> None:
        place = f"router{router.name}"
        path = f"/run/igd{router.name}"
        written = _IGD.format(
            number=self._numbers[router.name],
            natpmp="yes" if router.natpmp else "no",
            upnp="yes" if router.upnp else "no",
        )
        if router.claims is not None:
            written += f"ext_ip={router.claims}\n"
        self.run(place, "sh", "-c", f"cat > {path}.conf", given=written)
        daemon = subprocess.Popen(
            [*TETHER, *self.enter(place), "miniupnpd", *f"-d -f {path}.conf -P {path}.pid".split()],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._daemons.append(daemon)
        deadline = time.monotonic() + PATIENCE
        listening = (
            ("ss", "-Hltn", "sport = :5000") if router.upnp else ("ss", "-Hlun", "sport = :5351")
        )
        while not self.run(place, *listening).stdout.strip():
            assert daemon.poll() is None, "miniupnpd has ended"
            assert time.monotonic() < deadline, "miniupnpd does not listen"
            time.sleep(0.02)

    def _plug(self, place: str, name: str, network: str, bridge: str, address: str) -> None:
        """Connect a place to a network's bridge."""
        self._ip(None, f"link add {name} netns {place} type veth peer name {place} netns {network}")
        self._ip(network, f"link set {place} master {bridge}", f"link set {place} up")
        self._ip(place, f"addr add {address} dev {name}", f"link set {name} up", "link set lo up")

    def _ip(self, place: str | None, *commands: str) -> None:
        words = ["ip", *(["-n", place] if place is not None else []), "-batch", "-"]
        self.run(None, *words, given="".join(f"{command}\n" for command in commands))


def _end_daemon(daemon: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    daemon.wait()


def _end_holder(holder: subprocess.Popen[str]) -> None:
    """The namespaces go with it."""
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.close()
    holder.wait(PATIENCE)
    holder.stdout.close()


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": _PATH}


#: A program that sends a datagram and says what came back: ``ask HOST PORT TEXT``.
ASK: Final = """\
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))
print(s.recvfrom(2000)[0].decode(), flush=True)
"""
#: A program that answers each datagram with where it came from.
SEE: Final = """\
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 1200))
print("ready", flush=True)
while True:
    data, source = s.recvfrom(2000)
    s.sendto(("%s:%d" % source).encode(), source)
"""
PYTHON: Final = (sys.executable, "-c")
#: A program that writes each frame of an interface, in hexadecimal: ``sniff INTERFACE``.
SNIFF: Final = """\
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 0))
print("ready", flush=True)
while True:
    print(s.recv(65536).hex(), flush=True)
"""
#: A program that sends a datagram as if it came from elsewhere: ``spoof FROM PORT TO PORT HEX``.
SPOOF: Final = """\
import socket, struct, sys
source, sport, to, port, data = sys.argv[1:]
data = bytes.fromhex(data)
udp = struct.pack("!HHHH", int(sport), int(port), 8 + len(data), 0) + data
ends = socket.inet_aton(source) + socket.inet_aton(to)
ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
s.sendto(ip + udp, (to, 0))
"""


class Datagram(NamedTuple):
    """A datagram that was seen.

    :ivar source: the address and port that it came from
    :ivar to: those that it went to
    """

    source: tuple[str, int]
    to: tuple[str, int]
    data: bytes


def datagrams(lines: Sequence[str]) -> list[Datagram]:
    """Those among the frames that ``SNIFF`` has written; none may be in fragments."""
    found = []
    for line in list(lines)[1:]:
        frame = bytes.fromhex(line)
        if frame[12:14] == b"\x08\x00" and frame[23] == 17:
            udp = frame[14 + 4 * (frame[14] & 15) :]
            ports = [int.from_bytes(udp[at : at + 2], "big") for at in (0, 2, 4)]
            hosts = [".".join(map(str, frame[at : at + 4])) for at in (26, 30)]
            found.append(Datagram((hosts[0], ports[0]), (hosts[1], ports[1]), udp[8 : ports[2]]))
    return found
