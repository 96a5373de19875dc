"""Evaluation over the wire: charged, masked, answered once, refused where it was not agreed to, and never the end."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.registry import load_parts
from client.evaluation import count_scores, scores_one_by_one
from client.guard import attempt_event, check_offer, evaluation_event
from client.training.batch import normalised
from common import wire_pb2 as pb
from common.errors import PolicyRefused, PrivacyBudgetExhausted
from common.parameters import parameters_to_bytes
from common.plan import Manifest, TrainingPlan
from common.privacy.accountant import epsilon
from common.privacy.budget import View
from common.privacy.events import EventKind
from common.report.audit import verify_paths
from common.runplan import evaluation_grid, score_layout
from common.wire import read_envelope
from tests.flows.federation import (
    CLASSES,
    POPULATION,
    RUN_ID,
    Federation,
    Handle,
    make_federation,
    make_plan,
    request_in,
)

SITE = "south"
EVALUATION_RUN = f"{RUN_ID}:evaluation"


def evaluated_plan(*, mode: str = "pooled", rounds: int = 3, spare_attempts: int = 2, **values: Any) -> TrainingPlan:
    """A plan that is evaluated after every round on four tenths of the patients, unless said otherwise."""
    document = make_plan(mode=mode, rounds=rounds, spare_attempts=spare_attempts).to_json()
    document["evaluation"] = {"every": 1, "held_out": 0.4, "epsilon": 2.0, "bins": 4, **values}
    return TrainingPlan.model_validate(document)


@pytest.fixture(scope="module")
def made_evaluated(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("evaluated") / "run", plan=evaluated_plan())


@pytest.fixture
def evaluated(made_evaluated: Federation, tmp_path: Path) -> Federation:
    """Four sites, three rounds that are all evaluated, two spare attempts."""
    return made_evaluated.copy_to(tmp_path / "run")


@pytest.fixture(scope="module")
def made_joined(made_evaluated: Federation, tmp_path_factory) -> tuple[Federation, list[pb.Ciphertext]]:
    federation = made_evaluated.copy_to(tmp_path_factory.mktemp("joined") / "run")
    with federation.agents() as agents:
        return federation, federation.shake_hands(agents)


@pytest.fixture
def joined(made_joined, tmp_path: Path) -> tuple[Federation, list[pb.Ciphertext]]:
    federation, ciphertexts = made_joined
    return federation.copy_to(tmp_path / "run"), ciphertexts


def evaluate_request(joined, round_number: int = 1, attempt: int = 1, **changes: Any) -> bytes:
    federation, ciphertexts = joined
    body = pb.Evaluate(
        round=round_number,
        attempt=attempt,
        cohort=changes.get("cohort", federation.names),
        parameters=parameters_to_bytes(changes.get("parameters", federation.zero_model)),
        ciphertexts=[item for item in ciphertexts if item.recipient == SITE],
    )
    return federation.envelope(body, SITE)


def charges(federation: Federation, name: str = SITE, run_id: str = EVALUATION_RUN) -> dict[tuple[int, int], str]:
    with federation.ledger(name) as ledger:
        found = ledger.account(POPULATION).charges
        return {(key.round_number, key.attempt): one.state.value for key, one in found.items() if key.run_id == run_id}


def ask(joined, *requests: bytes) -> list[Any]:
    federation, _ = joined
    with federation.open_agent(SITE) as agent:
        return [federation.opened(SITE, agent.handle(request)) for request in requests]


def documents(federation: Federation) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((federation.root / "evaluation.json").read_bytes())
    return found


def test_a_run_trains_and_evaluates_and_every_ledger_verifies(evaluated: Federation) -> None:
    with evaluated.agents() as agents:
        result = evaluated.train(agents)
    assert (result.rounds, result.left, result.exchanges) == (3, {}, 2 + 6 + 2)
    assert [one["round"] for one in documents(evaluated)["evaluations"]] == [1, 2, 3]
    for name in evaluated.names:
        assert charges(evaluated, name) == {(number, 1): "settled" for number in (1, 2, 3)}
        assert evaluated.charged(name) == {(number, 1): "settled" for number in (1, 2, 3)}
    assert verify_paths([evaluated.root]).words == "verified"


def test_what_opens_is_the_sum_of_all_held_out_patients_and_noise_of_the_promised_size(evaluated: Federation) -> None:
    with evaluated.agents() as agents:
        evaluated.train(agents)
    plan, layout = evaluated.plan, score_layout(evaluated.plan)
    grid = evaluation_grid(plan, evaluated.manifest)
    model = np.frombuffer((evaluated.root / "models" / "round-0002.f32").read_bytes(), dtype="<f4")
    truth = np.zeros(layout.dimension)
    for home in evaluated.homes.values():
        held_out = load_parts(home, POPULATION, classes=2, held_out=0.4).held_out
        batch = normalised(held_out, plan.normalisation)
        scores = scores_one_by_one(plan.model, 2, model, batch.features)
        truth += count_scores(scores, batch, layout=layout, grid=grid) / grid.scale
    opened = documents(evaluated)["evaluations"][1]
    manifest = evaluated.manifest
    assert manifest.evaluation_noise_multiplier is not None and manifest.evaluation_sensitivity is not None
    std = manifest.evaluation_noise_multiplier * manifest.evaluation_sensitivity / grid.scale * math.sqrt(4 / 3)
    assert opened["noise_std"] == pytest.approx(std)
    distance = np.linalg.norm(np.array(opened["histogram"]) - truth)
    assert 0.05 * std * math.sqrt(8) < distance < 3.2 * std * math.sqrt(8)  # chi with 8 degrees: 1e-9 on either side


def test_the_ledger_composes_training_and_evaluation(evaluated: Federation) -> None:
    with evaluated.agents() as agents:
        evaluated.train(agents)
    training = attempt_event(evaluated.manifest, cohort_size=4)
    histogram = evaluation_event(evaluated.manifest, cohort_size=4)
    with evaluated.ledger(SITE) as ledger:
        events = ledger.events(POPULATION)
    assert sorted(event.kind for event in events) == sorted([EventKind.GAUSSIAN_SUM, EventKind.SCORE_HISTOGRAM] * 3)
    together = epsilon(events, delta=1e-5, view=View.TRUSTED)
    assert together == epsilon([training] * 3 + [histogram] * 3, delta=1e-5, view=View.TRUSTED)
    assert together > epsilon([training] * 3, delta=1e-5, view=View.TRUSTED)


def test_nobody_who_is_evaluated_is_trained_on(evaluated: Federation) -> None:
    for home in evaluated.homes.values():
        parts = load_parts(home, POPULATION, classes=2, held_out=0.4)
        with evaluated.open_agent(home.name) as agent:
            agent.handle(evaluated.offer())
            used = agent._data(agent._state(RUN_ID))
        assert (used.training.patient_count, used.held_out.patient_count) == (
            parts.training.patient_count,
            parts.held_out.patient_count,
        )
    assert sum(
        load_parts(home, POPULATION, classes=2, held_out=0.4).held_out.patient_count
        for home in evaluated.homes.values()
    )


def test_in_local_mode_every_evaluation_has_the_sites_own_full_noise_and_is_charged(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "run", plan=evaluated_plan(mode="local", rounds=2))
    with federation.agents() as agents:
        federation.train(agents)
    with federation.ledger(SITE) as ledger:
        histograms = [event for event in ledger.events(POPULATION) if event.kind is EventKind.SCORE_HISTOGRAM]
    assert len(histograms) == 2
    assert {event.noise_multiplier_alone for event in histograms} == {federation.manifest.evaluation_noise_multiplier}


def test_an_evaluation_is_answered_once_and_asked_again_gives_the_same_bytes(joined) -> None:
    first, again = ask(joined, evaluate_request(joined), evaluate_request(joined))
    assert isinstance(first, pb.Histogram)
    assert (first.vector, first.context) == (again.vector, again.context)
    assert charges(joined[0]) == {(1, 1): "settled"}


def test_after_a_restart_it_gives_the_same_bytes(joined) -> None:
    (first,), (again,) = ask(joined, evaluate_request(joined)), ask(joined, evaluate_request(joined))
    assert first.vector == again.vector


def test_the_same_evaluation_of_another_model_is_refused(joined) -> None:
    other = joined[0].zero_model + np.float32(0.1)
    _, refused = ask(joined, evaluate_request(joined), evaluate_request(joined, parameters=other))
    assert refused.name == "TrustError"
    assert charges(joined[0]) == {(1, 1): "settled"}


def test_an_evaluation_and_a_round_of_one_number_do_not_know_each_other(joined) -> None:
    federation, ciphertexts = joined
    trained, evaluated, again = ask(
        joined,
        federation.round_request(SITE, ciphertexts=ciphertexts),
        evaluate_request(joined),
        federation.round_request(SITE, ciphertexts=ciphertexts),
    )
    assert trained.context != evaluated.context
    assert trained.vector == again.vector
    assert (federation.charged(SITE), charges(federation)) == ({(1, 1): "settled"}, {(1, 1): "settled"})


def test_no_more_evaluations_are_answered_than_the_plan_has(joined) -> None:
    """Three are due and two are spare; attempts 1 to 3 of each round lie within the plan, which makes nine."""
    order = [(number, attempt) for number in (1, 2, 3) for attempt in (1, 2, 3)]
    replies = ask(joined, *(evaluate_request(joined, *place) for place in order))
    assert [isinstance(reply, pb.Histogram) for reply in replies] == [True] * 5 + [False] * 4
    assert {reply.name for reply in replies[5:]} == {"PolicyRefused"}
    assert len(charges(joined[0])) == 5


@pytest.mark.parametrize("outside", [(0, 1), (4, 1), (1, 0), (1, 4)])
def test_an_evaluation_outside_the_plan_is_refused(joined, outside: tuple[int, int]) -> None:
    (refused,) = ask(joined, evaluate_request(joined, *outside))
    assert refused.name == "PolicyRefused"
    assert charges(joined[0]) == {}


def test_a_round_that_is_not_evaluated_is_refused(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "run", plan=evaluated_plan(every=2))
    with federation.agents() as agents:
        joined = federation, federation.shake_hands(agents)
    replies = ask(joined, *(evaluate_request(joined, number) for number in (1, 2, 3)))
    assert [reply.DESCRIPTOR.name for reply in replies] == ["Refused", "Histogram", "Histogram"]


def test_a_plan_without_evaluation_answers_none(federation: Federation) -> None:
    with federation.agents() as agents:
        joined = federation, federation.shake_hands(agents)
    (refused,) = ask(joined, evaluate_request(joined))
    assert refused.name == "PolicyRefused"


@pytest.mark.parametrize("cohort", [["east", "south"], ["east", "north", "west"]])
def test_a_cohort_that_was_not_agreed_to_is_refused(joined, cohort: list[str]) -> None:
    (refused,) = ask(joined, evaluate_request(joined, cohort=cohort))
    assert isinstance(refused, pb.Refused)
    assert charges(joined[0]) == {}


def test_a_closed_run_burns_what_was_reserved_and_evaluates_nothing(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        event = evaluation_event(federation.manifest, cohort_size=4)
        ledger.reserve(POPULATION, run_id=EVALUATION_RUN, round_number=1, attempt=1, event=event)
    _, refused = ask(joined, federation.envelope(pb.Close(), SITE), evaluate_request(joined))
    assert isinstance(refused, pb.Refused)
    assert charges(federation) == {(1, 1): "burned"}


def test_an_evaluation_that_was_begun_and_lost_is_burned_and_not_computed_again(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        event = evaluation_event(federation.manifest, cohort_size=4)
        ledger.reserve(POPULATION, run_id=EVALUATION_RUN, round_number=1, attempt=1, event=event)
    refused, again, following = ask(
        joined, evaluate_request(joined), evaluate_request(joined), evaluate_request(joined, 1, 2)
    )
    assert (refused.name, again.name) == ("AttemptLost", "AttemptLost")
    assert isinstance(following, pb.Histogram)
    assert charges(federation) == {(1, 1): "burned", (1, 2): "settled"}


def test_bytes_that_were_not_settled_before_a_crash_are_settled_and_sent_as_they_are(joined) -> None:
    federation, _ = joined
    (first,) = ask(joined, evaluate_request(joined))
    path = federation.homes[SITE].run_path(RUN_ID) / "evaluation.bin"
    stored = pb.Masked.FromString(path.read_bytes())
    (again,) = ask(joined, evaluate_request(joined))
    assert first.vector == again.vector == stored.vector


def check(federation: Federation, manifest: Manifest | None = None) -> str:
    with federation.ledger(SITE) as ledger:
        return check_offer(federation.homes[SITE], ledger, federation.plan, manifest or federation.manifest)


def test_a_budget_for_the_training_alone_refuses_training_and_evaluation_together(federation: Federation) -> None:
    assert check(federation) == POPULATION
    with pytest.raises(PrivacyBudgetExhausted, match=r"epsilon would reach 3\.\d+ of 3\.000"):
        check(federation.under(evaluated_plan()))


def test_a_policy_that_was_lowered_since_binds_the_evaluation_too(evaluated: Federation) -> None:
    home = evaluated.homes[SITE]
    text = (home.root / "policy.toml").read_text(encoding="utf-8").replace("epsilon = 4.0", "epsilon = 3.2")
    home.install_policy(text.encode())
    with pytest.raises(PrivacyBudgetExhausted, match=r"of 3\.200"):
        check(evaluated)


def test_less_noise_on_the_evaluation_is_refused_with_the_epsilon_that_it_gives(evaluated: Federation) -> None:
    from common.runplan import build_manifest

    manifest = evaluated.manifest
    assert manifest.evaluation_noise_multiplier is not None
    noisier = build_manifest(
        evaluated.plan,
        run_id=RUN_ID,
        roster=manifest.roster,
        coordinator_key=manifest.coordinator_key,
        noise_multiplier=manifest.noise_multiplier,
        evaluation_noise_multiplier=0.9 * manifest.evaluation_noise_multiplier,
    )
    with pytest.raises(PrivacyBudgetExhausted, match=r"evaluation noise multiplier .* gives epsilon 2\.\d+ over all"):
        check(evaluated, noisier)


@pytest.mark.parametrize("field", ["evaluation_sensitivity", "evaluation_clamp", "evaluation_dimension"])
def test_numbers_of_the_evaluation_that_do_not_follow_from_the_plan_are_refused(
    evaluated: Federation, field: str
) -> None:
    document = evaluated.manifest.to_json()
    document[field] += 1
    with pytest.raises(PolicyRefused, match=f"does not follow from the plan: {field} differ"):
        check(evaluated, Manifest.model_validate(document))


def refusing_evaluations(handle: Handle) -> Handle:
    def answer(data: bytes) -> bytes:
        if isinstance(request_in(data), pb.Evaluate):
            raise TimeoutError
        return handle(data)

    return answer


def test_an_evaluation_is_tried_again_without_a_site_that_is_silent(evaluated: Federation) -> None:
    with evaluated.agents() as agents:
        result = evaluated.train({**agents, "east": refusing_evaluations(agents["east"])})
    found = documents(evaluated)
    assert (result.rounds, result.left) == (3, {})
    places = [(one["round"], one["attempt"], one["sites"]) for one in found["evaluations"]]
    assert places == [(1, 2, 3), (2, 2, 3), (3, 1, 3)]
    assert (found["attempts"], found["missing"]) == (5, [])
    assert evaluated.charged("east") == {(number, 1): "settled" for number in (1, 2, 3)}
    assert charges(evaluated, "east") == {}


def test_a_site_that_refuses_evaluations_is_asked_once_and_trains_on(evaluated: Federation) -> None:

    def refusing(data: bytes) -> bytes:
        outside = evaluated.envelope(pb.Evaluate(cohort=evaluated.names), "east")
        return agents["east"](outside if isinstance(request_in(data), pb.Evaluate) else data)

    with evaluated.agents() as agents:
        result = evaluated.train({**agents, "east": refusing})
    found = documents(evaluated)
    assert (result.rounds, result.left) == (3, {})
    assert [(one["round"], one["attempt"], one["sites"]) for one in found["evaluations"]] == [
        (1, 2, 3),
        (2, 1, 3),
        (3, 1, 3),
    ]
    assert verify_paths([evaluated.root]).words == "verified"


def test_evaluations_that_never_open_do_not_lose_the_run(evaluated: Federation) -> None:
    with evaluated.agents() as agents:
        result = evaluated.train({name: refusing_evaluations(handle) for name, handle in agents.items()})
    assert (result.rounds, result.left) == (3, {})
    assert documents(evaluated)["evaluations"] == []
    assert documents(evaluated)["missing"] == [1, 2, 3]
    assert (evaluated.root / "model" / "card.json").exists()


def test_a_histogram_is_as_long_as_the_plan_says_whatever_a_site_holds(evaluated: Federation) -> None:
    sizes: dict[int, set[int]] = {}

    def note(way: str, node: int, body: bytes) -> None:
        envelope = read_envelope(body)
        if envelope.kind == "histogram":
            sizes.setdefault(node, set()).add(len(pb.Histogram.FromString(envelope.body).vector))

    with evaluated.agents() as agents:
        evaluated.train(agents, tap=note)
    assert sizes == {node: {4 * 8} for node in (1, 2, 3, 4)}


def test_an_answer_under_its_mask_is_not_the_counts(joined) -> None:
    federation, _ = joined
    (reply,) = ask(joined, evaluate_request(joined))
    grid = evaluation_grid(federation.plan, federation.manifest)
    units = np.frombuffer(reply.vector, dtype="<u4").astype(np.int64)
    assert len(CLASSES) == 2
    assert (np.abs(units) > 100 * grid.scale).any()
