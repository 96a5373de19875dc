import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigurationError, TrustError
from server.certificates import check_handshake, place_own
from server.pki import (
    TlsFiles,
    check_in_force,
    host_of,
    issue_client,
    loopback_files,
    make_authority,
    read_certificate,
    renew_server,
    server_files,
)
from tests.server.coordinators import PASSPHRASE

HOSTS = ("fed.example.org", "192.0.2.7")
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def made_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    pki = tmp_path_factory.mktemp("pki")
    make_authority(pki, hosts=HOSTS, passphrase=PASSPHRASE, now=NOW)
    return pki


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    make_authority(tmp_path / "pki", hosts=HOSTS, passphrase=PASSPHRASE, now=NOW)
    return tmp_path / "pki"


def extension(certificate: x509.Certificate, kind: type) -> x509.Extension:  # type: ignore[type-arg]
    return certificate.extensions.get_extension_for_class(kind)


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_a_courier_accepts_the_server_under_each_of_its_names(made_pki: Path, host: str) -> None:
    check_handshake(server_files(made_pki), host=host)


def test_a_courier_refuses_another_name(made_pki: Path) -> None:
    with pytest.raises(TrustError, match="mismatch"):
        check_handshake(server_files(made_pki), host="evil.example.org")


def test_a_courier_refuses_another_authority_of_the_same_name(made_pki: Path, pki: Path) -> None:
    files = server_files(made_pki)
    crossed = TlsFiles(authority=pki / "ca.crt", certificate=files.certificate, key=files.key)
    with pytest.raises(TrustError, match=r"verify failed|unable to get|signature"):
        check_handshake(crossed, host=HOSTS[0])


