"""Another user of the coordinator's machine: reaches SuperLink's port on loopback, knows what every courier knows.

That is the authority's certificate, which stands in consortium.json, and the port, which stands in /proc/net/tcp. He
has neither the coordinator's directory nor its passphrase.
"""

import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto import control_pb2, fleet_pb2, log_pb2, runtime_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from common.processes import SUPERVISOR_VARIABLE, kill_family
from server.acts import Actor
from server.home import ServerHome, ServerSettings
from server.setup import set_up
from server.superlink import free_port, installed_program
from server.upstate import read_up
from tests.deployment.waiting import wait_until

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

PASSPHRASE = "a passphrase for tests only"
PATIENCE_S = 120.0
SETTLED_S = 15.0
HOSTILE_PROJECT = """
[project]
name = "hostile"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "stranger"
fab-include = ["hostile.py"]
[tool.flwr.app.components]
serverapp = "hostile:app"
clientapp = "hostile:client"
[tool.flwr.app.config]
loot = ""
"""
HOSTILE_APP = """
import json, os
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ServerApp()
client = ClientApp()

@app.main()
def main(grid, context):
    found = {name: value for name, value in os.environ.items() if "PASSPHRASE" in name}
    Path(context.run_config["loot"]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def coordinator() -> Iterator[ServerHome]:
    """A coordinator that is up."""
    root = Path(tempfile.mkdtemp(prefix="fw-"))
    address = f"127.0.0.1:{free_port()}"
    settings = ServerSettings(address=address.replace("127.0.0.1", "localhost"), listen=address)
    actor = Actor(name="tester", role="coordinator")
    home = set_up(root / "home", settings=settings, passphrase=PASSPHRASE.encode(), actor=actor)
    process = subprocess.Popen(
        [installed_program("fedward"), "server", "up", "--home", str(home.root)],
        env={**os.environ, "FEDWARD_PASSPHRASE": PASSPHRASE, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: process.poll() is not None or read_up(home.root), what="the coordinator to be up")
        assert process.poll() is None
        yield home
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        finally:
            kill_family(f"{home.root.resolve()}#server", variable=SUPERVISOR_VARIABLE)
            shutil.rmtree(root)


@pytest.fixture(scope="module")
def stranger(coordinator: ServerHome) -> Iterator[httpx.Client]:
    """Whoever reaches the port and trusts the authority."""
    up = read_up(coordinator.root)
    assert up is not None
    consortium = json.loads(coordinator.consortium_path.read_bytes())["consortium"]
    trust = ssl.create_default_context(cadata=consortium["certificates"])
    media = "application/protobuf"
    headers = {"content-type": media, "accept": media, "x-flwr-client": "cli"}
    base = f"https://{up.superlink}/v1/"
    with httpx.Client(verify=trust, trust_env=False, base_url=base, headers=headers, timeout=30.0) as client:
        yield client


def test_his_code_does_not_run_as_the_coordinator(coordinator: ServerHome, tmp_path: Path) -> None:
    up = read_up(coordinator.root)
    assert up is not None
    app, loot, own = tmp_path / "app", tmp_path / "loot", tmp_path / "flwr"
    app.mkdir()
    own.mkdir()
    (app / "pyproject.toml").write_text(HOSTILE_PROJECT)
    (app / "hostile.py").write_text(HOSTILE_APP)
    consortium = json.loads(coordinator.consortium_path.read_bytes())["consortium"]
    (own / "ca.crt").write_text(consortium["certificates"])
    (own / "config.toml").write_text(
        f'[superlink]\ndefault = "his"\n[superlink.his]\naddress = "{up.superlink}"\n'
        f'root-certificates = "{own / "ca.crt"}"\n'
    )
    environment = {**os.environ, "FLWR_HOME": str(own), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    said = subprocess.run(
        [installed_program("flwr"), "run", str(app), "his", "--run-config", f'loot="{loot}"'],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    deadline = time.monotonic() + SETTLED_S
    while said.returncode == 0 and not loot.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not loot.exists(), loot.read_text()
    assert said.returncode != 0


def test_he_takes_no_task_and_speaks_for_no_app(stranger: httpx.Client) -> None:
    asked = {
        "acquire-task": runtime_pb2.AcquireTaskRequest(),
        "pull-task-input": runtime_pb2.PullTaskInputRequest(),
        "get-nodes": runtime_pb2.GetNodesRequest(),
        "push-messages": runtime_pb2.PushAppMessagesRequest(),
        "pull-messages": runtime_pb2.PullAppMessagesRequest(),
        "create-task": runtime_pb2.CreateTaskRequest(),
        "push-logs": log_pb2.PushLogsRequest(),
    }
    answers = {
        verb: stranger.post(f"runtime/{verb}", content=request.SerializeToString()).status_code
        for verb, request in asked.items()
    }
    assert set(answers.values()) <= {401, 403}, answers


def test_he_makes_no_node_of_his_own(stranger: httpx.Client) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    stamp = datetime.now(UTC).isoformat()
    signed = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(pem).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
    }
    asked = {
        "register-node": fleet_pb2.RegisterNodeFleetRequest(public_key=pem),
        "activate-node": fleet_pb2.ActivateNodeRequest(public_key=pem, heartbeat_interval=30.0),
    }
    for verb, request in asked.items():
        answer = stranger.post(f"fleet/{verb}", content=request.SerializeToString(), headers=signed)
        assert answer.status_code >= 400, (verb, answer.status_code)


def test_he_learns_of_no_run_and_no_node_and_changes_none(stranger: httpx.Client) -> None:
    pem = (
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    asked = {
        "list-runs": control_pb2.ListRunsRequest(),
        "list-nodes": control_pb2.ListNodesRequest(),
        "register-node": control_pb2.RegisterNodeRequest(public_key=pem, name="his"),
        "unregister-node": control_pb2.UnregisterNodeRequest(node_id=1),
        "start-run": control_pb2.StartRunRequest(),
        "stop-run": control_pb2.StopRunRequest(run_id=1),
        "stream-logs": control_pb2.StreamLogsRequest(run_id=1),
    }
    for extra in ({}, {"authorization": "Basic Og=="}, {"authorization": "Bearer " + "0" * 64}):
        answers = {
            verb: stranger.post(f"control/{verb}", content=request.SerializeToString(), headers=extra).status_code
            for verb, request in asked.items()
        }
        assert set(answers.values()) == {401}, answers
