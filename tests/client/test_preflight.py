import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from typer.testing import CliRunner

from client.cli import site
from client.home import SiteHome
from client.plans import keep_offer
from client.preflight import CHECKS, check_document, check_text, is_ready, preflight
from client.preflight_finding import Finding, Premises, Verdict
from client.preflight_machine import check_device, check_disk, check_flower, check_memory, check_python
from client.preflight_network import MOST_AHEAD_S, MOST_BEHIND_S, check_gateway, skew_finding
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE
from tests.flows.federation import PASSPHRASE, POPULATION, Federation

SITE = "north"
CLOSED_TO_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


@pytest.fixture
def home(federation: Federation) -> SiteHome:
    found = federation.homes[SITE]
    make_courier(courier_of(found), gateway="localhost:1", agent=found.root / "run" / "agent.sock")
    return found


def courier_of(home: SiteHome) -> Path:
    return home.root.with_name(f"{home.name}-courier")


def make_courier(directory: Path, *, gateway: str, agent: Path) -> None:
    directory.mkdir(mode=0o700)
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    private = key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    make_certificates(directory)
    write_private(directory / "node.key", private)
    write_private(directory / "node.pub", public)
    settings = f"gateway = {json.dumps(gateway)}\nagent = {json.dumps(str(agent))}\n"
    write_private(directory / "courier.toml", settings.encode())


def write_private(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def make_certificates(directory: Path, *, names: tuple[str, ...] = ("localhost",), days: int = 90) -> None:
    """An authority and a server's certificate of it: ca.crt, server.crt, server.key."""
    key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A test's authority")])
    authority = signed(issuer, key.public_key(), issuer=issuer, key=key, names=(), days=400)
    server = signed(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]),
        server_key.public_key(),
        issuer=issuer,
        key=key,
        names=names,
        days=days,
    )
    write_private(directory / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    write_private(directory / "server.crt", server.public_bytes(serialization.Encoding.PEM))
    pkcs8 = serialization.PrivateFormat.PKCS8
    private = server_key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption())
    write_private(directory / "server.key", private)


def signed(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...],
    days: int,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=365))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if names:
        general: list[x509.GeneralName] = [
            x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        return builder.add_extension(x509.SubjectAlternativeName(general), critical=False).sign(key, hashes.SHA256())
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"], False
    )
    signs = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, decipher_only=False, **usage)
    return builder.add_extension(signs, critical=True).sign(key, hashes.SHA256())


def premises_of(home: SiteHome, *, passphrase: bytes | None = PASSPHRASE, courier: Path | None = None) -> Premises:
    environment = {} if passphrase is None else {PASSPHRASE_VARIABLE: passphrase.decode()}
    return Premises(home=home.root, given_courier=courier, environment=environment, clock=lambda: datetime.now(UTC))


def looked(premises: Premises, *names: str) -> list[Finding]:
    """The findings of some checks; the device is asked in one test alone, since torch takes its time."""
    return preflight(premises, {name: CHECKS[name] for name in names})


def of(findings: list[Finding], verdict: Verdict) -> list[Finding]:
    return [finding for finding in findings if finding.verdict is verdict]


LOCAL = tuple(name for name in CHECKS if name not in ("device", "gateway", "agent"))


def test_a_site_in_order_has_nothing_wrong(home):
    findings = looked(premises_of(home), *LOCAL)
    assert is_ready(findings), of(findings, Verdict.WRONG)
    assert {finding.check for finding in findings} >= {"home", "node-key", "trust", "policy", "ledger", "data"}


def test_every_finding_that_is_not_fine_says_how_to_mend_it(home):
    home.root.chmod(0o750)
    (home.root / "policy.toml").write_text("minimum_cohort = 2\n")
    findings = looked(premises_of(home), *LOCAL, "gateway", "agent")
    assert len(of(findings, Verdict.WRONG)) >= 3
    for finding in findings:
        assert finding.looked_at and finding.found
        assert finding.mend or finding.verdict in (Verdict.FINE, Verdict.SKIPPED), finding


