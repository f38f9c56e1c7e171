"""The states of a channel: which event leads from which state where. Pure.

Each side ends its own data with an END record, and the connection under the channel closes once
both have. What a half-close leaves open is in the table: after ``WE_END`` we still receive, after
``THEY_END`` we still send.

=================  ==========================================================================
HANDSHAKEN         the handshake is done; the responder waits for the first record, which proves
                   that the caller holds the keys now (I7). The application is not told yet
OPEN               data goes both ways
WE_ENDED           half-closed by us: our END is sent, their data is still delivered
THEY_ENDED         half-closed by them: their END came, the application may still write
DRAINING           the application closes, and its producer still has data to send first;
                   what the other side sends is dropped
DRAINING_LAST      the same, and the other side has ended its data already
LINGERING          our END is sent because we close; the other side has ``LINGER`` seconds to end
CLOSING            both sides have ended; the connection under the channel is closing
BROKEN             broken off: by us, by the other side, or by what is no record of this channel
LOST               the connection is gone
=================  ==========================================================================
"""

from __future__ import annotations

from typing import Final

from broker.states import StateTable

HANDSHAKEN: Final = "handshaken"
OPEN: Final = "open"
WE_ENDED: Final = "we ended"
THEY_ENDED: Final = "they ended"
DRAINING: Final = "draining"
DRAINING_LAST: Final = "draining after their end"
LINGERING: Final = "lingering"
CLOSING: Final = "closing"
BROKEN: Final = "broken"
LOST: Final = "lost"

#: The initiator sends its first record; the responder receives it.
PROVE: Final = "prove"
#: The application half-closes: ``loseWriteConnection``.
WE_END: Final = "we end"
#: The other side's END record came.
THEY_END: Final = "they end"
#: The application closes: ``loseConnection``; with a producer registered, ``CLOSE_AFTER``.
CLOSE: Final = "close"
CLOSE_AFTER: Final = "close after the producer"
#: The producer of an application that closes is done.
DRAINED: Final = "drained"
#: An ABORT record, sent or received; or a record that breaks the channel.
BREAK: Final = "break"
#: The connection under the channel is gone.
LOSE: Final = "lose"

_OVER: Final = {BREAK: BROKEN, LOSE: LOST}

STATES: Final = StateTable(
    "channel",
    HANDSHAKEN,
    {
        HANDSHAKEN: {PROVE: OPEN, CLOSE: LINGERING, CLOSE_AFTER: DRAINING, **_OVER},
        OPEN: {
            WE_END: WE_ENDED,
            THEY_END: THEY_ENDED,
            CLOSE: LINGERING,
            CLOSE_AFTER: DRAINING,
            **_OVER,
        },
        # Our data has ended: nothing that a producer still writes could go first.
        WE_ENDED: {THEY_END: CLOSING, CLOSE: LINGERING, CLOSE_AFTER: LINGERING, **_OVER},
        THEY_ENDED: {WE_END: CLOSING, CLOSE: CLOSING, CLOSE_AFTER: DRAINING_LAST, **_OVER},
        DRAINING: {DRAINED: LINGERING, THEY_END: DRAINING_LAST, **_OVER},
        DRAINING_LAST: {DRAINED: CLOSING, **_OVER},
        LINGERING: {THEY_END: CLOSING, **_OVER},
        CLOSING: _OVER,
        BROKEN: {LOSE: LOST},
        LOST: {},
    },
)

#: What the application writes is sent.
SENDS: Final = frozenset((HANDSHAKEN, OPEN, THEY_ENDED, DRAINING, DRAINING_LAST))
#: What the other side sends is delivered to the application.
DELIVERS: Final = frozenset((OPEN, WE_ENDED))
#: The other side's data has ended: another record of data, or a second END, breaks the channel.
ENDED_BY_THEM: Final = frozenset((THEY_ENDED, DRAINING_LAST, CLOSING))
#: The channel closes or is closed: closing it once more changes nothing.
DISCONNECTING: Final = frozenset((DRAINING, DRAINING_LAST, LINGERING, CLOSING, BROKEN, LOST))
#: Nothing is handled in these: the channel is broken off, or gone.
OVER: Final = frozenset((BROKEN, LOST))
