from typing import Any

import pytest

from client.guard import Permit, attempt_event, check_offer, grid_of, permit_attempt
from common.errors import PlanNotApproved, PolicyRefused, PrivacyBudgetExhausted, TrustError
from common.plan import Manifest
from common.privacy.budget import View
from common.privacy.ledger import BudgetLedger
from common.runplan import build_manifest
from tests.flows.federation import POPULATION, RUN_ID, Federation, make_plan, spend_everything

SITE = "north"


def check(federation: Federation, manifest: Manifest | None = None) -> str:
    with federation.ledger(SITE) as ledger:
        return check_offer(federation.homes[SITE], ledger, federation.plan, manifest or federation.manifest)


def permit(federation: Federation, ledger: BudgetLedger, **changes: Any) -> Permit:
    asked = {"cohort": federation.names, "round_number": 1, "attempt": 1, **changes}
    return permit_attempt(
        ledger, site=SITE, plan=federation.plan, manifest=federation.manifest, population=POPULATION, **asked
    )


def test_an_approved_plan_may_spend_the_population_it_was_approved_for(federation: Federation) -> None:
    assert check(federation) == POPULATION


def test_checking_an_offer_charges_nothing(federation: Federation) -> None:
    check(federation)
    assert federation.charged(SITE) == {}


def test_an_unapproved_plan_is_refused_by_its_digest(federation: Federation) -> None:
    (federation.homes[SITE].root / "approvals.json").unlink()
    with pytest.raises(PlanNotApproved, match=federation.plan.digest[:19]):
        check(federation)


def test_a_plan_that_was_approved_for_data_that_is_not_there_is_refused(federation: Federation) -> None:
    home = federation.homes[SITE]
    home.approve(federation.plan.digest, population="clinic")
    with pytest.raises(PolicyRefused, match="no budget for population 'clinic'"):
        check(federation)


def test_a_population_with_a_budget_and_no_data_is_refused(federation: Federation) -> None:
    home = federation.homes[SITE]
    extra = b"[budget.clinic]\nepsilon = 9.0\nepsilon_alone = 9.0\ndelta = 1e-5\n"
    home.install_policy((home.root / "policy.toml").read_bytes() + extra)
    home.approve(federation.plan.digest, population="clinic")
    with pytest.raises(PolicyRefused, match="no data is registered for population 'clinic'"):
        check(federation)


def test_less_noise_is_refused_with_the_epsilon_it_gives_and_the_one_promised(federation: Federation) -> None:
    manifest = build_manifest(
        federation.plan,
        run_id=RUN_ID,
        roster=federation.manifest.roster,
        coordinator_key=federation.manifest.coordinator_key,
        noise_multiplier=federation.manifest.noise_multiplier * 0.9,
    )
    with pytest.raises(PrivacyBudgetExhausted, match=r"gives epsilon 3\.\d+ over all attempts, the plan promises 3"):
        check(federation, manifest)


def test_the_refusal_of_a_manifest_names_what_differs(federation: Federation) -> None:
    document = {**federation.manifest.to_json(), "rounds": 9, "clamp": 77}
    with pytest.raises(PolicyRefused, match="does not follow from the plan: clamp, rounds differ"):
        check(federation, Manifest.model_validate(document))


def test_a_roster_of_strangers_is_refused(federation: Federation) -> None:
    document = federation.manifest.to_json()
    document["roster"][-1]["name"] = "zz-unknown"
    with pytest.raises(TrustError, match="'zz-unknown' is not among the 4 pinned sites"):
        check(federation, Manifest.model_validate(document))


def test_a_plan_is_affordable_only_with_all_its_spare_attempts(federation: Federation) -> None:
    with federation.ledger(SITE) as ledger:
        event = attempt_event(federation.manifest, cohort_size=4)
        ledger.reserve(POPULATION, run_id="before", round_number=1, attempt=1, event=event)
        ledger.reserve(POPULATION, run_id="before", round_number=2, attempt=1, event=event)
    with pytest.raises(PrivacyBudgetExhausted, match=r"epsilon would reach .* of 3\.000"):
        check(federation)


def test_a_permit_stands_in_the_ledger_before_it_is_granted(federation: Federation) -> None:
    with federation.ledger(SITE) as ledger:
        granted = permit(federation, ledger)
        assert ledger.events(POPULATION) == (granted.event,)
    assert federation.charged(SITE) == {(1, 1): "reserved"}


def test_an_attempt_is_permitted_once(federation: Federation) -> None:
    with federation.ledger(SITE) as ledger:
        permit(federation, ledger)
        with pytest.raises(PolicyRefused, match="already charged"):
            permit(federation, ledger)


def test_no_more_attempts_are_permitted_than_the_plan_has(federation: Federation) -> None:
    with federation.ledger(SITE) as ledger:
        for number in range(1, 6):
            permit(federation, ledger, round_number=1, attempt=number)
        with pytest.raises(PolicyRefused, match="allows 5 attempts and 5 are used"):
            permit(federation, ledger, round_number=2)


def test_a_spent_budget_permits_nothing_and_writes_nothing(federation: Federation) -> None:
    with federation.ledger(SITE) as ledger:
        spend_everything(ledger, attempt_event(federation.manifest, cohort_size=4))
        before = ledger.head
        with pytest.raises(PrivacyBudgetExhausted):
            permit(federation, ledger)
        assert ledger.head == before


def test_only_the_guard_makes_a_permit(federation: Federation) -> None:
    with federation.ledger(SITE) as ledger:
        real = permit(federation, ledger)
    fields = {name: getattr(real, name) for name in Permit.__slots__}
    with pytest.raises(PolicyRefused, match="only the guard"):
        Permit(**{**fields, "seal": object()})


@pytest.mark.parametrize("size", [3, 4])
def test_a_share_of_the_noise_grows_as_the_cohort_shrinks(federation: Federation, size: int) -> None:
    manifest = federation.manifest
    with federation.ledger(SITE) as ledger:
        granted = permit(federation, ledger, cohort=federation.names[:size])
    assert granted.noise_std == pytest.approx(manifest.noise_multiplier * manifest.sensitivity / (size - 1) ** 0.5)


def test_in_local_mode_a_site_makes_all_its_noise_itself(local_federation: Federation) -> None:
    manifest = local_federation.manifest
    event = attempt_event(manifest, cohort_size=4)
    assert event.noise_multiplier_for(View.ALONE) == event.noise_multiplier_for(View.TRUSTED)


def test_the_grid_has_the_manifests_numbers_and_the_plans_norm(made_federation: Federation) -> None:
    grid = grid_of(made_federation.plan, made_federation.manifest)
    assert grid.sensitivity == made_federation.manifest.sensitivity


def test_a_plan_in_another_mode_than_its_manifest_is_refused(federation: Federation) -> None:
    document = {**federation.manifest.to_json(), "mode": "local"}
    with pytest.raises(PolicyRefused, match="mode differ"):
        check(federation, Manifest.model_validate(document))


def test_a_plan_with_more_rounds_than_were_approved_is_another_plan(federation: Federation) -> None:
    assert make_plan(rounds=4).digest not in federation.homes[SITE].approvals()
