import stat
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, TrustError
from common.trust import TrustFile, read_trust, write_trust

KEYS = [SigningKey.generate().public_key for _ in range(3)]


@pytest.fixture
def trust() -> TrustFile:
    return TrustFile(coordinator=KEYS[0].text, sites={"east": KEYS[1].text, "west": KEYS[2].text})


def test_a_trust_file_survives_the_disk(trust: TrustFile, tmp_path: Path) -> None:
    write_trust(tmp_path / "trust.json", trust)
    assert read_trust(tmp_path / "trust.json") == trust


def test_anyone_may_read_it_since_it_holds_public_keys_only(trust: TrustFile, tmp_path: Path) -> None:
    write_trust(tmp_path / "trust.json", trust)
    assert stat.S_IMODE((tmp_path / "trust.json").stat().st_mode) == 0o644


def test_each_name_has_its_key(trust: TrustFile) -> None:
    assert (trust.coordinator_key, trust.site_key("east"), trust.site_key("west")) == tuple(KEYS)


def test_a_stranger_has_none(trust: TrustFile) -> None:
    with pytest.raises(TrustError, match="'north' is not among the 2 pinned sites"):
        trust.site_key("north")


def test_a_strangers_long_name_is_cut_in_the_message(trust: TrustFile) -> None:
    with pytest.raises(TrustError) as refused:
        trust.site_key("x" * 10_000)
    assert len(refused.value.fact) < 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"version": 2, "coordinator": "", "sites": {}}',
        b'{"version": 1, "coordinator": "ed25519:AAAA", "sites": {}}',
        b'{"version": 1, "coordinator": "rsa:AAAA", "sites": {"east": "x"}}',
    ],
)
def test_what_pins_no_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trust.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"trust\.json"):
        read_trust(tmp_path / "trust.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_trust(tmp_path / "trust.json")
