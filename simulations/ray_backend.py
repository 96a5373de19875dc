"""A run through Flower's own simulation engine: the same ServerApp and ClientApp, with Ray's processes as the sites."""

import importlib.util
import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path

from client.site_files import SITES_DIRECTORY_VARIABLE
from common.errors import BackendFailed, ConfigurationError, MissingDependency
from common.passphrase import PASSPHRASE_FILE_VARIABLE
from server.outcome import Outcome, read_outcome, remove_outcome
from simulations.superlink import CONNECTION, SuperLink, running_superlink

_LOOK_AGAIN_S = 0.1
_LAST_WORDS_S = 2.0
_REST_OF_LOG_S = 10.0
_COMMAND_TIMEOUT_S = 60.0


def run_with_flower(
    *, run_dir: Path, sites_dir: Path, sites: int, passphrase: bytes, timeout_s: float, gpus: float
) -> None:
    """Run what the coordinator prepared in `run_dir` over the sites in `sites_dir`, and wait for its end.

    Nothing stays running and no file outside the two directories stays, whatever the end, Ctrl-C included.

    Args:
        run_dir: What `server.app` is told; its only argument.
        sites_dir: One sub-directory per site. Node i is the i-th of them by name.
        sites: How many nodes to simulate; as many as there are sub-directories.
        passphrase: Opens every site's keys and the coordinator's. Handed over in a file of mode 0600, never on a
            command line.
        timeout_s: For the whole run, start and stop not counted.
        gpus: The share of a GPU that one site at a time takes; 0.0 for none.

    Raises:
        FederationError: The very error with which the coordinator ended, if it did.
        ConfigurationError: If `sites` is not the number of sub-directories.
        MissingDependency: If Ray is not installed.
        BackendFailed: If Flower or Ray failed, or the timeout passed; the hint holds the end of the log.
    """
    present = sum(entry.is_dir() for entry in sites_dir.iterdir())
    if sites != present:
        raise ConfigurationError(f"{sites} sites are to take part, {present} are prepared")
    fab = resources.files("server") / "fab" / "pyproject.toml"
    run_flower_app(
        fab.read_text(encoding="utf-8"),
        run_dir=run_dir,
        nodes=sites,
        environment={SITES_DIRECTORY_VARIABLE: str(sites_dir.resolve())},
        secrets={PASSPHRASE_FILE_VARIABLE: passphrase},
        timeout_s=timeout_s,
        gpus=gpus,
    )


def run_flower_app(
    fab: str,
    *,
    run_dir: Path,
    nodes: int,
    environment: Mapping[str, str],
    secrets: Mapping[str, bytes],
    timeout_s: float,
    gpus: float,
) -> None:
    """Run any bundle whose ServerApp writes its outcome into `run_dir`; see `run_with_flower`.

    Args:
        fab: The bundle's pyproject.toml, all that it consists of.
        run_dir: Becomes the bundle's `run-dir`.
        nodes: How many nodes Flower simulates.
        environment: Added to that of every process.
        secrets: Per variable, the content of a private file whose path the variable holds.
        timeout_s: For the whole run, start and stop not counted.
        gpus: The share of a GPU that one node at a time takes.
    """
    require_ray()
    remove_outcome(run_dir)
    with running_superlink(environment, secrets=secrets) as superlink:
        outcome = _run(superlink, fab, run_dir=run_dir.resolve(), nodes=nodes, timeout_s=timeout_s, gpus=gpus)
        log = superlink.log_tail()
    remove_outcome(run_dir)
    outcome.raise_error(log=log)


def require_ray() -> None:
    """Raise MissingDependency unless Ray is installed; it is not imported here."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependency(
            "the ray backend needs Ray, which is not installed",
            hint="Install it with: pip install 'fedward[simulation]', or use the inline backend.",
        )


def _run(superlink: SuperLink, fab: str, *, run_dir: Path, nodes: int, timeout_s: float, gpus: float) -> Outcome:
    """Submit the bundle and wait for the ServerApp's outcome."""
    bundle = superlink.directory / "bundle"
    bundle.mkdir()
    (bundle / "pyproject.toml").write_text(fab, encoding="utf-8")
    config = superlink.directory / "run.toml"
    config.write_text(f"run-dir = {json.dumps(str(run_dir), ensure_ascii=False)}\n", encoding="utf-8")
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1 client-resources-num-gpus={gpus}"
    command = [superlink.program("flwr"), "run", str(bundle), CONNECTION, "--stream"]
    command += ["--run-config", str(config), "--federation-config", federation]
    with superlink.log.open("ab") as log:
        submission = subprocess.Popen(
            command,
            cwd=superlink.directory,
            env=dict(superlink.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _wait(superlink, submission, run_dir, timeout_s)
    finally:
        submission.kill()
        submission.wait()


def _wait(superlink: SuperLink, submission: subprocess.Popen[bytes], run_dir: Path, timeout_s: float) -> Outcome:
    """The outcome; the submission's log stream ends when the run does, so that a crash is noticed too."""
    deadline = time.monotonic() + timeout_s
    while (outcome := read_outcome(run_dir)) is None:
        if superlink.process.poll() is not None:
            raise BackendFailed("Flower's SuperLink ended before the run did", hint=superlink.log_tail())
        if submission.poll() is not None:
            return _last_words(superlink, submission, run_dir)
        if time.monotonic() > deadline:
            raise BackendFailed(f"the run was not over after {timeout_s:g} s", hint=superlink.log_tail())
        time.sleep(_LOOK_AGAIN_S)
    if not outcome.foreseen:
        with suppress(subprocess.TimeoutExpired):
            submission.wait(_REST_OF_LOG_S)
    return outcome


def _last_words(superlink: SuperLink, submission: subprocess.Popen[bytes], run_dir: Path) -> Outcome:
    """The outcome of a run that Flower calls finished, or BackendFailed with what Flower says of it."""
    if submission.returncode != 0:
        raise BackendFailed("Flower did not accept the run", hint=superlink.log_tail())
    deadline = time.monotonic() + _LAST_WORDS_S
    while (outcome := read_outcome(run_dir)) is None:
        if time.monotonic() > deadline:
            raise BackendFailed(f"Flower ended the run: {_status(superlink)}", hint=superlink.log_tail())
        time.sleep(_LOOK_AGAIN_S)
    return outcome


def _status(superlink: SuperLink) -> str:
    """What Flower itself says of the run: its status and details, or why it does not say."""
    command = [superlink.program("flwr"), "list", CONNECTION, "--format", "json"]
    try:
        listing = subprocess.run(
            command,
            cwd=superlink.directory,
            env=dict(superlink.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=True,
        )
        runs = json.loads(listing.stdout)["runs"]
    except (subprocess.SubprocessError, ValueError, KeyError) as error:
        return f"its status is unknown ({type(error).__name__})"
    return f"{runs[0]['status']} {runs[0]['status-details']}".strip() if runs else "it never started"
