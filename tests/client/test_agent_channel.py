import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client.agent_channel import LONGEST_PATH_BYTES, AgentAway, AgentChannel
from client.agent_service import AgentService, serving
from common.errors import ConfigurationError


def echo() -> AgentService:
    return AgentService(bytes, site="north", version="1.2", on_failure=pytest.fail)


def test_a_request_goes_in_and_its_reply_comes_back(tmp_path: Path) -> None:
    body = os.urandom(3 << 20)
    path = tmp_path / "run" / "agent.sock"
    with serving(echo(), path, group=""), AgentChannel(path) as channel:
        assert channel.handle(body, timeout_s=60) == body


def test_an_agent_that_is_not_there_is_said_to_be_away_with_a_hint(tmp_path: Path) -> None:
    with (
        AgentChannel(tmp_path / "agent.sock", patience_s=0.2) as channel,
        pytest.raises(AgentAway, match="no agent listens there") as caught,
    ):
        channel.handle(b"?", timeout_s=60)
    assert "fedward site agent" in caught.value.hint


def test_a_call_waits_for_an_agent_that_is_just_starting(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    answers: list[bytes] = []
    with AgentChannel(path, patience_s=60) as channel:
        caller = threading.Thread(target=lambda: answers.append(channel.handle(b"early", timeout_s=60)))
        caller.start()
        with serving(echo(), path, group=""):
            caller.join(60)
    assert answers == [b"early"]


def test_one_channel_serves_an_agent_and_the_one_that_is_started_after_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    with AgentChannel(path, patience_s=60) as channel:
        for body in (b"first", b"second"):
            with serving(echo(), path, group=""):
                assert channel.handle(body, timeout_s=60) == body


def test_a_call_that_is_given_up_ends_soon(tmp_path: Path) -> None:
    go_on = threading.Event()
    service = AgentService(lambda body: body * go_on.wait(60), site="n", version="1", on_failure=pytest.fail)
    with serving(service, tmp_path / "run" / "agent.sock", group=""):
        with AgentChannel(tmp_path / "run" / "agent.sock") as channel:
            started = time.monotonic()
            with pytest.raises(AgentAway, match="not waited for"):
                channel.handle(b"?", timeout_s=60, given_up=lambda: True)
            assert time.monotonic() - started < 30
        go_on.set()


def test_a_path_that_unix_cannot_bind_is_refused_with_its_length(tmp_path: Path) -> None:
    path = tmp_path / ("x" * LONGEST_PATH_BYTES) / "agent.sock"
    with pytest.raises(ConfigurationError, match=f"has {len(bytes(path))} bytes, Unix allows {LONGEST_PATH_BYTES}"):
        AgentChannel(path)


@pytest.mark.parametrize("module", ["client.agent_channel", "client.courier", "client.app", "client.supernode"])
def test_what_runs_as_the_courier_imports_neither_torch_nor_the_agent(module: str) -> None:
    look = (
        f"import sys, {module}; print(sorted({{'torch', 'client.agent', 'client.home', 'polars'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
