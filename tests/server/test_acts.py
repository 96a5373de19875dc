import errno
import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.errors import ActsCorrupt, ConfigurationError, TrustError
from common.signed import write_signed
from server.actlog import ActLog
from server.acts import MAXIMUM_LINE_BYTES, ActHead, Actor, lines, read_acts_key, read_head, verified_acts
from server.home import ServerHome
from tests.server.coordinators import ACTOR, copy_coordinator, make_coordinator

COUNT = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """A log of six acts; not to be changed: `root` is a copy for that."""
    home = make_coordinator(tmp_path_factory.mktemp("made") / "home")
    log = ActLog.open(home.root)
    for number in range(1, COUNT):
        log.append("enrol", actor=ACTOR, subject=f"site-{number}", detail={"number": number})
    return home


@pytest.fixture
def root(made: ServerHome, tmp_path: Path) -> Path:
    return copy_coordinator(made, tmp_path / "home").root


def numbers(root: Path, held: ActHead | None = None) -> list[int]:
    return [act.seq for act, _ in verified_acts(root, held=held)]


def rewrite(root: Path, kept: list[bytes]) -> None:
    (root / "acts.jsonl").write_bytes(b"".join(line + b"\n" for line in kept))


def test_an_untouched_log_verifies(root: Path) -> None:
    assert numbers(root) == list(range(1, COUNT + 1))


def test_an_act_says_who_did_what_in_which_role(root: Path) -> None:
    ActLog.open(root).append(
        "revoke", actor=Actor(name="bob", role="coordinator"), subject="east", detail={"why": "left"}
    )
    *_, (act, _) = verified_acts(root)
    assert (act.actor, act.role, act.act, act.subject, act.detail) == (
        "bob",
        "coordinator",
        "revoke",
        "east",
        {"why": "left"},
    )


@pytest.mark.parametrize("place", range(COUNT))
@pytest.mark.parametrize("field", ["actor", "role", "act", "subject", "time", "seq", "prev", "sig", "detail"])
def test_an_edited_act_is_named(root: Path, place: int, field: str) -> None:
    kept = list(lines(root))
    fields = json.loads(kept[place])
    other = json.loads(kept[(place + 1) % COUNT])
    edits = {"actor": "mallory", "role": "auditor", "act": "x", "subject": "x", "time": "2020-01-01T00:00:00Z"}
    fields[field] = edits.get(field, {"number": 99} if field == "detail" else other[field])
    kept[place] = canonical_json(fields)
    rewrite(root, kept)
    with pytest.raises(ActsCorrupt, match=f"act ({place + 1}|{fields['seq']}):"):
        numbers(root)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(COUNT)))
def test_acts_in_another_order_do_not_verify(root: Path, made: ServerHome, order: list[int]) -> None:
    kept = list(lines(made.root))
    rewrite(root, [kept[place] for place in order])
    if order == sorted(order):
        assert numbers(root) == list(range(1, COUNT + 1))
    else:
        with pytest.raises(ActsCorrupt):
            numbers(root)


@pytest.mark.parametrize("place", range(COUNT))
def test_an_act_that_was_cut_out_is_missed(root: Path, place: int) -> None:
    kept = list(lines(root))
    del kept[place]
    rewrite(root, kept)
    with pytest.raises(ActsCorrupt, match=f"act {place + 1}: "):
        numbers(root)


@pytest.mark.parametrize("left", range(COUNT))
def test_acts_cut_off_at_the_end_are_missed(root: Path, left: int) -> None:
    rewrite(root, list(lines(root))[:left])
    with pytest.raises(ActsCorrupt, match=f"act {left + 1}: missing, though there were {COUNT}"):
        numbers(root)
    with pytest.raises(ActsCorrupt, match="does not end with"):
        ActLog.open(root).append("more", actor=ACTOR)


def test_an_act_written_twice_is_noticed(root: Path) -> None:
    kept = list(lines(root))
    rewrite(root, [*kept, kept[-1]])
    with pytest.raises(ActsCorrupt, match=f"act {COUNT + 1}"):
        numbers(root)


def test_a_log_put_back_with_its_head_is_found_by_who_noted_a_later_head(root: Path) -> None:
    old = {name: (root / name).read_bytes() for name in ("acts.jsonl", "acts.head")}
    ActLog.open(root).append("revoke", actor=ACTOR, subject="east")
    later = read_head(root, read_acts_key(root))
    for name, content in old.items():
        (root / name).write_bytes(content)
    assert numbers(root) == list(range(1, COUNT + 1))
    with pytest.raises(ActsCorrupt, match=f"act {COUNT + 1}: missing"):
        numbers(root, held=later)


def test_a_log_written_anew_is_found_by_who_noted_a_head(root: Path) -> None:
    noted = read_head(root, read_acts_key(root))
    coordinator = SigningKey.generate()
    (root / "coordinator.pub").write_text(coordinator.public_key.text)
    log = ActLog.create(root, coordinator=coordinator)
    for _ in range(COUNT):
        log.append("nothing to see", actor=ACTOR)
    assert len(numbers(root)) == COUNT
    with pytest.raises(ActsCorrupt, match=f"act {COUNT}: whoever noted down"):
        numbers(root, held=noted)


