"""What each field may hold (broker.messages.grammar)."""

from __future__ import annotations

import random
import unicodedata
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.messages import grammar
from broker.messages.grammar import (
    FIELDS,
    SECRETS,
    entry,
    fold,
    identifier,
    parse_transport_address,
)
from broker.tables.grants import draw_credentials

SIXTY_FOUR = "0123456789abcdef" * 4


class IdentifierTests:
    """Names that people call, and remember (A18)."""

    @pytest.mark.parametrize(
        "good",
        ["Ia", "+81-6-6908-1121", "taro@example.jp", "山田太郎 大阪府門真市大字門真1006",
         "tel:+81669081121", "a", "x" * 128, "\u3042" * 42, "a b", "a\u3000b", "\u3000", "a@", "*",
         "Ia:Ib", "Create Ib", "\U0001f4de"],
    )  # fmt: skip
    def test_good(self, good: str) -> None:
        """Numbers, names with street addresses, URIs, of any language, stay what they are."""
        assert identifier(good) == entry(good) == good

    @pytest.mark.parametrize(
        "bad",
        ["", "x" * 129, "\u3042" * 43, " Ia", "Ia ", "\tIa", "Ia\t", "Ia,Ib", "Ia;Ib", "@",
         *(f"a{hidden}b" for hidden in "\x00\t\n\x1b\x7f\x85\u2028\u2029\u200b\u202e\u00ad"),
         "\ufeffa", "a\U000e0041b", "a\ufdd0b", "a\ud800b"],
    )  # fmt: skip
    def test_bad(self, bad: str) -> None:
        """Nothing empty, too long, blank at an end, that parts a list, or that can't be seen."""
        for rule in (identifier, entry):
            with pytest.raises(ValueError):  # noqa: PT011 - the rule's one error
                rule(bad)

    def test_groups(self) -> None:
        """A name that begins with @ is a group's, and stands in lists alone (A18)."""
        assert entry("@family") == "@family"
        with pytest.raises(ValueError, match="begins with @"):
            identifier("@family")

    def test_normal_form(self) -> None:
        """Two spellings that look the same are one identifier (I4)."""
        assert identifier("e\u0301") == identifier("\u00e9") == "\u00e9"
        assert identifier("か\u3099") == "が"

        # The 128 bytes are counted in the form that is kept.
        assert len(identifier("e\u0301" * 64).encode()) == 128
        with pytest.raises(ValueError, match="longer"):
            identifier("\u0958" * 22)  # 66 bytes typed, 132 bytes composed

    def test_no_pattern(self) -> None:
        """Case, width and look-alikes make another identifier: equality, never a pattern."""
        assert len({identifier(text) for text in ("Ia", "IA", "Ｉａ", "Іа", "I*", "Iª")}) == 6

    @settings(deadline=None, max_examples=300)
    @given(st.text(max_size=140))
    def test_canonical(self, text: str) -> None:
        """What a rule gives is in normal form, and its own canonical form."""
        for rule in (identifier, entry):
            try:
                canonical = rule(text)
            except ValueError:
                continue
            assert canonical == rule(canonical) == unicodedata.normalize("NFC", text)
            assert len(canonical.encode()) <= 128


#: What each field refuses, and how; the rule raises its one error, and nothing is guessed.
REFUSED: dict[str, tuple[str, list[str]]] = {
    # What is no time, or none in UTC, or of no calendar.
    "Before": ("must be a time", [
        "", "yesterday", "2026-11-21", "2026-11-21T12:00Z", "2026-11-21T12:00:05",
        "2026-11-21T12:00:05+00:00", "2026-11-21 12:00:05Z", "2026-11-21T12:00:05.1234567Z",
        "2026-11-21T12:00:05.Z", "2026-11-21T12:00:05.١Z", "2026-02-29T12:00:05Z",
        "2026-11-21T24:00:00Z", "2026-11-21T12:00:60Z", "0000-01-01T00:00:00Z",
        "٢٠٢٦-11-21T12:00:05Z", "2026-11-21T12:00:05Z\n",
    ]),
    # An edit that names no one, or a hole (I3).
    "Accept": (".", [
        "", "Ib", "Add", "Add ", "Delete", "Add ,", "Add Ib,", "Add ,Ib", "Add Ib,,Ic", "Adds Ib",
        "Add\tIb", "Add Ib;Ic", "Add @", "Create,Ib", "Create ,", " Add Ib", "Add " + "x" * 129,
    ]),
    # A token is 1 to 64 of a small alphabet.
    "Transaction": ("1 to 64", ["", "t" * 65, "a b", "a:b", "é", "٣", "a\n", "/"]),
    # ASCII digits, few of them, and nothing else is a number; within its bounds.
    "Length": ("must be a number", [
        "", "-1", "+1", "1.0", "1e3", "1_000", "١٢٣", "４", "1 0", "²", "0x10", "9" * 5000,
    ]),
    "Port": ("must be", ["0", "65536"]),
    "Code": ("must be", ["99", "700"]),
    "Expires": ("must be", ["-1", "315360001"]),
    # A key is 64 hexadecimal digits (fig. 5d).
    "Encrypt Key": ("hexadecimal", [
        "", "Key", SIXTY_FOUR[1:], SIXTY_FOUR + "0", "g" + SIXTY_FOUR[1:], "٣" * 64,
        "0x" + SIXTY_FOUR[2:], SIXTY_FOUR[:32] + "\t" + SIXTY_FOUR[32:],
    ]),
    "Password": ("1 to 512", ["", "x" * 513]),
    # A word of a few is taken without ASCII case, and no other.
    "Policy": ("List or Ask or Password", ["", "Aſk", "Lists"]),
}  # fmt: skip

