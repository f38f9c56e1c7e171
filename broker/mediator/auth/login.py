"""Login: how a connection proves which terminal it is (A19, I4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Final, NamedTuple, Protocol

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import Tokens
from broker.mediator.connection import TerminalConnection, seen_ip
from broker.messages.errors import LoginFailed, LoginRequired, TooManyRequests
from broker.messages.grammar import REGISTER
from broker.messages.message import printable
from broker.net.dialogue import Request
from broker.net.tls.certificates import CertificateRefused, identifier_of
from broker.net.tls.transport import certificate_of
from broker.tables.accounts import AccountChange, AccountTable
from broker.tables.address_policy import address_scope
from broker.tables.login_throttle import LoginThrottle

#: Logins that may fail on one connection; then it is closed.
FAILURES_A_CONNECTION: Final = 3
#: Fields by which a registration logs in.
LOGIN_FIELDS: Final = frozenset(("Password", "Token"))
#: Stands in for an account that does not exist, so that checking a token takes the same work.
_NO_ACCOUNT: Final = AccountChange("", None)


class ProvenIdentity(NamedTuple):
    """What a login has proven; never in a log with its token (I18).

    :ivar identifier: the identifier that the connection acts as from now on
    :ivar token: a new resume token, for the answer to the request that has logged in
    """

    identifier: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"<ProvenIdentity {self.identifier}>"


class LoginMethod(Protocol):
    """A way to prove an identity."""

    async def admit(self, peer: TerminalConnection, request: Request) -> ProvenIdentity:
        """Find out which terminal a connection is.

        :param request: its first request
        :raises Refused: it has proven nothing, and nothing has changed
        """
        ...


class UnverifiedLogin:
    """``--auth none``: a connection is whatever it says."""

    async def admit(self, peer: TerminalConnection, request: Request) -> ProvenIdentity:
        """Take the identifier that it gives."""
        named = request.message.fields.get("Identifier")
        if named is None:
            raise LoginRequired("say who you are: REGISTER with an Identifier")
        return ProvenIdentity(named)


class PasswordLogin:
    """``--auth password``: a registration has the account's password, or a resume token."""

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
        self.attempts = LoginThrottle()

    async def admit(self, peer: TerminalConnection, request: Request) -> ProvenIdentity:
        """Check the password or the token of a ``REGISTER``; nothing else logs in.

        While a password is checked no other request of the connection is read: what follows acts
        as the terminal that this one proves.
        """
        message = request.message
        fields = message.fields
        password, token = fields.get("Password"), fields.get("Token")
        if message.verb != REGISTER or (password is None and token is None):
            raise LoginRequired("log in first: REGISTER with an Identifier and a Password or Token")
        try:
            if not self._clear_text and not is_private(peer):
                raise LoginFailed("no login in clear text from another machine", code=403)
            named = fields.get("Identifier")
            if named is None:
                raise LoginFailed("a login needs an Identifier", code=400)
            identifier = self._accounts.canonical(named)
            if token is None and password is not None:
                account = await self._check(peer, request, identifier, password)
            elif token is not None and password is None:
                account = self._resume(identifier, token)
            else:
                raise LoginFailed("a login has a Password or a Token, not both", code=400)
        except (LoginFailed, TooManyRequests):
            peer.failed_logins += 1
            if peer.failed_logins >= FAILURES_A_CONNECTION:
                peer.dismiss()
            raise
        token = self._tokens.issue(account.identifier, account.generation)
        return ProvenIdentity(account.identifier, token)

    def _resume(self, identifier: str, token: str) -> AccountChange:
        """The account of a token. A token is always checked: that costs next to nothing (I23)."""
        account = self._accounts.get(identifier)
        known = account or _NO_ACCOUNT
        genuine = self._tokens.check(token, known.identifier, known.generation)
        if account is None or not genuine:
            raise LoginFailed("invalid or expired token: log in with the password")
        return account

    async def _check(
        self, peer: TerminalConnection, request: Request, identifier: str, password: str
    ) -> AccountChange:
        """The account of a password. The work is the same whether or not there is such an account.

        The password is checked in a thread. If the connection goes before that is done, the check
        is given up, so that connections that come and go cannot fill the queue of checks (I16).
        """
        source = peer.stream.source or "this machine"
        now = self._clock.seconds()
        wait = self.attempts.delay(source, identifier, now)
        if wait:
            raise TooManyRequests(
                f"too many logins of this identifier have failed: try again in {ceil(wait)} seconds"
            )
        # Counted before the check: else any number of guesses could be checked at the same time.
        if self.attempts.attempt(source, identifier, now):
            self.log.warn(
                "Logins as {identifier} from {source} fail again and again: they are delayed",
                identifier=printable(identifier),
                source=source,
            )
        before = self._accounts.get(identifier)
        verifier = None if before is None else before.verifier
        peer.stream.hold()  # until this request is answered
        checking = Deferred.fromCoroutine(self._passwords.check(password, verifier, source))
        request.work = checking
        try:
            right = await checking
        except TooManyRequests:
            self.attempts.refund(source, identifier)
            raise
        except CancelledError:
            raise LoginRequired("the connection is gone") from None
        finally:
            request.work = None
        account = self._accounts.get(identifier)  # it may have changed in the meantime (I2)
        if not right or account is None or account.verifier != verifier:
            raise LoginFailed("the identifier or the password is wrong")
        self.attempts.succeed(source, identifier)
        return account


class Revocations(Protocol):
    """The present list of revoked certificates."""

    def revoked(self, certificate: x509.Certificate, /) -> bool:
        """Whether a certificate is revoked."""
        ...


class CertificateLogin:
    """``--auth certificate``: a connection is the terminal that its TLS certificate names."""

    def __init__(self, accounts: AccountTable, revocations: Revocations) -> None:
        """
        :param revocations: know whether a certificate, valid at the handshake, is revoked now
        """
        self._accounts = accounts
        self._revocations = revocations

    async def admit(self, peer: TerminalConnection, request: Request) -> ProvenIdentity:
        """Take the certificate's identifier, whatever the first request is."""
        message = request.message
        certificate = certificate_of(peer.stream.transport)
        if certificate is None:
            raise LoginRequired("show a certificate: this server takes no other login")
        if message.verb == REGISTER and not LOGIN_FIELDS.isdisjoint(message.fields):
            raise LoginFailed("this server takes certificates only", code=403)
        try:
            identifier = identifier_of(certificate)
        except CertificateRefused as error:
            raise LoginRequired(f"invalid certificate: {error}") from None
        if self._revocations.revoked(certificate):
            raise LoginRequired("the certificate has been revoked")
        whose = self._accounts.canonical(identifier)
        if whose != identifier:  # the operator has given that name to another since (I4)
            raise LoginRequired("the certificate's identifier is another's name here")
        return ProvenIdentity(identifier)


@dataclass(frozen=True, slots=True)
class Authentication:
    """How connections log in at a mediator.

    :ivar accounts: the table of accounts, which ``login`` has too
    :ivar login: the way to prove an identity
    :ivar passwords: makes the verifiers of the operator's new passwords; at once, without
    """

    accounts: AccountTable
    login: LoginMethod = field(default_factory=UnverifiedLogin)
    passwords: Passwords | None = None


def is_private(peer: TerminalConnection) -> bool:
    """Whether others cannot read a connection: it is encrypted or local to this machine (I25)."""
    return peer.stream.secure or address_scope(seen_ip(peer)) == "loopback"
