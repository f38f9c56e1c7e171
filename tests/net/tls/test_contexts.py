"""Files that are read again (broker.net.tls.contexts)."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from broker.files import InvalidFile
from broker.net.tls.contexts import ClientTls, ServerTls
from broker.net.tls.transport import certificate_of
from tests.net.tls.handshakes import (
    Meeting,
)
from tests.support.certificates import Files, Pki, foreign_client, foreign_server, meet


class ReloadTests:
    """Certificates that change while the server runs."""

    def shown(self, tls: ServerTls, pki: Pki) -> bytes | None:
        """The certificate that a new client sees."""
        foreign = foreign_client(pki.ca)
        meet(Meeting(tls).tls, Clock(), foreign)
        der: bytes | None = foreign.tls.getpeercert(binary_form=True)
        return der

    def place(self, files: Files, folder: Path) -> Files:
        """Put a certificate and its key where the server looks."""
        placed = Files(str(folder / "server.pem"), str(folder / "server.key"))
        for path, source in zip(placed, files, strict=True):
            Path(path).write_bytes(Path(source).read_bytes())
        Path(placed.key).chmod(0o600)
        return placed

    def test_new_certificate(self, pki: Pki, own: Files, tmp_path: Path) -> None:
        """New connections see the new one; those that stand go on (A21)."""
        tls = ServerTls(*self.place(own, tmp_path))
        meeting = Meeting(tls)
        foreign = foreign_client(pki.ca)
        peer = meet(meeting.tls, meeting.clock, foreign)
        before = self.shown(tls, pki)
        self.place(pki.server(), tmp_path)
        assert self.shown(tls, pki) == before
        tls.reload()
        assert self.shown(tls, pki) not in {before, None}
        foreign.talk(peer, say=b"still here")
        assert foreign.received == b"still here"

    def test_bad_file(self, pki: Pki, own: Files, tmp_path: Path) -> None:
        """A bad file at reload keeps the old, and says so (I3)."""
        placed = self.place(own, tmp_path)
        tls = ServerTls(*placed)
        before = self.shown(tls, pki)
        assert before is not None
        Path(placed.certificate).write_bytes(Path(pki.server().certificate).read_bytes())
        with pytest.raises(InvalidFile, match="is not the certificate of the key"):
            tls.reload()
        assert self.shown(tls, pki) == before

    def test_revoked_since(self, pki: Pki, own: Files) -> None:
        """A reload brings a revocation into force, also for who is connected already (I2)."""
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl)
        files = pki.terminal("Ia")
        meeting = Meeting(tls)
        foreign = foreign_client(pki.ca, files)
        meet(meeting.tls, meeting.clock, foreign)
        shown = certificate_of(meeting.echo.transport)
        assert shown is not None
        pki.revoke(files)
        assert not tls.revoked(shown)
        tls.reload()
        assert tls.revoked(shown)
        again = Meeting(tls)
        meet(again.tls, again.clock, foreign_client(pki.ca, files))
        assert again.why.endswith("it has been revoked")
        assert not tls.revoked(pki.terminal("Ia").read)
        assert not ServerTls(*own).revoked(shown)

    def test_client(self, pki: Pki, other: Pki, own: Files, tmp_path: Path) -> None:
        """A client reloads whom it trusts."""
        ca = tmp_path / "ca.pem"
        ca.write_bytes(Path(other.ca).read_bytes())
        tls = ClientTls(str(ca), "localhost")
        foreign = foreign_server(own)
        meet(Meeting(tls).tls, Clock(), foreign)
        assert foreign.error is not None
        ca.write_bytes(Path(pki.ca).read_bytes())
        tls.reload()
        foreign = foreign_server(own)
        meet(Meeting(tls).tls, Clock(), foreign)
        assert foreign.error is None
        assert foreign.ready
