"""The coordinator's own certificate authority, and the certificates that it issues.

ca.crt, ca.key          authority; the key is encrypted and needed only to issue. Absent: certificates of one's own
server.crt, server.key  what the gateway, SuperLink and the API show; SAN: the public hosts, localhost, 127.0.0.1
loopback-*              the same for loopback alone, where server.crt is the house's own and does not name 127.0.0.1

Certificates open the transport and no more: what counts in the federation is signed by identity keys.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigurationError, TrustError
from common.files import write_atomic
from server.moments import time_text

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1")
AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 397
CLIENT_DAYS: Final = 397
PUBLIC: Final = 0o644
_CLOCK_SKEW: Final = timedelta(hours=1)
_LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What one TLS listener needs, and what its callers check it against."""

    authority: Path
    certificate: Path
    key: Path


def server_files(pki: Path) -> TlsFiles:
    """What strangers and couriers see: the gateway and the API."""
    return TlsFiles(authority=pki / "ca.crt", certificate=pki / "server.crt", key=pki / "server.key")


def loopback_files(pki: Path) -> TlsFiles:
    """What parts on this machine show to each other under the name 127.0.0.1."""
    if (pki / "loopback-server.crt").exists():
        return TlsFiles(
            authority=pki / "loopback-ca.crt",
            certificate=pki / "loopback-server.crt",
            key=pki / "loopback-server.key",
        )
    return server_files(pki)


def make_authority(
    pki: Path, *, hosts: Sequence[str], passphrase: bytes, now: datetime, name: str = "", prefix: str = ""
) -> None:
    """Make an authority and a server certificate for `hosts` and loopback.

    Keys are ECDSA: P-384 of the authority, encrypted under `passphrase`; P-256 of the server, readable by its owner
    alone, since nobody is there to type when it starts. The authority signs no other authority (path length 0).

    Args:
        hosts: DNS names and addresses that couriers call.
        name: Of the authority; by default after the first host.
        prefix: Before each file name.

    Raises:
        ConfigurationError: If a host is neither a DNS name nor an address.
    """
    names = _host_names((*hosts, *LOOPBACK_HOSTS))
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name or f"Fedward authority of {hosts[0]}")
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS, issuer_key=key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    encryption = serialization.BestAvailableEncryption(passphrase)
    write_atomic(pki / f"{prefix}ca.key", _private_pem(key, encryption))
    write_atomic(pki / f"{prefix}ca.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=PUBLIC)
    _issue_server(pki, names, certificate, key, now=now, prefix=prefix, server_key=None)


def renew_server(
    pki: Path, *, hosts: Sequence[str], passphrase: bytes, now: datetime, new_key: bool, prefix: str = ""
) -> x509.Certificate:
    """Issue the server certificate anew; with the old key a crash leaves the old pair or the new one.

    Raises:
        ConfigurationError: If there is no authority's key here. TrustError: If the passphrase does not open it.
    """
    authority, key = _open_authority(pki, passphrase, prefix)
    server_key = None
    if not new_key:
        server_key = _read_private(pki / f"{prefix}server.key")
    names = _host_names((*hosts, *LOOPBACK_HOSTS))
    return _issue_server(pki, names, authority, key, now=now, prefix=prefix, server_key=server_key)


def issue_client(pki: Path, *, name: str, request: bytes | None, passphrase: bytes, now: datetime) -> tuple[str, str]:
    """A client certificate for a courier, and its private key if it was made here, both PEM.

    Args:
        name: Of the site; becomes the certificate's common name, whatever the request says.
        request: PEM of a certificate request; without one a key is made here, and its PEM is the second result.

    Raises:
        ConfigurationError: If the request is malformed, or of a weak key, or there is no authority's key here.
        TrustError: If the passphrase is wrong.
    """
    authority, key = _open_authority(pki, passphrase, "")
    own = ec.generate_private_key(ec.SECP256R1()) if request is None else None
    public = own.public_key() if own is not None else _requested_key(request or b"")
    certificate = (
        _builder(_name(name), authority.subject, public, now, CLIENT_DAYS, issuer_key=key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA384())
    )
    private = "" if own is None else _private_pem(own, serialization.NoEncryption()).decode()
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file; raises ConfigurationError if there is none."""
    return read_certificates(path)[0]


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Every certificate of a PEM file, at least one; raises ConfigurationError if there is none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: no certificate (PEM) can be read") from error


def check_in_force(path: Path, now: datetime) -> None:
    """Return only if a certificate, or authority's certificate, is valid at this time.

    Raises:
        ConfigurationError: If it is not yet, or no more, or cannot be read.
    """
    found = read_certificate(path)
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    clock = f"this machine's clock says {time_text(now)}"
    if now < begins:
        raise ConfigurationError(
            f"{path}: valid only from {time_text(begins)}; {clock}",
            hint="set the clock; if it was ahead when the certificate was made, wait until then or make it anew",
        )
    if now > ends:
        raise ConfigurationError(
            f"{path}: valid only until {time_text(ends)}; {clock}", hint="renew it with: fedward server renew"
        )


def host_of(address: str) -> str:
    """`example.org` of `example.org:443`, `::1` of `[::1]:443`."""
    return address.rpartition(":")[0].strip("[]")


def _issue_server(
    pki: Path,
    names: list[x509.GeneralName],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    prefix: str,
    server_key: ec.EllipticCurvePrivateKey | None,
) -> x509.Certificate:
    key = server_key or ec.generate_private_key(ec.SECP256R1())
    issuer = authority_key.public_key()
    certificate = (
        _builder(_name(str(names[0].value)), authority.subject, key.public_key(), now, SERVER_DAYS, issuer_key=issuer)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    if server_key is None:
        write_atomic(pki / f"{prefix}server.key", _private_pem(key, serialization.NoEncryption()))
    write_atomic(pki / f"{prefix}server.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=PUBLIC)
    return certificate


def _open_authority(pki: Path, passphrase: bytes, prefix: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path = pki / f"{prefix}ca.key"
    if not path.exists():
        raise ConfigurationError(
            f"{path}: this coordinator has no authority of its own: its certificates come from elsewhere",
            hint="have them issued there and put them in place with: fedward server renew --certificate … --key …",
        )
    return read_certificate(pki / f"{prefix}ca.crt"), _read_private(path, passphrase)


def _read_private(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path.name} does not open with this passphrase, or is no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{path.name} is no ECDSA key")
    return key


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request)
        sound, key = parsed.is_signature_valid, parsed.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError("the certificate request is no PEM of a PKCS#10 request") from error
    if not sound:
        raise TrustError("the certificate request is not signed by the key that it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise ConfigurationError("the certificate request's key is not ECDSA on a curve of at least 256 bits")
    return key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    *,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    return [_host_name(host) for host in dict.fromkeys(hosts)]


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not all(0 < len(label) <= 63 and label.replace("-", "").isalnum() and label.isascii() for label in labels):
        raise ConfigurationError(f"{host[:80]!r} is neither a DNS name nor an address")
    return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_LONGEST_NAME])])


def _private_pem(key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