#: What each field takes, and its canonical form.
TAKEN: list[tuple[str, str, str]] = [
    # To the microsecond; less may be typed.
    ("Before", "2026-11-21T12:00:05.123456Z", "2026-11-21T12:00:05.123456Z"),
    ("Before", "2026-11-21T12:00:05Z", "2026-11-21T12:00:05.000000Z"),
    ("Before", "2026-11-21t12:00:05.5z", "2026-11-21T12:00:05.500000Z"),
    ("Before", "2024-02-29T00:00:00.000001Z", "2024-02-29T00:00:00.000001Z"),
    ("Before", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
    # A word and names, parted by commas (fig. 3, A1–A3).
    ("Accept", "Create Ib,If", "Create Ib,If"),
    ("Accept", "create Ib", "Create Ib"),
    ("Accept", "ADD Ic,Ie", "Add Ic,Ie"),
    ("Accept", "Delete If", "Delete If"),
    ("Accept", "Create", "Create"),
    ("Accept", "Create ", "Create"),
    ("Accept", "Add  Ic , \tIe", "Add Ic,Ie"),
    ("Accept", "Add @family,taro@example.jp", "Add @family,taro@example.jp"),
    ("Accept", "Add 山田太郎 大阪府,tel:+81", "Add 山田太郎 大阪府,tel:+81"),
    ("Accept", "Add Ib,Ib", "Add Ib,Ib"),
    ("Accept", "Add e\u0301", "Add \u00e9"),
    *(("Transaction", text, text) for text in ("a", "Z", "9", "._-", "t" * 64)),
    *(("Port", text, text) for text in ("1", "65535")),
    *(("Code", text, text) for text in ("100", "699")),
    *(("Expires", text, text) for text in ("0", "315360000")),
    *(("Length", text, text) for text in ("0", str(10**15 - 1))),
    # Spaces inside a key are dropped (fig. 5d).
    ("Encrypt Key", SIXTY_FOUR.upper(), SIXTY_FOUR),
    ("Encrypt Key", " ".join(SIXTY_FOUR), SIXTY_FOUR),
    ("Password", "x" * 512, "x" * 512),
    ("Policy", "list", "List"),
    ("Policy", "ASK", "Ask"),
    ("Policy", "Password", "Password"),
]

#: Fields that hold an IP address and a port.
PLACES = ("Local", "Callee Local", "Callee Seen", "Caller Back", "Caller Seen")
#: What is nearly one.
NEARLY = st.lists(
    st.one_of(
        st.sampled_from(["192.168.2.2", "::1", "fe80::1%eth0", "1203", "0", "65536", "abc.de"]),
        st.sampled_from([" ", "\t", ".", ":", "-", "+", "١", "\u3000", "\n", "\r", "", "1e3"]),
        st.text(max_size=3),
    ),
    max_size=6,
).map("".join)


class PlaceTests:
    """Where a terminal is."""

    @pytest.mark.parametrize(
        ("typed", "host", "port"),
        [
            ("192.168.2.2 1203", "192.168.2.2", 1203),
            ("192.168.2.2 \t 01203", "192.168.2.2", 1203),
            ("::1 1", "::1", 1),
            ("2001:DB8::7 65535", "2001:DB8::7", 65535),
            ("::ffff:192.168.2.2 80", "::ffff:192.168.2.2", 80),
        ],
    )
    def test_good(self, typed: str, host: str, port: int) -> None:
        """An IP address of either kind, a blank and a port."""
        kept = f"{host} {port}"
        for name in PLACES:
            assert FIELDS[name](typed) == kept == FIELDS[name](kept)
            assert parse_transport_address(FIELDS[name](typed)) == (host, port)

    @pytest.mark.parametrize(
        "bad",
        ["", " ", "1203", "192.168.2.2", "192.168.2.2:1203", "192.168.2.2 ", " 192.168.2.2 1203",
         *(f"192.168.2.2 {port}" for port in ("1203 ", "1203 1204", "0", "65536", "-1", "+1",
                                              "1_203", "١", "1" * 1000, "1\nCode:200")),
         "192.168.2.2\u30001203",
         *(f"{host} 1203" for host in ("١92.168.2.2", "192.168.2", "192.168.2.256", "192.168.002.2",
                                       "3232236034", "0xc0.168.2.2", "abc.de", "localhost",
                                       "fe80::1%eth0", "[::1]", "::1::2", "1" * 1000))],
    )  # fmt: skip
    def test_bad(self, bad: str) -> None:
        """Neither a name, which would have to be looked up, nor any other way to write a number."""
        for name in PLACES:
            with pytest.raises(ValueError, match="must be"):
                FIELDS[name](bad)

    @settings(deadline=None)
    @given(st.ip_addresses().map(lambda ip: str(ip).partition("%")[0]), st.integers(1, 65535))
    def test_round_trip(self, host: str, port: int) -> None:
        """What is told of any address and port is read as that."""
        for name in PLACES:
            assert parse_transport_address(FIELDS[name](f"{host} {port}")) == (host, port)

    @settings(deadline=None, max_examples=300)
    @given(NEARLY)
    def test_hostile(self, text: str) -> None:
        """What is taken is an IP address and a port, whatever comes; else it is refused."""
        for name in PLACES:
            try:
                kept = FIELDS[name](text)
            except ValueError:
                continue
            host, port = parse_transport_address(kept)
            assert str(ip_address(host)).isascii()
            assert "%" not in host
            assert 1 <= port <= 65535
            assert kept == FIELDS[name](kept) == f"{host} {port}"


class ValueTests:
    """The other rules."""

    @pytest.mark.parametrize(("name", "typed", "canonical"), TAKEN)
    def test_when_it_is_of_the_form_then_it_is_kept_in_its_one_form(
        self, name: str, typed: str, canonical: str
    ) -> None:
        """And the canonical form is its own."""
        assert FIELDS[name](typed) == canonical == FIELDS[name](canonical)

    @pytest.mark.parametrize(
        ("name", "text"), [(name, text) for name, (_, texts) in REFUSED.items() for text in texts]
    )
    def test_when_it_is_not_of_the_form_then_it_is_refused(self, name: str, text: str) -> None:
        """With the rule's one error."""
        with pytest.raises(ValueError, match=REFUSED[name][0]):
            FIELDS[name](text)

    def test_passwords(self) -> None:
        """Every password that is made here is one that is taken, whatever its symbols (A10)."""
        for seed in range(200):
            grant = draw_credentials(random.Random(seed).randbytes)
            assert FIELDS["Password"](grant.password) == grant.password
            assert FIELDS["Reply Password"](grant.reply_password) == grant.reply_password
            assert FIELDS["Encrypt Key"](grant.key) == grant.key
            assert FIELDS["Session"](grant.session) == grant.session

    def test_fold(self) -> None:
        """Only ASCII letters have a case here."""
        assert fold("QUERY \u017f \u212a \u0130 \u03a3") == "query \u017f \u212a \u0130 \u03a3"

    @settings(deadline=None, max_examples=300)
    @given(st.sampled_from(sorted(FIELDS)), st.text(max_size=80))
    def test_rules_raise_nothing_else(self, name: str, text: str) -> None:
        """A rule gives its canonical form, or raises ValueError that doesn't repeat the text."""
        try:
            outcome = FIELDS[name](text)
        except ValueError as error:
            kept = str(error).isascii()  # so nothing of most texts can be in it
        else:
            kept = FIELDS[name](outcome) == outcome
        assert kept


class TablesTests:
    """The tables, as they stand."""

    def test_secrets(self) -> None:
        """Every field that holds a secret is known as one (I18)."""
        keys = {"Encrypt Key", "Registration Key"}
        assert {"Password", "Reply Password", "Token"} | keys == SECRETS
        assert set(FIELDS) >= SECRETS

    def test_names(self) -> None:
        """Each name is found as written and folded; none of two folds to the same."""
        folded = {fold(name) for name in FIELDS}
        assert len(folded) == len(FIELDS)
        for name in FIELDS:
            assert grammar.FIELD_NAMES[name] == grammar.FIELD_NAMES[fold(name)] == name
            assert ":" not in name