def test_the_authority_signs_no_other_authority(made_pki: Path) -> None:
    authority = read_certificate(made_pki / "ca.crt")
    constraints = extension(authority, x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    usage = extension(authority, x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature


def test_the_server_is_a_server_and_no_authority(made_pki: Path) -> None:
    server = read_certificate(made_pki / "server.crt")
    assert not extension(server, x509.BasicConstraints).value.ca
    assert list(extension(server, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extension(server, x509.KeyUsage).value.key_cert_sign


def test_keys_are_on_nist_curves_and_only_the_authoritys_is_encrypted(made_pki: Path) -> None:
    authority = serialization.load_pem_private_key((made_pki / "ca.key").read_bytes(), PASSPHRASE)
    server = serialization.load_pem_private_key((made_pki / "server.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey) and authority.curve.name == "secp384r1"
    assert isinstance(server, ec.EllipticCurvePrivateKey) and server.curve.name == "secp256r1"
    assert {stat.S_IMODE((made_pki / name).stat().st_mode) for name in ("ca.key", "server.key")} == {0o600}


def test_certificates_last_a_sensible_time_and_bear_a_slow_clock(made_pki: Path) -> None:
    authority, server = read_certificate(made_pki / "ca.crt"), read_certificate(made_pki / "server.crt")
    assert server.not_valid_before_utc == NOW - timedelta(hours=1)
    assert timedelta(days=300) < server.not_valid_after_utc - NOW < timedelta(days=398)
    assert timedelta(days=3600) < authority.not_valid_after_utc - NOW < timedelta(days=3700)


def test_a_renewed_certificate_lasts_longer_under_the_same_key_and_authority(pki: Path) -> None:
    before, key, authority = (pki / "server.crt", pki / "server.key", pki / "ca.crt")
    old = [path.read_bytes() for path in (before, key, authority)]
    later = NOW + timedelta(days=300)
    renewed = renew_server(pki, hosts=HOSTS, passphrase=PASSPHRASE, now=later, new_key=False)
    assert renewed.not_valid_after_utc == later + timedelta(days=397)
    assert [path.read_bytes() for path in (key, authority)] == old[1:]
    assert before.read_bytes() != old[0]
    assert renewed.serial_number != x509.load_pem_x509_certificate(old[0]).serial_number


def test_a_new_key_is_made_when_it_is_asked_for(pki: Path) -> None:
    old = (pki / "server.key").read_bytes()
    renew_server(pki, hosts=HOSTS, passphrase=PASSPHRASE, now=NOW, new_key=True)
    assert (pki / "server.key").read_bytes() != old
    check_handshake(server_files(pki), host=HOSTS[0])


def test_nothing_is_issued_without_the_right_passphrase(pki: Path) -> None:
    before = (pki / "server.crt").read_bytes()
    with pytest.raises(TrustError, match="passphrase"):
        renew_server(pki, hosts=HOSTS, passphrase=b"another passphrase for tests", now=NOW, new_key=False)
    assert (pki / "server.crt").read_bytes() == before


def test_an_authority_that_is_not_valid_yet_is_named(pki: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ca\.crt: valid only from .*; this machine's clock says") as error:
        check_in_force(pki / "ca.crt", NOW - timedelta(days=2))
    assert "set the clock" in error.value.hint


def test_a_certificate_that_ended_is_named_with_how_to_renew_it(pki: Path) -> None:
    check_in_force(pki / "server.crt", NOW)
    with pytest.raises(ConfigurationError, match=r"server\.crt: valid only until") as error:
        check_in_force(pki / "server.crt", NOW + timedelta(days=400))
    assert "server renew" in error.value.hint


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    make_authority(tmp_path, hosts=HOSTS, passphrase=PASSPHRASE, now=NOW - timedelta(days=500))
    with pytest.raises(TrustError, match="expired"):
        check_handshake(server_files(tmp_path), host=HOSTS[0])


@pytest.mark.parametrize("host", ["", "a b", "a..b", "-" * 64 + ".org", "ex\u00e4mple.org", "*.example.org", "a/b"])
def test_a_host_is_a_name_or_an_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a DNS name nor an address"):
        make_authority(tmp_path, hosts=[host], passphrase=PASSPHRASE, now=NOW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("address", "host"), [("a.org:1", "a.org"), ("[::1]:443", "::1"), ("10.0.0.1:80", "10.0.0.1")])
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


class TestClientCertificates:
    def test_one_is_for_clients_and_names_the_site(self, made_pki: Path) -> None:
        pem, key = issue_client(made_pki, name="east", request=None, passphrase=PASSPHRASE, now=NOW)
        made = x509.load_pem_x509_certificate(pem.encode())
        assert made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "east"
        assert list(extension(made, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        own = serialization.load_pem_private_key(key.encode(), None)
        assert isinstance(own, ec.EllipticCurvePrivateKey) and own.public_key() == made.public_key()
        made.verify_directly_issued_by(read_certificate(made_pki / "ca.crt"))

    def test_a_requests_name_and_wishes_are_not_believed(self, made_pki: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "west")]))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        pem, private = issue_client(made_pki, name="east", request=request, passphrase=PASSPHRASE, now=NOW)
        made = x509.load_pem_x509_certificate(pem.encode())
        assert private == ""
        assert made.public_key() == key.public_key()
        assert made.subject.rfc4514_string() == "CN=east"
        assert not extension(made, x509.BasicConstraints).value.ca

    @pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP224R1())])
    def test_a_weak_or_foreign_key_is_refused(self, made_pki: Path, key: object) -> None:
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())  # type: ignore[arg-type]
        pem = request.public_bytes(serialization.Encoding.PEM)
        with pytest.raises(ConfigurationError, match="ECDSA"):
            issue_client(made_pki, name="east", request=pem, passphrase=PASSPHRASE, now=NOW)

    @pytest.mark.parametrize("request_bytes", [b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
    def test_what_is_no_request_is_refused(self, made_pki: Path, request_bytes: bytes) -> None:
        with pytest.raises(ConfigurationError, match="PKCS#10"):
            issue_client(made_pki, name="east", request=request_bytes, passphrase=PASSPHRASE, now=NOW)


class TestOwnCertificates:
    """The house's authority is played by one of ours, made elsewhere."""

    ADDRESS = f"{HOSTS[0]}:443"

    @pytest.fixture
    def given(self, made_pki: Path) -> TlsFiles:
        return server_files(made_pki)

    def test_they_are_put_in_place_and_no_authoritys_key_with_them(self, given: TlsFiles, tmp_path: Path) -> None:
        place_own(tmp_path, given, address=self.ADDRESS, passphrase=PASSPHRASE, now=NOW)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "server.crt", "server.key"]
        check_handshake(server_files(tmp_path), host=HOSTS[0])
        assert loopback_files(tmp_path) == server_files(tmp_path)
        with pytest.raises(ConfigurationError, match="no authority of its own"):
            renew_server(tmp_path, hosts=HOSTS, passphrase=PASSPHRASE, now=NOW, new_key=False)

    def test_where_they_do_not_name_loopback_a_second_authority_does(self, tmp_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(NOW - timedelta(hours=1))
            .not_valid_after(NOW + timedelta(days=10))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOSTS[0])]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        (tmp_path / "own.crt").write_bytes(pem)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        (tmp_path / "own.key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        given = TlsFiles(authority=tmp_path / "own.crt", certificate=tmp_path / "own.crt", key=tmp_path / "own.key")
        place_own(tmp_path / "pki", given, address=self.ADDRESS, passphrase=PASSPHRASE, now=NOW)
        check_handshake(server_files(tmp_path / "pki"), host=HOSTS[0])
        check_handshake(loopback_files(tmp_path / "pki"), host="127.0.0.1")
        with pytest.raises(TrustError):
            check_handshake(server_files(tmp_path / "pki"), host="127.0.0.1")

    def test_a_private_key_in_the_public_files_is_not_published(self, given: TlsFiles, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle.pem"
        bundle.write_bytes(given.key.read_bytes() + given.certificate.read_bytes())
        both = TlsFiles(authority=given.authority, certificate=bundle, key=bundle)
        place_own(tmp_path / "pki", both, address=self.ADDRESS, passphrase=PASSPHRASE, now=NOW)
        assert b"PRIVATE" not in (tmp_path / "pki" / "server.crt").read_bytes()

    def test_a_wrong_name_authority_or_key_is_refused_and_nothing_is_replaced(
        self, given: TlsFiles, pki: Path, tmp_path: Path
    ) -> None:
        before = {path.name: path.read_bytes() for path in pki.iterdir()}
        wrong_name = (given, "other.example.org:443")
        wrong_authority = (
            TlsFiles(authority=pki / "ca.crt", certificate=given.certificate, key=given.key),
            self.ADDRESS,
        )
        wrong_key = (
            TlsFiles(authority=given.authority, certificate=given.certificate, key=pki / "server.key"),
            self.ADDRESS,
        )
        for files, address in (wrong_name, wrong_authority, wrong_key):
            with pytest.raises(TrustError, match="a courier that calls"):
                place_own(pki, files, address=address, passphrase=PASSPHRASE, now=NOW)
        assert {path.name: path.read_bytes() for path in pki.iterdir()} == before

    def test_an_encrypted_or_missing_key_is_refused(self, given: TlsFiles, made_pki: Path, tmp_path: Path) -> None:
        encrypted = TlsFiles(authority=given.authority, certificate=given.certificate, key=made_pki / "ca.key")
        with pytest.raises(ConfigurationError, match="encrypted"):
            place_own(tmp_path, encrypted, address=self.ADDRESS, passphrase=PASSPHRASE, now=NOW)
        missing = TlsFiles(authority=given.authority, certificate=given.certificate, key=tmp_path / "none")
        with pytest.raises(ConfigurationError, match="no private key"):
            place_own(tmp_path, missing, address=self.ADDRESS, passphrase=PASSPHRASE, now=NOW)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_accepts_the_chain_at_its_strictest(made_pki: Path) -> None:
    authority, server = str(made_pki / "ca.crt"), str(made_pki / "server.crt")
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", authority, server]
    assert subprocess.run(command, capture_output=True, check=True).stdout.endswith(b"OK\n")
