import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import digest_bytes
from common.errors import ConfigurationError, TrustError
from server.actlog import ActLog
from server.acts import verified_acts
from server.home import ServerHome, read_public_key
from server.members import enrol
from server.tokens import Role, Token, Tokens, create_token, read_tokens, revoke_token
from tests.server.coordinators import ACTOR, NOW, Applicant, copy_coordinator, make_coordinator, make_token

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """Not to be changed: `home` is the copy for that."""
    home = make_coordinator(tmp_path_factory.mktemp("made") / "home")
    enrol(home, [Applicant("east").enrolment], actor=ACTOR, log=ActLog.open(home.root), now=NOW)
    return home


@pytest.fixture
def home(made: ServerHome, tmp_path: Path) -> ServerHome:
    return copy_coordinator(made, tmp_path / "home")


def stored(home: ServerHome) -> Tokens:
    return read_tokens(home.root, read_public_key(home.root))


def id_of(text: str) -> str:
    return text.split("_")[1]


def test_a_token_opens_what_its_role_may(home: ServerHome) -> None:
    text = make_token(home, Role.AUDITOR, "alice")
    found = stored(home).check(text, now=NOW)
    assert (found.role, found.name) == (Role.AUDITOR, "alice")


def test_the_secret_is_long_and_is_kept_nowhere(home: ServerHome) -> None:
    text = make_token(home, Role.AUDITOR, "alice")
    secret = text.split("_", 2)[2]
    assert len(secret) == 43
    for path in home.root.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_no_two_tokens_are_alike(home: ServerHome) -> None:
    texts = {make_token(home, Role.AUDITOR, f"auditor-{number}") for number in range(10)}
    assert len({id_of(text) for text in texts}) == len({text[21:] for text in texts}) == 10


def test_an_expired_token_opens_nothing(home: ServerHome) -> None:
    text = make_token(home, Role.AUDITOR, "alice", days=10)
    almost = NOW + timedelta(days=10, seconds=-1)
    assert stored(home).check(text, now=almost).name == "alice"
    with pytest.raises(TrustError, match="expired at"):
        stored(home).check(text, now=NOW + timedelta(days=10))


def test_a_revoked_token_opens_nothing(home: ServerHome) -> None:
    text = make_token(home, Role.AUDITOR, "alice")
    revoke_token(home, id_of(text), actor=ACTOR, log=ActLog.open(home.root), now=NOW)
    with pytest.raises(TrustError, match="was revoked at"):
        stored(home).check(text, now=NOW)


def test_who_does_not_know_the_secret_does_not_learn_that_a_token_ended(home: ServerHome) -> None:
    text = make_token(home, Role.AUDITOR, "alice")
    revoke_token(home, id_of(text), actor=ACTOR, log=ActLog.open(home.root), now=NOW)
    guess = text[:-10] + "A" * 10
    with pytest.raises(TrustError, match="no token of this coordinator"):
        stored(home).check(guess, now=NOW)


@given(place=st.integers(21, 62), sign=st.sampled_from("AZaz09-_"))
def test_a_token_with_another_sign_is_another(place: int, sign: str) -> None:
    text = "fwt_" + "0" * 16 + "_" + "A" * 43
    digest = digest_bytes("token-secret", b"\0" * 32)
    tokens = Tokens(by_id={"0" * 16: Token.model_validate(fields(digest=digest))})
    assert tokens.check(text, now=NOW).name == "alice"
    if text[place] != sign:
        with pytest.raises(TrustError):
            tokens.check(text[:place] + sign + text[place + 1 :], now=NOW)


@pytest.mark.parametrize(
    "presented",
    ["", "fwt_", "Bearer x", "fwt_0000000000000000_", "fwt_" + "0" * 16 + "_" + "A" * 44, "\0" * 64, "fwt_" + "é" * 60],
)
def test_what_is_no_token_is_refused(home: ServerHome, presented: str) -> None:
    with pytest.raises(TrustError, match="no token of this coordinator"):
        stored(home).check(presented, now=NOW)


