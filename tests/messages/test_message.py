"""Messages to bytes and back (broker.messages.message)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from broker.messages.message import Malformed, Message, is_notify, parse, printable
from tests.messages import strategies
from tests.messages.figures import FIGURES, KEY, on_the_wire


def head(text: str) -> bytes:
    """The lines of a message, its last empty one left out."""
    return text.encode("utf-8")


def refusal(data: bytes) -> Malformed:
    """What is wrong with a head that is no message."""
    with pytest.raises(Malformed) as caught:
        parse(data)
    return caught.value


def parsed(data: bytes) -> Message | Malformed:
    """A head read, or what is wrong with it."""
    try:
        return parse(data)
    except Malformed as malformed:
        return malformed


class FiguresTests:
    """The documents' own messages."""

    @pytest.mark.parametrize("figure", FIGURES)
    def test_round_trip(self, figure: str) -> None:
        """Each message of the figures is read and written again to the letter (A1–A5, A9–A13)."""
        data = on_the_wire(FIGURES[figure])
        assert parse(data.removesuffix(b"\r\n\r\n")).encode() == data

    @pytest.mark.parametrize("figure", FIGURES)
    def test_bare_line_feeds(self, figure: str) -> None:
        """Typed with bare LF, each is the same message."""
        text = FIGURES[figure].removesuffix("\n\n")
        assert parse(head(text)) == parse(head(text.replace("\n", "\r\n")))
        assert parse(head(text)).encode() == on_the_wire(FIGURES[figure])

    def test_query(self) -> None:
        """Fig. 5a: a verb and two fields, in their order."""
        message = parse(head("QUERY\nIdentifier:Ia\nCallee:Ib"))
        assert message.verb == "QUERY"
        assert list(message.fields.items()) == [("Identifier", "Ia"), ("Callee", "Ib")]
        assert message.statement == ""

    def test_statement(self) -> None:
        """Fig. 5b: a line without a colon is the statement."""
        assert parse(head("NOTIFY\nRequest Accepted.")).statement == "Request Accepted."

    def test_two_edits(self) -> None:
        """Fig. 3d: the edits under one Accept, in the order of their lines (A4)."""
        message = parse(head("REGISTER\nIdentifier:Ia\nAccept:Add Ic,Ie\nDelete If"))
        assert message.edits("Accept") == ["Add Ic,Ie", "Delete If"]
        assert message.edits("Reject") == []

    def test_built(self) -> None:
        """A message built by name is the message of the figure."""
        built = Message("NOTIFY", Caller_ID="Ia", Password="Password", Encrypt_Key=KEY)
        assert built.encode() == on_the_wire(FIGURES["5e"])


