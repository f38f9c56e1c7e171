"""Messages and streams of bytes at random, as hypothesis makes them."""

from __future__ import annotations

import string
from collections.abc import Sequence

from hypothesis import strategies as st

from broker.messages.grammar import (
    CREATE,
    EDITS,
    LISTS,
    NOTIFY,
    QUERY,
    REGISTER,
    REQUEST,
    identifier,
)
from broker.messages.message import Message
from broker.messages.statements import CODES

_letters = st.characters(
    exclude_categories=("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"), exclude_characters=",;"
)


def _is_identifier(text: str) -> bool:
    try:
        return identifier(text) == text
    except ValueError:
        return False


#: Identifiers in their canonical form.
identifiers = st.one_of(
    st.sampled_from(["Ia", "Ib", "+81-6-6908-1121", "taro@example.jp", "山田太郎 大阪府門真市"]),
    st.text(_letters, min_size=1, max_size=20),
).filter(_is_identifier)

tokens = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64)


@st.composite
def edits(draw: st.DrawFn) -> str:
    """Edits of a list, parted by LF as a message keeps them."""
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        word = draw(st.sampled_from(EDITS))
        names = draw(
            st.lists(
                st.one_of(identifiers, identifiers.map("@{}".format)),
                min_size=0 if word == CREATE else 1,
                max_size=3,
            )
        )
        lines.append(f"{word} {','.join(names)}" if names else word)
    return "\n".join(lines)


_fields = {
    "Identifier": identifiers,
    "Callee": identifiers,
    "Address": st.sampled_from(["127.0.0.1", "2001:db8::1", "host.example.jp"]),
    "Port": st.integers(1, 65535).map(str),
    "Transaction": tokens,
    "Session": tokens,
    "Code": st.integers(100, 699).map(str),
    "Expires": st.integers(0, 10**8).map(str),
    "Password": st.text(string.ascii_letters + string.digits + "!#$:=", min_size=1, max_size=40),
    "Encrypt Key": st.binary(min_size=32, max_size=32).map(bytes.hex),
    "Cause": st.text(string.ascii_letters + ":.,;", min_size=1, max_size=40),
    "End": st.sampled_from(["Completed", "Failed"]),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A message without a body, of known fields in any order."""
    names: Sequence[str] = draw(
        st.lists(st.sampled_from([*_fields, *sorted(LISTS)]), unique=True, max_size=6)
    )
    lines = {name: draw(edits() if name in LISTS else _fields[name]) for name in names}
    statement = draw(
        st.one_of(st.just(""), st.sampled_from(list(CODES)), st.sampled_from(["Hello.", "ſ\u3000"]))
    )
    verb = draw(st.sampled_from([REGISTER, QUERY, NOTIFY, REQUEST]))
    message = Message(verb)
    place = draw(st.integers(0, len(lines)))
    for index, (name, value) in enumerate(lines.items()):
        if index == place and statement:
            message.fields[""] = statement
        message.fields[name] = value
    if statement:
        message.fields.setdefault("", statement)
    return message


#: Bytes that are like a message, and mostly are none.
nearly = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    b"REGISTER", b"STATUS", b"QUERY", b"NOTIFY", b"REQUEST", b"query ",
                    b"\r\n", b"\n", b"\n\n", b"\r", b":", b" ", b"\t", b"Accept:",
                    b"Accept:Add ", b"Create",
                    b"Delete Ib", b"Identifier:", b"Ia", b"Length:", b"5", b"Transaction:", b"7",
                    b",", b"\x00", b"\x1b[2J", b"\xff",
                    b"\xe3\x80\x80", b"\xc2\x85", b"\xe2\x80\xa8",
                ]
            ),
            st.binary(max_size=3),
        ),
        max_size=30,
    ).map(b"".join),
)  # fmt: skip