def test_every_comparison_is_made_in_constant_time_and_for_unknown_ids_too(home: ServerHome) -> None:
    known = make_token(home, Role.AUDITOR, "alice")
    calls: list[tuple[bytes, bytes]] = []

    def equal(left: bytes, right: bytes) -> bool:
        calls.append((left, right))
        return hmac.compare_digest(left, right)

    stored(home).check(known, now=NOW, equal=equal)
    for guess in (known[:-10] + "A" * 10, "fwt_" + "f" * 16 + "_" + "A" * 43):
        with pytest.raises(TrustError):
            stored(home).check(guess, now=NOW, equal=equal)
    assert len(calls) == 3
    assert all(len(left) == len(right) == len(DIGEST) for left, right in calls)


def fields(**changes: object) -> dict[str, object]:
    return {
        "digest": DIGEST,
        "role": "auditor",
        "name": "alice",
        "site": "",
        "created": "2026-01-01T00:00:00Z",
        "expires": "2099-01-01T00:00:00Z",
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "root"},
        {"role": "site"},
        {"site": "east"},
        {"name": "Alice\n"},
        {"expires": "never"},
        {"expires": "2026-1-1T00:00:00Z"},
        {"digest": "sha256:0"},
        {"extra": 1},
    ],
)
def test_a_token_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Token.model_validate(fields(**changes))


@pytest.mark.parametrize("days", [0, -1, 367, 10**9])
def test_no_token_lasts_for_ever(home: ServerHome, days: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 366 days"):
        make_token(home, Role.AUDITOR, "alice", days=days)


@pytest.mark.parametrize(
    ("role", "name", "site", "match"),
    [
        (Role.AUDITOR, "../alice", "", "name"),
        (Role.AUDITOR, "alice", "east", "names its site"),
        (Role.SITE, "east-machine", "", "names its site"),
        (Role.SITE, "west-machine", "west", "no member"),
    ],
)
def test_a_token_that_fits_nobody_is_not_made(home: ServerHome, role: Role, name: str, site: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make_token(home, role, name, site=site)
    assert stored(home).by_id == {}


def test_a_name_is_one_tokens_while_that_is_in_force(home: ServerHome) -> None:
    first = make_token(home, Role.AUDITOR, "alice")
    with pytest.raises(ConfigurationError, match="in force"):
        make_token(home, Role.RESEARCHER, "alice")
    revoke_token(home, id_of(first), actor=ACTOR, log=ActLog.open(home.root), now=NOW)
    make_token(home, Role.RESEARCHER, "alice")


@pytest.mark.parametrize("token_id", ["", "0" * 16, "../../x"])
def test_what_is_not_in_force_cannot_be_revoked(home: ServerHome, token_id: str) -> None:
    with pytest.raises(ConfigurationError, match="no token"):
        revoke_token(home, token_id, actor=ACTOR, log=ActLog.open(home.root), now=NOW)


def test_making_and_ending_a_token_are_acts_that_tell_no_secret(home: ServerHome) -> None:
    text = make_token(home, Role.SITE, "east-machine", site="east")
    revoke_token(home, id_of(text), actor=ACTOR, log=ActLog.open(home.root), now=NOW)
    acts = [act for act, _ in verified_acts(home.root)][-2:]
    assert [(act.act, act.subject) for act in acts] == [("token create", id_of(text)), ("token revoke", id_of(text))]
    assert acts[0].detail["site"] == "east"


def test_commands_at_once_lose_no_token(home: ServerHome) -> None:
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda number: make_token(home, Role.AUDITOR, f"auditor-{number}"), range(12)))
    assert {stored(home).check(text, now=NOW).name for text in texts} == {f"auditor-{number}" for number in range(12)}


def test_a_token_written_in_by_hand_is_refused(home: ServerHome) -> None:
    signed = json.loads(home.tokens_path.read_bytes())
    signed["tokens"]["tokens"]["0" * 16] = fields(role="coordinator")
    home.tokens_path.write_text(json.dumps(signed))
    with pytest.raises(TrustError):
        stored(home)


def test_a_revocation_undone_by_an_old_file_of_another_coordinator_is_refused(home: ServerHome, tmp_path: Path) -> None:
    other = make_coordinator(tmp_path / "other")
    create_token(
        other, role=Role.COORDINATOR, name="eve", site="", days=1, actor=ACTOR, log=ActLog.open(other.root), now=NOW
    )
    home.tokens_path.write_bytes(other.tokens_path.read_bytes())
    with pytest.raises(TrustError):
        stored(home)
