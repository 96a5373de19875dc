from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from common.canonical import canonical_json
from common.enrolment import read_consortium
from common.errors import ActsCorrupt, ConfigurationError, FederationError, TrustError
from server.actlog import ActLog
from server.acts import verified_acts
from server.enrolling import match_enrolments, read_fingerprints
from server.home import ServerHome, read_public_key
from server.members import Members, consortium_of, current_consortium, enrol, read_members, revoke, write_members
from tests.server.coordinators import ACTOR, NOW, Applicant, copy_coordinator, make_coordinator, make_node_key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """Not to be changed: `home` is the copy for that."""
    return make_coordinator(tmp_path_factory.mktemp("made") / "home")


@pytest.fixture
def home(made: ServerHome, tmp_path: Path) -> ServerHome:
    return copy_coordinator(made, tmp_path / "home")


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    (tmp_path / "mail").mkdir()
    return tmp_path / "mail"


def take_in(home: ServerHome, *applicants: Applicant, again: bool = False) -> Members:
    enrolments = [applicant.enrolment for applicant in applicants]
    return enrol(home, enrolments, actor=ACTOR, log=ActLog.open(home.root), now=NOW, again=again)


def throw_out(home: ServerHome, name: str) -> Members:
    return revoke(home, name, actor=ACTOR, log=ActLog.open(home.root), now=NOW + timedelta(days=1))


def stored(home: ServerHome) -> Members:
    return read_members(home.root, read_public_key(home.root))


def acts_of(home: ServerHome) -> list[tuple[str, str]]:
    return [(act.act, act.subject) for act, _ in verified_acts(home.root)]


def test_an_enrolled_site_is_pinned_with_both_its_keys(home: ServerHome) -> None:
    east = Applicant("east")
    take_in(home, east)
    member = stored(home).active["east"]
    assert member.keys == (east.enrolment.identity_key, east.enrolment.node_key)
    assert stored(home).allowed_node_digests() == {east.enrolment.node_digest}


def test_the_consortium_names_exactly_the_members(home: ServerHome) -> None:
    east, west = Applicant("east"), Applicant("west")
    take_in(home, east, west)
    throw_out(home, "west")
    consortium = read_consortium(home.consortium_path)
    assert consortium.sites == {"east": east.enrolment.identity_key}
    assert (consortium.coordinator, consortium.gateway) == (home.key.public_key.text, home.settings.address)
    assert consortium.certificates == (home.pki / "ca.crt").read_text()


def test_a_revoked_site_is_let_in_no_more_and_stays_on_record(home: ServerHome) -> None:
    take_in(home, Applicant("east"))
    throw_out(home, "east")
    assert stored(home).allowed_node_digests() == frozenset()
    assert stored(home).by_name["east"].revoked is not None


def test_enrolling_the_same_site_twice_changes_nothing(home: ServerHome) -> None:
    east = Applicant("east")
    first = take_in(home, east)
    assert take_in(home, east) == first
    assert acts_of(home) == [("init", ""), ("enrol", "east")]


def test_every_change_is_an_act(home: ServerHome) -> None:
    take_in(home, Applicant("east"), Applicant("west"))
    throw_out(home, "east")
    assert acts_of(home) == [("init", ""), ("enrol", "east"), ("enrol", "west"), ("revoke", "east")]


@pytest.mark.parametrize("change", ["identity", "node", "patients"])
def test_a_member_does_not_change_its_keys_in_passing(home: ServerHome, change: str) -> None:
    east = Applicant("east")
    take_in(home, east)
    changed = Applicant(
        "east",
        key=None if change == "identity" else east.key,
        node_key="" if change == "node" else east.enrolment.node_key,
        patients=7 if change == "patients" else 100,
    )
    with pytest.raises(TrustError, match="east is enrolled since"):
        take_in(home, changed)
    assert stored(home).active["east"].identity_key == east.enrolment.identity_key


@pytest.mark.parametrize("shared", ["identity", "node"])
@pytest.mark.parametrize("gone", [False, True])
def test_no_two_sites_share_a_key_not_even_with_one_that_left(home: ServerHome, shared: str, gone: bool) -> None:
    east = Applicant("east")
    take_in(home, east)
    if gone:
        throw_out(home, "east")
    west = Applicant(
        "west",
        key=east.key if shared == "identity" else None,
        node_key=east.enrolment.node_key if shared == "node" else "",
    )
    with pytest.raises(TrustError, match="is or was that of 'east'"):
        take_in(home, west, again=True)


