"""Settings that name IPv6 addresses, DNS servers, and what may stand for an address."""

from __future__ import annotations

from typing import Any

import pytest

from broker.service import mediator, resolver
from broker.service.settings import values as config
from broker.service.settings.values import Interface, Listener, Server, ValueType


class Ipv6Tests:
    """An IPv6 address stands in brackets; with backslashes, as Twisted has it, it is taken too."""

    @pytest.mark.parametrize(
        "text", ["tcp:[::1]:1201", r"tcp:\:\:1:1201", "tcp:host=[::1]:port=1201"]
    )
    def test_server(self, text: str) -> None:
        """Text is kept as it was said, and host and endpoint are what it means."""
        server = config.SERVER.parse(text)
        assert server == Server(text, "::1")
        assert isinstance(server, Server)
        assert server.loopback
        assert server.port == 1201

    def test_tls(self) -> None:
        """Over TLS the same."""
        server = config.parse_server("tls:[2001:db8::1]:1202")
        assert (server.host, server.tls, server.loopback) == ("2001:db8::1", True, False)
        assert server.port == 1202

    @pytest.mark.parametrize(
        ("text", "host", "loopback"),
        [
            ("tcp:1201:interface=[::1]", "::1", True),
            ("tcp:1201:interface=[::]", "::", False),
            ("tcp:1201:interface=[2001:DB8::1]:backlog=9", "2001:db8::1", False),
        ],
    )
    def test_listener(self, text: str, host: str, loopback: bool) -> None:
        """The text of a listener is what Twisted makes an endpoint of."""
        listener = config.parse_listener(text)
        assert listener.interface == Interface(1201, host)
        assert listener.interface.loopback == loopback
        assert "[" not in listener.text
        assert config.parse_listener(listener.text) == Listener(listener.text, listener.interface)

    @pytest.mark.parametrize(
        ("value_type", "text"),
        [
            (config.SERVER, "tcp:::1:1201"),
            (config.SERVER, "tcp:[::1:1201"),
            (config.SERVER, "tcp:[::g]:1201"),
            (config.SERVER, "tcp:[127.0.0.1]:1201"),
            (config.SERVER, "tcp:[]:1201"),
            (config.SERVER, "tcp:[::1]"),
            (config.SERVER, "tcp:[::1]1201"),
            (config.LISTENER, "tcp:1201:interface=::1"),
            (config.LISTENER, "tcp:1201:interface=[host]"),
        ],
    )
    def test_refused(self, value_type: ValueType, text: str) -> None:
        """What can't be told apart is refused."""
        with pytest.raises(ValueError, match=r"."):
            value_type.parse(text)


class NamesTests:
    """DNS servers, zones, and addresses by name."""

    @pytest.mark.parametrize(
        ("value_type", "text", "value"),
        [
            (config.DNS_SERVER, "192.0.2.53", ("192.0.2.53", 53)),
            (config.DNS_SERVER, "192.0.2.53:5353", ("192.0.2.53", 5353)),
            (config.DNS_SERVER, "2001:DB8:0::53", ("2001:db8::53", 53)),
            (config.DNS_SERVER, "[::1]", ("::1", 53)),
            (config.DNS_SERVER, "[::1]:5353", ("::1", 5353)),
            (config.ZONE, "", None),
            (config.ZONE, "Subscribers.Example.JP.", "subscribers.example.jp"),
        ],
    )
    def test_taken(self, value_type: ValueType, text: str, value: Any) -> None:
        """Each has one form."""
        assert value_type.parse(text) == value

    @pytest.mark.parametrize(
        ("value_type", "text"),
        [
            (config.DNS_SERVER, ""),
            (config.DNS_SERVER, "dns.example.jp"),
            (config.DNS_SERVER, "192.0.2.53:"),
            (config.DNS_SERVER, "192.0.2.53:0"),
            (config.DNS_SERVER, "[::1]:x"),
            (config.DNS_SERVER, "[::1]5353"),
            (config.ZONE, "local"),
            (config.ZONE, "a b.jp"),
        ],
    )
    def test_refused(self, value_type: ValueType, text: str) -> None:
        """A DNS server is named by its address; no name is taken that nobody could resolve."""
        with pytest.raises(ValueError, match=r"."):
            value_type.parse(text)

    def test_zone_goes_with_the_resolver(self) -> None:
        """Where the resolver is another process, it is that one's to ask the provider (A15)."""
        said = ["--auth=none", "--provider-zone=sub.example.jp"]
        mediator.Options().parseOptions(said)
        resolver.Options().parseOptions(said[1:])
        with pytest.raises(SystemExit, match="provider-zone: the resolver asks"):
            mediator.Options().parseOptions([*said, "--resolver=tcp:[::1]:1200"])
