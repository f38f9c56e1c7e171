"""The statements of the protocol and the code each carries (as SIP numbers them).

A statement is a line without a colon. Those of the figures are spelled as there, to the letter.

To add one: a constant, its code in ``CODES`` if it answers a request, else a place in ``_KNOWN``;
and, if it refuses, an exception in ``errors.py``.
"""

from __future__ import annotations

from typing import Final

from broker.messages.grammar import fold

REQUEST_ACCEPTED: Final = "Request Accepted."  # fig. 5b
PERMISSION_DENIED: Final = "Permission Denied."  # fig. 5c
CALLEE_NOT_FOUND: Final = "Callee not Found."  # fig. 5g
CALLEE_NOT_CONNECTED: Final = "Callee not Connected."  # fig. 5h
CALLEE_BUSY: Final = "Callee is Busy."  # fig. 17d

STATUS: Final = "STATUS"  # fig. 17a
STATUS_ACCEPTABLE: Final = "STATUS Acceptable."  # fig. 17b
STATUS_BUSY: Final = "STATUS Busy."  # fig. 17c

REGISTRATION_COMPLETED: Final = "Registration Completed."  # ¶32
REGISTRATION_FAILED: Final = "Registration Failed."  # ¶32
BAD_MESSAGE: Final = "Bad Message."
LOGIN_REQUIRED: Final = "Login Required."
TOO_LARGE: Final = "Too Large."
TOO_MANY_REQUESTS: Final = "Too Many Requests."
NOT_REACHED: Final = "Not Reached."
SERVICE_UNAVAILABLE: Final = "Service Unavailable."

PERMITS: Final = "PERMITS"
ACCEPT: Final = "ACCEPT"
DISCLOSURES: Final = "DISCLOSURES"
NOTHING_DISCLOSED: Final = "Nothing Disclosed."
LOOKUP: Final = "LOOKUP"
ADDRESS: Final = "ADDRESS"
CONNECTION_REQUESTED: Final = "Connection Requested."
SUPERSEDED: Final = "Superseded."
BEGIN: Final = "Begin."
TERMINATE: Final = "Terminate."

#: The code of each statement that answers a request.
CODES: Final[dict[str, int]] = {
    REQUEST_ACCEPTED: 100,
    REGISTRATION_COMPLETED: 200,
    NOTHING_DISCLOSED: 200,
    BAD_MESSAGE: 400,
    REGISTRATION_FAILED: 400,
    LOGIN_REQUIRED: 401,
    PERMISSION_DENIED: 403,
    CALLEE_NOT_FOUND: 404,
    TOO_LARGE: 413,
    TOO_MANY_REQUESTS: 429,
    CALLEE_NOT_CONNECTED: 480,
    NOT_REACHED: 480,
    CALLEE_BUSY: 486,
    SERVICE_UNAVAILABLE: 503,
}

_KNOWN: Final = (
    *CODES,
    STATUS,
    STATUS_ACCEPTABLE,
    STATUS_BUSY,
    PERMITS,
    ACCEPT,
    DISCLOSURES,
    LOOKUP,
    ADDRESS,
    CONNECTION_REQUESTED,
    SUPERSEDED,
    BEGIN,
    TERMINATE,
)

#: Every spelling accepted of a statement: ASCII case does not count.
STATEMENTS: Final = {word: word for word in _KNOWN} | {fold(word): word for word in _KNOWN}