def test_two_sites_that_share_a_key_in_one_command_are_both_left_out(home: ServerHome) -> None:
    node_key = make_node_key()
    with pytest.raises(TrustError):
        take_in(home, Applicant("east", node_key=node_key), Applicant("west", node_key=node_key))
    assert stored(home).by_name == {}
    assert acts_of(home) == [("init", "")]


def test_a_revoked_site_comes_back_with_new_keys(home: ServerHome) -> None:
    take_in(home, Applicant("east"))
    throw_out(home, "east")
    new = Applicant("east")
    take_in(home, new)
    assert stored(home).active["east"].identity_key == new.enrolment.identity_key


@pytest.mark.parametrize("kept", ["both", "identity", "node"])
def test_a_revoked_key_comes_back_only_when_a_person_says_so(home: ServerHome, kept: str) -> None:
    east = Applicant("east")
    take_in(home, east)
    throw_out(home, "east")
    back = Applicant(
        "east",
        key=None if kept == "node" else east.key,
        node_key="" if kept == "identity" else east.enrolment.node_key,
    )
    with pytest.raises(TrustError, match="brings a key of it back"):
        take_in(home, back)
    assert "east" in take_in(home, back, again=True).active


def test_a_key_that_was_revoked_two_enrolments_ago_is_remembered(home: ServerHome) -> None:
    first, second = Applicant("east"), Applicant("east")
    for applicant in (first, second):
        take_in(home, applicant)
        throw_out(home, "east")
    with pytest.raises(TrustError, match="brings a key of it back"):
        take_in(home, first)
    with pytest.raises(TrustError, match="is or was that of 'east'"):
        take_in(home, Applicant("west", key=first.key))


@pytest.mark.parametrize("name", ["east", "../east", ""])
def test_who_is_no_member_cannot_be_revoked(home: ServerHome, name: str) -> None:
    take_in(home, Applicant("east"))
    throw_out(home, "east")
    with pytest.raises(ConfigurationError, match="is no member"):
        throw_out(home, name)