def test_without_a_passphrase_it_names_what_it_skipped_and_looks_at_the_rest(home):
    findings = looked(premises_of(home, passphrase=None), *LOCAL)
    assert is_ready(findings)
    assert {finding.check for finding in of(findings, Verdict.SKIPPED)} == {"passphrase", "data"}
    assert not any("23" in finding.found for finding in findings if finding.check == "data")


def test_the_patients_are_counted_against_the_policy_on_this_screen_alone(home):
    (found,) = looked(premises_of(home), "data")
    assert found.found.startswith("23 patients; the policy wants 1 ")
    policy = (home.root / "policy.toml").read_bytes().replace(b"minimum_patients = 1", b"minimum_patients = 24")
    home.install_policy(policy)
    (found,) = looked(premises_of(home), "data")
    assert (found.verdict, found.found[:30]) == (Verdict.WARNING, "23 patients; the policy wants ")


def test_a_wrong_passphrase_is_a_finding(home):
    findings = looked(premises_of(home, passphrase=b"not the one"), "passphrase")
    assert [finding.check for finding in of(findings, Verdict.WRONG)] == ["passphrase"]


def test_a_passphrase_file_that_others_may_read_is_wrong(home, tmp_path):
    path = tmp_path / "passphrase"
    write_private(path, PASSPHRASE)
    premises = replace(premises_of(home), environment={PASSPHRASE_FILE_VARIABLE: str(path)})
    assert is_ready(looked(premises, "passphrase"))
    path.chmod(0o640)
    (wrong,) = of(looked(premises, "passphrase"), Verdict.WRONG)
    assert "0640" in wrong.found and wrong.mend == f"chmod 600 {path}"


def test_a_passphrase_in_the_environment_is_a_warning(home):
    (warning,) = of(looked(premises_of(home), "passphrase"), Verdict.WARNING)
    assert "environment" in warning.found


@pytest.mark.parametrize("name", ["identity.pem", "ledger.jsonl", "data/ward.sealed", "policy.toml"])
def test_a_file_that_only_the_directory_above_keeps_from_others_is_a_warning(home, name):
    (home.root / name).chmod(0o640)
    (warning,) = looked(premises_of(home), "home")[:1]
    assert warning.verdict is Verdict.WARNING
    assert name in warning.found and warning.mend == f"chmod -R go-rwx {home.root}"


def test_a_home_that_others_may_enter_is_wrong(home):
    home.root.chmod(0o750)
    (wrong,) = of(looked(premises_of(home), "home"), Verdict.WRONG)
    assert "0750" in wrong.found


def test_documents_that_are_meant_for_others_may_be_read_by_others(home):
    for name in ("enrolment.json", "node.pub"):
        (home.root / name).write_text("{}")
        (home.root / name).chmod(0o644)
    assert looked(premises_of(home), "home")[0].verdict is Verdict.FINE
    (home.root / "enrolment.json").chmod(0o666)
    assert looked(premises_of(home), "home")[0].verdict is Verdict.WARNING


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_file_of_another_user_is_wrong_and_two_users_are_fine(home):
    os.chown(home.root / "ledger.jsonl", 12345, -1)
    (wrong,) = of(looked(premises_of(home), "home"), Verdict.WRONG)
    assert "ledger.jsonl" in wrong.found
    for path in (courier_of(home), *courier_of(home).iterdir()):
        os.chown(path, 12345, -1)
    users = looked(premises_of(home), "users")
    assert not any("both run as" in finding.found for finding in users)


def test_agent_and_courier_of_one_user_are_a_warning(home):
    assert any("both run as" in finding.found for finding in of(looked(premises_of(home), "users"), Verdict.WARNING))


