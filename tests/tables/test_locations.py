"""The address table (fig. 7), and which addresses are ever taken into it."""

from __future__ import annotations

from ipaddress import ip_network
from math import inf
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
from broker.tables.locations import AddressRefused, Contact, LocationTable, Origin

PRIVATE = [ip_network("192.168.0.0/16")]


def at(registered: float, *, host: str = "202.224.186.82", expires: int = 60) -> Contact:
    """An address registered at that time."""
    return Contact(host, 1203, registered, expires)


class AddressTableTests:
    """Where each terminal is: the newest wins, the old expires (A7, I10)."""

    def test_nobody_is_anywhere(self) -> None:
        """An identifier that never registered has no address (A8, S807)."""
        assert LocationTable().lookup("Ib", 0) is None

    def test_newest_wins(self) -> None:
        """A later registration replaces an earlier one (A7)."""
        table = LocationTable()
        old, new = at(1), at(2, host="202.224.186.83")
        assert table.register("Ib", old)
        assert table.register("Ib", new)
        place = table.lookup("Ib", 3)
        assert place is not None
        assert place.contact is new

    def test_older_never_replaces_newer(self) -> None:
        """A registration that arrives late leaves the newer one in force, and says so (I10)."""
        table = LocationTable()
        new = at(2)
        table.register("Ib", new)
        assert not table.register("Ib", at(1, host="10.0.0.1"))
        assert not table.renew("Ib", at(1, host="10.0.0.1"), 3)
        place = table.lookup("Ib", 3)
        assert place is not None
        assert place.contact is new

    def test_expiry(self) -> None:
        """An address is told until its seconds have run, and not at that moment (I10)."""
        table = LocationTable()
        table.register("Ib", at(100, expires=60))
        assert table.lookup("Ib", 159.999) is not None
        assert table.lookup("Ib", 160) is None

    def test_held_does_not_expire(self) -> None:
        """While its connection is open an address holds; then its expiry runs, from that moment."""
        table = LocationTable()
        address = at(100, expires=60)
        table.register("Ib", address, held=True)
        held = table.lookup("Ib", 10**9)
        assert held is not None
        assert held.until == inf
        table.release("Ib", address, 1000)
        assert table.lookup("Ib", 1059) is not None
        assert table.lookup("Ib", 1060) is None

    def test_release_of_a_replaced_address(self) -> None:
        """A connection that goes takes with it no address but its own, equal ones included."""
        table = LocationTable()
        first, second = at(1), at(1)
        table.register("Ib", first, held=True)
        table.register("Ib", second, held=True)
        table.release("Ib", first, 2)
        place = table.lookup("Ib", 10**6)
        assert place is not None
        assert place.contact is second

    def test_withdrawal(self) -> None:
        """What is withdrawn is told no more; withdrawing what isn't there is nothing."""
        table = LocationTable()
        table.register("Ib", at(1), held=True)
        table.withdraw("Ib")
        table.withdraw("Ib")
        assert table.lookup("Ib", 2) is None
        assert len(table) == 0

    def test_renewed_on_anothers_word(self) -> None:
        """The same address told again holds anew from then, by whatever age it is told (I10)."""
        table = LocationTable()
        table.renew("Ib", at(100), 100)
        assert table.renew("Ib", at(99.5), 150)
        assert table.lookup("Ib", 209.9) is not None
        assert table.lookup("Ib", 210) is None

    def test_renewing_never_shortens_what_is_held(self) -> None:
        """A mediator's older word of the very address that a connection holds changes nothing."""
        table = LocationTable()
        table.register("Ib", at(100), held=True)
        assert table.renew("Ib", at(99), 150)
        assert table.lookup("Ib", 10**6) is not None

    def test_expired_does_not_stand_in_the_way(self) -> None:
        """Once the newer has expired, the older that still holds is in force, swept or not."""
        for swept in (False, True):
            table = LocationTable()
            table.renew("Ib", at(100, expires=10), 100)
            if swept:
                table.prune(110)
            assert table.renew("Ib", at(50, host="10.0.0.1"), 110)
            place = table.lookup("Ib", 111)
            assert place is not None
            assert place.contact.host == "10.0.0.1"

    def test_cap(self) -> None:
        """A full table takes nobody new, but goes on for those it knows (I15, I5)."""
        table = LocationTable(most=2)
        table.register("Ia", at(1))
        table.register("Ib", at(1))
        with pytest.raises(AddressRefused):
            table.register("Ic", at(2))
        with pytest.raises(AddressRefused):
            table.renew("Ic", at(2), 2)
        assert table.lookup("Ic", 3) is None
        assert table.register("Ib", at(2))
        assert table.renew("Ia", at(2), 2)
        assert len(table) == 2

    def test_prune(self) -> None:
        """Sweeping drops what has expired, and only that, and says how many."""
        table = LocationTable()
        table.register("Ia", at(0, expires=10))
        table.register("Ib", at(0, expires=11))
        table.register("Ic", at(0, expires=1), held=True)
        assert table.prune(10) == 1
        assert len(table) == 2

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["told", "withdrawn", "swept"]),
                st.integers(0, 30),  # seconds that pass before it
                st.integers(0, 40),  # how old the address is
                st.integers(1, 50),  # how long it holds
            ),
            max_size=20,
        )
    )
    def test_told_by_mediators_as_the_model(self, events: list[tuple[str, int, int, int]]) -> None:
        """In whatever order addresses of any age come in, the one told is the newest in force.

        Each has a host of its own, so that none renews another; sweeping makes no difference
        (A7, I10).
        """
        table = LocationTable()
        now = 1000.0
        model: tuple[float, float, str] | None = None  # registered, until, host
        for number, (event, passed, age, expires) in enumerate(events):
            now += passed
            if model is not None and model[1] <= now:
                model = None
            if event == "swept":
                table.prune(now)
            elif event == "withdrawn":
                table.withdraw("Ib")
                model = None
            else:
                host = f"10.0.0.{number}"
                newer = model is None or now - age >= model[0]
                assert table.renew("Ib", at(now - age, host=host, expires=expires), now) == newer
                if newer:
                    model = (now - age, now + expires, host)
            place = table.lookup("Ib", now)
            told = None if place is None else (place.contact.host, place.until)
            assert told == (None if model is None else (model[2], model[1]))