def test_acts_under_a_key_that_the_coordinator_does_not_vouch_for_are_refused(root: Path) -> None:
    stranger = SigningKey.generate()
    ActLog.create(root, coordinator=stranger)
    with pytest.raises(TrustError):
        numbers(root)
    with pytest.raises(TrustError):
        ActLog.open(root)


def test_the_key_of_another_log_is_refused(root: Path, tmp_path: Path) -> None:
    other = make_coordinator(tmp_path / "other")
    for name in ("acts.key", "acts.secret"):
        (root / name).write_bytes((other.root / name).read_bytes())
    with pytest.raises(TrustError, match="vouches for"):
        ActLog.open(root)


def test_a_missing_head_is_no_excuse(root: Path) -> None:
    (root / "acts.head").unlink()
    with pytest.raises(ActsCorrupt, match=r"acts\.head"):
        numbers(root)
    with pytest.raises(ActsCorrupt, match=r"acts\.head"):
        ActLog.open(root).append("more", actor=ACTOR)


def test_a_head_that_somebody_else_signed_is_refused(root: Path) -> None:
    write_signed(root / "acts.head", "acts-head", {"version": 1, "seq": 0, "digest": "x"}, SigningKey.generate())
    with pytest.raises(ActsCorrupt, match=r"acts\.head"):
        numbers(root)


def test_a_missing_log_is_not_begun_anew(root: Path) -> None:
    (root / "acts.jsonl").unlink()
    with pytest.raises(ActsCorrupt):
        numbers(root)
    with pytest.raises(ActsCorrupt):
        ActLog.open(root).append("more", actor=ACTOR)


def test_half_a_line_that_a_crash_left_is_dropped(root: Path) -> None:
    with (root / "acts.jsonl").open("ab") as stream:
        stream.write(b'{"act":"enrol","act')
    assert numbers(root)[-1] == COUNT
    ActLog.open(root).append("more", actor=ACTOR)
    assert numbers(root)[-1] == COUNT + 1


def test_a_line_whose_head_a_crash_left_unwritten_counts(root: Path) -> None:
    head = (root / "acts.head").read_bytes()
    log = ActLog.open(root)
    log.append("before the crash", actor=ACTOR)
    (root / "acts.head").write_bytes(head)
    assert numbers(root)[-1] == COUNT + 1
    log.append("after the crash", actor=ACTOR)
    assert [act.act for act, _ in verified_acts(root)][-2:] == ["before the crash", "after the crash"]


def test_writers_at_once_lose_no_act(root: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: ActLog.open(root).append("x", actor=ACTOR, subject=str(number)), range(30)))
    found = [act.subject for act, _ in verified_acts(root)][COUNT:]
    assert sorted(found, key=int) == [str(number) for number in range(30)]


WRITER = """
import sys
from pathlib import Path
from server.actlog import ActLog
from server.acts import Actor
log = ActLog.open(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    log.append("again", actor=Actor(name="w", role="none"))
    print("x", flush=True)
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_writer_that_is_killed_loses_nothing_that_it_said_was_written(root: Path, after: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(after + 1)]
    writer.send_signal(signal.SIGKILL)
    said += list(writer.stdout)
    writer.wait()
    writer.stdout.close()
    written = said.count("x\n")
    assert numbers(root)[-1] >= COUNT + written
    ActLog.open(root).append("after the crash", actor=ACTOR)
    assert COUNT + written + 1 <= numbers(root)[-1] <= COUNT + written + 2


FULL = """
import sys
from pathlib import Path
from server.actlog import ActLog
from server.acts import Actor
from common.errors import ConfigurationError
try:
    ActLog.open(Path(sys.argv[1])).append("too much", actor=Actor(name="w", role="none"), subject="x" * 190)
except ConfigurationError as error:
    print(error.fact)
"""


def test_a_disk_that_is_full_leaves_the_log_as_it_was(root: Path) -> None:
    size = (root / "acts.jsonl").stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))

    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(root)], capture_output=True, text=True, preexec_fn=limit, check=True
    )
    assert os.strerror(errno.EFBIG) in ended.stdout
    assert (root / "acts.jsonl").stat().st_size == size
    assert numbers(root)[-1] == COUNT


@given(st.text(max_size=500))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_strangers_text_neither_breaks_the_log_nor_the_terminal(root: Path, text: str) -> None:
    act = ActLog.open(root).append("refuse", actor=Actor(name=text, role="none"), subject=text, detail={"path": text})
    assert all(shown.isprintable() and len(shown) <= 200 for shown in (act.actor, act.subject, str(act.detail["path"])))
    assert [found for found, _ in verified_acts(root)][-1] == act


def test_an_act_that_is_too_large_is_not_written(root: Path) -> None:
    detail = {f"field-{number}": "x" * 200 for number in range(100)}
    with pytest.raises(ValueError, match=f"at most {MAXIMUM_LINE_BYTES}"):
        ActLog.open(root).append("x", actor=ACTOR, detail=detail)
    assert numbers(root)[-1] == COUNT


def test_a_line_without_end_is_not_read_whole(root: Path) -> None:
    with (root / "acts.jsonl").open("ab") as stream:
        stream.write(b"x" * (MAXIMUM_LINE_BYTES + 2))
    with pytest.raises(ActsCorrupt, match="longer than"):
        numbers(root)


@pytest.mark.parametrize("name", ["acts.key", "acts.secret", "acts.pub"])
def test_a_missing_key_is_refused(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(ConfigurationError):
        ActLog.open(root)
