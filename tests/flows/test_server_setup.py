"""A coordinator's afternoon with the commands themselves: set up, enrol, revoke, tokens, acts, the API over TLS."""

import json
import os
import pty
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from common.enrolment import read_consortium
from server.acts import verified_acts
from server.home import open_server, read_public_key
from server.members import read_members
from server.pki import read_certificate, server_files
from tests.server.coordinators import PASSPHRASE, Applicant
from tests.server.test_api import DIGEST, PLAN_TOML

FEDWARD = [sys.executable, "-c", "from common.cli import main; main()", "server"]
TIMEOUT_S = 60.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("FEDWARD_")}
WITH_PASSPHRASE = {**ENVIRONMENT, "FEDWARD_PASSPHRASE": PASSPHRASE.decode()}


def fedward(*arguments: object, passphrase: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDWARD, *map(str, arguments)],
        env=WITH_PASSPHRASE if passphrase else ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def done(*arguments: object, passphrase: bool = True) -> str:
    ended = fedward(*arguments, passphrase=passphrase)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    done("init", "--address", "fed.example.org:8443", "--api", "127.0.0.1:0", "--home", tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def applicants(tmp_path: Path) -> list[Applicant]:
    found = [Applicant(name) for name in ("east", "north", "west")]
    (tmp_path / "mail").mkdir()
    for applicant in found:
        applicant.write(tmp_path / "mail")
    return found


def enrol(home: Path, applicants: Sequence[Applicant], *more: object) -> str:
    prints = [applicant.enrolment.fingerprint for applicant in applicants]
    return done("enrol", *prints, "--from", home.parent / "mail", "--home", home, *more)


def test_a_consortium_comes_together_with_a_handful_of_commands(home: Path, applicants: list[Applicant]) -> None:
    shown = json.loads(enrol(home, applicants, "--format", "json"))
    consortium = read_consortium(home / "consortium.json")
    assert shown == {"version": 1, "sites": ["east", "north", "west"], "fingerprint": consortium.fingerprint}
    members = json.loads(done("members", "--home", home, "--format", "json", passphrase=False))["members"]
    assert {name: member["identity_key"] for name, member in members.items()} == consortium.sites
    done("revoke", "north", "--home", home)
    assert set(read_consortium(home / "consortium.json").sites) == {"east", "west"}
    acts = json.loads(done("acts", "--home", home, "--format", "json", passphrase=False))
    told = [(act["act"], act["subject"]) for act in acts["acts"]]
    assert told == [("init", ""), ("enrol", "east"), ("enrol", "north"), ("enrol", "west"), ("revoke", "north")]
    assert acts["verdict"] == "verified"
    assert {act["role"] for act in acts["acts"]} == {"coordinator"}


def test_setting_up_says_what_to_do_next_and_shows_a_fingerprint_alone_on_stdout(tmp_path: Path) -> None:
    ended = fedward("init", "--address", "fed.example.org:8443", "--home", tmp_path / "home")
    fingerprint = read_public_key(tmp_path / "home").fingerprint
    assert ended.stdout == f"coordinator's key: {fingerprint}\n"
    assert "fedward server enrol" in ended.stderr


def test_a_second_set_up_is_refused_and_the_first_stands(home: Path) -> None:
    ended = fedward("init", "--address", "fed.example.org:8443", "--home", home)
    assert (ended.returncode, "there is a coordinator already" in ended.stderr) == (4, True)
    open_server(home, passphrase=PASSPHRASE)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["init", "--address", "nonsense"], 3, "address"),
        (["init", "--address", "a.org:1", "--ca", "x.pem"], 3, "three files"),
        (["members"], 3, "fedward server init"),
        (["enrol", "1a2b", "--from", "."], 3, "is no fingerprint"),
        (["token", "create", "--role", "king", "--name", "alice"], 3, "is no role"),
        (["acts", "--head", "7"], 3, "is no head"),
        (["api"], 3, "no such file"),
    ],
)
def test_what_makes_no_sense_is_explained(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    ended = fedward(*arguments, "--home", tmp_path / "home")
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith("error: ") and words in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("passphrase", ["", "fifteen letters"])
def test_without_a_long_passphrase_nothing_is_made(tmp_path: Path, passphrase: str) -> None:
    command = [*FEDWARD, "init", "--address", "a.org:1", "--home", str(tmp_path / "home")]
    environment = {**ENVIRONMENT, "FEDWARD_PASSPHRASE": passphrase}
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 3
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("second", "code"), [(PASSPHRASE, 0), (b"something else entirely", None)])
def test_on_a_terminal_the_passphrase_is_asked_for_twice(tmp_path: Path, second: bytes, code: int | None) -> None:
    ours, theirs = pty.openpty()
    command = [*FEDWARD, "init", "--address", "a.org:1", "--home", str(tmp_path / "home")]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = read_until(ours, b"opens them without it): ")
    os.write(ours, PASSPHRASE + b"\n")
    shown += read_until(ours, b"Once more: ")
    os.write(ours, second + b"\n")
    if code is None:
        shown += read_until(ours, b"without it): ")
        process.terminate()
    else:
        shown += read_until(ours, b"fedward server up")
    process.wait(TIMEOUT_S)
    os.close(ours)
    assert PASSPHRASE not in shown
    assert (tmp_path / "home" / "coordinator.pem").exists() == (code == 0)


