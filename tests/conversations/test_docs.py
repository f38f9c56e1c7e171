"""Every conversation that a document prints happens as it is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.conversations.script import Script, read
from tests.conversations.stage import Stage, at_once
from tests.support.clock import advance
from tests.support.transport import Client

ROOT: Final = Path(__file__).resolve().parents[2]
CONVERSATIONS: Final = list(read(ROOT / "docs" / "conversations.md"))
README: Final = list(read(ROOT / "README.md"))

#: What the figures print.
FIGURES: Final = """
Accept:Create Ib,If        # fig. 3a
Accept:Add Ic,Ie           # fig. 3b
Accept:Delete If           # fig. 3c
Delete If                  # fig. 3d
Callee:Ib                  # fig. 5a
Request Accepted.          # fig. 5b
Permission Denied.         # fig. 5c
Callee Address:127.0.0.1   # fig. 5d
Caller ID:Ia               # fig. 5e
Callee not Found.          # fig. 5g
Callee not Connected.      # fig. 5h
STATUS                     # fig. 17a
STATUS Acceptable.         # fig. 17b
STATUS Busy.               # fig. 17c
Callee is Busy.            # fig. 17d
"""
#: Hands over what a client sends.
Say = Callable[[Stage, Client, bytes], None]
#: Seconds that a person takes to type a line.
A_LINE: Final = 2.0


def byte_by_byte(stage: Stage, client: Client, data: bytes) -> None:
    """As slowly as a network can cut it, with the line ends that nc sends."""
    for byte in data.replace(b"\r\n", b"\n"):
        client.send(bytes((byte,)))


def by_hand(stage: Stage, client: Client, data: bytes) -> None:
    """Line by line, with time between the lines, as a person types."""
    for line in data.splitlines(keepends=True):
        advance(stage.clock, A_LINE)
        client.send(line)


def name(script: Script) -> str:
    """What a conversation is called in a report."""
    return f"{script.title}, line {script.line}"


class ConversationsTests:
    """The conversations of docs/conversations.md."""

    @pytest.mark.parametrize("say", [at_once, byte_by_byte])
    @pytest.mark.parametrize("script", CONVERSATIONS, ids=name)
    def test_as_printed(self, script: Script, say: Say, tmp_path: Path) -> None:
        """The roles say what the document says they say, and nothing else (I11), however the bytes
        are cut, and with bare LF at the ends of lines.
        """
        Stage(tmp_path, say).play(script)

    def test_figures(self) -> None:
        """Each figure's message occurs among them (A1–A5, A9, A11–A13, A20, A24)."""
        spoken = [
            line
            for script in CONVERSATIONS
            for step in script.steps
            if step.way != "--"
            for line in step.lines
        ]
        missing = {line.partition("#")[0].strip() for line in FIGURES.split("\n")} - {*spoken, ""}
        assert missing == set()


class ReadmeTests:
    """The transcript of README.md."""

    @pytest.mark.parametrize("script", README, ids=name)
    def test_by_hand(self, script: Script, tmp_path: Path) -> None:
        """It works when it is typed at a person's pace (A9, A11, A13)."""
        Stage(tmp_path, by_hand).play(script)

    def test_needs_its_option(self, tmp_path: Path) -> None:
        """Such a pace needs the longer ``--status-timeout`` that the transcript names."""
        (script,) = README
        assert "--status-timeout 60" in script.steps[0].lines[0]
        with pytest.raises(AssertionError, match="Ib should have got 'NOTIFY', and got b''"):
            Stage(tmp_path, by_hand).play(Script("", 0, script.steps[1:]))
