"""Keys and signing requests (fig. 5)."""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.ca.names import AuthorityError, CertificateKind, Names, holder_of, kind_of
from broker.files import InvalidFile
from broker.net.tls.certificates import Key, PublicKey, read_file

#: The shortest RSA key that is signed, in bits.
RSA_BITS: Final = 2048


class CertificateRequest(NamedTuple):
    """A signing request that was checked.

    :ivar kind: the kind of holder
    :ivar names: the names of the holder
    :ivar key: the public key of the holder
    """

    kind: CertificateKind
    names: Names
    key: PublicKey

    @property
    def holder(self) -> str:
        """The holder, for people to read."""
        return holder_of(self.kind, self.names)


def new_key() -> Key:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """Return a private key in PEM form."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_request(names: Names, key: Key) -> x509.CertificateSigningRequest:
    """Make a signing request for names, signed with the holder's key (fig. 5)."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.add_extension(names, critical=True).sign(key, digest_of(key))


def read_request(path: str) -> CertificateRequest:
    """Read a signing request from a PEM file, and check it.

    :raises AuthorityError: it is damaged, not signed by its key, or its names or key are refused
    """
    try:
        request = x509.load_pem_x509_csr(read_file(path))
        signed = request.is_signature_valid
        key = request.public_key()
        names = request.extensions.get_extension_for_class(Names).value
    except InvalidFile as error:
        raise AuthorityError(str(error)) from None
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{path}: has no subject alternative name") from None
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise AuthorityError(f"{path}: is not a signing request, or is damaged") from None
    if not signed:
        raise AuthorityError(f"{path}: is not signed with the key that it is for")
    try:
        return CertificateRequest(kind_of(names), names, _check_key(key))
    except AuthorityError as error:
        raise AuthorityError(f"{path}: {error}") from None


def _check_key(key: object) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise AuthorityError(f"its RSA key has {key.key_size} bits, fewer than {RSA_BITS}")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)):
            raise AuthorityError(f"its key is on the curve {key.curve.name}, not P-256 to P-521")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise AuthorityError("its key is of an unsupported kind: use ECDSA, Ed25519 or RSA")


def digest_of(key: Key) -> hashes.SHA256 | None:
    """Return the digest that a key signs with; Ed25519 has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
