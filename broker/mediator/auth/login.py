"""Who a connection acts as: how that is proven (A19, I4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Final, Protocol

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import Tokens
from broker.mediator.connection import Peer, seen_ip
from broker.messages.errors import LoginFailed, LoginRequired, TooManyRequests
from broker.messages.grammar import REGISTER
from broker.messages.message import Message, printable
from broker.net.tls.certificates import CertificateRefused, identifier_of
from broker.net.tls.transport import certificate_of
from broker.tables.accounts import AccountChange, AccountTable
from broker.tables.address_policy import address_scope
from broker.tables.login_throttle import AttemptTable

#: Logins that may fail on one connection; then it is closed.
FAILURES_A_CONNECTION: Final = 3
#: Whose generation it is that nobody has.
_NOBODY: Final = AccountChange("", None)


class Login(Protocol):
    """A way to prove who one is; a connection acts as nobody until it has."""

    async def admit(self, peer: Peer, message: Message) -> str:
        """Find out who speaks on a connection that is bound to nobody.

        :param message: its first request
        :return: the identifier that it acts as from now on
        :raises Refused: it has proven nothing: nothing changes, and it is bound to nobody
        """
        ...


class Anybody:
    """``--auth none``: whoever says so is believed."""

    async def admit(self, peer: Peer, message: Message) -> str:
        """Believe it."""
        named = message.fields.get("Identifier")
        if named is None:
            raise LoginRequired("say who you are: REGISTER with an Identifier")
        return named


class PasswordLogin:
    """``--auth password``: who registers with an account's password, or a token got for one."""

    log = Logger()

    def __init__(
        self,
        accounts: AccountTable,
        passwords: Passwords,
        tokens: Tokens,
        clock: IReactorTime,
        *,
        clear_text: bool = False,
    ) -> None:
        """
        :param clear_text: take logins that are not encrypted from other machines too
        """
        self._accounts = accounts
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._clear_text = clear_text
        self.attempts = AttemptTable()

    async def admit(self, peer: Peer, message: Message) -> str:
        """Check the password or the token of a ``REGISTER``; nothing else logs in.

        Nothing more of the connection is read meanwhile: what follows acts as whom this proves.
        """
        fields = message.fields
        password, token = fields.get("Password"), fields.get("Token")
        if message.verb != REGISTER or (password is None and token is None):
            raise LoginRequired("log in first: REGISTER with an Identifier and a Password or Token")
        try:
            if not self._clear_text and not hidden(peer):
                raise LoginFailed("no login is taken in clear text from another machine", code=403)
            named = fields.get("Identifier")
            if named is None:
                raise LoginFailed("a login names an Identifier", code=400)
            identifier = self._accounts.canonical(named)
            if token is None:
                account = await self._check(peer, identifier, password or "")
            elif password is None:
                account = self._resume(identifier, token)
            else:
                raise LoginFailed("a login has a Password or a Token, not both", code=400)
        except (LoginFailed, TooManyRequests):
            peer.failures += 1
            if peer.failures >= FAILURES_A_CONNECTION:
                peer.dismiss()
            raise
        peer.greeting = {"Token": self._tokens.issue(account.identifier, account.generation)}
        return account.identifier

    def _resume(self, identifier: str, token: str) -> AccountChange:
        """Who shows a token; one is always looked at, since that costs nothing (I23)."""
        account = self._accounts.get(identifier)
        known = account or _NOBODY
        good = self._tokens.check(token, known.identifier, known.generation)
        if account is None or not good:
            raise LoginFailed("the token is not good, or not any more: log in with the password")
        return account

    async def _check(self, peer: Peer, identifier: str, password: str) -> AccountChange:
        """Who shows a password; with the same work whether or not there is such an account."""
        source = peer.stream.source or "this machine"
        now = self._clock.seconds()
        wait = self.attempts.wait(source, identifier, now)
        if wait:
            raise TooManyRequests(
                f"too many logins of this identifier have failed: try again in {ceil(wait)} seconds"
            )
        if self.attempts.begin(source, identifier, now):
            self.log.warn(
                "Logins as {identifier} from {source} fail again and again: they are delayed",
                identifier=printable(identifier),
                source=source,
            )
        before = self._accounts.get(identifier)
        verifier = None if before is None else before.verifier
        peer.stream.hold()  # the answer lets it go on
        checking = Deferred.fromCoroutine(self._passwords.check(password, verifier, source))
        peer.leaving = checking.cancel
        try:
            right = await checking
        except TooManyRequests:
            self.attempts.spare(source, identifier)
            raise
        except CancelledError:
            raise LoginRequired("the connection is gone") from None
        finally:
            peer.leaving = None
        account = self._accounts.get(identifier)  # it may have been changed meanwhile (I2)
        if not right or account is None or account.verifier != verifier:
            raise LoginFailed("the identifier or the password is wrong")
        self.attempts.right(source, identifier)
        return account


class CertificateLogin:
    """``--auth certificate``: who has shown a certificate is whom that is for."""

    def __init__(self, accounts: AccountTable, revoked: Callable[[x509.Certificate], bool]) -> None:
        """
        :param revoked: whether a certificate that held at the handshake is revoked by now
        """
        self._accounts = accounts
        self._revoked = revoked

    async def admit(self, peer: Peer, message: Message) -> str:
        """Take the certificate's identifier, whatever the first message is."""
        certificate = certificate_of(peer.stream.transport)
        if certificate is None:
            raise LoginRequired("show a certificate: this server takes no other login")
        if message.verb == REGISTER and not _NO_CERTIFICATE.isdisjoint(message.fields):
            raise LoginFailed("this server takes certificates, no Password and no Token", code=403)
        try:
            identifier = identifier_of(certificate)
        except CertificateRefused as error:
            raise LoginRequired(f"the certificate does not serve: {error}") from None
        if self._revoked(certificate):
            raise LoginRequired("the certificate has been revoked")
        whose = self._accounts.canonical(identifier)
        if whose != identifier:  # the operator has called another so since it was issued (I4)
            raise LoginRequired("the certificate's identifier is another's name here")
        return identifier


#: What logs in where certificates don't.
_NO_CERTIFICATE: Final = frozenset(("Password", "Token"))


@dataclass(frozen=True, slots=True)
class Authentication:
    """How connections log in at a mediator.

    :ivar accounts: the table of accounts, which ``login`` has too
    :ivar login: the way to prove an identity
    :ivar passwords: makes the verifiers of the operator's new passwords; at once, without
    """

    accounts: AccountTable
    login: Login = field(default_factory=Anybody)
    passwords: Passwords | None = None


def hidden(peer: Peer) -> bool:
    """Whether nobody on the way reads what is said: it is encrypted, or stays here (I25)."""
    return peer.stream.secure or address_scope(seen_ip(peer)) == "loopback"