class SpellingTests:
    """Case, blanks, and what looks like ASCII but isn't."""

    def test_case(self) -> None:
        """Verbs, names and statements are taken without ASCII case, written as in the figures."""
        message = parse(head("query\nIDENTIFIER:Ia\ncallee:Ib\nstatus"))
        assert message == Message.of("QUERY", {"Identifier": "Ia", "Callee": "Ib", "": "STATUS"})

    def test_case_of_edits(self) -> None:
        """So are the words of edits; the names in them keep their case."""
        message = parse(head("register\naccept:create Ib\nadd ic\nDELETE If"))
        assert message.edits("Accept") == ["Create Ib", "Add ic", "Delete If"]

    def test_blanks_are_dropped(self) -> None:
        """Spaces and tabs around verb, name, value and statement are dropped."""
        message = parse(head("  QUERY \t\n\tIdentifier \t: Ia\t \n  STATUS\t"))
        assert message == Message.of("QUERY", {"Identifier": "Ia", "": "STATUS"})

    def test_ideographic_space_is_kept(self) -> None:
        """U+3000 is a character like any other: it is no blank that could be dropped."""
        message = parse(head("QUERY\nCallee:\u3000山田\u3000"))
        assert message.fields["Callee"] == "\u3000山田\u3000"

    @pytest.mark.parametrize(
        "line", ["REGIſTER", "QUERY\u3000", "\u00a0QUERY", "QUERY:", "QUERY STATUS"]
    )
    def test_no_verb(self, line: str) -> None:
        """A verb is a verb in ASCII alone; ``ſ`` is no S."""
        assert "verb" in refusal(head(f"{line}\nCallee:Ib")).cause

    def test_long_s_in_a_name(self) -> None:
        """A field whose name has ``ſ`` for S is another field, and so unknown."""
        assert parse(head("QUERY\nSeſſion:S1")).fields == {}

    @pytest.mark.parametrize(
        "digits", ["١٢٣", "1_000", "+7", "-7", " 7 7", "7.0", "", "0x10", "７", "²"]
    )
    def test_digits(self, digits: str) -> None:
        """A number is ASCII digits alone, whatever ``int`` would take."""
        assert refusal(head(f"REGISTER\nPort:{digits}")).cause.startswith("Port: ")

    @pytest.mark.parametrize("trap", ["\u2028", "\u2029", "\x85"])
    def test_line_separators(self, trap: str) -> None:
        """Only LF ends a line: nothing stands on a line of its own behind U+2028 and its like."""
        message = parse(head(f"NOTIFY\nCause:one{trap}Callee:Ib"))
        assert message.fields == {"Cause": f"one{trap}Callee:Ib"}

    @pytest.mark.parametrize(
        "control", ["\x00", "\x1b", "\x1c", "\x1d", "\x0b", "\x0c", "\x7f", "\r"]
    )
    def test_control_characters(self, control: str) -> None:
        """A control character has no place in a message, in a field that is unknown neither."""
        for line in (f"Cause:one{control}two", f"What:{control}x", f"Hello{control}."):
            assert refusal(head(f"QUERY\n{line}")).cause == "a control character"

    def test_canonical_values(self) -> None:
        """Values are kept in their one form: numbers without zeros, keys without spaces, NFC."""
        spaced = " ".join(KEY.upper()[i : i + 4] for i in range(0, 64, 4))
        message = parse(
            head(f"NOTIFY\nPort:00080\nEncrypt Key:{spaced}\nCallee:e\u0301\nudp:YES\nend:failed")
        )
        assert message.fields == {
            "Port": "80",
            "Encrypt Key": KEY,
            "Callee": "\u00e9",
            "UDP": "Yes",
            "End": "Failed",
        }


