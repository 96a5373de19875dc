import os
import stat
import tempfile
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.home import open_home
from client.node_files import read_courier_settings, read_node_settings
from client.node_key import make_node_key, public_text, read_node_key, write_node_key
from client.own_enrolment import own_enrolment, renew_node_key
from client.pinning import pin_consortium, read_trusted, tell_courier
from client.policy_file import install_policy
from client.policy_template import budget_lines, policy_template
from client.setup import NewSite, make_site
from common.crypto.keys import SigningKey
from common.enrolment import Consortium, node_key_text, read_enrolment, write_consortium
from common.errors import ConfigurationError, OutputExists, TrustError
from common.policy import SitePolicy

PASSPHRASE = b"a passphrase for tests only"


def site_at(place: Path, **changes: object) -> NewSite:
    settings: dict[str, object] = {"name": "north", "passphrase": PASSPHRASE, "courier": place / "courier", **changes}
    return make_site(place / "home", **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> NewSite:
    """Not to be changed."""
    return site_at(tmp_path_factory.mktemp("made"), gateway="fl.example.org:9092", nominal_patients=4000)


@pytest.fixture
def new(tmp_path: Path) -> NewSite:
    return site_at(tmp_path)


def modes(directory: Path) -> dict[str, str]:
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in directory.iterdir()}


# What init leaves behind.


def test_a_new_site_opens_with_its_passphrase_and_grants_no_budget(made: NewSite) -> None:
    home = open_home(made.home.root, passphrase=PASSPHRASE)
    assert home.name == "north"
    assert home.policy() == SitePolicy()
    assert home.decisions().approved == {}


def test_only_their_users_read_the_two_directories_and_only_public_files_are_public(made: NewSite) -> None:
    assert {modes(path.parent)[path.name] for path in (made.home.root, made.courier)} == {"700"}
    assert set(modes(made.home.root).values()) == {"600"}
    assert modes(made.courier) == {
        "node.key": "600",
        "courier.toml": "600",
        "node.pub": "644",
        "enrolment.json": "644",
    }


def test_the_couriers_directory_holds_nothing_of_the_site_but_its_enrolment(made: NewSite) -> None:
    secrets = [path.read_bytes() for path in made.home.root.iterdir()]
    assert not {path.read_bytes() for path in made.courier.iterdir()} & set(secrets)


def test_the_node_key_is_ecdsa_on_p384_and_the_one_that_the_enrolment_names(made: NewSite) -> None:
    private = serialization.load_ssh_private_key((made.courier / "node.key").read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP384R1)
    public = (made.courier / "node.pub").read_bytes()
    own = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert node_key_text(public) == own.decode() == made.enrolment.node_key


def test_the_enrolment_is_signed_by_the_site_and_says_what_people_decided(made: NewSite) -> None:
    read = read_enrolment(made.enrolment_path)
    assert read == made.enrolment
    assert (read.name, read.nominal_patients) == ("north", 4000)
    assert read.identity_key == made.home.identity.public_key.text


def test_courier_and_agent_agree_on_the_socket(made: NewSite) -> None:
    node, courier = read_node_settings(made.home.root), read_courier_settings(made.courier)
    assert Path(courier.agent) == made.home.root / node.socket == made.home.root / "run" / "agent.sock"
    assert (courier.gateway, node.courier) == ("fl.example.org:9092", str(made.courier))


def test_odd_signs_in_paths_and_groups_survive_the_toml(tmp_path: Path) -> None:
    place = tmp_path / 'a "b" \\ é'
    made = site_at(place, socket=str(tmp_path / "s'ock"), socket_group='g"roup\\')
    assert read_node_settings(made.home.root).socket_group == 'g"roup\\'
    assert read_courier_settings(made.courier).agent == str(tmp_path / "s'ock")
    assert read_node_settings(made.home.root).courier == str(place / "courier")


def test_two_sites_share_no_key(made: NewSite, new: NewSite) -> None:
    assert made.enrolment.identity_key != new.enrolment.identity_key
    assert made.enrolment.node_key != new.enrolment.node_key


