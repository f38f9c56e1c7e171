"""Settings: what each type accepts, and how command line, file and defaults are combined."""

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import pytest

from broker.service.settings import values as config
from broker.service.settings.setting import Setting, Settings, combine
from broker.service.settings.values import Interface, Listener, Server, ValueType

SETTINGS = (
    Setting("listen", config.LISTENER, ["tcp:1:interface=127.0.0.1"], "Where.", repeatable=True),
    Setting("wait", config.SECONDS, 5, "How long."),
    Setting("size", config.SIZE, "1K", "How much."),
    Setting("no-status", config.FLAG, False, "Whether not."),
    Setting("causes", config.choice("distinct", "uniform"), "distinct", "Which."),
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Write a configuration file and give its path."""

    def written(text: str) -> str:
        path = tmp_path / "broker.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


def listener(settings: Settings) -> list[str]:
    """The texts of the listeners."""
    return [one.text for one in settings.values["listen"]]


DEFAULTS: Final = {
    "listen": [Listener("tcp:1:interface=127.0.0.1", Interface(1, "127.0.0.1"))],
    "wait": 5.0,
    "size": 1024,
    "no-status": False,
    "causes": "distinct",
}
#: What the errors of a file are, without its name.
FILE_ERRORS: Final = {
    "listen = [1201]": ["listen: must be a list of which each is a text"],
    "[mediator]\nwait = 3": ["mediator: there is no such setting"],
    'listen = "tcp:2"\nwait = "3"\nsize = true\nno-status = 1\ncauses = "some"\ncolour = "red"': [
        "listen: must be a list",
        "wait: must be a number",
        "size: must be a number, or a text such as 1G",
        "no-status: must be true or false",
        "causes: 'some' is not offered: only distinct or uniform",
        "colour: there is no such setting",
    ],
}


class CombineTests:
    """The command line wins over the file, the file over the defaults."""

    def test_values(self, write: Callable[[str], str]) -> None:
        """Each setting has its default, as a value; what the file sets replaces it, a list too;
        an option replaces both, and of several the last counts.
        """
        settings = combine(SETTINGS, {})
        assert (settings.errors, settings.origins, settings.values) == ([], {}, DEFAULTS)
        path = write('listen = ["tcp:2", "tcp:3"]\nwait = 2.5\nsize = 7\nno-status = true\n')
        settings = combine(SETTINGS, {}, path)
        ours = {"wait": 2.5, "size": 7, "no-status": True, "causes": "distinct"}
        assert (settings.errors, listener(settings)) == ([], ["tcp:2", "tcp:3"])
        assert settings.values == ours | {"listen": settings.values["listen"]}
        assert set(settings.origins) == {"listen", "wait", "size", "no-status"}
        given: dict[str, list[str] | bool] = {"listen": ["tcp:7", "tcp:8"], "wait": ["3", "4"]}
        settings = combine(SETTINGS, given | {"no-status": False}, path)
        assert (settings.errors, listener(settings)) == ([], ["tcp:7", "tcp:8"])
        assert (settings.values["wait"], settings.values["no-status"]) == (4.0, False)
        assert settings.where("wait") == "--wait"

    @pytest.mark.parametrize("content", FILE_ERRORS)
    def test_all_errors_at_once(self, content: str, write: Callable[[str], str]) -> None:
        """Every error of the file and the command line is found, each with its place."""
        path = write(content)
        given = {"wait": ["soon"], "listen": ["udp:1", "tcp:2", "tcp:x"]}
        whole = [f"{path}: {error}" for error in FILE_ERRORS[content]]
        assert sorted(combine(SETTINGS, {}, path).errors) == sorted(whole)
        assert sorted(combine(SETTINGS, given, path).errors) == sorted(
            [
                *whole,
                "--wait: 'soon' is no number",
                "--listen: 'udp:1' is no endpoint that is offered here: tcp:PORT",
                "--listen: 'x' is no port: a number from 0 to 65535",
            ]
        )

    @pytest.mark.parametrize("content", [b"wait = \n", b"wait = 1\nwait = 2\n", b"\xff\n"])
    def test_no_toml(self, tmp_path: Path, content: bytes) -> None:
        """A file that can't be parsed is one error, which names it."""
        path = tmp_path / "broken.toml"
        path.write_bytes(content)
        (error,) = combine(SETTINGS, {}, str(path)).errors
        assert error.startswith(f"{path}: not TOML: ")
        assert "\n" not in error

    def test_unreadable_file(self, tmp_path: Path) -> None:
        """A file that is missing, or a folder, is one error, which names it."""
        missing = str(tmp_path / "no.toml")
        assert combine(SETTINGS, {}, missing).errors == [f"{missing}: No such file or directory"]
        assert combine(SETTINGS, {}, str(tmp_path)).errors == [f"{tmp_path}: Is a directory"]


LISTENER: Final = r"tcp:0:interface=\:\:1:backlog=9"
#: Texts that a type accepts, and their values.
ACCEPTED: Final[dict[config.ValueType, dict[str, Any]]] = {
    config.LISTENER: {
        "tcp:1201": Listener("tcp:1201", Interface(1201, "0.0.0.0")),
        LISTENER: Listener(LISTENER, Interface(0, "::1")),
    },
    config.SERVER: {
        "tcp:127.0.0.1:1201": Server("tcp:127.0.0.1:1201", "127.0.0.1"),
        "tcp:host=a.example:port=1": Server("tcp:host=a.example:port=1", "a.example"),
        "tls:a.example:1": Server("tls:a.example:1", "a.example", True),
        "tcp:[::1]:1201": Server("tcp:[::1]:1201", "::1"),
        r"tcp:\:\:1:1201": Server(r"tcp:\:\:1:1201", "::1"),
        "tcp:host=[::1]:port=1201": Server("tcp:host=[::1]:port=1201", "::1"),
        "tls:[2001:db8::1]:1": Server("tls:[2001:db8::1]:1", "2001:db8::1", True),
    },
    config.RESOLVER: {"inside": None},
    config.PIN: {"": None, ":".join(["AB"] * 32): "ab" * 32},
    config.TOKEN: {"east": "east"},
    config.UDP: {
        "1200:127.0.0.1": Interface(1200, "127.0.0.1"),
        "1200": Interface(1200, "0.0.0.0"),
        "1200:[::1]": Interface(1200, "::1"),
    },
    config.IDENTIFIER: {"": None, "山田太郎 大阪府": "山田太郎 大阪府"},
    config.ENTRY: {"@family": "@family"},
    config.ADDRESS: {"": None, "2001:DB8::1": "2001:db8::1"},
    config.NETWORK: {"192.168.0.0/16": ip_network("192.168.0.0/16")},
    config.PATH: {"": None, "/a/../b": "/b"},
    config.SECONDS: {"0.5": 0.5},
    config.PERCENT: {"0": None, "80": 80.0},
    config.SIZE: {"10": 10, "2M": 2 * 1024 * 1024},
    config.DNS_SERVER: {
        "192.0.2.53": ("192.0.2.53", 53),
        "192.0.2.53:5353": ("192.0.2.53", 5353),
        "2001:DB8:0::53": ("2001:db8::53", 53),
        "[::1]": ("::1", 53),
        "[::1]:5353": ("::1", 5353),
    },
    config.ZONE: {"": None, "Subscribers.Example.JP.": "subscribers.example.jp"},
}
#: Texts that a type refuses, separated by bars.
REFUSED: Final[dict[config.ValueType, str]] = {
    config.LISTENER: "|1201|tcp|tcp:|tcp:65536|tcp:١٢٠١|tcp:1:interface=here|tcp:1:127.0.0.1"
    "|tcp:1:port=2|tcp:1:colour=red|tcp:1:backlog=many|tls:1202|unix:/tmp/socket"
    "|tcp:1201:interface=::1|tcp:1201:interface=[host]",
    config.SERVER: "tcp:127.0.0.1|tcp::1201|tcp:a:0|tcp:a b:1|tcp:a:1:timeout=soon|ssl:a:1"
    "|tcp:::1:1201|tcp:[::1:1201|tcp:[::g]:1201|tcp:[127.0.0.1]:1201|tcp:[]:1201|tcp:[::1]"
    "|tcp:[::1]1201",
    config.RESOLVER: "outside",
    config.PIN: "abc",
    config.TOKEN: "a b",
    config.UDP: "|x|1:|1:here",
    config.IDENTIFIER: "a,b",
    config.ENTRY: "@",
    config.ADDRESS: "example.jp",
    config.NETWORK: "192.168.0.1/16",
    config.SECONDS: "0|-1|nan|inf|1_0|٣",
    config.PERCENT: "101",
    config.SIZE: "|K|1KM|-1|1.5G",
    config.DNS_SERVER: "|dns.example.jp|192.0.2.53:|192.0.2.53:0|[::1]:x|[::1]5353",
    config.ZONE: "local|a b.jp",
}

NO_PLACES: Final = (
    "|203.0.113.9|203.0.113.9:0|203.0.113.9:70000|203.0.113.9:|:4000|[203.0.113.9]:4000"
    "|2001:db8::9:4000|[2001:db8::9]|host.example:4000|[2001:db8::9:4000"
)


class ValueTypeTests:
    """Each type accepts what it should, and says why it accepts nothing else."""

    @pytest.mark.parametrize(
        ("value_type", "text", "value"),
        [(kind, text, value) for kind, row in ACCEPTED.items() for text, value in row.items()],
    )
    def test_accepted(self, value_type: ValueType, text: str, value: Any) -> None:
        """A valid text becomes its value."""
        assert value_type.parse(text) == value

    @pytest.mark.parametrize(
        ("value_type", "text"),
        [(kind, text) for kind, texts in REFUSED.items() for text in texts.split("|")],
    )
    def test_refused(self, value_type: ValueType, text: str) -> None:
        """An invalid text is a ``ValueError`` that says something, on one line."""
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            value_type.parse(text)

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
            *((host, False) for host in ("0.0.0.0", "::", "192.168.0.1", "localhost.example.jp")),
            *((host, False) for host in ("2001:db8::1", "2001:DB8::1")),
        ],
    )
    def test_loopback(self, host: str, loopback: bool) -> None:
        """Loopback addresses, and their name, are this machine; what other machines can reach is
        never taken for it, with or without TLS (I25).
        """
        assert Interface(1, host).loopback == loopback
        for tls in (False, True):
            assert Server("", host, tls).loopback == loopback

    @pytest.mark.parametrize("host", ["::1", "::", "2001:DB8::1"])
    def test_ipv6_listener(self, host: str) -> None:
        """An address in brackets becomes the form that Twisted accepts."""
        listener = config.parse_listener(f"tcp:1201:interface=[{host}]:backlog=9")
        assert listener.interface == Interface(1201, host.lower())
        assert "[" not in listener.text
        assert config.parse_listener(listener.text) == Listener(listener.text, listener.interface)

    def test_ports(self) -> None:
        """The port of a server is read. A place is an IP address with a port: an IPv6 address
        stands in brackets, and no other does.
        """
        assert config.parse_server("tls:[2001:db8::1]:1202").port == 1202
        assert config.parse_place("203.0.113.9:4000") == ("203.0.113.9", 4000)
        assert config.parse_place("[2001:DB8::9]:65535") == ("2001:db8::9", 65535)

    @pytest.mark.parametrize("text", NO_PLACES.split("|"))
    def test_no_place(self, text: str) -> None:
        """Anything else, and a name, is refused with the form that it should have."""
        with pytest.raises(ValueError, match=r"neither IPv4:PORT nor \[IPv6\]:PORT"):
            config.parse_place(text)
