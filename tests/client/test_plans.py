"""Offered plans are kept for people to read; what people decide, no offer changes."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from client.data.catalogue import Dataset, enter_dataset
from client.decisions import Approval, Decisions
from client.home import SiteHome
from client.plan_decision import approve_plan
from client.plan_review import Subject, decided_digest, find_subject, review
from client.plan_review_text import offers_text, review_text, short
from client.plans import MOST_OFFERS, find_digest, keep_offer, offer_rows, read_offers
from client.site_view import SiteView
from common import wire_pb2 as pb
from common.crypto.keys import SigningKey
from common.errors import (
    ConfigurationError,
    DataRefused,
    PolicyRefused,
    PrivacyBudgetExhausted,
    TrustError,
)
from common.exits import EXITS
from common.plan import TrainingPlan
from common.privacy.account import AttemptState
from common.signed import write_signed
from tests.flows.federation import POPULATION, RUN_ID, Federation, make_federation, make_plan

SITE = "north"
NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def unapproved(federation: Federation) -> SiteHome:
    home = federation.homes[SITE]
    (home.root / "approvals.json").unlink()
    return home


def offer(federation: Federation, **changes: Any) -> Any:
    with federation.open_agent(SITE) as agent:
        return federation.opened(SITE, agent.handle(federation.offer(**changes)))


def kept(home: SiteHome) -> list[str]:
    return [found.digest for found in read_offers(home.root, home.identity.public_key).offers]


def another(federation: Federation, plan: TrainingPlan) -> Subject:
    """A plan that nobody approved yet, with the manifest that follows from it."""
    made = federation.under(plan)
    (made.homes[SITE].root / "approvals.json").unlink()
    return Subject(plan=plan, manifest=made.manifest, offer=None, signed=True)


def accounts(home: SiteHome) -> Any:
    return SiteView.open(home.root).accounts()


# What the agent keeps.


def test_a_plan_that_nobody_approved_is_refused_and_kept(federation: Federation) -> None:
    home = unapproved(federation)
    assert offer(federation).name == "PlanNotApproved"
    (found,) = read_offers(home.root, home.identity.public_key).offers
    assert (found.plan, found.manifest) == (federation.plan, federation.manifest)
    assert (home.root / "plans" / f"{federation.plan.digest.removeprefix('sha256:')}.json").exists()


def test_once_approved_a_kept_plan_is_joined(federation: Federation) -> None:
    home = unapproved(federation)
    offer(federation)
    subject = find_subject(SiteView.open(home.root), short(federation.plan.digest))
    assert approve_plan(home, accounts(home), subject, population=None) == POPULATION
    assert isinstance(offer(federation), pb.Joined)


def test_the_same_offer_again_writes_nothing(federation: Federation) -> None:
    home = unapproved(federation)
    offer(federation)
    (path,) = (home.root / "plans").iterdir()
    before = path.stat()
    offer(federation)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_plan_that_is_offered_for_another_run_is_still_one_plan(federation: Federation) -> None:
    home = unapproved(federation)
    offer(federation)
    other = federation.under(federation.plan, run_id="demo-2")
    unapproved(other)
    offer(other)
    (found,) = read_offers(home.root, home.identity.public_key).offers
    assert found.manifest.run_id == "demo-2"


def test_what_a_stranger_offers_is_not_kept(federation: Federation) -> None:
    home = unapproved(federation)
    body = pb.Offer(plan=b"{}", manifest=b"{}")
    with federation.open_agent(SITE) as agent:
        agent.handle(federation.envelope(body, "any", key=SigningKey.generate()))
        agent.handle(federation.envelope(body, "any"))
    assert kept(home) == []


def test_an_offer_changes_no_decision(federation: Federation) -> None:
    changed = federation.under(make_plan(rounds=1))
    home = federation.homes[SITE]
    home.reject(changed.plan.digest, time="2026-03-02T12:00:00Z")
    before = (home.root / "approvals.json").read_bytes()
    assert offer(changed).name == "PlanNotApproved"
    assert isinstance(offer(federation, manifest=federation.manifest), pb.Joined)
    assert (home.root / "approvals.json").read_bytes() == before


def test_offers_are_bounded_and_those_that_were_approved_go_last(federation: Federation) -> None:
    home = federation.homes[SITE]
    plans = [make_plan(rounds=rounds) for rounds in range(1, MOST_OFFERS + 4)]
    home.approve(plans[0].digest, population=POPULATION)
    for plan in plans:
        assert keep_offer(home, plan, federation.manifest, received=NOW)
    gone = {plan.digest for plan in plans} - set(kept(home))
    assert len(gone) == 3
    assert gone.isdisjoint({*home.approvals(), plans[-1].digest})


def test_an_offer_that_is_too_large_to_keep_is_not_kept(federation: Federation) -> None:
    home = federation.homes[SITE]
    document = make_plan(features=60_000).to_json()
    document["normalisation"] = {"center": [0.1234567890123456] * 60_000, "scale": [1.234567890123456] * 60_000}
    large = TrainingPlan.model_validate(document)
    assert not keep_offer(home, large, federation.manifest, received=NOW)
    assert kept(home) == []


def test_an_edited_or_renamed_offer_is_counted_and_not_shown(federation: Federation) -> None:
    home = unapproved(federation)
    offer(federation)
    (path,) = (home.root / "plans").iterdir()
    (path.parent / ("0" * 64 + ".json")).write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b'"rounds":3', b'"rounds":9'))
    found = read_offers(home.root, home.identity.public_key)
    assert (found.offers, found.unreadable) == ((), 2)
    assert "2 files in plans/ are not offers that this site signed" in offers_text([], unreadable=2)


def test_an_edited_offer_is_put_right_by_the_next_one(federation: Federation) -> None:
    home = unapproved(federation)
    offer(federation)
    (path,) = (home.root / "plans").iterdir()
    path.write_bytes(b"{}")
    offer(federation)
    assert kept(home) == [federation.plan.digest]


# Finding one.


def test_a_digest_may_be_cut_to_eight_digits() -> None:
    known = ["sha256:" + "ab" * 32, "sha256:" + "ac" * 32]
    for text in ("abababab", "sha256:abababababab", "ABABABAB", "abababababab…", "sha256:" + "ab" * 32):
        assert find_digest(text, known) == known[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abababa", "at least 8 hex digits"),
        ("plan.json", "neither a file nor a plan's digest"),
        ("acacacac", "no offered plan's digest begins with acacacac"),
        ("a" * 65, "neither"),
    ],
)
def test_what_names_no_plan_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        find_digest(text, ["sha256:" + "ab" * 32])


def test_a_prefix_of_two_plans_names_neither() -> None:
    twins = ["sha256:" + "ab" * 16 + end * 32 for end in "01"]
    with pytest.raises(ConfigurationError, match="2 plans' digests begin with abababab"):
        find_digest("abababab", twins)


def test_a_plans_file_may_be_signed_or_bare_but_not_signed_by_another(federation: Federation, tmp_path: Path) -> None:
    site = SiteView.open(federation.homes[SITE].root)
    signed = find_subject(site, str(federation.root / "plan.json"))
    assert (signed.plan, signed.signed, signed.offer) == (federation.plan, True, None)
    assert [entry.name for entry in signed.manifest.roster] == federation.names
    (tmp_path / "bare.json").write_text(json.dumps(federation.plan.to_json()))
    assert not find_subject(site, str(tmp_path / "bare.json")).signed
    write_signed(tmp_path / "forged.json", "plan", federation.plan.to_json(), SigningKey.generate())
    with pytest.raises(TrustError, match="not the pinned coordinator's"):
        find_subject(site, str(tmp_path / "forged.json"))


# What a person is shown.


def test_the_review_says_cost_rules_roster_and_exits_without_a_passphrase(federation: Federation) -> None:
    home = unapproved(federation)
    offer(federation)
    site = SiteView.open(home.root)
    document = review(site, find_subject(site, short(federation.plan.digest)), now=NOW)
    assert (document["state"], document["offered"]["run_id"]) == ("waiting", "demo-1")
    assert (document["computes"]["attempts"], document["computes"]["parameters"]) == (5, federation.manifest.dimension)
    (population,) = document["populations"]
    assert (population["fits"], population["delta"], population["unit"]) == (True, 1e-5, "patient")
    trusted = population["views"]["epsilon"]
    assert (trusted["spent"], trusted["left"]) == (0.0, 3.0)
    assert trusted["cost"] == trusted["after"] <= 3.0 < population["views"]["epsilon_alone"]["cost"]
    assert [entry["name"] for entry in document["roster"]] == federation.names
    assert all(rule["allowed"] for rule in document["rules"])
    assert len(document["leaves"]) == len(EXITS)
    text = review_text(document)
    assert "waits for a decision" in text and "δ = 1e-05, per patient, add/remove-one" in text and "it fits" in text
    assert max(map(len, text.split("\n"))) <= 100


def test_the_review_counts_what_earlier_runs_spent_and_reserved(federation: Federation) -> None:
    home = federation.homes[SITE]
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        agents[SITE](federation.round_request(SITE, ciphertexts=ciphertexts))
    with federation.ledger(SITE) as ledger:
        charge = next(iter(ledger.account(POPULATION).charges.values()))
        assert charge.state is AttemptState.SETTLED
        ledger.reserve(POPULATION, run_id="other", round_number=1, attempt=1, event=charge.event)
    site = SiteView.open(home.root)
    document = review(site, find_subject(site, str(federation.root / "plan.json")), now=NOW)
    (population,) = document["populations"]
    view = population["views"]["epsilon"]
    assert population["answers"] == {"charged": 2, "reserved": 1}
    assert 0 < view["spent"] < view["cost"] < view["after"]
    assert not population["fits"] and "epsilon would reach" in population["refused"]
    assert view["left_after"] == 0.0
    assert "1 answers are reserved" in review_text(document) and "REFUSED" in review_text(document)


def test_the_review_measures_by_the_policy_of_the_day(federation: Federation) -> None:
    home = federation.homes[SITE]
    text = (home.root / "policy.toml").read_text()
    home.install_policy(text.replace("epsilon = 3.0", "epsilon = 2.0").encode())
    site = SiteView.open(home.root)
    document = review(site, find_subject(site, str(federation.root / "plan.json")), now=NOW)
    (population,) = document["populations"]
    assert population["views"]["epsilon"]["limit"] == 2.0
    assert not population["fits"] and "of 2.000" in population["refused"]


def test_rules_that_forbid_a_plan_are_named_beside_those_that_allow_it(federation: Federation) -> None:
    home = federation.homes[SITE]
    text = (home.root / "policy.toml").read_text().replace("minimum_cohort = 3", "minimum_cohort = 4")
    home.install_policy(b'hours = ["20:00-06:00"]\n' + text.encode())
    site = SiteView.open(home.root)
    document = review(site, find_subject(site, str(federation.root / "plan.json")), now=NOW)
    assert [rule["rule"] for rule in document["rules"] if not rule["allowed"]] == ["minimum_cohort"]
    said = review_text(document)
    assert "NO  minimum_cohort: the plan accepts a cohort of 3, the policy at least 4" in said
    assert "it is 12:00 here" in said


def test_a_policy_that_is_not_signed_is_not_shown_as_if_it_were(federation: Federation) -> None:
    path = federation.homes[SITE].root / "policy.toml"
    path.write_text(path.read_text() + "# a note\n")
    site = SiteView.open(path.parent)
    with pytest.raises(TrustError, match="not the one this site signed") as error:
        review(site, find_subject(site, str(federation.root / "plan.json")), now=NOW)
    assert "fedward site policy --install" in error.value.hint


def test_a_name_on_the_terminal_cannot_play_tricks() -> None:
    approved = {"sha256:" + "a" * 64: Approval(population="ward\n\x1b[2J")}
    rows = offer_rows((), Decisions(approved=approved, rejected={"sha256:" + "b" * 64: "t"}))
    text = offers_text(rows, unreadable=0)
    assert "approved for ward\\n\\x1b[2J: 1 more run" in text
    assert "rejected" in text


# What a person decides.


def test_a_plan_over_the_budget_is_not_approved_and_the_numbers_are_said(federation: Federation) -> None:
    subject = another(federation, make_plan(epsilon=9.0))
    home = federation.homes[SITE]
    with pytest.raises(PrivacyBudgetExhausted, match=r"epsilon would reach 9\.\d+ of 3\.000"):
        approve_plan(home, accounts(home), subject, population=None)
    assert home.approvals() == {}


@pytest.mark.parametrize(
    ("rule", "said"),
    [("minimum_cohort = 4", "a cohort of 3, the policy at least 4"), ('modes = ["local"]', "mode 'pooled' is not")],
)
def test_a_plan_that_the_policy_forbids_is_not_approved(federation: Federation, rule: str, said: str) -> None:
    home = unapproved(federation)
    lines = (home.root / "policy.toml").read_text().splitlines()
    name = rule.split(" = ")[0]
    home.install_policy("\n".join([rule, *(line for line in lines if not line.startswith(name))]).encode())
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    with pytest.raises(PolicyRefused, match=said):
        approve_plan(home, accounts(home), subject, population=None)


def test_a_plan_may_be_approved_at_noon_for_the_night(federation: Federation) -> None:
    home = unapproved(federation)
    home.install_policy(b'hours = ["00:00-00:01"]\n' + (home.root / "policy.toml").read_bytes())
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    assert approve_plan(home, accounts(home), subject, population=None) == POPULATION


def test_a_plan_for_other_records_is_not_approved(federation: Federation) -> None:
    subject = another(federation, make_plan(features=7))
    home = federation.homes[SITE]
    with pytest.raises(DataRefused, match=r"have the shape \[4\], the plan learns from \[7\]"):
        approve_plan(home, accounts(home), subject, population=None)


def registered(classes: tuple[str, ...], **fields: str) -> Dataset:
    return Dataset(
        population=POPULATION,
        records=1,
        quarantined=0,
        rejected=0,
        patients=1,
        classes=classes,
        inputs=(4,),
        schema_digest="sha256:x",
        added="2026-03-02T12:00:00Z",
        **fields,
    )


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (registered(("ill", "healthy")), "registered for the classes"),
        (
            registered(("healthy", "ill"), backbone="squeezenet1_1", weights="sha256:" + "a" * 64),
            "of backbone 'squeeze",
        ),
    ],
)
def test_records_that_mean_something_else_than_the_plan_are_refused_at_approval_and_at_the_join(
    federation: Federation, dataset: Dataset, said: str
) -> None:
    home = federation.homes[SITE]
    enter_dataset(home, "mine", dataset)
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    with pytest.raises(DataRefused, match=said):
        approve_plan(home, accounts(home), subject, population=None)
    assert offer(federation).name == "Unavailable"


def test_the_policys_fewest_patients_are_asked_for_at_approval(federation: Federation) -> None:
    home = unapproved(federation)
    text = (home.root / "policy.toml").read_text().replace("minimum_patients = 1", "minimum_patients = 500")
    home.install_policy(text.encode())
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    with pytest.raises(DataRefused, match="23 patients are fewer than minimum_patients = 500"):
        approve_plan(home, accounts(home), subject, population=None)


def with_second_population(federation: Federation) -> SiteHome:
    """`clinic`: a budget and the same kind of records, of no patient in common."""
    home = unapproved(federation)
    extra = b"\n[budget.clinic]\nepsilon = 3.0\nepsilon_alone = 9.0\ndelta = 1e-5\n"
    home.install_policy((home.root / "policy.toml").read_bytes() + extra)
    with federation.ledger(SITE) as ledger:
        terms = ledger.account(POPULATION).terms
        ledger.open_population("clinic", budget=terms.budget, admission=terms.admission)
    home.seal(home.root / "data" / "clinic.sealed", home.unseal(home.root / "data" / f"{POPULATION}.sealed"))
    return home


def test_of_two_populations_that_fit_a_person_has_to_choose(federation: Federation) -> None:
    home = with_second_population(federation)
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    with pytest.raises(ConfigurationError, match="fits 2 populations: clinic, ward") as error:
        approve_plan(home, accounts(home), subject, population=None)
    assert "--population" in error.value.hint
    assert home.approvals() == {}
    assert approve_plan(home, accounts(home), subject, population="clinic") == "clinic"
    assert home.approvals() == {federation.plan.digest: "clinic"}


def test_of_two_populations_the_one_that_can_pay_is_taken(federation: Federation) -> None:
    home = with_second_population(federation)
    text = (
        (home.root / "policy.toml")
        .read_text()
        .replace("[budget.clinic]\nepsilon = 3.0", "[budget.clinic]\nepsilon = 1.0")
    )
    home.install_policy(text.encode())
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    assert approve_plan(home, accounts(home), subject, population=None) == POPULATION


@pytest.mark.parametrize(("population", "said"), [("nowhere", "no budget for population 'nowhere'")])
def test_a_population_that_is_not_there_is_refused(federation: Federation, population: str, said: str) -> None:
    home = unapproved(federation)
    subject = find_subject(SiteView.open(home.root), str(federation.root / "plan.json"))
    with pytest.raises(PolicyRefused, match=said):
        approve_plan(home, accounts(home), subject, population=population)


def test_a_rejected_plan_is_refused_without_being_asked_again_even_where_the_policy_approves(
    federation: Federation,
) -> None:
    home = federation.homes[SITE]
    text = (home.root / "policy.toml").read_text().replace("auto_approve = false", "auto_approve = true")
    home.install_policy(text.encode())
    home.reject(federation.plan.digest, time="2026-03-02T12:00:00Z")
    assert offer(federation).name == "PlanNotApproved"
    assert home.decisions().state(federation.plan.digest, RUN_ID) == "rejected"
    assert federation.charged(SITE) == {}


def test_a_decision_can_be_taken_back_both_ways(federation: Federation) -> None:
    home, digest = federation.homes[SITE], federation.plan.digest
    home.reject(digest, time="2026-03-02T12:00:00Z")
    assert (dict(home.decisions().approved), list(home.decisions().rejected)) == ({}, [digest])
    home.approve(digest, population=POPULATION)
    assert (home.approvals(), dict(home.decisions().rejected)) == ({digest: POPULATION}, {})


def test_a_changed_plan_needs_a_new_decision(federation: Federation) -> None:
    changed = make_plan(rounds=2, spare_attempts=3)
    assert federation.homes[SITE].decisions().state(changed.digest, RUN_ID) == "waiting"


# What the policy approves by itself.


def automatic(federation: Federation, **limits: float) -> SiteHome:
    home = unapproved(federation)
    text = (home.root / "policy.toml").read_text().replace("auto_approve = false", "auto_approve = true")
    added = "".join(f"{name} = {limit!r}\n" for name, limit in limits.items())
    home.install_policy((added + text).encode())
    return home


@pytest.mark.parametrize("limits", [{}, {"auto_approve_up_to_epsilon": 3.1, "auto_approve_up_to_epsilon_alone": 9.0}])
def test_a_plan_within_the_limits_is_approved_without_anybody_reading_it(
    federation: Federation, limits: dict[str, float]
) -> None:
    automatic(federation, **limits)
    assert isinstance(offer(federation), pb.Joined)


@pytest.mark.parametrize(
    "limits",
    [{"auto_approve_up_to_epsilon": 2.9}, {"auto_approve_up_to_epsilon_alone": 3.5}],
    ids=["epsilon", "epsilon alone"],
)
def test_a_plan_beyond_the_limits_waits_for_a_person(federation: Federation, limits: dict[str, float]) -> None:
    home = automatic(federation, **limits)
    assert offer(federation).name == "PlanNotApproved"
    assert kept(home) == [federation.plan.digest]


def test_an_evaluation_counts_towards_what_is_approved_by_itself(tmp_path: Path) -> None:
    document = make_plan().to_json()
    document["evaluation"] = {"bins": 4, "epsilon": 2.0, "every": 3, "held_out": 0.3}
    federation = make_federation(tmp_path / "run", plan=TrainingPlan.model_validate(document))
    automatic(federation, auto_approve_up_to_epsilon=3.05)
    assert offer(federation).name == "PlanNotApproved"


def test_a_plan_that_was_decided_on_and_is_kept_no_more_can_still_be_rejected(federation: Federation) -> None:
    site = SiteView.open(federation.homes[SITE].root)
    assert site.offers().offers == ()
    assert decided_digest(site, short(federation.plan.digest)) == federation.plan.digest
