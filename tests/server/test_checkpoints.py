"""What a checkpoint holds, comes back bit for bit; what is not this run's, or not whole, does not come back."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.crypto.seal import StorageKey
from common.errors import ConfigurationError, TrustError
from server.aggregate import ServerState
from server.checkpoints import ARRAYS, Checkpoint, CheckpointStore, Failure, is_resumable, refuse_if_over
from server.cohort import CohortRecord
from server.evaluation import EvaluationsRecord, OpenedRecord
from server.rundir import PreparedRun, load_run
from tests.flows.federation import PASSPHRASE, Federation

AWKWARD = (0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, -2.5)


@pytest.fixture
def run(federation: Federation) -> PreparedRun:
    return load_run(federation.root, passphrase=PASSPHRASE)


@pytest.fixture
def checkpoint(run: PreparedRun) -> Checkpoint:
    """One in which every field holds something."""
    cohort = CohortRecord(left={"east": "NoReply"}, resting=("north",), misses={"north": 1, "east": 2})
    opened = OpenedRecord(round_number=1, attempt=2, sites=3, total=AWKWARD)
    return Checkpoint(
        run_id=run.manifest.run_id,
        manifest_digest=run.manifest.digest,
        stage="evaluate",
        round_number=2,
        attempt=1,
        in_flight=("north", "south", "west"),
        attempts=3,
        exchanges=9,
        bytes_up=40,
        joined={"north": bytes(range(256))},
        nodes={"north": str(2**64 - 1)},
        heads=({"v": 1, "site": "north"},),
        told={"north": ("north", "south")},
        unsent=(b"\0\xff", b""),
        cohort=cohort,
        evaluations=EvaluationsRecord(attempts=1, missing=(1,), opened=(opened,), cohort=cohort),
        failure=Failure(error="QuorumLost", fact="a fact", hint=""),
    )


def state_of(run: PreparedRun, *, rounds: int = 2) -> ServerState:
    """A state whose numbers a text would round, with one array that is zero everywhere."""
    random = np.random.default_rng(rounds)
    size = run.manifest.dimension
    current = random.normal(size=size)
    current[: len(AWKWARD)] = AWKWARD
    return ServerState(
        current=current,
        velocity=random.normal(size=size),
        second_moment=np.zeros(size),
        average_sum=random.normal(size=size),
        average_weight=1 / 3,
        rounds=rounds,
    )


def test_everything_comes_back_bit_for_bit(run: PreparedRun, checkpoint: Checkpoint) -> None:
    state = state_of(run)
    CheckpointStore(run).save(checkpoint, state)
    found = CheckpointStore(run).load()
    assert found is not None and found[1] is not None
    assert found[0].model_copy(update={"state": None}) == checkpoint
    for name in ARRAYS:
        assert getattr(found[1], name).tobytes() == getattr(state, name).tobytes()
    assert (found[1].average_weight, found[1].rounds) == (state.average_weight, state.rounds)
    assert found[0].evaluations.opened[0].total == AWKWARD


def test_where_no_run_was_begun_there_is_no_checkpoint(run: PreparedRun) -> None:
    assert CheckpointStore(run).load() is None
    assert not is_resumable(run.root)


def test_the_model_that_a_run_starts_with_is_not_stored(run: PreparedRun, checkpoint: Checkpoint) -> None:
    CheckpointStore(run).save(checkpoint, replace(state_of(run), rounds=0))
    assert [path.name for path in (run.root / "checkpoint").iterdir()] == ["index.sealed"]
    assert CheckpointStore(run).load() == (checkpoint, None)


def test_a_state_is_written_once_and_the_one_before_removed(run: PreparedRun, checkpoint: Checkpoint) -> None:
    store, state = CheckpointStore(run), state_of(run)
    store.save(checkpoint, state)
    written = {path.name: path.stat().st_mtime_ns for path in (run.root / "checkpoint").glob("state-*")}
    assert len(written) == 3  # current, velocity and average_sum; second_moment is zero
    store.save(checkpoint, state)
    assert {path.name: path.stat().st_mtime_ns for path in (run.root / "checkpoint").glob("state-*")} == written
    store.save(checkpoint, state_of(run, rounds=3))
    assert not written.keys() & {path.name for path in (run.root / "checkpoint").iterdir()}


def test_a_state_that_was_read_is_not_written_again(run: PreparedRun, checkpoint: Checkpoint) -> None:
    CheckpointStore(run).save(checkpoint, state_of(run))
    store = CheckpointStore(run)
    found = store.load()
    assert found is not None and found[1] is not None
    before = sorted((run.root / "checkpoint").glob("state-*"))
    store.save(found[0], found[1])
    assert sorted((run.root / "checkpoint").glob("state-*")) == before


@pytest.mark.parametrize("step", range(1, 5))
def test_until_the_new_one_is_durable_the_old_one_is_valid(
    run: PreparedRun, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Three states and an index are renamed into their places; the power fails at each of the four."""
    old = state_of(run)
    store = CheckpointStore(run)
    store.save(checkpoint, old)
    calls: list[object] = []
    rename = os.replace

    def failing(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == step:
            raise KeyboardInterrupt
        rename(source, target)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        store.save(checkpoint.model_copy(update={"round_number": 3}), state_of(run, rounds=3))
    found = CheckpointStore(run).load()
    assert found is not None and found[1] is not None
    assert found[0].round_number == 2
    np.testing.assert_array_equal(found[1].current, old.current)


def test_nobody_else_reads_a_checkpoint(run: PreparedRun, checkpoint: Checkpoint) -> None:
    state = state_of(run)
    CheckpointStore(run).save(checkpoint, state)
    for path in (run.root / "checkpoint").iterdir():
        content = path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"north" not in content and state.current[4:6].tobytes() not in content


def test_under_another_key_it_does_not_open(run: PreparedRun, checkpoint: Checkpoint) -> None:
    CheckpointStore(run).save(checkpoint, state_of(run))
    with pytest.raises(TrustError):
        CheckpointStore(replace(run, storage=StorageKey.generate())).load()


def test_for_another_manifest_it_does_not_open(run: PreparedRun, checkpoint: Checkpoint) -> None:
    CheckpointStore(run).save(checkpoint, state_of(run))
    other = run.manifest.model_copy(update={"run_id": "demo-2"})
    with pytest.raises(TrustError):
        CheckpointStore(replace(run, manifest=other)).load()


def test_an_array_does_not_stand_in_for_another(run: PreparedRun, checkpoint: Checkpoint) -> None:
    CheckpointStore(run).save(checkpoint, state_of(run))
    (current,) = (run.root / "checkpoint").glob("*-current.sealed")
    (velocity,) = (run.root / "checkpoint").glob("*-velocity.sealed")
    velocity.write_bytes(current.read_bytes())
    with pytest.raises(TrustError, match="velocity"):
        CheckpointStore(run).load()


def test_an_older_state_does_not_stand_in_for_a_newer(run: PreparedRun, checkpoint: Checkpoint) -> None:
    store = CheckpointStore(run)
    store.save(checkpoint, state_of(run))
    (old,) = (run.root / "checkpoint").glob("*-current.sealed")
    content = old.read_bytes()
    store.save(checkpoint, state_of(run, rounds=3))
    (new,) = (run.root / "checkpoint").glob("*-current.sealed")
    new.write_bytes(content)
    with pytest.raises(TrustError, match="current"):
        CheckpointStore(run).load()


def test_a_checkpoint_of_another_version_is_named(run: PreparedRun, checkpoint: Checkpoint) -> None:
    CheckpointStore(run).save(checkpoint.model_copy(update={"version": 2}), state_of(run))
    with pytest.raises(ConfigurationError, match="not a checkpoint of this release"):
        CheckpointStore(run).load()


def test_a_run_is_resumable_from_its_first_checkpoint_until_its_result(
    run: PreparedRun, checkpoint: Checkpoint
) -> None:
    store = CheckpointStore(run)
    store.save(checkpoint, state_of(run))
    assert is_resumable(run.root)
    refuse_if_over(run.root)
    (run.root / "result.json").write_bytes(b"{}")
    assert not is_resumable(run.root)
    with pytest.raises(ConfigurationError, match="over"):
        refuse_if_over(run.root)
    store.remove()
    assert not (run.root / "checkpoint").exists()


def test_a_full_disk_is_named_and_the_run_goes_on_from_its_last_checkpoint(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with federation.agents() as agents:

        def filling(data: bytes) -> bytes:
            reply = agents["west"](data)
            if b"round" in data[:200] and not done:
                done.append(Path("checkpoint"))
                monkeypatch.setattr("common.files.os.fsync", full)
            return reply

        done: list[Path] = []
        with pytest.raises(ConfigurationError, match="No space left on device") as named:
            federation.train({**agents, "west": filling})
        assert "resume" in named.value.hint
        monkeypatch.undo()
        assert federation.train(agents).rounds == 3
    assert federation.charged("west") == {(number, 1): "settled" for number in (1, 2, 3)}