def test_a_node_key_that_others_may_read_is_wrong(home):
    (courier_of(home) / "node.key").chmod(0o644)
    wrong = of(looked(premises_of(home), "courier"), Verdict.WRONG)
    assert {finding.check for finding in wrong} == {"node-key"}


def test_a_node_key_of_another_curve_is_wrong(home):
    key = ec.generate_private_key(ec.SECP256R1())
    openssh = serialization.PrivateFormat.OpenSSH
    content = key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
    write_private(courier_of(home) / "node.key", content)
    (wrong,) = of(looked(premises_of(home), "courier"), Verdict.WRONG)
    assert wrong.check == "node-key" and "P-384" in wrong.found


def test_a_public_key_of_another_node_is_wrong(home):
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    openssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(courier_of(home) / "node.pub", openssh)
    (wrong,) = of(looked(premises_of(home), "courier"), Verdict.WRONG)
    assert "node.pub" in wrong.found


def test_a_missing_courier_is_one_fault_and_what_hangs_on_it_is_skipped(home, tmp_path):
    premises = premises_of(home, courier=tmp_path / "nowhere")
    findings = looked(premises, "courier", "users", "socket", "gateway")
    assert [finding.check for finding in of(findings, Verdict.WRONG)] == ["courier"]
    assert [finding.check for finding in of(findings, Verdict.SKIPPED)] == ["users", "gateway"]


def test_a_socket_with_a_path_too_long_for_unix_is_wrong(home):
    long_name = "s" * 120
    (home.root / "node.toml").write_text(f'socket = "{long_name}"\n')
    wrong = of(looked(premises_of(home), "socket"), Verdict.WRONG)
    assert any("107" in finding.found for finding in wrong)


def test_two_ends_that_name_different_sockets_are_wrong(home):
    (home.root / "node.toml").write_text('socket = "run/other.sock"\n')
    (wrong,) = of(looked(premises_of(home), "socket"), Verdict.WRONG)
    assert "courier.toml names" in wrong.found


def test_a_socket_group_inside_a_private_home_lets_nobody_in(home):
    import grp

    group = grp.getgrgid(os.getegid()).gr_name
    (home.root / "node.toml").write_text(f'socket_group = "{group}"\n')
    (home.root / "run").mkdir()
    (home.root / "run").chmod(0o2750)
    (wrong,) = of(looked(premises_of(home), "socket"), Verdict.WRONG)
    assert "/run/fedward" in wrong.mend


def test_a_group_that_does_not_exist_is_wrong(home):
    (home.root / "node.toml").write_text('socket_group = "no-such-group"\n')
    (home.root / "run").mkdir(mode=0o700)
    (wrong,) = of(looked(premises_of(home), "socket"), Verdict.WRONG)
    assert "no-such-group" in wrong.found and "groupadd" in wrong.mend


def test_a_policy_that_changed_since_it_was_signed_is_wrong(home):
    with (home.root / "policy.toml").open("a") as policy:
        policy.write("# looser\n")
    (wrong,) = of(looked(premises_of(home, passphrase=None), "policy"), Verdict.WRONG)
    assert "not the one this site signed" in wrong.found


def test_approving_every_plan_unread_is_a_warning(home):
    text = (home.root / "policy.toml").read_bytes().replace(b"auto_approve = false", b"auto_approve = true")
    home.install_policy(text)
    (warning,) = of(looked(premises_of(home), "policy"), Verdict.WARNING)
    assert "without anybody reading" in warning.found


def test_missing_pins_are_wrong(home):
    (home.root / "trust.json").unlink()
    (wrong,) = of(looked(premises_of(home), "trust"), Verdict.WRONG)
    assert "every message is refused" in wrong.found


def test_pins_that_somebody_changed_are_wrong(home):
    (home.root / "trust.json").write_bytes((home.root / "trust.json").read_bytes() + b"\n")
    assert not is_ready(looked(premises_of(home), "trust"))


