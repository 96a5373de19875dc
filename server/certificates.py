"""Certificates of the house's own: tried by a real handshake before they are put in place."""

import ssl
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from common.errors import ConfigurationError, TrustError
from common.files import write_atomic
from server.pki import LOOPBACK_HOSTS, PUBLIC, TlsFiles, host_of, make_authority, read_certificates, server_files

_MOST_FLIGHTS: Final = 10


def place_own(pki: Path, given: TlsFiles, *, address: str, passphrase: bytes, now: datetime) -> None:
    """Copy certificates that somebody else issued to where this coordinator looks for them.

    Only certificates are copied from the two public files, and one private key from the third, which must not be
    encrypted. If the certificate does not name loopback, a small authority for loopback alone is made beside it.

    Args:
        given: The authority that couriers will check against, the server's certificate with its chain, its key.
        address: `host:port` that couriers call.

    Raises:
        ConfigurationError: If a file cannot be read. TrustError: If a courier would not accept the certificate.
    """
    chain = read_certificates(given.certificate)
    contents = (_pem(read_certificates(given.authority)), _pem(chain), _private_pem(given.key))
    files = server_files(pki)
    trial = TlsFiles(
        authority=pki / ".trial-ca.crt", certificate=pki / ".trial-server.crt", key=pki / ".trial-server.key"
    )
    try:
        for path, content in zip((trial.authority, trial.certificate, trial.key), contents, strict=True):
            write_atomic(path, content)
        check_handshake(trial, host=host_of(address))
        local = _accepted(trial)
    finally:
        for path in (trial.authority, trial.certificate, trial.key):
            path.unlink(missing_ok=True)
    write_atomic(files.key, contents[2])
    write_atomic(files.certificate, contents[1], mode=PUBLIC)
    write_atomic(files.authority, contents[0], mode=PUBLIC)
    if not local and not (pki / "loopback-ca.key").exists():
        make_authority(
            pki,
            hosts=LOOPBACK_HOSTS,
            passphrase=passphrase,
            now=now,
            name="Fedward loopback authority",
            prefix="loopback-",
        )


def check_handshake(files: TlsFiles, *, host: str) -> None:
    """Do the handshake that a courier would do, in memory.

    Raises:
        TrustError: If it fails: another key, another name, expired, not issued by the authority.
    """
    try:
        server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server_side.load_cert_chain(files.certificate, files.key)
        client_side.load_verify_locations(files.authority)
        _shake_hands(server_side, client_side, host)
    except (ssl.SSLError, ssl.CertificateError) as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "handshake failed"
        raise TrustError(
            f"a courier that calls {host} would refuse this certificate: {reason}",
            hint="it needs this name among its subject alternative names, the matching key and its whole chain",
        ) from error


def _accepted(files: TlsFiles) -> bool:
    try:
        for host in LOOPBACK_HOSTS:
            check_handshake(files, host=host)
    except TrustError:
        return False
    return True


def _shake_hands(server_side: ssl.SSLContext, client_side: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    done: set[int] = set()
    for _ in range(_MOST_FLIGHTS):
        for party in (client, server):
            try:
                party.do_handshake()
                done.add(id(party))
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            return
    raise ssl.SSLError("the handshake does not end")


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _private_pem(path: Path) -> bytes:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except TypeError as error:
        raise ConfigurationError(
            f"{path}: the key is encrypted, and nobody is there to type when the gateway starts",
            hint="give it decrypted; it will lie in pki/server.key with mode 0600",
        ) from error
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path}: no private key (PEM) can be read") from error
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
