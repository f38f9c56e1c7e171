"""One message: a verb, then fields and a statement in the order of their lines.

``parse`` and ``Message.encode`` are inverse to each other for every message of the figures, to the
letter. A list of edits under one ``Accept`` (fig. 3d) is one field whose edits are separated by
LF, as on the wire.
"""

from __future__ import annotations

from typing import Final

from broker.messages.grammar import (
    BLANKS,
    EDITS,
    FIELD_NAMES,
    FIELDS,
    LISTS,
    REPEATED,
    SECRETS,
    STATEMENT,
    VERB_NAMES,
    fold,
)
from broker.messages.statements import STATEMENTS

#: Fields whose values may spread over several lines.
_SPREAD: Final = LISTS | REPEATED
_EDIT_WORDS: Final = frozenset(fold(word) for word in EDITS)
#: The first characters that a line with an edit may have.
_EDIT_STARTS: Final = frozenset(
    {*BLANKS, *(start[0] for start in EDITS), *(word[0] for word in _EDIT_WORDS)}
)
#: Bytes that a line must not contain: C0 except TAB and LF (each CR is removed before), and DEL.
_CONTROLS: Final = bytes(set(range(32)) - {9, 10}) + b"\x7f"

_STRAY_EDIT: Final = "an edit that stands under no list"


class Malformed(Exception):
    """A peer sent something that is no message.

    :param cause: what is wrong with it, in words for the peer
    :param fatal: the framing is lost: answer, then close
    :param silent: it is a ``NOTIFY``, and those are never answered
    :param transaction: its transaction, if it could be read
    :param too_large: it exceeds a size limit
    """

    def __init__(
        self,
        cause: str,
        *,
        fatal: bool = False,
        silent: bool = False,
        transaction: str | None = None,
        too_large: bool = False,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.fatal = fatal
        self.silent = silent
        self.transaction = transaction
        self.too_large = too_large

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Malformed) and vars(self) == vars(other)

    __hash__ = Exception.__hash__