def read_until(terminal: int, end: bytes) -> bytes:
    shown = b""
    while end not in shown:
        part = os.read(terminal, 4096)
        assert part, shown
        shown += part
    return shown


def test_a_changed_log_of_acts_has_an_exit_code_of_its_own(home: Path) -> None:
    log = home / "acts.jsonl"
    head = done("acts", "--home", home, passphrase=False).splitlines()[-1].removeprefix("head: ")
    assert done("acts", "--home", home, "--head", head, passphrase=False)
    log.write_bytes(log.read_bytes().replace(b'"act":"init"', b'"act":"exit"'))
    ended = fedward("acts", "--home", home, passphrase=False)
    assert (ended.returncode, "act 1" in ended.stderr) == (16, True)


def test_a_wrong_passphrase_changes_nothing(home: Path, applicants: list[Applicant]) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    environment = {**ENVIRONMENT, "FEDWARD_PASSPHRASE": "some other passphrase"}
    command = ["enrol", applicants[0].enrolment.fingerprint, "--from", str(home.parent / "mail"), "--home", str(home)]
    ended = subprocess.run([*FEDWARD, *command], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 12
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_commands_at_once_lose_no_member_no_token_and_no_act(home: Path, applicants: list[Applicant]) -> None:
    commands = [
        ["enrol", applicant.enrolment.fingerprint, "--from", str(home.parent / "mail")] for applicant in applicants
    ]
    commands += [["token", "create", "--role", "auditor", "--name", f"auditor-{number}"] for number in range(3)]
    started = [
        subprocess.Popen(
            [*FEDWARD, *command, "--home", str(home)],
            env=WITH_PASSPHRASE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    assert [process.wait(TIMEOUT_S) for process in started] == [0] * len(commands)
    assert set(read_members(home, read_public_key(home)).active) == {"east", "north", "west"}
    assert set(read_consortium(home / "consortium.json").sites) == {"east", "north", "west"}
    assert len(json.loads(done("token", "list", "--home", home, "--format", "json"))["tokens"]) == 3
    assert len(list(verified_acts(home))) == 1 + len(commands)


@pytest.mark.parametrize("written", ["server.toml", "ca.key", "acts.jsonl", "members.json"])
def test_a_set_up_killed_halfway_is_simply_repeated(tmp_path: Path, written: str) -> None:
    home = tmp_path / "home"
    process = subprocess.Popen(
        [*FEDWARD, "init", "--address", "a.org:1", "--home", str(home)],
        env=WITH_PASSPHRASE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(home.rglob(written)):
        time.sleep(0.001)
    process.kill()
    process.wait()
    if not (home / "coordinator.pem").exists():
        done("init", "--address", "a.org:1", "--home", home)
    open_server(home, passphrase=PASSPHRASE)
    assert len(list(verified_acts(home))) == 1
    assert not list(home.glob(".init-*"))


def test_the_certificate_is_renewed_under_the_same_authority(home: Path, applicants: list[Applicant]) -> None:
    files = server_files(home / "pki")
    before, authority = read_certificate(files.certificate), files.authority.read_bytes()
    done("renew", "--home", home)
    assert read_certificate(files.certificate).serial_number != before.serial_number
    assert files.authority.read_bytes() == authority


def test_certificates_of_ones_own_are_taken_if_couriers_would_accept_them(home: Path, tmp_path: Path) -> None:
    files = server_files(home / "pki")
    own = ["--ca", files.authority, "--certificate", files.certificate, "--key", files.key]
    wrong = fedward("init", "--address", "other.example.org:1", "--home", tmp_path / "own", *own)
    assert (wrong.returncode, "other.example.org would refuse" in wrong.stderr) == (12, True)
    assert not (tmp_path / "own").exists()
    done("init", "--address", "fed.example.org:1", "--home", tmp_path / "own", *own)
    assert read_consortium(tmp_path / "own" / "consortium.json").certificates.encode() == files.authority.read_bytes()
    assert not (tmp_path / "own" / "pki" / "ca.key").exists()


def test_a_client_certificate_is_for_members_only(home: Path, applicants: list[Applicant], tmp_path: Path) -> None:
    assert fedward("client-certificate", "east", "--out", tmp_path, "--home", home).returncode == 3
    enrol(home, applicants)
    done("client-certificate", "east", "--out", tmp_path, "--home", home)
    assert stat.S_IMODE((tmp_path / "east.client.key").stat().st_mode) == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(tmp_path / "east.crt", tmp_path / "east.client.key")


@contextmanager
def api(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The API as a process, given no passphrase, and its URL."""
    process = subprocess.Popen(
        [*FEDWARD, "api", "--home", str(home)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("https://127.0.0.1:"), process.communicate(timeout=TIMEOUT_S)
        yield process, url
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


def make_token(home: Path, role: str, name: str, *more: str) -> tuple[str, str]:
    shown = done("token", "create", "--role", role, "--name", name, "--home", home, "--format", "json", *more)
    found = json.loads(shown)
    return found["id"], found["token"]


@pytest.mark.deployment
def test_the_api_serves_people_with_tokens_over_tls(home: Path, applicants: list[Applicant]) -> None:
    enrol(home, applicants)
    token_id, researcher = make_token(home, "researcher", "alice")
    _, auditor = make_token(home, "auditor", "bob")
    _, site = make_token(home, "site", "east-machine", "--site", "east")
    trusted = ssl.create_default_context(cafile=str(home / "pki" / "ca.crt"))
    with api(home) as (process, url), httpx.Client(base_url=url, verify=trusted, timeout=TIMEOUT_S) as client:

        def ask(token: str, path: str, method: str = "GET", **arguments: object) -> httpx.Response:
            headers = {"authorization": f"Bearer {token}", "content-type": "application/toml"}
            return client.request(method, path, headers=headers, **arguments)  # type: ignore[arg-type]

        proposed = ask(researcher, "/plans", "POST", content=PLAN_TOML)
        assert (proposed.status_code, proposed.json()["digest"]) == (201, DIGEST)
        assert not {"server", "date"} & set(proposed.headers)
        assert ask(site, "/consortium.json").content == (home / "consortium.json").read_bytes()
        assert [act["act"] for act in ask(auditor, "/acts?after=7").json()["acts"]] == ["propose"]
        assert ask(auditor, "/plans", "POST", content=PLAN_TOML).status_code == 403

        done("token", "revoke", token_id, "--home", home)
        assert ask(researcher, "/runs").status_code == 401
        assert "500" not in raw_answer(url, home, auditor, "/api/v1/runs/../../../server.toml")
        assert raw_answer(url, home, auditor, "/api/v1/runs/../../../server.toml").startswith("HTTP/1.1 404")
        assert raw_answer(url, home, auditor, "/api/v1/acts\0").startswith(("HTTP/1.1 400", "HTTP/1.1 404"))

        with pytest.raises(httpx.ConnectError), httpx.Client(timeout=TIMEOUT_S) as stranger:
            stranger.get(url)
        with pytest.raises(httpx.HTTPError), httpx.Client(timeout=TIMEOUT_S) as plain:
            plain.get(url.replace("https:", "http:"))

        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) in (0, -signal.SIGTERM)
    assert (
        json.loads(done("proposals", "--show", DIGEST, "--home", home, passphrase=False))["task"]["positive"] == "ill"
    )
    done("proposals", "--remove", DIGEST, "--home", home)
    assert json.loads(done("proposals", "--home", home, "--format", "json"))["proposals"] == {}
    refused = [act.detail["status"] for act, _ in verified_acts(home) if act.act == "refuse"]
    assert refused[:3] == [403, 401, 404]


def raw_answer(url: str, home: Path, token: str, path: str) -> str:
    """The first bytes of the answer to a path that no client library would send."""
    port = int(url.split(":")[2].split("/")[0])
    context = ssl.create_default_context(cafile=str(home / "pki" / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        connection.sendall(head.encode())
        return connection.recv(4096).decode("latin-1")