def test_two_commands_at_once_lose_no_member_and_no_act(home: ServerHome) -> None:
    applicants = [Applicant(f"site-{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda applicant: take_in(home, applicant), applicants))
    assert set(stored(home).active) == {applicant.enrolment.name for applicant in applicants}
    assert len(acts_of(home)) == 1 + len(applicants)
    assert set(read_consortium(home.consortium_path).sites) == set(stored(home).active)


def test_members_that_another_key_signed_are_refused(home: ServerHome) -> None:
    stranger = make_coordinator(home.root.parent / "stranger")
    take_in(stranger, Applicant("mallory"))
    home.members_path.write_bytes(stranger.members_path.read_bytes())
    with pytest.raises(TrustError):
        stored(home)


def test_changed_members_are_refused(home: ServerHome) -> None:
    take_in(home, Applicant("east"))
    throw_out(home, "east")
    content = home.members_path.read_bytes()
    revoked = stored(home).by_name["east"].revoked
    assert revoked is not None
    home.members_path.write_bytes(content.replace(f'"revoked":"{revoked}"'.encode(), b'"revoked":null'))
    with pytest.raises(TrustError):
        stored(home)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"members": {}}', canonical_json({"members": [], "signature": ""})])
def test_what_holds_no_members_is_refused(home: ServerHome, content: bytes) -> None:
    home.members_path.write_bytes(content)
    with pytest.raises(FederationError):
        stored(home)


def test_a_consortium_that_a_crash_left_behind_is_noticed_and_mended(home: ServerHome) -> None:
    before = home.consortium_path.read_bytes()
    take_in(home, Applicant("east"))
    assert current_consortium(home.consortium_path, stored(home), key=home.key.public_key)
    home.consortium_path.write_bytes(before)
    assert current_consortium(home.consortium_path, stored(home), key=home.key.public_key) is None
    write_members(home, stored(home))
    assert current_consortium(home.consortium_path, stored(home), key=home.key.public_key)


def test_nothing_is_enrolled_that_cannot_be_written_down(home: ServerHome) -> None:
    (home.root / "acts.head").unlink()
    with pytest.raises(ActsCorrupt):
        take_in(home, Applicant("east"))
    assert stored(home).by_name == {}


@pytest.mark.parametrize("content", ["", "no certificate", None])
def test_an_authority_that_is_none_is_not_told_to_sites(home: ServerHome, content: str | None) -> None:
    before = home.consortium_path.read_bytes()
    authority = home.pki / "ca.crt"
    authority.unlink() if content is None else authority.write_text(content)
    with pytest.raises(ConfigurationError):
        consortium_of(home, stored(home))
    assert home.consortium_path.read_bytes() == before


class TestFingerprints:
    def test_each_finds_its_enrolment_among_the_mail(self, mail: Path) -> None:
        east, west = Applicant("east"), Applicant("west")
        for applicant in (east, west, Applicant("north")):
            applicant.write(mail)
        wanted = [west.enrolment.fingerprint, east.enrolment.fingerprint.replace(" ", "").upper()]
        assert match_enrolments(read_fingerprints(wanted), mail) == [west.enrolment, east.enrolment]

    def test_groups_that_the_shell_took_apart_are_put_together(self) -> None:
        first, second = Applicant("east").enrolment.fingerprint, Applicant("west").enrolment.fingerprint
        assert read_fingerprints([*first.split(), *second.split()]) == [first, second]

    @pytest.mark.parametrize(
        "words", [["1a2b"], ["1a2b 3c4d"], ["x" * 32], ["0" * 31], ["0" * 33], [""], ["1a2b"] * 7, ["0" * 32, "1a2b"]]
    )
    def test_a_part_of_a_fingerprint_is_refused(self, words: list[str]) -> None:
        with pytest.raises(ConfigurationError, match="is no fingerprint"):
            read_fingerprints(words)

    def test_an_unknown_one_is_refused_without_showing_the_right_one(self, mail: Path) -> None:
        east = Applicant("east")
        east.write(mail)
        with pytest.raises(TrustError, match="no enrolment has the fingerprint") as refused:
            match_enrolments(read_fingerprints(["0" * 32]), mail)
        assert east.enrolment.fingerprint not in f"{refused.value.fact} {refused.value.hint}"

    def test_a_node_key_swapped_after_the_fingerprint_was_read_is_refused(self, mail: Path) -> None:
        """The attacker even has the site's identity key, and signs anew."""
        east = Applicant("east")
        Applicant("east", key=east.key).write(mail)
        with pytest.raises(TrustError, match="no enrolment has the fingerprint"):
            match_enrolments([east.enrolment.fingerprint], mail)

    def test_a_changed_file_is_counted_and_not_taken(self, mail: Path) -> None:
        east = Applicant("east")
        path = east.write(mail)
        path.write_bytes(path.read_bytes().replace(b'"nominal_patients":100', b'"nominal_patients":900'))
        with pytest.raises(TrustError, match=r"1 files were not sound: east\.json"):
            match_enrolments([east.enrolment.fingerprint], mail)

    def test_two_different_enrolments_of_one_fingerprint_are_refused(self, mail: Path) -> None:
        east = Applicant("east")
        east.write(mail)
        other = Applicant("east", key=east.key, node_key=east.enrolment.node_key, patients=900)
        other.write(mail, name="other")
        with pytest.raises(TrustError, match="2 different enrolments of east"):
            match_enrolments([east.enrolment.fingerprint], mail)

    def test_two_copies_of_one_enrolment_are_one(self, mail: Path) -> None:
        east = Applicant("east")
        east.write(mail)
        east.write(mail, name="copy")
        assert match_enrolments([east.enrolment.fingerprint], mail) == [east.enrolment]

    def test_one_given_twice_is_refused(self, mail: Path) -> None:
        east = Applicant("east")
        path = east.write(mail)
        with pytest.raises(ConfigurationError, match="given twice"):
            match_enrolments([east.enrolment.fingerprint] * 2, path)

    def test_an_empty_or_missing_place_is_refused(self, mail: Path) -> None:
        with pytest.raises(ConfigurationError, match="holds 0 files"):
            match_enrolments(["0" * 32], mail)
        with pytest.raises(ConfigurationError):
            match_enrolments(["0" * 32], mail / "none.json")