class Message:
    """A verb and its lines.

    :ivar verb: one of ``grammar.VERBS``
    :ivar fields: name to value, in the order of the lines; the statement stands under ``""``
    """

    __slots__ = ("fields", "verb")

    def __init__(self, verb: str, statement: str = "", /, **fields: str | int) -> None:
        """Build a message; ``Callee_Port=1203`` makes the line ``Callee Port:1203``.

        No rule is applied here: the caller gives values that are in their canonical form.
        """
        self.verb = verb
        self.fields: dict[str, str] = {STATEMENT: statement} if statement else {}
        for name, value in fields.items():
            self.fields[name.replace("_", " ")] = str(value)

    @classmethod
    def of(cls, verb: str, fields: dict[str, str]) -> Message:
        """A message made of ready fields; the caller must not change them after that."""
        message: Message = cls.__new__(cls)
        message.verb = verb
        message.fields = fields
        return message

    @property
    def statement(self) -> str:
        """The line without a colon, or the empty text."""
        return self.fields.get(STATEMENT, "")

    @property
    def transaction(self) -> str | None:
        """The token that the answer must carry."""
        return self.fields.get("Transaction")

    @property
    def length(self) -> int:
        """Bytes of the body that follows."""
        return int(self.fields.get("Length", "0"))

    def get(self, name: str) -> str | None:
        """The value of a field, or ``None``."""
        return self.fields.get(name)

    def edits(self, name: str) -> list[str]:
        """The edits of a list in the order of their lines: ``['Add Ic,Ie', 'Delete If']``."""
        value = self.fields.get(name)
        return value.split("\n") if value is not None else []

    def encode(self) -> bytes:
        """The message as it goes over the wire, with its empty line."""
        fields = self.fields
        spread = not _SPREAD.isdisjoint(fields)
        if spread:
            fields = {name: _repeat(name, value) for name, value in fields.items()}
        text = f"{self.verb}\r\n"
        for name, value in fields.items():
            text += f"{name}:{value}\r\n" if name else f"{value}\r\n"
        text += "\r\n"
        if spread:  # each more edit is a line of its own
            text = text.replace("\r\n", "\n").replace("\n", "\r\n")
        return text.encode("utf-8")

    def masked(self) -> list[str]:
        """The lines of the message for a log or a trace, without secrets (I18, I19)."""
        lines = [self.verb]
        for name, value in self.fields.items():
            for part in value.split("\n"):
                shown = "…" if name in SECRETS else printable(part)
                lines.append(f"{name}:{shown}" if name else shown)
        return lines

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Message)
            and self.verb == other.verb
            and list(self.fields.items()) == list(other.fields.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Message {' / '.join(self.masked())}>"


def _repeat(name: str, value: str) -> str:
    """The value of a field with the field's name before each line but the first."""
    return value.replace("\n", f"\n{name}:") if name in REPEATED else value


def printable(text: str) -> str:
    """A peer's text made safe for a log: on one line, without control characters (I19)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character == "\u3000"
        else f"\\u{ord(character):04x}"
        for character in text
    )


def host_port(host: str, port: int) -> str:
    """An address and a port as people read them: ``192.0.2.1:1203``, ``[2001:db8::1]:1203``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(head: bytes) -> Message:
    """Read one head: the lines of a message without the empty line that ends it.

    :raises Malformed: with ``fatal`` set where it is not text, or hides a body
    """
    if b"\r" in head:
        head = head.replace(b"\r\n", b"\n")
        if head.endswith(b"\r"):
            head = head[:-1]
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("not UTF-8", fatal=True, silent=is_notify(head)) from None
    lines = text.split("\n")
    first = lines[0]
    verb = VERB_NAMES.get(first) or VERB_NAMES.get(fold(first.strip(BLANKS)))
    message = Message(verb or "")
    try:
        if verb is None:
            raise ValueError("the verb must be REGISTER, QUERY, NOTIFY or REQUEST")
        if len(head.translate(None, _CONTROLS)) != len(head):
            raise ValueError("a control character")
        _fill(message.fields, lines)
    except ValueError as error:
        raise Malformed(
            str(error),
            silent=verb == "NOTIFY",
            transaction=_transaction(lines),
            fatal=_hides_a_body(lines),
        ) from None
    return message


def _fill(fields: dict[str, str], lines: list[str]) -> None:
    open_list = ""
    for index in range(1, len(lines)):
        line = lines[index]
        if open_list and _is_edit(line):
            name = open_list
            value = line
        else:
            before, colon, value = line.partition(":")
            if not colon:
                statement = line.strip(BLANKS)
                if STATEMENT in fields:
                    raise ValueError("two statements")
                fields[STATEMENT] = STATEMENTS.get(statement) or _statement(statement)
                open_list = ""
                continue
            name = FIELD_NAMES.get(before) or FIELD_NAMES.get(fold(before.strip(BLANKS)), "")
            if not name:
                if _is_edit(line):
                    raise ValueError(_STRAY_EDIT)
                open_list = ""
                continue
        try:
            value = FIELDS[name](value.strip(BLANKS))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        open_list = name if name in LISTS else ""
        if name not in fields:
            fields[name] = value
        elif open_list or name in REPEATED:
            fields[name] += f"\n{value}"
        else:
            raise ValueError(f"{name} stands twice")


def _statement(line: str) -> str:
    """A statement that is spelled differently from the figures, or unknown."""
    if not line:
        raise ValueError("a line of blanks")
    if _is_edit(line):
        raise ValueError(_STRAY_EDIT)
    return STATEMENTS.get(fold(line), line)


def _is_edit(line: str) -> bool:
    """Whether a line is an edit of the list above it, even if it contains a colon."""
    if line[:1] not in _EDIT_STARTS:
        return False  # quick, for most lines
    return fold(line.strip(BLANKS).partition(" ")[0]) in _EDIT_WORDS


def is_notify(head: bytes) -> bool:
    """Whether a head, however broken, is that of a ``NOTIFY``."""
    return head.partition(b"\n")[0].strip(b" \t\r").upper() == b"NOTIFY"


def _transaction(lines: list[str]) -> str | None:
    """The transaction of a malformed message, so that its sender knows which one it was."""
    found = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon and fold(name.strip(BLANKS)) == "transaction":
            try:
                found["Transaction"] = FIELDS["Transaction"](value.strip(BLANKS))
            except ValueError:
                return None
    return found.get("Transaction")


def _hides_a_body(lines: list[str]) -> bool:
    """Whether a malformed message announces a body: then what follows cannot be framed."""
    return any(fold(line.partition(":")[0].strip(BLANKS)) == "length" for line in lines[1:])
