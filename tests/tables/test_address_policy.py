"""Which addresses may be registered, and which of them callers are told (I12)."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.tables.address_policy import (
    PROVIDER,
    address_scope,
    canonical_domain,
    parse_domain,
    parse_ip,
    resolve_contact,
    routable_ip,
    validate_contact,
    validate_ip,
)
from broker.tables.locations import AddressRefused, Contact, Origin

EVERYWHERE = [ip_network("0.0.0.0/0"), ip_network("::/0")]
PRIVATE = [ip_network("192.168.0.0/16")]
US, TERMINAL, FOUR = "202.224.186.1", "202.224.186.90", "202.224.186.82"

#: Addresses of each scope; an IPv4 one in IPv6 clothing has that which it is.
SCOPES = {
    "loopback": "127.0.0.1 127.255.0.9 ::1 ::ffff:127.0.0.1",
    "link-local": "169.254.1.1",
    "private": "10.1.2.3 172.16.0.1 192.168.1.1 ::ffff:192.168.1.1 fd00::1 100.64.0.1 192.0.0.8"
    " 198.51.100.1 2001:db8::1 3fff::1 fec0::1",
    # The last three embed an IPv4 address: NAT64, 6to4, Teredo (of its server and its client).
    "public": "202.224.186.82 ::ffff:202.224.186.82 2400:4000::1 64:ff9b::202.224.186.82"
    " 2002:cae0:ba52::1 2001:0:4136:e378:8000:63bf:351f:45ad",
    "none": "64:ff9b::127.0.0.1 64:ff9b::192.168.1.1 64:ff9b::169.254.169.254 64:ff9b::0.0.0.0"
    " 64:ff9b:1::1 2002:7f00:1::1 2002:c0a8:101::1 2002:a00:1::1"
    " 2001:0:4136:e378:8000:63bf:80ff:fffe 2001:0:a00:1:8000:63bf:351f:45ad"
    " ::202.224.186.82 ::127.0.0.1 0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0 224.0.0.1 239.255.255.250"
    " ff02::1 ::ffff:224.0.0.1 255.255.255.255 240.0.0.1 ::ffff:255.255.255.255",
}


def validate(host: str, source: str, port: int = 1203, **more: Any) -> tuple[str, bool]:
    """What becomes of an address that is registered from a source: its form, and if dialable."""
    host, dialable, origin = validate_contact(host, port, source=source, **{"own": "", **more})
    assert origin is None
    return host, dialable


@pytest.mark.parametrize(
    ("host", "scope"), [(host, scope) for scope in SCOPES for host in SCOPES[scope].split()]
)
def test_scope(host: str, scope: str) -> None:
    """Each address has one scope; one of none is never taken, whatever is allowed."""
    assert address_scope(parse_ip(host)) == scope
    if scope != "none":
        assert str(routable_ip(host)) == validate_ip(host, host)
        return
    for source in ("127.0.0.1", TERMINAL, host):
        with pytest.raises(AddressRefused):
            validate_ip(host, source, EVERYWHERE)
    with pytest.raises(AddressRefused):
        routable_ip(host)


@pytest.mark.parametrize(
    "text",
    [
        *("", "host.example.jp", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "١٢٧.0.0.1"),
        *("127.1", "0x7f000001", "2130706433", "[::1]", "::1%lo", "fe80::1%eth0"),
        *("2400:4000::1%a b", "1.2.3.4/32", " 1.2.3.4", "1.2.3.4\n"),
    ],
)
def test_not_an_address(text: str) -> None:
    """What is not one address in its plain form is refused, zones included."""
    with pytest.raises(AddressRefused):
        parse_ip(text)


class ValidateTests:
    """What a terminal may register over its own connection."""

    @pytest.mark.parametrize("source", SCOPES)
    @pytest.mark.parametrize("scope", SCOPES)
    def test_scope_of_its_source(self, scope: str, source: str) -> None:
        """An address is taken if it has the scope of its source; an IPv6 one of a link never is."""
        for host, comes_from in product(SCOPES[scope].split(), SCOPES[source].split()):
            if scope == source != "none":
                assert validate(host, comes_from)[0] == str(routable_ip(host))
            else:
                with pytest.raises(AddressRefused):
                    validate(host, comes_from)
            with pytest.raises(AddressRefused):
                validate("fe80::1", comes_from)

    @pytest.mark.parametrize(
        ("host", "source", "allowed", "dialable"),
        [
            # Only the very address that a connection comes from, in any clothing.
            ("10.0.0.1", "10.0.0.1", [], True),
            ("::ffff:10.0.0.1", "10.0.0.1", [], True),
            ("10.0.0.1", "::ffff:10.0.0.1", [], True),
            ("10.0.0.2", "10.0.0.1", [], False),
            # The operator may allow networks: they are taken from anywhere.
            ("192.168.1.5", TERMINAL, PRIVATE, True),
        ],
    )
    def test_dialable(self, host: str, source: str, allowed: list[Any], dialable: bool) -> None:
        """What may be dialled."""
        told = validate(host, source, allowed=allowed)
        assert told == (host.removeprefix("::ffff:"), dialable)
        with pytest.raises(AddressRefused):
            validate("10.0.0.1", TERMINAL, allowed=allowed)

    @pytest.mark.parametrize(
        ("host", "own"),
        [
            ("127.0.0.1", "127.0.0.1"),
            (US, US),
            (f"::ffff:{US}", US),
            (US, f"::ffff:{US}"),
            ("2400:4000::1", "2400:4000::1"),
            ("2400:4000:0:0::1", "2400:4000::1"),
            (f"64:ff9b::{US}", US),
        ],
    )
    def test_never_the_server(self, host: str, own: str) -> None:
        """A port of the server at its own address is refused, in any clothing; another is not."""
        source = host if host == "127.0.0.1" else TERMINAL
        with pytest.raises(AddressRefused):
            validate(host, source, 1201, own=own, own_ports=[1201])
        assert validate(host, source, own=own, own_ports=[1201])[1] is (host == source)


LONGEST = ".".join(["a" * 63] * 3 + ["a" * 61])


class DomainTests:
    """What may stand in place of an IP address (A16, A17)."""

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("host.example.jp", "host.example.jp"),
            ("Host.Example.JP", "host.example.jp"),
            ("host.example.jp.", "host.example.jp"),
            ("例え.テスト.jp", "xn--r8jz45g.xn--zckzah.jp"),
            ("例え。テスト。jp", "xn--r8jz45g.xn--zckzah.jp"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.2.3.4.example", "1.2.3.4.example"),
            (LONGEST, LONGEST),
            ("Provider", PROVIDER),
            ("PROVIDER", PROVIDER),
        ],
    )
    def test_taken(self, text: str, name: str) -> None:
        """Each has one canonical form, international ones that of DNS; none may be dialled yet."""
        assert parse_domain(text) == name
        valid = validate_contact(text, 1203, source="::ffff:10.0.0.1", own="10.0.0.9")
        assert valid == (name, False, Origin("10.0.0.1"))

    @pytest.mark.parametrize(
        "text",
        [
            *("-a.example.jp", "a-.example.jp", "a_b.example.jp", "a b.example.jp", "a.jp\0"),
            *("a..example.jp", ".example.jp", "a" * 64 + ".jp", LONGEST + "a", "例え_.jp"),
            *("例え.127", "テスト", "ｌｏｃａｌｈｏｓｔ", "１２７.0.0.1", "ａ.ｌｏｃａｌ"),
            *("printer.local", "a.LOCAL", "a.local.", "www.localhost", "localhost.localdomain"),
            *("1.0.0.127.in-addr.arpa", "home.arpa", "a.onion", "a.invalid"),
        ],
    )
    def test_bad_names(self, text: str) -> None:
        """What DNS could not resolve for others is refused, however it is written."""
        for parse in (parse_domain, canonical_domain):
            with pytest.raises(AddressRefused):
                parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            *("localhost", "localhost.", "jp", "1.2.3", "0x7f.1", "0x7f.0.0.0x1", "1.2.3.4."),
            *("a.jp:80", "example.jp.."),
        ],
    )
    def test_neither(self, text: str) -> None:
        """What looks like a number, or has one label, is neither a name nor an address."""
        assert parse_domain(text) is None
        with pytest.raises(AddressRefused):
            validate(text, "10.0.0.1")

    @settings(deadline=None)
    @given(st.text(max_size=260))
    def test_any_text(self, text: str) -> None:
        """What is taken is a plain name that is its own canonical form (I24)."""
        try:
            name = parse_domain(text)
        except AddressRefused:
            return
        if name is not None:
            assert parse_domain(name) == name
            assert name.isascii()
            assert len(name) <= 253


class ResolveTests:
    """What callers are told for a name: judged as if it had been registered."""

    def told(self, source: str, *hosts: str, name: str = "a.jp", **options: Any) -> Contact:
        """What callers are told of these hosts, for a name registered from a source."""
        contact = Contact(name, 1203, 5, 60, origin=Origin(source, True))
        return resolve_contact(contact, hosts, **options)

    def test_the_whole(self) -> None:
        """Port and times are as they were registered."""
        assert self.told(TERMINAL, "202.224.186.82") == Contact("202.224.186.82", 1203, 5, 60)

    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"),
            *("255.255.255.255", "100.64.0.1", "::", "::1", "fe80::1", "fd00::1", "ff02::1"),
            *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::1", "no"),
        ],
    )
    def test_rebinding(self, host: str) -> None:
        """A name registered from outside never leads inside, nor does the provider."""
        for source in (TERMINAL, "2400:4000::1"):
            for name in ("a.jp", PROVIDER):
                with pytest.raises(AddressRefused):
                    self.told(source, host, name=name)
                assert self.told(source, host, "2600::1", name=name).host == "2600::1"

    @pytest.mark.parametrize(
        ("source", "hosts", "name", "allowed", "told"),
        [
            # A name leads to the scope of its source; the provider, from anywhere, to public ones.
            ("10.0.0.9", "202.224.186.82 10.0.0.1", "a.jp", [], "10.0.0.1"),
            ("127.0.0.1", "127.0.0.2", "a.jp", [], "127.0.0.2"),
            ("10.0.0.9", "10.0.0.1 2600::1", PROVIDER, [], "2600::1"),
            ("2600::1", "10.0.0.1", PROVIDER, ["10.0.0.0/8"], "10.0.0.1"),
            # Those of the source's family go first, in the order in which they came.
            (TERMINAL, "2600::1 2600::2 202.224.186.82 202.224.186.83", "a.jp", [], FOUR),
            (
                "2400:4000::1",
                "202.224.186.82 202.224.186.83 2600::1 2600::2",
                "a.jp",
                [],
                "2600::1",
            ),
            ("2400:4000::1", "202.224.186.82 202.224.186.83", "a.jp", [], FOUR),
        ],
    )
    def test_told(self, source: str, hosts: str, name: str, allowed: list[str], told: str) -> None:
        """Which of several hosts callers are told."""
        networks = [ip_network(network) for network in allowed]
        assert self.told(source, *hosts.split(), name=name, allowed=networks).host == told

    def test_dialable(self) -> None:
        """It is dialled only if it equals the source, or the operator allows it."""
        assert self.told(TERMINAL, TERMINAL).dialable
        assert not self.told(TERMINAL, "202.224.186.91").dialable
        allowed = [ip_network("202.224.186.0/24")]
        assert self.told(TERMINAL, "202.224.186.91", allowed=allowed).dialable

    @pytest.mark.parametrize("host", [US, "2600::5", f"64:ff9b::{US}", TERMINAL])
    def test_never_the_server(self, host: str) -> None:
        """The server's own ports are never told, at any of its addresses."""
        own = [parse_ip(US), parse_ip("2600::5")]
        with pytest.raises(AddressRefused):
            self.told(TERMINAL, host, own=own, own_ports=[1203])
        told = self.told(TERMINAL, host, own=own, own_ports=[1201])
        assert parse_ip(told.host) == parse_ip(host)
