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
    edit,
    entry,
    fold,
    identifier,
    parse_transport_address,
    token,
)
from broker.tables.grants import draw_credentials

SIXTY_FOUR = "0123456789abcdef" * 4


class IdentifierTests:
    """Whom one calls: what people remember (A18)."""

    @pytest.mark.parametrize(
        "good",
        [
            "Ia",
            "+81-6-6908-1121",
            "taro@example.jp",
            "山田太郎 大阪府門真市大字門真1006",
            "tel:+81669081121",
            "a",
            "x" * 128,
            "\u3042" * 42,
            "a b",
            "a\u3000b",
            "\u3000",
            "a@",
            "*",
            "Ia:Ib",
            "Create Ib",
            "\U0001f4de",
        ],
    )
    def test_good(self, good: str) -> None:
        """Numbers, names with street addresses, URIs, of any language, are kept as they are."""
        assert identifier(good) == good
        assert entry(good) == good

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            "x" * 129,
            "\u3042" * 43,
            " Ia",
            "Ia ",
            "\tIa",
            "Ia\t",
            "Ia,Ib",
            "Ia;Ib",
            "@",
            "a\x00b",
            "a\tb",
            "a\nb",
            "a\x1bb",
            "a\x7fb",
            "a\x85b",
            "a\u2028b",
            "a\u2029b",
            "a\u200bb",
            "a\u202eb",
            "\ufeffa",
            "a\u00adb",
            "a\U000e0041b",
            "a\ufdd0b",
            "a\ud800b",
        ],
    )
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

    def test_length_is_that_of_the_normal_form(self) -> None:
        """The 128 bytes are counted in the form that is kept."""
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


class MomentTests:
    """A time of day, in a `Before`."""

    @pytest.mark.parametrize(
        ("typed", "kept"),
        [
            ("2026-11-21T12:00:05.123456Z", "2026-11-21T12:00:05.123456Z"),
            ("2026-11-21T12:00:05Z", "2026-11-21T12:00:05.000000Z"),
            ("2026-11-21t12:00:05.5z", "2026-11-21T12:00:05.500000Z"),
            ("2024-02-29T00:00:00.000001Z", "2024-02-29T00:00:00.000001Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ],
    )
    def test_good(self, typed: str, kept: str) -> None:
        """To the microsecond; less may be typed."""
        assert FIELDS["Before"](typed) == kept == FIELDS["Before"](kept)

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            "yesterday",
            "2026-11-21",
            "2026-11-21T12:00Z",
            "2026-11-21T12:00:05",
            "2026-11-21T12:00:05+00:00",
            "2026-11-21 12:00:05Z",
            "2026-11-21T12:00:05.1234567Z",
            "2026-11-21T12:00:05.Z",
            "2026-11-21T12:00:05.١Z",
            "2026-02-29T12:00:05Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T12:00:60Z",
            "0000-01-01T00:00:00Z",
            "٢٠٢٦-11-21T12:00:05Z",
            "2026-11-21T12:00:05Z\n",
        ],
    )
    def test_bad(self, bad: str) -> None:
        """What is no time, or none in UTC, or of no calendar."""
        with pytest.raises(ValueError, match="must be a time"):
            FIELDS["Before"](bad)


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
    """Where somebody is."""

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
        [
            "",
            " ",
            "1203",
            "192.168.2.2",
            "192.168.2.2:1203",
            "192.168.2.2 ",
            " 192.168.2.2 1203",
            "192.168.2.2 1203 ",
            "192.168.2.2 1203 1204",
            "192.168.2.2 0",
            "192.168.2.2 65536",
            "192.168.2.2 -1",
            "192.168.2.2 +1",
            "192.168.2.2 1_203",
            "192.168.2.2 ١",
            "192.168.2.2\u30001203",
            "١92.168.2.2 1203",
            "192.168.2 1203",
            "192.168.2.256 1203",
            "192.168.002.2 1203",
            "3232236034 1203",
            "0xc0.168.2.2 1203",
            "abc.de 1203",
            "localhost 1203",
            "fe80::1%eth0 1203",
            "[::1] 1203",
            "::1::2 1203",
            "1" * 1000 + " 1203",
            "192.168.2.2 " + "1" * 1000,
            "192.168.2.2 1\nCode:200",
        ],
    )
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


