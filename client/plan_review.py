"""What a plan would compute, cost and send out at this site, and what the site's rules say to it: one document."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from client.offer_checks import check_manifest, check_roster, check_spending, in_force
from client.plans import OfferedPlan, decided, find_digest
from client.site_view import SiteView
from common.charges import planned_cost, planned_events
from common.errors import ConfigurationError, FederationError, TrustError
from common.exits import EXITS
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.policy import SitePolicy, Verdict, check_hours, policy_verdicts
from common.privacy.account import AttemptState, PopulationAccount
from common.privacy.accountant import epsilon
from common.privacy.admission import FilterCost
from common.privacy.budget import RELATION, View
from common.report.plan_forecast import read_plan
from common.runplan import build_manifest, calibrate_plan
from common.settings import read_settings
from common.signed import read_signed
from common.trust import TrustFile

REVIEW_VERSION: Final = 1
ASSUMED_RUN: Final = "not-offered-yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A plan to be decided on.

    Attributes:
        manifest: Of the run it was offered for; for a file the one that would follow with all pinned sites.
        offer: None for a plan that was given as a file and not offered yet.
        signed: Whether the pinned coordinator signed it.
    """

    plan: TrainingPlan
    manifest: Manifest
    offer: OfferedPlan | None
    signed: bool


def find_subject(site: SiteView, text: str) -> Subject:
    """The plan behind a digest, its first 8 or more digits, or a file.

    Args:
        text: A file is `plan.json`, signed or bare, or a plan in TOML. If its plan was offered, the offer is taken.

    Raises:
        ConfigurationError: If there is no such plan. TrustError: If a file is signed by somebody else than the pinned
            coordinator.
    """
    offers = {offer.digest: offer for offer in site.offers().offers}
    if not Path(text).is_file():
        offer = offers[find_digest(text, list(offers))]
        return Subject(plan=offer.plan, manifest=offer.manifest, offer=offer, signed=True)
    trust = site.trust()
    plan, signed = _plan_in(Path(text), trust)
    known = offers.get(plan.digest)
    if known is not None:
        return Subject(plan=known.plan, manifest=known.manifest, offer=known, signed=True)
    return Subject(plan=plan, manifest=_assumed_manifest(plan, trust), offer=None, signed=signed)


def decided_digest(site: SiteView, text: str) -> str:
    """The digest of a plan that was offered, decided on before, or lies in a file; raises as `find_subject`."""
    if Path(text).is_file():
        return _plan_in(Path(text), site.trust())[0].digest
    decisions = site.decisions()
    offered = [offer.digest for offer in site.offers().offers]
    return find_digest(text, [*offered, *decisions.approved, *decisions.rejected])


def review(site: SiteView, subject: Subject, *, now: datetime) -> dict[str, Any]:
    """The document of `fedward site plans show`; FORMATS.md describes it.

    Args:
        now: The machine's local time.

    Raises:
        TrustError: If policy, pinned keys or decisions were changed. LedgerCorrupt: If the ledger does not verify.
    """
    plan, manifest, policy = subject.plan, subject.manifest, site.policy()
    trust, decisions = site.trust(), site.decisions()
    verdicts = list(_verdicts(site.name, policy, trust, subject, now))
    return {
        "version": REVIEW_VERSION,
        "site": site.name,
        "digest": plan.digest,
        **decided(decisions, plan.digest, manifest.run_id),
        "signed": subject.signed,
        "offered": None if subject.offer is None else {"run_id": manifest.run_id, "received": subject.offer.received},
        "computes": _computes(plan, manifest),
        "roster": [{"name": entry.name, "nominal_patients": entry.nominal_patients} for entry in manifest.roster],
        "minimum_cohort": manifest.minimum_cohort,
        "colluding": manifest.colluding,
        "rules": [{"rule": verdict.rule, "allowed": verdict.allowed, "text": verdict.text} for verdict in verdicts],
        "hours": list(policy.hours),
        "populations": [
            _population(site.name, name, account, policy, plan, manifest)
            for name, account in sorted(_candidates(site.accounts(), policy).items())
        ],
        "leaves": [exit_.to_json() for exit_ in EXITS],
        "plan": plan.to_json(),
    }


def _plan_in(path: Path, trust: TrustFile) -> tuple[TrainingPlan, bool]:
    if path.suffix == ".toml":
        return read_settings(path, TrainingPlan), False
    plan = read_plan(path)
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or "signature" not in document:
        return plan, False
    try:
        read_signed(path, "plan", trust.coordinator_key)
    except TrustError as error:
        raise TrustError(
            f"{path}: its signature is not the pinned coordinator's", hint="ask the coordinator for the plan again"
        ) from error
    return plan, True


