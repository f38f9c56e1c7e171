"""Messages in datagrams: one datagram, one message, no body."""

from __future__ import annotations

from typing import Final

from broker.messages.message import Malformed, Message, parse

#: The longest datagram taken or sent, in bytes.
DATAGRAM_BYTES: Final = 1200


def parse_datagram(data: bytes) -> Message:
    """The one message of a datagram.

    :raises Malformed: where it is over the limit, has no empty line at its end, or is no message
    """
    if len(data) > DATAGRAM_BYTES:
        raise Malformed(f"a datagram has at most {DATAGRAM_BYTES} bytes", too_large=True)
    for end in (b"\r\n\r\n", b"\n\r\n", b"\n\n"):
        if data.endswith(end):
            head = data[: -len(end)]
            break
    else:
        raise Malformed("a datagram ends with an empty line")
    if b"\n\n" in head or b"\n\r\n" in head:
        raise Malformed("a datagram holds one message")
    message = parse(head)
    if "Length" in message.fields:
        raise Malformed("a datagram has no body", silent=message.verb == "NOTIFY")
    return message
