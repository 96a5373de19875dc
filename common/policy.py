"""What a site allows, whatever a plan asks for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from common.errors import PolicyRefused
from common.plan import Manifest, TrainingPlan
from common.settings import Settings

_SPAN: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-(?:([01][0-9]|2[0-3]):([0-5][0-9])|24:00)")
_DAY_MINUTES: Final = 24 * 60


class BudgetLimit(Settings):
    """The most privacy the site will spend on one population.

    Attributes:
        unit: Whose data neighbours differ by: whole patients, or single records of them, which protects less.
    """

    epsilon: float = Field(gt=0)
    epsilon_alone: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["patient", "record"] = "patient"

    @model_validator(mode="after")
    def _alone_is_larger(self) -> "BudgetLimit":
        if self.epsilon_alone < self.epsilon:
            raise ValueError(f"epsilon_alone = {self.epsilon_alone:g} must be at least epsilon = {self.epsilon:g}")
        return self


class SitePolicy(Settings):
    """The site's own rules; they beat the plan, always.

    Attributes:
        budget: Limits by population name; a population without one spends nothing.
        minimum_patients: Fewer patients than this at this site, and it stays out (without saying why).
        minimum_cohort: The fewest sites whose sum this site joins.
        colluding_at_least: The plan must allow for at least so many cheating sites.
        maximum_delta: A plan's delta may not be larger.
        hours: Spans of the machine's local time, such as "20:00-06:00", in which the site computes; empty: always. The
            end is not part of a span.
        auto_approve: Approve every plan that passes; off unless the site says otherwise.
        auto_approve_up_to_epsilon: Only plans that cost no more by themselves, evaluations and spare attempts included.
        auto_approve_up_to_epsilon_alone: The same of the epsilon that holds when all others cheat.
    """

    version: Literal[1] = 1
    budget: dict[str, BudgetLimit] = Field(default_factory=dict)
    minimum_patients: int = Field(default=20, ge=1)
    minimum_cohort: int = Field(default=3, ge=3)
    colluding_at_least: int = Field(default=1, ge=1)
    maximum_delta: float = Field(default=1e-5, gt=0, lt=1)
    modes: tuple[str, ...] = ("pooled", "local")
    backbones: tuple[str, ...] = ("none", "squeezenet1_1")
    tasks: tuple[str, ...] = ("tabular-classification", "image-classification")
    dropout_modes: tuple[str, ...] = ("retry",)
    hours: tuple[str, ...] = ()
    auto_approve: bool = False
    auto_approve_up_to_epsilon: float | None = Field(default=None, gt=0)
    auto_approve_up_to_epsilon_alone: float | None = Field(default=None, gt=0)

    @field_validator("hours")
    @classmethod
    def _are_spans(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for text in hours:
            begin, end = _minutes(text)
            if begin == end:
                raise ValueError(f"{text!r} begins and ends at once; leave hours empty for the whole day")
        return hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one rule says to a plan.

    Attributes:
        rule: The rule's name, as the key in policy.toml where there is one.
        allowed: Whether the plan may pass.
        text: The fact with its limit.
    """

    rule: str
    allowed: bool
    text: str


def policy_verdicts(policy: SitePolicy, plan: TrainingPlan, manifest: Manifest) -> Iterator[Verdict]:
    """What each rule that needs no ledger says to a plan."""
    choices = (
        ("modes", "mode", plan.training.mode, policy.modes),
        ("backbones", "backbone", plan.model.backbone, policy.backbones),
        ("tasks", "task", plan.task.kind, policy.tasks),
        ("dropout_modes", "dropout mode", plan.secure_sum.dropouts, policy.dropout_modes),
    )
    for rule, what, asked, allowed in choices:
        known = asked in allowed
        verb = "is among" if known else "is not among"
        yield Verdict(rule=rule, allowed=known, text=f"{what} {asked!r} {verb} the allowed {list(allowed)}")
    yield Verdict(
        rule="minimum_cohort",
        allowed=manifest.minimum_cohort >= policy.minimum_cohort,
        text=f"the plan accepts a cohort of {manifest.minimum_cohort}, the policy at least {policy.minimum_cohort}",
    )
    yield Verdict(
        rule="colluding_at_least",
        allowed=manifest.colluding >= policy.colluding_at_least,
        text=f"the plan allows for {manifest.colluding} colluding sites, "
        f"the policy at least {policy.colluding_at_least}",
    )
    small = plan.privacy.delta <= policy.maximum_delta
    verb = "keeps to" if small else "exceeds"
    yield Verdict(
        rule="maximum_delta",
        allowed=small,
        text=f"delta = {plan.privacy.delta:g} {verb} the policy's {policy.maximum_delta:g}",
    )


def check_policy(policy: SitePolicy, plan: TrainingPlan, manifest: Manifest) -> None:
    """Return only if the policy allows the plan; else raise PolicyRefused with the number and its limit."""
    for verdict in policy_verdicts(policy, plan, manifest):
        if not verdict.allowed:
            raise PolicyRefused(verdict.text)


def check_hours(policy: SitePolicy, now: datetime) -> None:
    """Return only if the site computes at this hour; else raise PolicyRefused with the hour and the hours.

    Args:
        now: The machine's local time.
    """
    minute = now.hour * 60 + now.minute
    spans = [_minutes(text) for text in policy.hours]
    inside = (begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in spans)
    if spans and not any(inside):
        raise PolicyRefused(
            f"it is {now:%H:%M} here, and the policy lets plans compute at {', '.join(policy.hours)}",
            hint="the coordinator may ask again within these hours",
        )


def local_time() -> datetime:
    """What the machine's clock says, in its own zone: the hours of a policy are people's hours."""
    return datetime.now().astimezone()


def _minutes(span: str) -> tuple[int, int]:
    """Begin and end of a span in minutes after midnight; raises ValueError if it is none."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise ValueError(f"{span!r} is no span of hours such as '20:00-06:00'")
    begin_hour, begin_minute, end_hour, end_minute = found.groups()
    end = _DAY_MINUTES if end_hour is None else 60 * int(end_hour) + int(end_minute)
    return 60 * int(begin_hour) + int(begin_minute), end
