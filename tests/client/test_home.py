import stat
import threading
from pathlib import Path

import pytest

from client.home import SiteHome, create_home, open_home, read_signed_file
from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, OutputExists, TrustError
from common.trust import TrustFile

PASSPHRASE = b"a passphrase for tests only"
POLICY = b"[budget.ward]\nepsilon = 3.0\nepsilon_alone = 6.0\ndelta = 1e-5\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """Not to be changed."""
    return create_home(tmp_path_factory.mktemp("made") / "north", name="north", passphrase=PASSPHRASE)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return create_home(tmp_path / "north", name="north", passphrase=PASSPHRASE)


def test_a_site_opens_with_the_keys_it_was_made_with(made: SiteHome) -> None:
    opened = open_home(made.root, passphrase=PASSPHRASE)
    assert (opened.name, opened.identity.public_key) == ("north", made.identity.public_key)
    assert opened.secret("pseudonyms") == made.secret("pseudonyms")


def test_a_site_is_not_made_over_another(made: SiteHome) -> None:
    with pytest.raises(OutputExists, match="a site already"):
        create_home(made.root, name="north", passphrase=PASSPHRASE)


def test_a_wrong_passphrase_opens_nothing(made: SiteHome) -> None:
    with pytest.raises(TrustError, match="passphrase"):
        open_home(made.root, passphrase=b"another passphrase for tests")


def test_an_empty_directory_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no site lives here"):
        open_home(tmp_path, passphrase=PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"name": "north", "public_key": "x"}'])
def test_a_directory_that_names_no_key_is_no_site(home: SiteHome, content: bytes) -> None:
    (home.root / "site.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="no site lives here"):
        open_home(home.root, passphrase=PASSPHRASE)


def test_a_key_that_was_exchanged_is_found(home: SiteHome) -> None:
    (home.root / "identity.pem").write_bytes(SigningKey.generate().to_pem(PASSPHRASE))
    with pytest.raises(TrustError, match=r"identity\.pem is not the key that site\.json names"):
        open_home(home.root, passphrase=PASSPHRASE)


def test_only_the_owner_reads_the_directory_and_its_secrets(made: SiteHome) -> None:
    assert stat.S_IMODE(made.root.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.root.iterdir() if path.is_file()}
    assert modes == dict.fromkeys(("identity.pem", "storage.key", "secrets.sealed", "site.json"), 0o600)


def test_two_sites_share_no_secret(made: SiteHome, home: SiteHome) -> None:
    assert len({site.secret(kind) for site in (made, home) for kind in ("pseudonyms", "tags")}) == 4


def test_a_sealed_file_opens_in_its_place_only(home: SiteHome) -> None:
    home.seal(home.root / "data" / "ward.sealed", b"features")
    assert home.unseal(home.root / "data" / "ward.sealed") == b"features"
    (home.root / "data" / "ward.sealed").rename(home.root / "data" / "other.sealed")
    with pytest.raises(TrustError):
        home.unseal(home.root / "data" / "other.sealed")


def test_sealed_bytes_open_for_their_purpose_only(made: SiteHome) -> None:
    sealed = made.seal_for("escrow", b"codes")
    assert made.unseal_for("escrow", sealed) == b"codes"
    with pytest.raises(TrustError):
        made.unseal_for("tags", sealed)


def test_what_is_sealed_is_not_to_be_read_on_the_disk(home: SiteHome) -> None:
    home.seal(home.root / "data" / "ward.sealed", b"Octavia Whitcombe" * 50)
    assert b"Octavia" not in (home.root / "data" / "ward.sealed").read_bytes()


def test_a_site_has_no_policy_until_it_signed_one(made: SiteHome) -> None:
    with pytest.raises(TrustError, match="cannot be read"):
        made.policy()


def test_an_installed_policy_is_read_back(home: SiteHome) -> None:
    assert home.install_policy(POLICY) == home.policy()
    assert (home.root / "policy.toml").read_bytes() == POLICY


def test_a_policy_that_does_not_fit_leaves_the_one_before_in_place(home: SiteHome) -> None:
    home.install_policy(POLICY)
    with pytest.raises(ConfigurationError, match="did you mean 'minimum_cohort'"):
        home.install_policy(b"minimum_cohrt = 4\n" + POLICY)
    assert home.policy().minimum_cohort == 3
    assert not list(home.root.glob(".policy*"))


def test_an_edited_policy_is_not_the_one_that_was_signed(home: SiteHome) -> None:
    home.install_policy(POLICY)
    (home.root / "policy.toml").write_bytes(POLICY.replace(b"3.0", b"5.0"))
    with pytest.raises(TrustError, match="not the one this site signed") as refused:
        home.policy()
    assert "fedward site policy --install" in refused.value.hint


def test_another_sites_signature_does_not_count(home: SiteHome, tmp_path: Path) -> None:
    other = create_home(tmp_path / "south", name="south", passphrase=PASSPHRASE)
    for site in (home, other):
        site.install_policy(POLICY)
    (home.root / "policy.sig").write_bytes((other.root / "policy.sig").read_bytes())
    with pytest.raises(TrustError):
        home.policy()


def test_pinned_keys_are_read_back(home: SiteHome) -> None:
    trust = TrustFile(coordinator=SigningKey.generate().public_key.text, sites={"north": home.identity.public_key.text})
    home.install_trust(trust)
    assert home.trust() == trust


def test_nothing_is_approved_at_first(made: SiteHome) -> None:
    assert made.approvals() == {}


def test_approvals_add_up(home: SiteHome) -> None:
    home.approve("sha256:aa", population="ward")
    home.approve("sha256:bb", population="clinic")
    assert home.approvals() == {"sha256:aa": "ward", "sha256:bb": "clinic"}


def test_an_edited_list_of_approvals_is_found(home: SiteHome) -> None:
    home.approve("sha256:aa", population="ward")
    path = home.root / "approvals.json"
    path.write_bytes(path.read_bytes().replace(b"sha256:aa", b"sha256:bb"))
    with pytest.raises(TrustError):
        home.approvals()


def test_a_policy_is_signed_at_every_moment_of_its_replacement(home: SiteHome) -> None:
    """Somebody who reads between two writes finds the old policy or the new one, never a forgery."""
    old, new = POLICY, POLICY + b"# a note\n"
    home.install_policy(old)
    first = (home.root / "policy.sig").read_bytes()
    seen: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(read_signed_file(home.root / "policy.toml", "policy", key=home.identity.public_key, site="n"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            home.install_policy(new)
            home.install_policy(old)
    finally:
        stop.set()
        reader.join()
    assert set(seen) <= {old, new}
    assert seen
    assert (home.root / "policy.sig").read_bytes() == first