class FieldsTests:
    """What a message may hold."""

    def test_first_colon(self) -> None:
        """A field is split at its first colon; further ones belong to the value."""
        message = parse(head("QUERY\nCallee:tel:+81669081121\nAddress:2001:db8::1"))
        assert message.fields == {"Callee": "tel:+81669081121", "Address": "2001:db8::1"}

    def test_unknown_fields_are_ignored(self) -> None:
        """An unknown field changes nothing, once or twice, empty or nameless."""
        message = parse(head("QUERY\nColour:red\nColour:blue\nCallee:Ib\nShape:\n:x"))
        assert message.fields == {"Callee": "Ib"}

    @pytest.mark.parametrize(
        "lines",
        [
            "Callee:Ib\nCallee:Ib",
            "Callee:Ib\ncallee:Ic",
            "Transaction:1\nTransaction:1",
            "STATUS\nSTATUS",
        ],
    )
    def test_twice(self, lines: str) -> None:
        """What stands once is malformed where it stands twice, equal or not."""
        refusal(head(f"QUERY\n{lines}"))

    def test_lists_may_stand_twice(self) -> None:
        """A list is edited by each of its lines, in their order."""
        message = parse(head("REGISTER\nAccept:Add Ib\nPort:5\nAccept:Delete Ic\nAdd Id"))
        assert message.edits("Accept") == ["Add Ib", "Delete Ic", "Add Id"]

    def test_continuation_with_colons(self) -> None:
        """A line that edits the list above it goes on with it, whatever colons it holds."""
        message = parse(head("REGISTER\nAccept:Create\nAdd tel:+81669081121,Callee:Ib\nDelete x"))
        assert message.edits("Accept") == ["Create", "Add tel:+81669081121,Callee:Ib", "Delete x"]

    def test_continuation_that_clears(self) -> None:
        """A bare Create clears the list on a line of its own, too."""
        message = parse(head("REGISTER\nAccept:Add Ib\nCreate"))
        assert message.edits("Accept") == ["Add Ib", "Create"]
        assert parse(message.encode().removesuffix(b"\r\n\r\n")) == message

    @pytest.mark.parametrize(
        "above",
        ["", "Callee:Ib\n", "Accept:Add Ib\nPort:5\n", "Accept:Add Ib\nColour:red\n"],
    )
    @pytest.mark.parametrize("line", ["Add Ic", "Delete Ic:x", "Create", " add Ic"])
    def test_edit_under_no_list(self, above: str, line: str) -> None:
        """An edit right under no list is refused, guessed neither away nor into a list (I3)."""
        assert (
            refusal(head(f"REGISTER\n{above}{line}")).cause == "an edit that stands under no list"
        )

    @pytest.mark.parametrize(
        "line", ["Accept:", "Accept:Ib", "Accept:Add", "Accept:Add Ib,,Ic", "Accept:Add ;"]
    )
    def test_wrong_edits(self, line: str) -> None:
        """A list that can't be read makes the whole message malformed (I3, I5)."""
        assert refusal(head(f"REGISTER\nIdentifier:Ia\n{line}")).cause.startswith("Accept: ")

    def test_line_of_blanks(self) -> None:
        """A line of blanks is no empty line, and no statement."""
        assert refusal(head("QUERY\n \nCallee:Ib")).cause == "a line of blanks"

    def test_no_cause_repeats_what_came(self) -> None:
        """What is said of a wrong value never repeats it (I18)."""
        secret = "hush-hush"
        for line in (
            f"Port:{secret}",
            f"Encrypt Key:{secret}",
            f"Accept:Hold {secret}",
            f"Callee:@{secret}",
        ):
            assert secret not in str(refusal(head(f"REGISTER\n{line}")))


class MalformedTests:
    """What is told of a message that is none."""

    def test_transaction(self) -> None:
        """Its transaction is told wherever it stands, so that the sender knows which it was."""
        assert refusal(head("QUERY\nCallee:@\ntransaction: t-1")).transaction == "t-1"
        assert refusal(head("HELLO\nTransaction:t-2")).transaction == "t-2"
        assert refusal(head("QUERY\nCallee:@")).transaction is None
        assert refusal(head("QUERY\nCallee:@\nTransaction:a b")).transaction is None

    def test_notify_is_silent(self) -> None:
        """A NOTIFY is never answered, however wrong it is."""
        assert refusal(head("notify\nCallee:@")).silent
        assert refusal(b" NOTIFY \nCallee:\xff").silent
        assert not refusal(head("QUERY\nCallee:@")).silent
        assert not refusal(b"QUERY\nCallee:\xff").silent

    def test_not_utf8(self) -> None:
        """Bytes that are not UTF-8 end the conversation: who knows what they are."""
        for data in (
            b"QUERY\nCallee:\xff",
            b"QUERY\nCallee:\xc0\x80",
            b"QUERY\nCallee:\xed\xa0\x80",
        ):
            malformed = refusal(data)
            assert malformed.fatal
            assert malformed.cause == "not UTF-8"

    def test_announced_body(self) -> None:
        """A wrong message that announces a body is fatal: where that body ends is not known."""
        assert refusal(head("QUERY\nLength:x")).fatal
        assert refusal(head("QUERY\nCallee:@\n length :5")).fatal
        assert not refusal(head("QUERY\nCallee:@")).fatal

    def test_equality(self) -> None:
        """Two refusals are equal when they say the same."""
        assert Malformed("x", fatal=True) == Malformed("x", fatal=True)
        assert Malformed("x", fatal=True) != Malformed("x")
        assert Malformed("x") != ValueError("x")

    def test_is_notify(self) -> None:
        """A NOTIFY is known as one by its first line alone."""
        assert is_notify(b"NOTIFY")
        assert is_notify(b"\tnotify \r\nx")
        assert not is_notify(b"NOTIFYING\n")
        assert not is_notify(b"QUERY\nNOTIFY")
        assert not is_notify(b"")


