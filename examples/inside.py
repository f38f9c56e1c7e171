"""All in one program: a mediator, accounts, and two terminals that log in over TLS.

The certificate is one of ``broker ca``'s, for localhost, in a folder of its own::

    (cd FOLDER && broker ca init && broker ca issue --server localhost)
    python -m examples.inside FOLDER
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.task import react

from broker.net.tls.contexts import ClientTls
from broker.net.tls.transport import TlsEndpoint
from broker.service.mediator import MediatorService, Options
from broker.store.memory import MemoryStore
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal
from examples.echo import Answering
from examples.say import Saying


async def start_mediator(
    reactor: Any, folder: Path, port: int, passwords: dict[str, str]
) -> MediatorService:
    """A mediator as ``twistd -n broker`` runs it, in this process, with these accounts."""
    options: Any = Options()
    options.parseOptions(
        [
            *("--listen", "tcp:0:interface=127.0.0.1"),
            *("--listen-tls", f"tcp:{port}:interface=127.0.0.1"),
            *("--certificate", str(folder / "server-localhost.pem")),
            *("--private-key", str(folder / "server-localhost.key")),
            *("--store", "memory:", "--admin", "none", "--udp", "none"),
        ]
    )
    service = MediatorService(reactor, options, MemoryStore(os.urandom))
    service.startService()
    assert service.mediator is not None  # a store in memory is loaded at once
    for identifier, password in passwords.items():
        await service.mediator.accounts.add(identifier, password)
    return service


async def main(reactor: Any, folder: str, port: str = "1202") -> None:
    """Ia calls Ib, says something, and prints what comes back."""
    passwords = {"Ia": secrets.token_urlsafe(16), "Ib": secrets.token_urlsafe(16)}
    service = await start_mediator(reactor, Path(folder), int(port), passwords)

    # Whose certificate the mediator must show, and for which name.
    tls = ClientTls(f"{folder}/ca/authority.pem", "localhost")
    mediator = TlsEndpoint(tls, TCP4ClientEndpoint(reactor, "127.0.0.1", int(port)), reactor)
    callee = Terminal(
        reactor,
        "Ib",
        mediator,
        TerminalSettings(
            listen=TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"),
            accept=["Ia"],
            password=passwords["Ib"],
            handler=Answering(),
        ),
    )
    caller = Terminal(reactor, "Ia", mediator, TerminalSettings(password=passwords["Ia"]))
    running = (callee, caller)
    for terminal in running:
        terminal.startService()
    try:
        await callee.ready()
        call: Any = await caller.call("Ib", Saying(b"Is anybody there?"))
        print((await call.answered).decode("utf-8"))
    finally:
        for terminal in running:
            await terminal.stopService()
        await maybeDeferred(service.stopService)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(
            "usage: python -m examples.inside FOLDER [PORT]; what FOLDER holds: see the docstring"
        )
    react(lambda reactor, *rest: Deferred.fromCoroutine(main(reactor, *rest)), sys.argv[1:])