class KindTests:
    """What an address is, before anyone believes it (I12)."""

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("127.0.0.1", "loopback"),
            ("127.255.0.9", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("169.254.1.1", "link-local"),
            ("10.1.2.3", "private"),
            ("172.16.0.1", "private"),
            ("192.168.1.1", "private"),
            ("::ffff:192.168.1.1", "private"),
            ("fd00::1", "private"),
            ("100.64.0.1", "private"),
            ("202.224.186.82", "public"),
            ("::ffff:202.224.186.82", "public"),
            ("2400:4000::1", "public"),
            ("192.0.0.8", "private"),
            ("198.51.100.1", "private"),
            ("2001:db8::1", "private"),
            ("3fff::1", "private"),
            ("fec0::1", "private"),
            # those that carry an IPv4 address: NAT64, 6to4, Teredo (server and client)
            ("64:ff9b::202.224.186.82", "public"),
            ("64:ff9b::127.0.0.1", "none"),
            ("64:ff9b::192.168.1.1", "none"),
            ("64:ff9b::169.254.169.254", "none"),
            ("64:ff9b::0.0.0.0", "none"),
            ("64:ff9b:1::1", "none"),
            ("2002:cae0:ba52::1", "public"),
            ("2002:7f00:1::1", "none"),
            ("2002:c0a8:101::1", "none"),
            ("2002:a00:1::1", "none"),
            ("2001:0:4136:e378:8000:63bf:351f:45ad", "public"),
            ("2001:0:4136:e378:8000:63bf:80ff:fffe", "none"),
            ("2001:0:a00:1:8000:63bf:351f:45ad", "none"),
            ("::202.224.186.82", "none"),
            ("::127.0.0.1", "none"),
            ("0.0.0.0", "none"),
            ("0.1.2.3", "none"),
            ("::", "none"),
            ("::ffff:0.0.0.0", "none"),
            ("224.0.0.1", "none"),
            ("239.255.255.250", "none"),
            ("ff02::1", "none"),
            ("::ffff:224.0.0.1", "none"),
            ("255.255.255.255", "none"),
            ("240.0.0.1", "none"),
            ("::ffff:255.255.255.255", "none"),
        ],
    )
    def test_kind(self, host: str, expected: str) -> None:
        """Each address is of one kind, IPv4 in IPv6 clothing of that which it is."""
        assert address_scope(parse_ip(host)) == expected
        if expected == "none":
            for source in ("127.0.0.1", "202.224.186.90", host):
                with pytest.raises(AddressRefused):
                    validate_ip(host, source, [ip_network("0.0.0.0/0"), ip_network("::/0")])
            with pytest.raises(AddressRefused):
                routable_ip(host)
        else:
            assert str(routable_ip(host)) == validate_ip(host, host)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "host.example.jp",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "01.2.3.4",
            "١٢٧.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "[::1]",
            "::1%lo",
            "fe80::1%eth0",
            "2400:4000::1%a b",
            "1.2.3.4/32",
            " 1.2.3.4",
            "1.2.3.4\n",
        ],
    )
    def test_no_address(self, text: str) -> None:
        """What isn't one address in its plain form is refused, zones included (I12)."""
        with pytest.raises(AddressRefused):
            parse_ip(text)


