"""What servers and clients of a run prove themselves with: certificates, and accounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from zope.interface import implementer

from benchmarks.counting import Broken
from benchmarks.peers import HOST, PASSWORD, PATIENCE
from broker.ca.authority import Authority
from broker.ca.names import Names, kind_of, server_names, terminal_names
from broker.ca.requests import CertificateRequest, key_pem, new_key
from broker.files import PRIVATE, write_file
from broker.mediator.auth.passwords import Passwords
from broker.store.sqlite import SqliteStore
from broker.tables.accounts import AccountChange


class Certificates:
    """An authority, and the certificates that it has issued: ECDSA keys on P-256.

    :ivar folder: where the clients' are, each in a file named after its identifier
    :ivar ca: the file of the authority's own
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = Authority.make(folder / "authority", "Bench")
        self.ca = str(self._authority.certificate_path)
        self._issue("server", server_names([HOST]))

    def clients(self, identifiers: Sequence[str]) -> None:
        """Issue one for each."""
        for identifier in identifiers:
            self._issue(identifier, terminal_names(identifier))

    def _issue(self, name: str, names: Names) -> None:
        key = new_key()
        certificate = self._authority.issue(
            CertificateRequest(kind_of(names), names, key.public_key())
        )
        base = self.folder / name
        write_file(Path(f"{base}.pem"), certificate.public_bytes(Encoding.PEM))
        write_file(Path(f"{base}.key"), key_pem(key), mode=PRIVATE)

    def options(self, *, clients: bool = False) -> list[str]:
        """The options of a mediator that shows the server's.

        :param clients: it asks for those of clients
        """
        own = [f"--certificate={self.folder / 'server.pem'}"]
        own += [f"--private-key={self.folder / 'server.key'}"]
        if clients:
            revoked = self._authority.revocations_path
            own += [f"--client-ca={self.ca}", f"--revocation-list={revoked}"]
        return own


@implementer(IReactorFromThreads)
class _Calls:
    """Calls from the store's thread, made by whoever waits for them."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()

    def callFromThread(
        self, callable: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        """Queue a call."""
        self.queue.put((callable, args))


def add_accounts(database: Path, identifiers: Sequence[str]) -> None:
    """Put accounts into a database that no mediator has open; each has ``PASSWORD``.

    :raises Broken: the store does not take them
    """
    calls = _Calls()

    def done(waited: Deferred[Any]) -> Any:
        came: list[Any] = []
        waited.addBoth(came.append)
        while not came:
            try:
                call, arguments = calls.queue.get(timeout=PATIENCE)
            except Empty:
                raise Broken("the store does not answer") from None
            call(*arguments)
        if isinstance(came[0], Failure):
            raise Broken(f"the store takes no accounts: {came[0].getErrorMessage()}")
        return came[0]

    store = SqliteStore(str(database), calls, os.urandom)
    done(store.load())
    # One for all: what checking it costs does not depend on whose it is.
    verifier = done(Deferred.fromCoroutine(Passwords(os.urandom).make(PASSWORD)))
    generation = bytes(8).hex()
    done(store.commit([AccountChange(one, verifier, generation) for one in identifiers]))
    done(store.stop())
