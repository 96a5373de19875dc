import json
import os
from pathlib import Path

import pytest

from client.agent_channel import AgentChannel
from client.node_files import read_node_settings
from client.preflight_finding import courier_directory
from client.up import LOCK_FILE, courier_child, run_node
from client.up_events import LogFollower, event_text
from common.errors import ConfigurationError
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE

ENVIRONMENT = {PASSPHRASE_VARIABLE: "a passphrase for tests only", "PATH": os.defpath}


def silent(line: str) -> None:
    """Nobody listens."""


def make_courier(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    (directory / "courier.toml").write_text('gateway = "localhost:1"\nagent = "run/agent.sock"\n')
    return directory


def test_the_courier_is_not_given_the_passphrase(tmp_path):
    child = courier_child(tmp_path, {**ENVIRONMENT, PASSPHRASE_FILE_VARIABLE: "/somewhere"})
    assert child.environment == {"PATH": os.defpath}


def test_no_secret_stands_on_a_command_line(tmp_path):
    with AgentChannel(tmp_path / "a.sock", patience_s=0.1) as channel:
        from client.up import agent_child

        child = agent_child(tmp_path, channel, ENVIRONMENT)
    assert ENVIRONMENT[PASSPHRASE_VARIABLE] not in " ".join(child.command)
    assert child.environment[PASSPHRASE_VARIABLE] == ENVIRONMENT[PASSPHRASE_VARIABLE]


def test_nothing_is_started_without_a_passphrase(tmp_path):
    home, courier = tmp_path / "home", make_courier(tmp_path / "courier")
    home.mkdir()
    with pytest.raises(ConfigurationError, match="no passphrase"):
        run_node(home, courier, read_node_settings(home), environment={}, tell=silent)
    assert not (home / "agent.log").exists()


def test_nothing_is_started_without_a_courier(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigurationError, match=r"courier\.toml"):
        run_node(tmp_path, tmp_path / "no", read_node_settings(tmp_path), environment=ENVIRONMENT, tell=silent)


def test_a_second_up_on_the_same_home_is_refused(tmp_path):
    import fcntl

    home, courier = tmp_path / "home", make_courier(tmp_path / "courier")
    home.mkdir()
    with (home / LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another `fedward site up`"):
            run_node(home, courier, read_node_settings(home), environment=ENVIRONMENT, tell=silent)
    assert not (home / "agent.log").exists()


def test_the_courier_lives_where_the_command_line_or_node_toml_says_or_beside_the_home(tmp_path):
    home = tmp_path / "north"
    home.mkdir()
    assert courier_directory(home, None, read_node_settings(home)) == tmp_path / "north-courier"
    (home / "node.toml").write_text('courier = "../elsewhere"\n')
    assert courier_directory(home, None, read_node_settings(home)).resolve() == tmp_path / "elsewhere"
    assert courier_directory(home, tmp_path / "given", read_node_settings(home)) == tmp_path / "given"


def test_only_what_is_written_from_now_on_is_told_and_only_whole_lines(tmp_path):
    log = tmp_path / "courier.log"
    log.write_text("2026-01-02T03:04:05Z long ago\n")
    follower = LogFollower("courier", log)
    with log.open("a") as stream:
        stream.write("2026-01-02T03:04:06Z connected to localhost:1 as node 5\nhalf a li")
        stream.flush()
        assert follower.new_lines() == ["courier: connected to localhost:1 as node 5"]
        stream.write("ne\n")
        stream.flush()
    assert follower.new_lines() == ["courier: half a line"]
    assert follower.new_lines() == []


def test_a_log_that_is_not_there_yet_or_was_cut_is_followed_all_the_same(tmp_path):
    log = tmp_path / "agent.log"
    follower = LogFollower("agent", log)
    assert follower.new_lines() == []
    log.write_text("first, and rather long\n")
    assert follower.new_lines() == ["agent: first, and rather long"]
    log.write_text("cut\n")
    assert follower.new_lines() == ["agent: cut"]


def test_an_event_of_the_journal_is_told_in_words():
    event = {"time": "2026-01-02T03:04:05Z", "event": "refused", "site": "north", "run": "r-1", "error": "TrustError"}
    assert event_text(json.dumps(event)) == "refused, run r-1, error TrustError"
    assert event_text("[1, 2]") == "[1, 2]"
    assert len(event_text("x" * 10_000)) == 400