class ShownTests:
    """Messages in logs and traces."""

    SECRETS = ("Password", "Reply Password", "Token", "Encrypt Key")

    @pytest.mark.parametrize("name", SECRETS)
    def test_no_secret(self, name: str) -> None:
        """Neither masked lines nor ``repr`` hold a secret (I18)."""
        secret = "f00d" * 16
        message = parse(head(f"NOTIFY\nCallee:Ib\n{name}:{secret}"))
        assert message.fields[name] == secret
        assert message.masked() == ["NOTIFY", "Callee:Ib", f"{name}:…"]
        assert "f00d" not in repr(message)

    @pytest.mark.parametrize("trap", ["\x85", "\x9b", "\u2028", "\u202e", "\u200b", "\ufeff"])
    def test_no_power_over_a_terminal(self, trap: str) -> None:
        """What a peer sent makes no line and no terminal escape (I19)."""
        message = parse(head(f"NOTIFY\nCause:one{trap}two\nHel{trap}lo"))
        for line in message.masked():
            assert line.isprintable()
        assert message.masked()[1] == f"Cause:one\\u{ord(trap):04x}two"
        assert repr(message).isprintable()

    def test_escapes_built_by_ourselves(self) -> None:
        """``printable`` leaves nothing of C0, for text that didn't come through the parser."""
        assert printable("a\x1b[2Jb\nc\td\x7f") == "a\\u001b[2Jb\\u000ac\\u0009d\\u007f"

    def test_ordinary_text(self) -> None:
        """Text of any language is shown as it is."""
        text = "山田太郎\u3000大阪府門真市 é +81-6"
        assert printable(text) == text

    def test_list_line_by_line(self) -> None:
        """Each edit of a list is shown on a line."""
        shown = parse(head("REGISTER\nAccept:Add Ib\nDelete Ic")).masked()
        assert shown == ["REGISTER", "Accept:Add Ib", "Accept:Delete Ic"]


class PropertiesTests:
    """What holds for all messages, and for all bytes."""

    @settings(deadline=None, max_examples=300)
    @given(strategies.messages())
    def test_encode_then_parse(self, message: Message) -> None:
        """Whatever is written is read as the same message, with CR LF and with LF."""
        data = message.encode()
        assert data.endswith(b"\r\n\r\n")
        assert b"\n\r\n" not in data[:-3]
        assert parse(data.removesuffix(b"\r\n\r\n")) == message
        assert parse(data.replace(b"\r\n", b"\n").removesuffix(b"\n\n")) == message

    @settings(deadline=None, max_examples=500)
    @given(strategies.nearly)
    def test_parse_anything(self, data: bytes) -> None:
        """Any bytes are a message that reads back as itself, or malformed, no more (I24)."""
        lines = data.replace(b"\r\n", b"\n").replace(b"\n\n", b"\n").strip(b"\n")
        for form in (data, b"QUERY\n" + lines):
            message = parsed(form)
            if isinstance(message, Malformed):
                assert message.cause.isprintable()
            else:
                assert parse(message.encode().removesuffix(b"\r\n\r\n")) == message
                assert all(line.isprintable() or "\u3000" in line for line in message.masked())
