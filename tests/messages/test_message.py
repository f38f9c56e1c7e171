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
        """Each message of the figures is read and written again to the letter (A1–A5, A9–A13);
        typed with bare LF, each is the same message.
        """
        data = on_the_wire(FIGURES[figure])
        assert parse(data.removesuffix(b"\r\n\r\n")).encode() == data
        assert parse(head(FIGURES[figure].removesuffix("\n\n"))).encode() == data

    def test_built(self) -> None:
        """A message built by name is the message of the figure."""
        built = Message("NOTIFY", Caller_ID="Ia", Password="Password", Encrypt_Key=KEY)
        assert built.encode() == on_the_wire(FIGURES["5e"])


#: What is read, and the fields that it gives.
READ: dict[str, tuple[str, dict[str, str]]] = {
    "fig. 5a: fields, in their order": (
        "QUERY\nIdentifier:Ia\nCallee:Ib",
        {"Identifier": "Ia", "Callee": "Ib"},
    ),
    "fig. 5b: a line without a colon is the statement": (
        "NOTIFY\nRequest Accepted.",
        {"": "Request Accepted."},
    ),
    "fig. 3d: the edits under one Accept, in the order of their lines (A4)": (
        "REGISTER\nIdentifier:Ia\nAccept:Add Ic,Ie\nDelete If",
        {"Identifier": "Ia", "Accept": "Add Ic,Ie\nDelete If"},
    ),
    "verbs, names and statements are taken without ASCII case, written as in the figures": (
        "query\nIDENTIFIER:Ia\ncallee:Ib\nstatus",
        {"Identifier": "Ia", "Callee": "Ib", "": "STATUS"},
    ),
    "so are the words of edits; the names in them keep their case": (
        "register\naccept:create Ib\nadd ic\nDELETE If",
        {"Accept": "Create Ib\nAdd ic\nDelete If"},
    ),
    "spaces and tabs around verb, name, value and statement are dropped": (
        "  QUERY \t\n\tIdentifier \t: Ia\t \n  STATUS\t",
        {"Identifier": "Ia", "": "STATUS"},
    ),
    "U+3000 is a character like any other: it is no blank that could be dropped": (
        "QUERY\nCallee:\u3000山田\u3000",
        {"Callee": "\u3000山田\u3000"},
    ),
    "a field whose name has ſ for S is another field, and so unknown": ("QUERY\nSeſſion:S1", {}),
    "values have one form: numbers without zeros, keys without spaces, NFC": (
        "NOTIFY\nPort:00080\nEncrypt Key:"
        + " ".join(KEY.upper()[i : i + 4] for i in range(0, 64, 4))
        + "\nCallee:e\u0301\nudp:YES\nend:failed",
        {"Port": "80", "Encrypt Key": KEY, "Callee": "\u00e9", "UDP": "Yes", "End": "Failed"},
    ),
    "a field is split at its first colon; later ones belong to the value": (
        "QUERY\nCallee:tel:+81669081121\nAddress:2001:db8::1",
        {"Callee": "tel:+81669081121", "Address": "2001:db8::1"},
    ),
    "an unknown field changes nothing, once or twice, empty or nameless": (
        "QUERY\nColour:red\nColour:blue\nCallee:Ib\nShape:\n:x",
        {"Callee": "Ib"},
    ),
    "a list is edited by each of its lines, in their order": (
        "REGISTER\nAccept:Add Ib\nPort:5\nAccept:Delete Ic\nAdd Id",
        {"Accept": "Add Ib\nDelete Ic\nAdd Id", "Port": "5"},
    ),
    "a line that edits the list above it goes on with it, whatever colons it holds": (
        "REGISTER\nAccept:Create\nAdd tel:+81669081121,Callee:Ib\nDelete x",
        {"Accept": "Create\nAdd tel:+81669081121,Callee:Ib\nDelete x"},
    ),
    "a bare Create clears the list on a line of its own, too": (
        "REGISTER\nAccept:Add Ib\nCreate",
        {"Accept": "Add Ib\nCreate"},
    ),
    **{
        f"only LF ends a line: none begins after U+{ord(trap):04X}": (
            f"NOTIFY\nCause:one{trap}Callee:Ib",
            {"Cause": f"one{trap}Callee:Ib"},
        )
        for trap in "\u2028\u2029\x85"
    },
}

#: What is no message: its lines, and how its cause begins.
WRONG: list[tuple[str, str]] = [
    # A verb is a verb in ASCII alone; ſ is no S.
    *(
        (f"{line}\nCallee:Ib", "the verb must be")
        for line in ("REGIſTER", "QUERY\u3000", "\u00a0QUERY", "QUERY:", "QUERY STATUS")
    ),
    # A control character has no place in a message, in an unknown field neither.
    *(
        (f"QUERY\n{line.format(control)}", "a control character")
        for control in "\x00\x1b\x1c\x1d\x0b\x0c\x7f\r"
        for line in ("Cause:one{}two", "What:{}x", "Hello{}.")
    ),
    # What stands once is malformed where it stands twice, equal or not.
    ("QUERY\nCallee:Ib\nCallee:Ib", ""),
    ("QUERY\nCallee:Ib\ncallee:Ic", ""),
    ("QUERY\nTransaction:1\nTransaction:1", ""),
    ("QUERY\nSTATUS\nSTATUS", ""),
    # An edit right under no list is refused, guessed neither away nor into a list (I3).
    *(
        (f"REGISTER\n{above}{line}", "an edit that stands under no list")
        for above in ("", "Callee:Ib\n", "Accept:Add Ib\nPort:5\n", "Accept:Add Ib\nColour:red\n")
        for line in ("Add Ic", "Delete Ic:x", "Create", " add Ic")
    ),
    # A list that can't be read makes the whole message malformed (I3, I5).
    *(
        (f"REGISTER\nIdentifier:Ia\nAccept:{value}", "Accept: ")
        for value in ("", "Ib", "Add", "Add Ib,,Ic", "Add ;")
    ),
    # So does a number: which ones are taken, the tests of the grammar say.
    ("REGISTER\nPort:７", "Port: "),
    # A line of blanks is no empty line, and no statement.
    ("QUERY\n \nCallee:Ib", "a line of blanks"),
]


