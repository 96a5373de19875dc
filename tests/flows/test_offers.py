"""What a site agrees to: only a plan that it approved, and only the manifest that follows from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import wire_pb2 as pb
from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, TrustError
from common.plan import Manifest
from common.privacy.budget import PrivacyBudget
from common.runplan import build_manifest
from simulations.sites import policy_text
from tests.flows.federation import POPULATION, RUN_ID, Federation, make_federation, make_plan

SITE = "west"


def answer(federation: Federation, offer: bytes) -> Any:
    with federation.open_agent(SITE) as agent:
        return federation.opened(SITE, agent.handle(offer))


def refused(federation: Federation, offer: bytes) -> str:
    """The name of the refusal; nothing may be charged and nothing joined."""
    body = answer(federation, offer)
    assert isinstance(body, pb.Refused)
    assert federation.charged(SITE) == {}
    assert not federation.homes[SITE].run_path(RUN_ID).exists()
    return str(body.name)


def test_a_site_joins_an_approved_plan_with_fresh_keys(federation: Federation) -> None:
    body = answer(federation, federation.offer())
    assert isinstance(body, pb.Joined)
    assert body.manifest_digest == federation.manifest.digest
    assert (len(body.x25519), len(body.mlkem)) == (32, 1184)


def test_joining_costs_nothing(federation: Federation) -> None:
    answer(federation, federation.offer())
    assert federation.charged(SITE) == {}


def test_the_same_offer_again_gets_the_same_keys(federation: Federation) -> None:
    first, second = (answer(federation, federation.offer()) for _ in range(2))
    assert (first.x25519, first.mlkem) == (second.x25519, second.mlkem)


def test_a_run_is_joined_under_one_manifest_only(federation: Federation) -> None:
    answer(federation, federation.offer())
    other = Manifest.model_validate({**federation.manifest.to_json(), "noise_multiplier": 50.0})
    assert answer(federation, federation.offer(manifest=other)).name == "TrustError"


@pytest.mark.parametrize(
    ("field", "factor"),
    [
        ("sensitivity", 0.5),
        ("clamp", 2),
        ("scale", 2),
        ("rounds", 2),
        ("spare_attempts", 5),
        ("minimum_cohort", 4 / 3),
        ("nominal_patients", 2),
        ("steps", 2),
        ("dimension", 2),
    ],
)
def test_a_manifest_that_does_not_follow_from_the_plan_is_refused(
    federation: Federation, field: str, factor: float
) -> None:
    document = federation.manifest.to_json()
    document[field] = type(document[field])(document[field] * factor)
    assert refused(federation, federation.offer(manifest=Manifest.model_validate(document))) == "PolicyRefused"


def test_a_manifest_of_another_plan_is_refused(federation: Federation) -> None:
    document = {**federation.manifest.to_json(), "plan_digest": make_plan(rounds=9).digest}
    assert refused(federation, federation.offer(manifest=Manifest.model_validate(document))) == "PolicyRefused"


def test_less_noise_than_the_plan_promises_is_refused(federation: Federation) -> None:
    manifest = build_manifest(
        federation.plan,
        run_id=RUN_ID,
        roster=federation.manifest.roster,
        coordinator_key=federation.manifest.coordinator_key,
        noise_multiplier=federation.manifest.noise_multiplier * 0.98,
    )
    assert refused(federation, federation.offer(manifest=manifest)) == "PrivacyBudgetExhausted"


def test_a_roster_with_another_key_than_the_pinned_one_is_refused(federation: Federation) -> None:
    document = federation.manifest.to_json()
    document["roster"][0]["identity_key"] = SigningKey.generate().public_key.text
    assert refused(federation, federation.offer(manifest=Manifest.model_validate(document))) == "TrustError"


def test_a_roster_with_a_site_that_is_not_pinned_is_refused(federation: Federation) -> None:
    document = federation.manifest.to_json()
    document["roster"][0]["name"] = "an-unknown"
    assert refused(federation, federation.offer(manifest=Manifest.model_validate(document))) == "TrustError"


def test_a_roster_without_the_site_itself_is_refused(federation: Federation) -> None:
    document = federation.manifest.to_json()
    document["roster"] = [entry for entry in document["roster"] if entry["name"] != SITE]
    assert refused(federation, federation.offer(manifest=Manifest.model_validate(document))) == "TrustError"


def test_another_coordinator_is_refused(federation: Federation) -> None:
    stranger = replace(federation, coordinator=SigningKey.generate())
    assert refused(federation, stranger.offer()) == "TrustError"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"version": 1}', b"\xff\xfe"])
def test_an_offer_of_no_plan_is_refused(federation: Federation, content: bytes) -> None:
    offer = federation.envelope(pb.Offer(plan=content, manifest=content), "any")
    assert refused(federation, offer) == "Unavailable"


def test_a_plan_that_nobody_approved_is_refused(federation: Federation) -> None:
    (federation.homes[SITE].root / "approvals.json").unlink()
    assert refused(federation, federation.offer()) == "PlanNotApproved"


def test_a_plan_that_changed_after_it_was_approved_is_refused(federation: Federation) -> None:
    approvals = federation.homes[SITE].root / "approvals.json"
    before = approvals.read_bytes()
    changed = federation.under(make_plan(rounds=2, spare_attempts=3))
    approvals.write_bytes(before)
    assert refused(federation, changed.offer()) == "PlanNotApproved"


def test_a_site_may_say_that_it_approves_every_plan_within_its_policy(federation: Federation) -> None:
    home = federation.homes[SITE]
    (home.root / "approvals.json").unlink()
    text = (home.root / "policy.toml").read_text().replace("auto_approve = false", "auto_approve = true")
    home.install_policy(text.encode())
    assert isinstance(answer(federation, federation.offer()), pb.Joined)


@pytest.mark.parametrize("edit", ["auto_approve = true", "auto_approve = false # reviewed", ""])
def test_a_policy_that_was_edited_without_signing_is_refused(federation: Federation, edit: str) -> None:
    path = federation.homes[SITE].root / "policy.toml"
    path.write_text(path.read_text().replace("auto_approve = false", edit))
    assert refused(federation, federation.offer()) == "TrustError"


def test_a_missing_policy_refuses_everything(federation: Federation) -> None:
    (federation.homes[SITE].root / "policy.toml").unlink()
    assert refused(federation, federation.offer()) == "TrustError"


@pytest.mark.parametrize(
    "rule", ["minimum_cohort = 4", "colluding_at_least = 2", "maximum_delta = 1e-6", 'modes = ["local"]']
)
def test_what_the_policy_does_not_allow_is_refused(federation: Federation, rule: str) -> None:
    home = federation.homes[SITE]
    name = rule.split(" = ")[0]
    lines = (home.root / "policy.toml").read_text().splitlines()
    home.install_policy("\n".join([rule, *(line for line in lines if not line.startswith(name))]).encode())
    assert refused(federation, federation.offer()) == "PolicyRefused"


def test_a_plan_over_the_budget_is_refused_before_the_data_is_touched(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "run", sites=4, epsilon_limits={SITE: 2.9})
    (federation.homes[SITE].root / "data" / f"{POPULATION}.sealed").write_bytes(b"would not open")
    assert refused(federation, federation.offer()) == "PrivacyBudgetExhausted"


def test_fewer_patients_than_the_policy_asks_for_keep_a_site_out_without_saying_why(federation: Federation) -> None:
    home = federation.homes[SITE]
    text = (home.root / "policy.toml").read_text().replace("minimum_patients = 1", "minimum_patients = 100")
    home.install_policy(text.encode())
    assert refused(federation, federation.offer()) == "Unavailable"


def test_a_budget_held_at_another_delta_is_refused(federation: Federation) -> None:
    home = federation.homes[SITE]
    budget = PrivacyBudget(epsilon=3.0, epsilon_alone=9.0, delta=1e-6)
    text = policy_text(POPULATION, budget, federation.manifest).replace(
        b"maximum_delta = 1e-06", b"maximum_delta = 1e-5"
    )
    home.install_policy(text)
    assert refused(federation, federation.offer()) == "PolicyRefused"


def test_a_policy_is_installed_whole_or_not_at_all(federation: Federation) -> None:
    home = federation.homes[SITE]
    before = (home.root / "policy.toml").read_bytes()
    with pytest.raises(ConfigurationError, match="did you mean 'minimum_cohort'"):
        home.install_policy(b"minimum_cohrt = 4\n" + before)
    assert (home.root / "policy.toml").read_bytes() == before
    assert home.policy().minimum_cohort == 3


def test_keys_that_the_site_does_not_know_as_its_own_are_refused(federation: Federation) -> None:
    with federation.agents() as agents:
        joined = [agents[name](federation.offer()) for name in federation.names if name != SITE]
        reply = federation.opened(SITE, agents[SITE](federation.envelope(pb.Keys(joined=joined), SITE)))
    assert isinstance(reply, pb.Refused)


def test_a_key_exchange_below_the_minimum_cohort_is_refused(federation: Federation) -> None:
    with federation.agents() as agents:
        joined = [agents[name](federation.offer()) for name in ("east", SITE)]
        reply = federation.opened(SITE, agents[SITE](federation.envelope(pb.Keys(joined=joined), SITE)))
    assert reply.name == "PolicyRefused"


def test_the_trust_file_must_name_the_sites_own_key(federation: Federation) -> None:
    wrong = federation.trust.model_copy(
        update={"sites": {**federation.trust.sites, SITE: SigningKey.generate().public_key.text}}
    )
    with pytest.raises(TrustError, match="another key for this site"):
        federation.homes[SITE].install_trust(wrong)