def test_a_deleted_ledger_is_wrong_once_there_is_data(home):
    (home.root / "ledger.jsonl").unlink()
    (wrong,) = of(looked(premises_of(home, passphrase=None), "ledger"), Verdict.WRONG)
    assert "never begin a new one" in wrong.mend


def test_a_ledger_that_was_rolled_back_is_wrong(home, federation):
    old = (home.root / "ledger.jsonl").read_bytes()
    with federation.agents() as handlers:
        federation.train(handlers)
    (home.root / "ledger.jsonl").write_bytes(old)
    (wrong,) = of(looked(premises_of(home, passphrase=None), "ledger"), Verdict.WRONG)
    assert "high-water mark" in wrong.found


def test_the_ledger_is_read_while_an_agent_holds_it(home, federation):
    with federation.agents_of(SITE):
        assert is_ready(looked(premises_of(home), "ledger", "data"))


def test_a_plan_on_which_nobody_decided_is_a_warning(home, federation):
    (home.root / "approvals.json").unlink()
    keep_offer(home, federation.plan, federation.manifest, received=datetime.now(UTC))
    (warning,) = of(looked(premises_of(home, passphrase=None), "plans"), Verdict.WARNING)
    assert federation.plan.digest[:19] in warning.found
    home.approve(federation.plan.digest, population=POPULATION)
    assert not of(looked(premises_of(home, passphrase=None), "plans"), Verdict.WARNING)


def test_an_offer_that_this_site_did_not_keep_is_a_warning(home):
    (home.root / "plans").mkdir()
    (home.root / "plans" / f"{'0' * 64}.json").write_text("{}")
    (warning,) = of(looked(premises_of(home), "plans"), Verdict.WARNING)
    assert warning.found.startswith("1 ")


def test_no_agent_is_a_warning_and_a_dead_socket_is_wrong(home):
    (warning,) = looked(premises_of(home), "agent")
    assert warning.verdict is Verdict.WARNING
    (home.root / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.root / "run" / "agent.sock"))
    assert not is_ready(looked(premises_of(home), "agent"))


def test_an_empty_directory_crashes_nothing(tmp_path):
    premises = Premises(home=tmp_path, given_courier=None, environment={}, clock=lambda: datetime.now(UTC))
    findings = looked(premises, *LOCAL, "gateway", "agent")
    assert not is_ready(findings)
    assert not any("the check itself failed" in finding.found for finding in findings)


def test_a_directory_that_is_not_there_crashes_nothing(tmp_path):
    premises = Premises(home=tmp_path / "no", given_courier=None, environment={}, clock=lambda: datetime.now(UTC))
    findings = looked(premises, *LOCAL, "gateway", "agent")
    assert not is_ready(findings)
    assert not any("the check itself failed" in finding.found for finding in findings)


@pytest.mark.parametrize("name", ["node.toml", "site.json", "approvals.json", "policy.sig", "trust.sig", "ledger.head"])
def test_garbage_in_any_file_is_a_finding_and_the_rest_is_still_looked_at(home, name):
    (home.root / name).write_bytes(b"\x00\xff{[")
    findings = looked(premises_of(home), *LOCAL)
    assert not is_ready(findings)
    assert not any("the check itself failed" in finding.found for finding in findings)
    assert {"python", "home", "memory"} <= {finding.check for finding in findings}


def test_a_check_that_fails_in_an_unforeseen_way_is_a_finding(home):
    def broken(premises: Premises) -> Iterator[Finding]:
        yield Finding(check="new", looked_at="x", verdict=Verdict.FINE, found="so far so good")
        raise ZeroDivisionError("by nothing")

    first, second = preflight(premises_of(home), {"new": broken})
    assert first.verdict is Verdict.FINE
    assert second.verdict is Verdict.WRONG and "ZeroDivisionError" in second.found