class AdmitTests:
    """What a terminal may register over its own connection (I12)."""

    @pytest.mark.parametrize(
        ("host", "source"),
        [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "::1"),
            ("192.168.1.5", "10.0.0.9"),
            ("202.224.186.82", "202.224.186.90"),
            ("2400:4000::5", "202.224.186.90"),
        ],
    )
    def test_of_the_same_kind(self, host: str, source: str) -> None:
        """An address of the kind of its source is taken."""
        assert validate_contact(host, 1203, source=source, own="")[0] == host

    @pytest.mark.parametrize(
        ("host", "source"),
        [
            ("127.0.0.1", "202.224.186.90"),
            ("127.0.0.1", "192.168.1.5"),
            ("::ffff:127.0.0.1", "192.168.1.5"),
            ("192.168.1.5", "202.224.186.90"),
            ("202.224.186.82", "192.168.1.5"),
            ("169.254.1.1", "192.168.1.5"),
            ("fd00::1", "2400:4000::1"),
            ("::1", "2400:4000::1"),
            ("2400:4000::1", "fd00::1"),
            ("fe80::1", "fe80::2"),
            ("fe80::1", "169.254.1.1"),
        ],
    )
    def test_of_another_kind(self, host: str, source: str) -> None:
        """An address of another kind than its source is refused."""
        with pytest.raises(AddressRefused):
            validate_contact(host, 1203, source=source, own="")

    def test_allowed_networks(self) -> None:
        """The operator may allow networks: they are taken from anywhere, and may be dialled."""
        told = validate_contact(
            "192.168.1.5", 1203, source="202.224.186.90", own="", allowed=PRIVATE
        )
        assert told == ("192.168.1.5", True, None)
        with pytest.raises(AddressRefused):
            validate_contact("10.0.0.1", 1203, source="202.224.186.90", own="", allowed=PRIVATE)

    def test_dialable(self) -> None:
        """Only the very address that a connection comes from may be dialled, in any clothing."""
        assert validate_contact("10.0.0.1", 1203, source="10.0.0.1", own="")[:2] == (
            "10.0.0.1",
            True,
        )
        assert validate_contact("::ffff:10.0.0.1", 1, source="10.0.0.1", own="")[:2] == (
            "10.0.0.1",
            True,
        )
        assert validate_contact("10.0.0.1", 1203, source="::ffff:10.0.0.1", own="")[:2] == (
            "10.0.0.1",
            True,
        )
        assert validate_contact("10.0.0.2", 1203, source="10.0.0.1", own="")[:2] == (
            "10.0.0.2",
            False,
        )

    @pytest.mark.parametrize(
        ("host", "own"),
        [
            ("202.224.186.1", "202.224.186.1"),
            ("::ffff:202.224.186.1", "202.224.186.1"),
            ("202.224.186.1", "::ffff:202.224.186.1"),
            ("2400:4000::1", "2400:4000::1"),
            ("2400:4000:0:0::1", "2400:4000::1"),
            ("64:ff9b::202.224.186.1", "202.224.186.1"),
        ],
    )
    def test_never_the_server(self, host: str, own: str) -> None:
        """A port of the server at its own address is refused, in any clothing; another is not."""
        source = "202.224.186.90"
        with pytest.raises(AddressRefused):
            validate_contact(host, 1201, source=source, own=own, own_ports=[1201])
        assert not validate_contact(host, 1203, source=source, own=own, own_ports=[1201]).dialable

    def test_never_the_server_on_the_same_machine(self) -> None:
        """A terminal that shares the server's machine doesn't register the server's port."""
        with pytest.raises(AddressRefused):
            validate_contact(
                "127.0.0.1", 1201, source="127.0.0.1", own="127.0.0.1", own_ports=[1201]
            )


