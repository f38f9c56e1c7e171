"""What anybody may say at a terminal's own listener."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.conversations.stage import play

KEY: Final = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
CREDENTIALS: Final = f"""\
NOTIFY
Caller ID:Ia
Password:yf3#Qm!d8=Zt0w~K
Encrypt Key:{KEY}
Session:S1
Expires:3600
Reply Password:p-7Rk$0vB+e5^LxN
"""
REGISTERED: Final = """\
-- twistd broker-terminal --identifier Ib --receive DIR
-- 127.0.0.1:1201 is dialled; M answers
M< REGISTER
M< Identifier:Ib
M< Address:127.0.0.1
M< Port:1203
M< Transaction:{token}
M<
M> NOTIFY
M> Registration Completed.
M> Transaction:{token}
M> Code:200
M>
"""
CALLED: Final = f"""\
-- Ia connects
-- Ia speaks with Ib by S1 and {KEY}
Ia> REQUEST
Ia> Session:S1
Ia> Length:101
Ia>
Ia>* REQUEST
Ia>* Identifier:Ia
Ia>* Password:yf3#Qm!d8=Zt0w~K
"""
ACCEPTED: Final = """\
Ia< NOTIFY
Ia< Session:S1
Ia< Length:104
Ia<
Ia<* NOTIFY
Ia<* Request Accepted.
Ia<* Password:p-7Rk$0vB+e5^LxN
"""


def said(who: str, message: str) -> str:
    """The lines by which somebody says a message."""
    return "".join(f"{who}> {line}\n" for line in [*message.splitlines(), ""])


class OutsideTests:
    """Only the mediator, on the connection that the terminal made, is believed."""

    def test_credentials(self, tmp_path: Path) -> None:
        """Credentials count from the mediator, and are worth nothing from anybody else (I26)."""
        play(REGISTERED + said("M", CREDENTIALS) + CALLED + ACCEPTED, tmp_path)
        forged = "-- Ix connects\n" + said("Ix", CREDENTIALS) + "-- Ix is closed\n"
        play(REGISTERED + forged + CALLED + "-- 2 s pass\n-- Ia is closed", tmp_path)

    def test_termination(self, tmp_path: Path) -> None:
        """Nobody else can void a call that the mediator has announced (I26)."""
        terminate = "NOTIFY\nSession:S1\nTerminate.\n"
        forged = "-- Ix connects\n" + said("Ix", terminate) + "-- Ix is closed\n"
        play(REGISTERED + said("M", CREDENTIALS) + forged + CALLED + ACCEPTED, tmp_path)
        voided = said("M", terminate) + CALLED + "-- 2 s pass\n-- Ia is closed"
        play(REGISTERED + said("M", CREDENTIALS) + voided, tmp_path)

    @pytest.mark.parametrize(
        "message",
        [
            "QUERY\nSTATUS\n",
            "QUERY\nPERMITS\n",
            "REGISTER\nIdentifier:Ib\nAccept:Create Ix\n",
            "NOTIFY\nSuperseded.\n",
            "NOTIFY\nRegistration Completed.\nEpoch:e2\nTransaction:1\nCode:200\n",
            "REQUEST\nIdentifier:Ix\nPassword:guess\n",
            "NONSENSE\n",
        ],
    )
    def test_anything_else(self, tmp_path: Path, message: str) -> None:
        """Anything else is closed upon without a byte, and changes nothing (I5, I26)."""
        outside = "-- Ix connects\n" + said("Ix", message) + "-- Ix is closed\n-- nothing is said\n"
        play(REGISTERED + outside + said("M", CREDENTIALS) + CALLED + ACCEPTED, tmp_path)
