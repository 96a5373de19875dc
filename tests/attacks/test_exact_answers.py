"""A plan must not be a question that a site answers exactly, by whether it answers at all."""

import numpy as np
import pytest

from client.data.registry import load_dataset, register_dataset
from common import wire_pb2 as pb
from common.plan import TrainingPlan
from tests.flows.federation import POPULATION, Federation, make_plan

SITE = "east"


def threshold_plan(plan: TrainingPlan, *, center: float, width: float) -> TrainingPlan:
    """Public constants under which a first number farther than `width` from `center` overflows float32."""
    document = plan.to_json()
    scale = width / float(np.finfo(np.float32).max)
    document["normalisation"] = {"center": [center, 0, 0, 0], "scale": [scale, 1, 1, 1]}
    return TrainingPlan.model_validate(document)


def answer_of(federation: Federation, site: str) -> object:
    with federation.agents() as handlers:
        ciphertexts = federation.shake_hands(handlers)
        return federation.opened(site, handlers[site](federation.round_request(site, ciphertexts=ciphertexts)))


def largest_first_number(federation: Federation, site: str) -> float:
    batch = load_dataset(federation.homes[site], POPULATION, classes=2)
    return float(np.abs(batch.features[:, 0]).max())


@pytest.mark.parametrize("times", [0.99, 1.01])
def test_whether_a_site_answers_does_not_tell_its_largest_value(federation: Federation, times: float) -> None:
    width = largest_first_number(federation, SITE) * times
    asked = federation.under(threshold_plan(federation.plan, center=0.0, width=width))
    assert isinstance(answer_of(asked, SITE), pb.Masked)


def test_a_record_that_normalises_to_no_number_costs_nothing_but_itself(federation: Federation) -> None:
    asked = federation.under(threshold_plan(federation.plan, center=0.0, width=1e-30))
    assert isinstance(answer_of(asked, SITE), pb.Masked)


def test_a_plan_with_fewer_classes_does_not_tell_whether_the_others_occur(federation: Federation) -> None:
    replies = []
    for labels in (np.array([0, 1] * 7), np.array([0, 2] * 7)):
        home = federation.homes[SITE]
        with federation.ledger(SITE) as ledger:
            register_dataset(
                home,
                ledger,
                dataset=POPULATION,
                features=np.ones((14, 4), dtype=np.float32),
                labels=labels.astype(np.int64),
                classes=3,
                patients=[f"p{n}" for n in range(14)],
                patient_ids=[f"id{n}" for n in range(14)],
                admission=ledger.account(POPULATION).terms.admission,
            )
        with federation.open_agent(SITE) as agent:
            replies.append(type(federation.opened(SITE, agent.handle(federation.offer()))))
        (home.run_path(federation.manifest.run_id) / "state.sealed").unlink(missing_ok=True)
    assert replies[0] is replies[1]


def test_plans_of_another_shape_are_refused_by_the_same_name(federation: Federation) -> None:
    asked = federation.under(make_plan(features=5))
    with asked.open_agent(SITE) as agent:
        assert asked.opened(SITE, agent.handle(asked.offer())).name == "Unavailable"