def test_every_key_of_a_policy_is_explained_in_the_first_one(made: NewSite) -> None:
    text = policy_template().decode()
    assert (made.home.root / "policy.toml").read_bytes() == policy_template()
    absent = {name for name in SitePolicy.model_fields if f"{name} = " not in text and f"[{name}." not in text}
    assert absent == set()
    given = tomllib.loads(text)
    assert SitePolicy.model_validate(given) == SitePolicy()


def test_the_lines_that_grant_a_budget_make_a_policy(new: NewSite) -> None:
    (new.home.root / "mine.toml").write_bytes(policy_template() + budget_lines("ward").encode())
    assert list(install_policy(new.home, new.home.root / "mine.toml").budget) == ["ward"]


# Nothing half-done stays.


def refused(place: Path, error: type[Exception], said: str, **changes: object) -> None:
    before = sorted(place.rglob("*"))
    with pytest.raises(error, match=said):
        site_at(place, **changes)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "North"}, r"name: .*should match pattern.*\(got 'North'\)"),
        ({"name": "coordinator"}, "reserved"),
        ({"name": "../x"}, "should match pattern"),
        ({"passphrase": b"short"}, "has 5 bytes, the least is 16"),
        ({"gateway": "no port"}, "is not HOST:PORT"),
        ({"nominal_patients": 0}, "greater than or equal to 1"),
        ({"socket": "/" + "x" * 120}, r"has 121 bytes, Unix allows 107"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_nothing_is_made(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    refused(tmp_path, ConfigurationError, said, **changes)


def test_a_long_home_is_told_how_to_shorten_the_socket(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Unix allows 107") as error:
        site_at(tmp_path / ("x" * 100))
    assert "--socket" in error.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("courier", ["home", "home/courier", "."])
def test_the_two_users_directories_lie_apart(tmp_path: Path, courier: str) -> None:
    refused(tmp_path, ConfigurationError, "one directory lies in the other", courier=tmp_path / courier)


def test_a_site_is_not_made_twice(new: NewSite) -> None:
    refused(new.home.root.parent, OutputExists, "a site already", courier=new.home.root.parent / "another")


def test_another_sites_node_key_is_not_overwritten(new: NewSite, tmp_path: Path) -> None:
    before = (new.courier / "node.key").read_bytes()
    with pytest.raises(OutputExists, match=r"node\.key.*there already"):
        make_site(tmp_path / "second", name="south", passphrase=PASSPHRASE, courier=new.courier)
    assert (new.courier / "node.key").read_bytes() == before
    assert not (tmp_path / "second").exists()


def test_what_an_init_that_was_killed_left_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "identity.pem").write_bytes(b"half a key")
    refused(tmp_path, OutputExists, r"identity\.pem: there already, without a site")


def test_a_courier_that_cannot_be_written_leaves_no_site_either(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path, ConfigurationError, "cannot be written", courier=tmp_path / "file" / "courier")


def test_directories_that_wait_for_their_users_are_filled_and_keep_what_they_hold(tmp_path: Path) -> None:
    for name in ("home", "courier"):
        (tmp_path / name).mkdir(mode=0o750)
        (tmp_path / name / ".profile").write_text("x")
    made = site_at(tmp_path)
    assert (made.home.root / ".profile").exists() and (made.home.root / "site.json").exists()
    assert not list(tmp_path.rglob(".init-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_run_by_root_the_files_belong_to_the_users_of_the_directories(tmp_path: Path) -> None:
    for name, user in (("home", 4001), ("courier", 4002)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, user, user)
    made = site_at(tmp_path)
    assert {path.stat().st_uid for path in made.home.root.iterdir()} == {4001}
    assert {path.stat().st_uid for path in made.courier.iterdir()} == {4002}


# Whom a site believes.


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """The other side of an enrolment."""

    key: SigningKey
    certificate: str

    def consortium(self, **sites: str) -> Consortium:
        return Consortium(
            coordinator=self.key.public_key.text,
            gateway="gateway.example.org:443",
            certificates=self.certificate,
            sites=sites,
        )

    def write(self, path: Path, **sites: str) -> Consortium:
        made = self.consortium(**sites)
        write_consortium(path, made, self.key)
        return made


def authority() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for tests")])
    begin = datetime.now(UTC) - timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    dated = builder.serial_number(1).not_valid_before(begin).not_valid_after(begin + timedelta(days=30))
    return dated.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return Coordinator(key=SigningKey.generate(), certificate=authority())


def others(*names: str) -> dict[str, str]:
    return {name: SigningKey.generate().public_key.text for name in names}


def test_a_consortium_is_pinned_and_the_courier_told_where_the_gateway_is(
    new: NewSite, coordinator: Coordinator, tmp_path: Path
) -> None:
    sites = {**others("east", "west"), "north": new.enrolment.identity_key}
    wanted = coordinator.write(tmp_path / "c.json", **sites)
    read = read_trusted(tmp_path / "c.json", fingerprint=wanted.fingerprint.upper().replace(" ", "-"))
    change = pin_consortium(new.home, read)
    told = tell_courier(new.courier, read)
    assert (change.coordinator, change.added) == ("new", ("east", "north", "west"))
    assert new.home.trust() == wanted.trust
    settings = read_courier_settings(new.courier)
    assert settings.gateway == "gateway.example.org:443"
    assert (new.courier / settings.certificates).read_text() == coordinator.certificate
    assert set(told.written) == {new.courier / "ca.crt", new.courier / "courier.toml"}


def test_what_people_wrote_into_courier_toml_stays(new: NewSite, coordinator: Coordinator) -> None:
    path = new.courier / "courier.toml"
    path.write_text(path.read_text().replace("poll_s = 0.2", "poll_s = 1.5 # slow line") + "# a note\n")
    tell_courier(new.courier, coordinator.consortium())
    assert "poll_s = 1.5 # slow line" in path.read_text() and path.read_text().endswith("# a note\n")
    assert path.read_text().count("gateway =") == 1


def test_a_courier_that_this_user_cannot_write_is_said_and_does_not_undo_the_trust(
    new: NewSite, coordinator: Coordinator
) -> None:
    told = tell_courier(new.courier.parent / "elsewhere", coordinator.consortium())
    assert told.written == () and "no such file" in told.failed


@pytest.mark.parametrize("given", ["", "0000 0000 0000 0000 0000 0000 0000 0000"])
def test_another_fingerprint_is_refused_and_the_right_one_is_not_told(
    coordinator: Coordinator, tmp_path: Path, given: str
) -> None:
    wanted = coordinator.write(tmp_path / "c.json")
    with pytest.raises(TrustError, match="does not have the fingerprint that you gave") as error:
        read_trusted(tmp_path / "c.json", fingerprint=given)
    assert wanted.fingerprint not in error.value.fact + error.value.hint


def test_a_changed_consortium_is_refused_whatever_its_fingerprint(coordinator: Coordinator, tmp_path: Path) -> None:
    wanted = coordinator.write(tmp_path / "c.json")
    path = tmp_path / "c.json"
    path.write_bytes(path.read_bytes().replace(b"gateway.example.org", b"gateway.evil-e.org"))
    with pytest.raises(TrustError):
        read_trusted(path, fingerprint=wanted.fingerprint)


def test_a_site_that_is_not_enrolled_pins_nothing(new: NewSite, coordinator: Coordinator) -> None:
    with pytest.raises(TrustError, match="names 2 sites, this one is not among them"):
        pin_consortium(new.home, coordinator.consortium(**others("east", "west")))
    assert not (new.home.root / "trust.json").exists()


def test_a_site_under_another_key_pins_nothing(new: NewSite, coordinator: Coordinator) -> None:
    with pytest.raises(TrustError, match="another key for this site"):
        pin_consortium(new.home, coordinator.consortium(**others("north", "west")))


def test_a_site_that_is_new_and_one_that_is_gone_need_nobodys_leave(new: NewSite, coordinator: Coordinator) -> None:
    mine, known = {"north": new.enrolment.identity_key}, others("east", "west")
    pin_consortium(new.home, coordinator.consortium(**mine, **known))
    kept = {"east": known["east"]}
    change = pin_consortium(new.home, coordinator.consortium(**mine, **kept, **others("zurich")))
    assert (change.coordinator, change.added, change.removed) == ("same", ("zurich",), ("west",))
    assert (change.kept, change.changed) == (("east", "north"), ())


def test_a_changed_key_is_pinned_only_if_that_is_said(new: NewSite, coordinator: Coordinator) -> None:
    mine = {"north": new.enrolment.identity_key}
    pin_consortium(new.home, coordinator.consortium(**mine, **others("east")))
    before = new.home.trust()
    changed = coordinator.consortium(**mine, **others("east"))
    with pytest.raises(TrustError, match="another key than the pinned one for east"):
        pin_consortium(new.home, changed)
    assert new.home.trust() == before
    assert pin_consortium(new.home, changed, replace=True).changed == ("east",)
    assert new.home.trust() == changed.trust


def test_another_coordinator_is_pinned_only_if_that_is_said(new: NewSite, coordinator: Coordinator) -> None:
    mine = {"north": new.enrolment.identity_key}
    pin_consortium(new.home, coordinator.consortium(**mine))
    stranger = Coordinator(key=SigningKey.generate(), certificate=coordinator.certificate)
    with pytest.raises(TrustError, match="another key than the pinned one for the coordinator") as error:
        pin_consortium(new.home, stranger.consortium(**mine))
    assert "--replace" in error.value.hint


# The enrolment once more.


def test_the_fingerprint_is_read_again_without_a_passphrase(made: NewSite) -> None:
    key = made.home.identity.public_key
    assert own_enrolment(made.courier, name="north", key=key).fingerprint == made.enrolment.fingerprint


def test_the_enrolment_of_another_site_is_not_read_out_as_ones_own(made: NewSite, new: NewSite) -> None:
    with pytest.raises(TrustError, match="enrolment of north under another key"):
        own_enrolment(made.courier, name="north", key=new.home.identity.public_key)


def test_an_enrolment_that_names_another_node_key_than_the_couriers_is_not_read_out(new: NewSite) -> None:
    write_node_key(new.courier / "node.key", make_node_key(), name="north")
    with pytest.raises(TrustError, match=r"names another node key than node\.pub") as error:
        own_enrolment(new.courier, name="north", key=new.home.identity.public_key)
    assert "site node-key --replace" in error.value.hint


def test_a_directory_without_an_enrolment_is_named(new: NewSite, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no enrolment can be read") as error:
        own_enrolment(tmp_path, name="north", key=new.home.identity.public_key)
    assert "--courier DIR" in error.value.hint


def test_a_lost_node_key_is_made_again_alone_and_the_site_stays_who_it_is(new: NewSite) -> None:
    kept = {path: path.read_bytes() for path in [*new.home.root.iterdir(), new.courier / "courier.toml"]}
    (new.courier / "node.key").unlink()
    renewed = renew_node_key(new.home, new.courier)
    assert renewed.identity_key == new.enrolment.identity_key
    assert renewed.node_key == public_text(read_node_key(new.courier / "node.key")) != new.enrolment.node_key
    assert renewed.nominal_patients == new.enrolment.nominal_patients
    assert read_enrolment(new.enrolment_path) == renewed
    assert own_enrolment(new.courier, name="north", key=new.home.identity.public_key) == renewed
    assert modes(new.courier)["node.key"] == "600"
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_node_key_that_is_there_is_lost_only_if_that_is_said(new: NewSite) -> None:
    before = (new.courier / "node.key").read_bytes()
    with pytest.raises(OutputExists, match="there is a node key already"):
        renew_node_key(new.home, new.courier)
    assert (new.courier / "node.key").read_bytes() == before
    assert renew_node_key(new.home, new.courier, replace=True).node_key != new.enrolment.node_key


def test_without_an_enrolment_the_nominal_patients_have_to_be_said(new: NewSite) -> None:
    new.enrolment_path.unlink()
    with pytest.raises(ConfigurationError, match="how many nominal patients"):
        renew_node_key(new.home, new.courier, replace=True)
    assert renew_node_key(new.home, new.courier, replace=True, nominal_patients=70).nominal_patients == 70


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_run_by_root_a_new_node_key_belongs_to_the_couriers_user() -> None:
    with tempfile.TemporaryDirectory() as place:  # below tmp_path another user could not enter
        os.chmod(place, 0o755)
        new = site_at(Path(place))
        for path in (new.courier, *new.courier.iterdir()):
            os.chown(path, 4002, 4002)
        renew_node_key(new.home, new.courier, replace=True)
        assert {path.stat().st_uid for path in new.courier.iterdir()} == {4002}