class EditTests:
    """The edits of a list (fig. 3)."""

    @pytest.mark.parametrize(
        ("typed", "canonical"),
        [
            ("Create Ib,If", "Create Ib,If"),
            ("create Ib", "Create Ib"),
            ("ADD Ic,Ie", "Add Ic,Ie"),
            ("Delete If", "Delete If"),
            ("Create", "Create"),
            ("Create ", "Create"),
            ("Add  Ic , \tIe", "Add Ic,Ie"),
            ("Add @family,taro@example.jp", "Add @family,taro@example.jp"),
            ("Add 山田太郎 大阪府,tel:+81", "Add 山田太郎 大阪府,tel:+81"),
            ("Add Ib,Ib", "Add Ib,Ib"),
            ("Add e\u0301", "Add \u00e9"),
        ],
    )
    def test_good(self, typed: str, canonical: str) -> None:
        """A word and names, parted by commas (A1–A3)."""
        assert edit(typed) == canonical
        assert edit(canonical) == canonical

    @pytest.mark.parametrize(
        "bad",
        ["", "Ib", "Add", "Add ", "Delete", "Add ,", "Add Ib,", "Add ,Ib", "Add Ib,,Ic", "Adds Ib",
         "Add\tIb", "Add Ib;Ic", "Add @", "Create,Ib", "Create ,", " Add Ib", "Add " + "x" * 129],
    )  # fmt: skip
    def test_bad(self, bad: str) -> None:
        """Nothing is guessed: an edit that names nobody, or a hole, is refused (I3)."""
        with pytest.raises(ValueError):  # noqa: PT011 - the rule's one error
            edit(bad)


class ValueTests:
    """The other rules."""

    @pytest.mark.parametrize("good", ["a", "Z", "9", "._-", "t" * 64])
    def test_tokens(self, good: str) -> None:
        """A token is 1 to 64 of a small alphabet."""
        assert token(good) == good

    @pytest.mark.parametrize("bad", ["", "t" * 65, "a b", "a:b", "é", "٣", "a\n", "/"])
    def test_no_tokens(self, bad: str) -> None:
        """Anything else is none."""
        with pytest.raises(ValueError, match="1 to 64"):
            token(bad)

    @pytest.mark.parametrize(
        ("name", "least", "most"),
        [
            ("Port", 1, 65535),
            ("Code", 100, 699),
            ("Expires", 0, 315360000),
            ("Length", 0, 10**15 - 1),
        ],
    )
    def test_numbers(self, name: str, least: int, most: int) -> None:
        """A number is within its bounds, both included."""
        rule = FIELDS[name]
        assert rule(str(least)) == str(least)
        assert rule(str(most)) == str(most)
        for bad in (least - 1, most + 1):
            with pytest.raises(ValueError, match="must be"):
                rule(str(bad))

    @pytest.mark.parametrize(
        "bad", ["", "-1", "+1", "1.0", "1e3", "1_000", "١٢٣", "４", "1 0", "²", "9" * 5000]
    )
    def test_no_numbers(self, bad: str) -> None:
        """ASCII digits, few of them, and nothing else is a number."""
        with pytest.raises(ValueError, match="must be a number"):
            FIELDS["Length"](bad)

    def test_keys(self) -> None:
        """A key is 64 hexadecimal digits; spaces inside are dropped (fig. 5d)."""
        rule = FIELDS["Encrypt Key"]
        assert rule(SIXTY_FOUR.upper()) == SIXTY_FOUR
        assert rule(" ".join(SIXTY_FOUR)) == SIXTY_FOUR

    @pytest.mark.parametrize(
        "bad", ["", "Key", SIXTY_FOUR[1:], SIXTY_FOUR + "0", "g" + SIXTY_FOUR[1:], "٣" * 64,
                "0x" + SIXTY_FOUR[2:], SIXTY_FOUR[:32] + "\t" + SIXTY_FOUR[32:]]
    )  # fmt: skip
    def test_no_keys(self, bad: str) -> None:
        """Anything else is no key."""
        with pytest.raises(ValueError, match="hexadecimal"):
            FIELDS["Encrypt Key"](bad)

    def test_passwords(self) -> None:
        """Every password that is made here is one that is taken, whatever its symbols (A10)."""
        rule = FIELDS["Password"]
        for seed in range(200):
            grant = draw_credentials(random.Random(seed).randbytes)
            assert rule(grant.password) == grant.password
            assert FIELDS["Reply Password"](grant.reply_password) == grant.reply_password
            assert FIELDS["Encrypt Key"](grant.key) == grant.key
            assert FIELDS["Session"](grant.session) == grant.session
        assert rule("x" * 512) == "x" * 512
        for bad in ("", "x" * 513):
            with pytest.raises(ValueError, match="1 to 512"):
                rule(bad)

    def test_words(self) -> None:
        """A word of a few is taken without ASCII case, and no other."""
        rule = FIELDS["Policy"]
        assert [rule(word) for word in ("list", "ASK", "Password")] == ["List", "Ask", "Password"]
        for bad in ("", "Aſk", "Lists"):
            with pytest.raises(ValueError, match="List or Ask or Password"):
                rule(bad)

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
