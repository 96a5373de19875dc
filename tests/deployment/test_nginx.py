"""The nginx example, run as it stands but for its paths, ports and user."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from server.superlink import free_port
from tests.deployment.door_contract import DoorContract
from tests.deployment.gateway_house import House, house
from tests.deployment.waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "server/deploy/nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light"),
]


def start_nginx(door_house: House, name: str, *, upstream: str, pki: Path, rate: float | None) -> str:
    """Start nginx in a directory of its own, in the foreground."""
    root = door_house.root / name
    root.mkdir()
    port = free_port()
    changes = {
        "user www-data;\n": "",
        "worker_processes auto;": "worker_processes 1; daemon off;",
        "/run/nginx.pid": f"{root}/pid",
        "/var/log/nginx": str(root),
        "/var/lib/nginx": str(root),
        "/etc/fedward/pki": str(pki),
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "server 127.0.0.1:8443;": f"server {upstream};",
    }
    if rate is not None:
        changes |= {"rate=2000r/s": f"rate={rate:g}r/s", "burst=4000": f"burst={2 * rate:g}"}
    text = EXAMPLE.read_text()
    for written, here in changes.items():
        if written not in text:
            raise ValueError(f"nginx.conf has no {written!r} any more")
        text = text.replace(written, here)
    (root / "nginx.conf").write_text(text)
    command = [str(NGINX), "-c", str(root / "nginx.conf"), "-p", str(root), "-e", str(root / "early.log")]
    subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=60)
    process = door_house.start(name, command)
    wait_until(lambda: process.child.poll() is not None or accepts(port), what="nginx to listen", says=process.text)
    if process.child.poll() is not None:
        raise RuntimeError(process.text())
    return f"localhost:{port}"


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


class TestNginx(DoorContract):
    @classmethod
    def start(
        cls, door_house: House, name: str, *, pki: Path | None = None, requests_per_second: float | None = None
    ) -> str:
        door_pki = pki or door_house.home.pki
        return start_nginx(door_house, name, upstream=door_house.superlink, pki=door_pki, rate=requests_per_second)

    def log(self, door_house: House, name: str) -> Path:
        return door_house.root / name / "fedward.jsonl"


def test_before_the_gateway_strangers_are_refused_and_members_pass() -> None:
    with house() as built:
        gateway = built.start_gateway().replace("localhost", "127.0.0.1")
        address = start_nginx(built, "front", upstream=gateway, pki=built.home.pki, rate=None)
        assert built.nodes["east"].activate(address, built.authority) == 200
        assert built.nodes["stranger"].activate(address, built.authority) == 401
        built.children["gateway"].end()
        assert built.nodes["east"].activate(address, built.authority) == 503