class ReadTests:
    """What a message may hold."""

    @pytest.mark.parametrize("promise", READ)
    def test_when_it_is_a_message_then_its_fields_are_read(self, promise: str) -> None:
        """And it reads back as itself."""
        text, fields = READ[promise]
        message = parse(head(text))
        assert list(message.fields.items()) == list(fields.items())
        assert message.verb == text.split("\n")[0].strip().upper()
        assert message.edits("Accept") == fields.get("Accept", "").splitlines()
        assert parse(message.encode().removesuffix(b"\r\n\r\n")) == message

    @pytest.mark.parametrize(("text", "cause"), WRONG)
    def test_when_it_is_no_message_then_its_cause_is_told(self, text: str, cause: str) -> None:
        """Nothing of it is taken."""
        assert refusal(head(text)).cause.startswith(cause)

    @pytest.mark.parametrize("name", ["Port:", "Encrypt Key:", "Accept:Hold ", "Callee:@"])
    def test_no_cause_repeats_what_came(self, name: str) -> None:
        """What is said of a wrong value never repeats it (I18)."""
        assert "hush-hush" not in str(refusal(head(f"REGISTER\n{name}hush-hush")))


class MalformedTests:
    """What is told of a message that is none."""

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            # Its transaction is told wherever it stands, so that the sender knows which it was.
            (b"QUERY\nCallee:@\ntransaction: t-1", {"transaction": "t-1"}),
            (b"HELLO\nTransaction:t-2", {"transaction": "t-2"}),
            (b"QUERY\nCallee:@", {}),
            (b"QUERY\nCallee:@\nTransaction:a b", {}),
            # A NOTIFY is never answered, however wrong it is.
            (b"notify\nCallee:@", {"silent": True}),
            (b" NOTIFY \nCallee:\xff", {"silent": True, "fatal": True}),
            # Bytes that are not UTF-8 end the conversation: they could be anything.
            (b"QUERY\nCallee:\xff", {"fatal": True}),
            (b"QUERY\nCallee:\xc0\x80", {"fatal": True}),
            (b"QUERY\nCallee:\xed\xa0\x80", {"fatal": True}),
            # A wrong message that announces a body is fatal: where that body ends is not known.
            (b"QUERY\nLength:x", {"fatal": True}),
            (b"QUERY\nCallee:@\n length :5", {"fatal": True}),
        ],
    )
    def test_when_it_is_no_message_then_this_follows(
        self, data: bytes, expected: dict[str, object]
    ) -> None:
        """Whether it is answered, as what, and whether the connection goes on."""
        malformed = refusal(data)
        told = {"transaction": None, "silent": False, "fatal": False, **expected}
        assert {name: getattr(malformed, name) for name in told} == told
        assert (malformed.cause == "not UTF-8") is (not data.isascii())

    def test_equality(self) -> None:
        """Two refusals are equal when they say the same."""
        assert Malformed("x", fatal=True) == Malformed("x", fatal=True)
        assert Malformed("x", fatal=True) != Malformed("x")
        assert Malformed("x") != ValueError("x")

    def test_is_notify(self) -> None:
        """A NOTIFY is known as one by its first line alone."""
        heads = [b"NOTIFY", b"\tnotify \r\nx", b"NOTIFYING\n", b"QUERY\nNOTIFY", b""]
        assert [is_notify(data) for data in heads] == [True, True, False, False, False]


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

    def test_ordinary_text(self) -> None:
        """Text of any language is shown unchanged; ``printable`` leaves nothing of C0, for text
        that didn't come through the parser. Each edit of a list is shown on a line.
        """
        text = "山田太郎\u3000大阪府門真市 é +81-6"
        assert printable(text) == text
        assert printable("a\x1b[2Jb\nc\td\x7f") == "a\\u001b[2Jb\\u000ac\\u0009d\\u007f"
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
        """Any bytes are a message that reads back as itself, or malformed: only that (I24)."""
        lines = data.replace(b"\r\n", b"\n").replace(b"\n\n", b"\n").strip(b"\n")
        for form in (data, b"QUERY\n" + lines):
            message = parsed(form)
            if isinstance(message, Malformed):
                assert message.cause.isprintable()
            else:
                assert parse(message.encode().removesuffix(b"\r\n\r\n")) == message
                assert all(line.isprintable() or "\u3000" in line for line in message.masked())