def _assumed_manifest(plan: TrainingPlan, trust: TrustFile) -> Manifest:
    weight = max(1, plan.privacy.nominal_patients // len(trust.sites))
    try:
        multiplier = calibrate_plan(plan)
    except ValueError as error:
        raise ConfigurationError(f"the plan's epsilon cannot be kept: {error}") from error
    return build_manifest(
        plan,
        run_id=ASSUMED_RUN,
        roster=[RosterEntry(name=name, identity_key=key, nominal_patients=weight) for name, key in trust.sites.items()],
        coordinator_key=trust.coordinator,
        noise_multiplier=multiplier,
    )


def _verdicts(site: str, policy: SitePolicy, trust: TrustFile, subject: Subject, now: datetime) -> Iterator[Verdict]:
    plan, manifest = subject.plan, subject.manifest
    yield _tried("roster", "coordinator and roster are the pinned ones", check_roster, trust, manifest, site=site)
    yield from policy_verdicts(policy, plan, manifest)
    yield _tried("manifest", "the run's numbers follow from the plan", check_manifest, plan, manifest)
    if policy.hours:
        open_now = _tried("hours", f"it is {now:%H:%M}, within {', '.join(policy.hours)}", check_hours, policy, now)
        # Outside its hours a plan is refused when it asks, not when it is approved.
        yield Verdict(rule="hours", allowed=True, text=open_now.text)


def _tried(rule: str, fine: str, check: Any, *arguments: Any, **named: Any) -> Verdict:
    try:
        check(*arguments, **named)
    except FederationError as error:
        return Verdict(rule=rule, allowed=False, text=error.fact)
    return Verdict(rule=rule, allowed=True, text=fine)


def _computes(plan: TrainingPlan, manifest: Manifest) -> dict[str, Any]:
    return {
        "task": plan.task.kind,
        "classes": list(plan.task.classes),
        "backbone": plan.model.backbone,
        "weights": plan.model.weights,
        "head": plan.model.head,
        "inputs": list(plan.model.inputs),
        "parameters": manifest.dimension,
        "mode": plan.training.mode,
        "rounds": manifest.rounds,
        "attempts": plan.attempts,
        "steps": manifest.steps,
        "sampling_rate": manifest.sampling_rate,
        "clipping_norm": plan.privacy.clipping_norm,
        "noise_multiplier": manifest.noise_multiplier,
        "evaluations": manifest.evaluation_attempts,
        "held_out": plan.evaluation.held_out,
        "counts": manifest.evaluation_dimension or 0,
    }


def _candidates(accounts: Mapping[str, PopulationAccount], policy: SitePolicy) -> dict[str, PopulationAccount | None]:
    return {**dict.fromkeys(policy.budget), **accounts}


def _population(
    site: str,
    name: str,
    account: PopulationAccount | None,
    policy: SitePolicy,
    plan: TrainingPlan,
    manifest: Manifest,
) -> dict[str, Any]:
    if account is None:
        return {"name": name, "fits": False, "refused": "no data is registered for it", "views": None}
    limit = policy.budget.get(name)
    budget = account.budget if limit is None else in_force(account.budget, limit)
    verdict = _tried("budget", "", check_spending, policy, plan, manifest, site=site, population=name, account=account)
    events = [event for event, times in planned_events(manifest) for _ in range(times)]
    spent = {view: epsilon(account.events, delta=budget.delta, view=view) for view in View}
    try:
        charged = account.cost + planned_cost(account, manifest)
    except FederationError:  # sampled plans where only full batches are summed
        charged = None
    return {
        "name": name,
        "fits": verdict.allowed,
        "refused": verdict.text,
        "delta": budget.delta,
        "unit": budget.unit.value,
        "relation": RELATION,
        "answers": {"charged": account.reserves, "reserved": account.count(AttemptState.RESERVED)},
        "views": {
            view.value: {
                "limit": budget.limit(view),
                "cost": _finite(epsilon(events, delta=budget.delta, view=view)),
                "spent": _finite(spent[view]),
                "after": _finite(epsilon((*account.events, *events), delta=budget.delta, view=view)),
                "left": _left(account, account.cost, budget.limit(view), view, budget),
                "left_after": None if charged is None else _left(account, charged, budget.limit(view), view, budget),
            }
            for view in View
        },
    }


def _left(account: PopulationAccount, cost: FilterCost, limit: float, view: View, budget: Any) -> float:
    """What one more plan may cost by itself, once so much is charged; it does not add up with what is spent."""
    admission = account.terms.admission
    rest = max(0.0, admission.limit(budget, view) - cost.of(view))
    return min(admission.reached_epsilon(FilterCost(trusted=rest, alone=rest), budget.delta, view), limit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
