"""The way of a message: how many functions it passes from the socket to its handler, and back.

An engineer who looks for what a message does reads these functions, one after the other. So they
are counted in a real mediator, on the stack: ``docs/architecture.md`` says the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import broker
from broker.mediator.connection import TerminalConnection
from broker.messages.grammar import QUERY
from broker.net.dialogue import Request
from broker.net.hub import ConnectionHub
from tests.mediator.scene import Scene, query

PACKAGE = str(Path(broker.__file__).parent)

#: Functions from ``dataReceived`` to the handler, both included, for a terminal that has logged in.
IN_MOST = 5
#: Functions from the handler's reply to the transport: ``reply`` and ``send`` queue the message;
#: at the end of the turn ``flush`` writes all that is queued for a peer.
OUT_MOST = 3


def functions() -> Iterator[str]:
    """The functions of broker on the stack, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield frame.f_code.co_qualname
        frame = frame.f_back


def test_when_a_request_comes_then_few_functions_lead_to_its_handler_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A ``QUERY`` of a terminal that has logged in: from the socket to the handler's first line,
    and from the reply to the write, which is one for each peer at the end of the turn.
    """
    scene = Scene(ask_status=False)
    scene.on_line("b", "Accept:Create Ia")
    scene.on_line("a")
    passed: list[str] = []
    queued: list[list[str]] = []
    written: list[list[str]] = []
    client = scene.clients["a"]
    routes: Any = scene.mediator._routes
    route, note, write = routes[QUERY, ""], ConnectionHub.written, client.transport.write

    async def handler(peer: TerminalConnection, request: Request) -> None:
        passed.extend(functions())
        await route.handler(peer, request)

    def noted(hub: ConnectionHub, connection: Any) -> None:
        if connection is client.protocol:
            queued.append(list(functions()))
        note(hub, connection)

    def wrote(data: bytes) -> None:
        written.append(list(functions()))
        write(data)

    routes[QUERY, ""] = replace(route, handler=handler)
    monkeypatch.setattr(ConnectionHub, "written", noted)
    monkeypatch.setattr(client.transport, "write", wrote)
    client.type(query("Ia", "Ib"))
    for name in "ab":
        scene.heard(name)
    assert passed[-1] == "PeerConnection.dataReceived"
    assert len(passed) + 1 <= IN_MOST, passed
    assert len(queued) == 2, "fig. 5b and 5d"
    assert len(written) == 1, "in one write"
    reply = queued[-1][: queued[-1].index("Request.reply") + 1]
    flush = written[0][: written[0].index("PeerConnection.dataReceived")]
    assert len(reply) + len(flush) <= OUT_MOST, (reply, flush)
