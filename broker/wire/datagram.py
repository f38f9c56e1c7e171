"""Messages over UDP: one datagram, one message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.protocol import DatagramProtocol

from broker.wire.message import Malformed, Message, parse

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


class DatagramMessages(DatagramProtocol):
    """Hands over the messages that arrive and sends others; what is no message gets silence (I13).

    :param received: called with each message and the (address, port) it came from
    """

    def __init__(self, received: Callable[[Message, tuple[str, int]], None]) -> None:
        self._received = received
        #: Datagrams that were no message.
        self.ignored = 0

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """A datagram arrived."""
        try:
            message = parse_datagram(datagram)
        except Malformed:
            self.ignored += 1
            return
        self._received(message, addr)

    def send(self, message: Message, to: tuple[str, int]) -> None:
        """Send a message in one datagram.

        :raises ValueError: where it is longer than a datagram may be
        """
        data = message.encode()
        if len(data) > DATAGRAM_BYTES:
            raise ValueError(f"a datagram has at most {DATAGRAM_BYTES} bytes, not {len(data)}")
        if self.transport is not None:
            self.transport.write(data, to)