class NamesTests:
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
            (".".join(["a" * 63] * 3 + ["a" * 61]), ".".join(["a" * 63] * 3 + ["a" * 61])),
            ("Provider", PROVIDER),
            ("PROVIDER", PROVIDER),
        ],
    )
    def test_taken(self, text: str, name: str) -> None:
        """Each has one canonical form, international ones that of DNS; none may be dialled yet."""
        assert parse_domain(text) == name
        told = validate_contact(text, 1203, source="::ffff:10.0.0.1", own="10.0.0.9")
        assert told == (name, False, Origin("10.0.0.1"))

    @pytest.mark.parametrize(
        "text",
        [
            "-a.example.jp",
            "a-.example.jp",
            "a_b.example.jp",
            "a b.example.jp",
            "a..example.jp",
            ".example.jp",
            "a" * 64 + ".jp",
            ".".join(["a" * 63] * 3 + ["a" * 62]),
            "例え_.jp",
            "例え.127",
            "テスト",
            "ｌｏｃａｌｈｏｓｔ",
            "１２７.0.0.1",
            "printer.local",
            "a.LOCAL",
            "a.local.",
            "ａ.ｌｏｃａｌ",
            "www.localhost",
            "localhost.localdomain",
            "1.0.0.127.in-addr.arpa",
            "home.arpa",
            "a.onion",
            "a.invalid",
            "a.jp\0",
        ],
    )
    def test_bad_names(self, text: str) -> None:
        """What DNS could not tell to others is refused, however it is written (I12)."""
        with pytest.raises(AddressRefused):
            parse_domain(text)
        with pytest.raises(AddressRefused):
            canonical_domain(text)

    @pytest.mark.parametrize(
        "text",
        [
            "localhost",
            "localhost.",
            "jp",
            "1.2.3",
            "0x7f.1",
            "0x7f.0.0.0x1",
            "1.2.3.4.",
            "a.jp:80",
            "example.jp..",
        ],
    )
    def test_no_names(self, text: str) -> None:
        """What looks like a number, or has one label, is no name, nor an address (I12)."""
        assert parse_domain(text) is None
        with pytest.raises(AddressRefused):
            validate_contact(text, 1203, source="10.0.0.1", own="")

    @settings(deadline=None)
    @given(st.text(max_size=260))
    def test_any_text(self, text: str) -> None:
        """Whatever is given, what is taken is a plain name whose canonical form is itself (I24)."""
        try:
            name = parse_domain(text)
        except AddressRefused:
            return
        if name is not None:
            assert parse_domain(name) == name
            assert name.isascii()
            assert len(name) <= 253


class SettleTests:
    """What is told for a name: judged as if it had been registered (I12)."""

    def told(self, source: str, *hosts: str, name: str = "a.jp", **options: Any) -> Contact:
        """What is told of these, for a name that was registered from there."""
        address = Contact(name, 1203, 5, 60, origin=Origin(source, True))
        return resolve_contact(address, hosts, **options)

    def test_the_whole(self) -> None:
        """All but host, dialling and origin is as it was registered."""
        told = self.told("202.224.186.90", "202.224.186.82")
        assert told == Contact("202.224.186.82", 1203, 5, 60)

    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "100.64.0.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::1",
            "no address",
        ],
    )
    def test_rebinding(self, host: str) -> None:
        """A name registered from outside never leads inside, nor the provider (I12)."""
        for source in ("202.224.186.90", "2400:4000::1"):
            for name in ("a.jp", PROVIDER):
                with pytest.raises(AddressRefused):
                    self.told(source, host, name=name)
                good = self.told(source, host, "2600::1", name=name)
                assert good.host == "2600::1"

    def test_kinds(self) -> None:
        """A name leads to the kind of its source; the provider, from anywhere, to public ones."""
        assert self.told("10.0.0.9", "202.224.186.82", "10.0.0.1").host == "10.0.0.1"
        assert self.told("127.0.0.1", "127.0.0.2").host == "127.0.0.2"
        assert self.told("10.0.0.9", "10.0.0.1", "2600::1", name=PROVIDER).host == "2600::1"
        allowed = [ip_network("10.0.0.0/8")]
        assert self.told("2600::1", "10.0.0.1", name=PROVIDER, allowed=allowed).host == "10.0.0.1"

    def test_family(self) -> None:
        """Of several, those of the source's family come first, in the order in which they came."""
        four, six = ("202.224.186.82", "202.224.186.83"), ("2600::1", "2600::2")
        assert self.told("202.224.186.90", *six, *four).host == four[0]
        assert self.told("2400:4000::1", *four, *six).host == six[0]
        assert self.told("2400:4000::1", *four).host == four[0]

    def test_dialable(self) -> None:
        """It is dialled only if it equals the source, or the operator allowed it."""
        assert self.told("202.224.186.90", "202.224.186.90").dialable
        assert not self.told("202.224.186.90", "202.224.186.91").dialable
        allowed = [ip_network("202.224.186.0/24")]
        assert self.told("202.224.186.90", "202.224.186.91", allowed=allowed).dialable

    def test_never_the_server(self) -> None:
        """The server's own ports are never told, at whichever of its addresses."""
        own = [parse_ip("202.224.186.1"), parse_ip("2600::5")]
        for host in ("202.224.186.1", "2600::5", "64:ff9b::202.224.186.1", "202.224.186.90"):
            with pytest.raises(AddressRefused):
                self.told("202.224.186.90", host, own=own, own_ports=[1203])
            told = self.told("202.224.186.90", host, own=own, own_ports=[1201])
            assert parse_ip(told.host) == parse_ip(host)