@CLOSED_TO_ROOT
def test_what_this_user_may_not_read_is_skipped(home):
    courier_of(home).chmod(0)
    try:
        (found,) = of(looked(premises_of(home), "courier"), Verdict.SKIPPED)
    finally:
        courier_of(home).chmod(0o700)
    assert "may not read" in found.found


def test_the_machine_itself_is_looked_at(home):
    for check in (check_python, check_flower, check_disk, check_memory):
        (found,) = check(premises_of(home))
        assert found.verdict is not Verdict.SKIPPED and any(sign.isdigit() for sign in found.found)


def test_a_gpu_that_is_asked_for_and_not_there_is_wrong(home):
    import torch

    (home.root / "node.toml").write_text('device = "cuda"\n')
    (found,) = check_device(premises_of(home))
    assert found.verdict is (Verdict.FINE if torch.cuda.is_available() else Verdict.WRONG)
    (home.root / "node.toml").write_text('device = "cpu"\n')
    (found,) = check_device(premises_of(home))
    assert found.verdict is Verdict.FINE


def test_the_clock_limits_are_flowers():
    assert (MOST_AHEAD_S, MOST_BEHIND_S) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)


@pytest.mark.parametrize(
    ("skew_s", "verdict"),
    [
        (0.0, Verdict.FINE),
        (1.5, Verdict.FINE),
        (3.0, Verdict.WARNING),
        (5.5, Verdict.WRONG),
        (-30.0, Verdict.FINE),
        (-120.0, Verdict.WARNING),
        (-306.0, Verdict.WRONG),
    ],
)
def test_a_clock_is_judged_by_its_side_and_distance(skew_s, verdict):
    assert skew_finding(skew_s, looked_at="clock").verdict is verdict


