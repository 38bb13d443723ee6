"""A small certificate authority for the bus: its own root, and certificates of the servers.

Elliptic-curve keys (P-256), because every connection of 10,000 agents starts with a handshake.
Clients prove themselves by their NATS keys; certificates prove the servers to the clients and to
each other (routes and leaf nodes verify both ends).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from events.bus.access.creds import write_secret
from events.errors import BadRequest, Refused
from events.input_files import read_whole

CA_DAYS = 3650
SERVER_DAYS = 397
"""The longest that public authorities may issue for (CA/Browser Forum); a yearly renewal with room."""
_BACKDATED = timedelta(minutes=5)  # clocks of sites differ


class ServerFiles(NamedTuple):
    """Where a server finds its TLS files."""

    ca: Path
    certificate: Path
    key: Path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def create_authority(folder: Path, *, name: str = "Isthmus bus") -> Path:
    """Make ``ca.pem`` and ``ca.key`` in ``folder`` unless they are there; return the certificate's path."""
    certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
    if certificate_file.exists() and key_file.exists():
        return certificate_file
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    certificate = (
        _begun(name, _name(name), public, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key, key_file, certificate, certificate_file)
    return certificate_file


def _begun(
    name: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _write(
    key: ec.EllipticCurvePrivateKey, key_file: Path, certificate: x509.Certificate, certificate_file: Path
) -> None:
    write_secret(key_file, _pem(key))
    write_secret(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
    certificate_file.chmod(0o644)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def issue_server(folder: Path, name: str, hosts: Sequence[str], *, days: int = SERVER_DAYS) -> ServerFiles:
    """A certificate for the server ``name`` under every host name and address in ``hosts``.

    It replaces an earlier one; a running server takes it up on reload (SIGHUP) without dropping
    anybody. Raises BadRequest without hosts or for a name that is no file's name, and
    Refused(credentials_missing) without an authority.
    """
    if _NAME.fullmatch(name) is None:
        raise BadRequest(
            "bad_request",
            f"{name[:80]!r} is no name of a server: letters, digits, '.', '_' and '-', at most 253",
            field="name",
        )
    if not hosts:
        raise BadRequest(
            "bad_request", f"server {name!r} needs at least one host name or address", field="host"
        )
    try:
        authority = x509.load_pem_x509_certificate(read_whole(folder / "ca.pem"))
        ca_key = serialization.load_pem_private_key(read_whole(folder / "ca.key"), None)
    except (OSError, ValueError) as error:
        raise Refused(
            "credentials_missing", f"{folder} holds no usable certificate authority (ca.pem, ca.key): {error}"
        ) from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise Refused("credentials_invalid", f"{folder / 'ca.key'} is no elliptic-curve key")
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _begun(name, authority.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(
            # A server is also the client of its routes and of its hub.
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = ServerFiles(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
    _write(key, files.key, certificate, files.certificate)
    return files


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        if not text.isascii() or not text or any(c.isspace() for c in text):
            raise BadRequest(
                "bad_request", f"{text!r} is neither an address nor a host name", field="host"
            ) from None
        return x509.DNSName(text)


def expiry(certificate: Path) -> datetime:
    """When a certificate ends (UTC). Raises Refused(credentials_missing or credentials_invalid)."""
    try:
        return x509.load_pem_x509_certificate(read_whole(certificate)).not_valid_after_utc
    except OSError as error:
        raise Refused("credentials_missing", f"{certificate} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Refused("credentials_invalid", f"{certificate} is no PEM certificate") from error
