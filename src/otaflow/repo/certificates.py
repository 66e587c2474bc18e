"""A small certificate authority for the demo and for `repo serve --self-signed`: ECDSA P-256, X.509 v3 (RFC 5280).

Nothing here is needed where a site has its own certificates.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from otaflow.files import write_atomic


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key, in PEM."""

    certificate: Path
    key: Path


def make_authority(folder: Path, name: str = "otaflow demo CA", days: int = 3650) -> Pair:
    """A new authority, `ca.pem` and `ca.key` in `folder`; the one that is there already stays."""
    pair = Pair(folder / "ca.pem", folder / "ca.key")
    if pair.certificate.exists() and pair.key.exists():
        return pair
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        _begin(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _write(pair, builder.sign(key, hashes.SHA256()), key)


def make_server_certificate(authority: Pair, folder: Path, hosts: list[str], days: int = 825) -> Pair:
    """A certificate `server.pem`, `server.key` for the names and addresses `hosts`."""
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return _issue(authority, folder / "server", hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, days, names)


def make_client_certificate(authority: Pair, folder: Path, name: str, days: int = 825) -> Pair:
    """A certificate `client.pem`, `client.key` by which the device `name` is known."""
    return _issue(authority, folder / "client", name, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def _issue(
    authority: Pair,
    stem: Path,
    name: str,
    purpose: x509.ObjectIdentifier,
    days: int,
    hosts: x509.SubjectAlternativeName | None = None,
) -> Pair:
    issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    signer = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{authority.key} is not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _begin(_name(name), issuer.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts is not None:
        builder = builder.add_extension(hosts, critical=False)
    pair = Pair(stem.with_suffix(".pem"), stem.with_suffix(".key"))
    return _write(pair, builder.sign(signer, hashes.SHA256()), key)


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(pair: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair.key.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(pair.key, private, mode=0o600)
    write_atomic(pair.certificate, certificate.public_bytes(pem))
    return pair