class Gateway(ThreadingHTTPServer):
    """A server on loopback that answers as a gateway does, or worse."""

    daemon_threads = True
    skew_s = 0.0
    fleet = 401
    other = 404


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply(self.server.fleet if self.path.startswith("/v1/fleet/") else self.server.other)

    def do_GET(self) -> None:
        self.reply(self.server.other)

    def reply(self, status: int) -> None:
        self.send_response_only(status)
        at = datetime.now(UTC) + timedelta(seconds=self.server.skew_s)
        self.send_header("Date", format_datetime(at, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def gateway(directory: Path, prepare: Callable[[Gateway], None] = lambda _server: None) -> Iterator[str]:
    """Serve over TLS with the certificate that lies in the directory; the address."""
    server = Gateway(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    prepare(server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def look_at_gateway(home: SiteHome, address: str) -> list[Finding]:
    settings = courier_of(home) / "courier.toml"
    settings.write_text(settings.read_text().replace("localhost:1", address))
    return preflight(premises_of(home), {"gateway": check_gateway})


def test_a_gateway_in_order_has_nothing_to_mend(home):
    with gateway(courier_of(home)) as address:
        findings = look_at_gateway(home, address)
    assert {finding.verdict for finding in findings} == {Verdict.FINE}, findings
    assert {finding.check for finding in findings} == {"authority", "gateway", "tls", "clock", "fleet"}


def test_a_clock_that_runs_ahead_of_the_gateways_is_wrong(home):
    with gateway(courier_of(home), lambda server: setattr(server, "skew_s", -20.0)) as address:
        (wrong,) = of(look_at_gateway(home, address), Verdict.WRONG)
    assert wrong.check == "clock" and "20 s ahead" in wrong.found and "timedatectl" in wrong.mend


def test_a_certificate_of_another_authority_is_wrong(home, tmp_path):
    make_certificates(tmp_path)
    with gateway(tmp_path) as address:
        (wrong,) = of(look_at_gateway(home, address), Verdict.WRONG)
    assert wrong.check == "tls" and "telephone" in wrong.mend


def test_an_expired_certificate_is_wrong(home):
    make_certificates(courier_of(home), days=-1)
    with gateway(courier_of(home)) as address:
        (wrong,) = of(look_at_gateway(home, address), Verdict.WRONG)
    assert wrong.check == "tls" and "expired" in wrong.found


def test_a_certificate_that_expires_soon_is_a_warning(home):
    make_certificates(courier_of(home), days=10)
    with gateway(courier_of(home)) as address:
        (warning,) = of(look_at_gateway(home, address), Verdict.WARNING)
    assert warning.check == "tls" and " 9 more days" in warning.found


def test_a_certificate_for_another_name_is_wrong(home):
    make_certificates(courier_of(home), names=("elsewhere.example",))
    with gateway(courier_of(home)) as address:
        (wrong,) = of(look_at_gateway(home, address), Verdict.WRONG)
    assert wrong.check == "tls" and "courier.toml" in wrong.mend


def test_a_superlink_that_stands_open_beside_the_fleet_api_is_a_warning(home):
    with gateway(courier_of(home), lambda server: setattr(server, "other", 200)) as address:
        (warning,) = of(look_at_gateway(home, address), Verdict.WARNING)
    assert "/health answered 200" in warning.found


def test_a_server_without_a_fleet_api_is_wrong(home):
    with gateway(courier_of(home), lambda server: setattr(server, "fleet", 404)) as address:
        (wrong,) = of(look_at_gateway(home, address), Verdict.WRONG)
    assert wrong.check == "fleet"


def test_a_gateway_that_is_down_is_wrong(home):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (wrong,) = of(look_at_gateway(home, f"localhost:{port}"), Verdict.WRONG)
    assert wrong.check == "gateway" and "no connection" in wrong.found


def test_a_plain_text_server_is_no_gateway(home):
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        (wrong,) = of(look_at_gateway(home, f"localhost:{server.server_address[1]}"), Verdict.WRONG)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert wrong.check == "tls"


def test_the_document_names_every_finding_and_says_whether_the_node_is_ready(home):
    premises = premises_of(home)
    findings = looked(premises, "home", "agent")
    document = json.loads(json.dumps(check_document(premises, findings)))
    assert (document["version"], document["ready"]) == (1, True)
    assert [finding["check"] for finding in document["findings"]] == ["home", "agent"]
    assert set(document["findings"][0]) == {"check", "looked_at", "verdict", "found", "mend"}


def test_the_document_has_the_fields_that_formats_md_shows(home):
    page = (Path(__file__).parents[2] / "common" / "FORMATS.md").read_text(encoding="utf-8")
    section = page.partition("## `fedward site check --format json`")[2]
    example = json.loads(section.partition("```json\n")[2].partition("```")[0])
    premises = premises_of(home)
    document = check_document(premises, looked(premises, "home"))
    assert document.keys() == example.keys()
    assert document["findings"][0].keys() == example["findings"][0].keys()
    finding = skew_finding(20.0, looked_at=example["findings"][0]["looked_at"])
    assert finding.to_json() == example["findings"][0]


def test_a_name_that_others_wrote_cannot_begin_a_line_of_its_own():
    finding = Finding(check="x", looked_at="y", verdict=Verdict.WRONG, found="a\x1b[2Jb\nok", mend="")
    assert "\x1b" not in check_text([finding])
    assert check_text([finding]).count("\n") == 2


def test_the_command_ends_with_3_if_anything_is_wrong_and_prints_one_document(home):
    home.root.chmod(0o755)
    arguments = ["check", "--home", str(home.root), "--format", "json"]
    (home.root / "node.toml").write_text('device = "cpu"\n')
    found = CliRunner().invoke(site, arguments, env={PASSPHRASE_VARIABLE: PASSPHRASE.decode()})
    assert found.exit_code == 3
    assert json.loads(found.stdout)["ready"] is False


def test_looking_writes_nothing(home):
    before = {path: (path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) for path in home.root.rglob("*")}
    looked(premises_of(home), *LOCAL, "agent")
    assert before == {
        path: (path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) for path in home.root.rglob("*")
    }
