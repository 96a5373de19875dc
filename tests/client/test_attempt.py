import pytest

from client.attempt import Attempt, answer_attempt, burn_reserved, read_attempt
from client.data.registry import load_dataset
from client.guard import attempt_event
from client.handshake import learn_secrets
from client.runstate import Outbox, RunState, load_state
from client.training.engine import choose_engine
from common import wire_pb2 as pb
from common.canonical import digest_bytes
from common.errors import AttemptLost, LedgerCorrupt, PolicyRefused, PrivacyBudgetExhausted, TrustError
from common.privacy.entries import AttemptKey
from common.privacy.ledger import BudgetLedger
from tests.flows.federation import CLASSES, POPULATION, RUN_ID, Federation, request_in, spend_everything

SITE = "south"


@pytest.fixture(scope="module")
def made_joined(made_federation: Federation, tmp_path_factory: pytest.TempPathFactory):
    federation = made_federation.copy_to(tmp_path_factory.mktemp("joined") / "run")
    with federation.agents() as agents:
        return federation, federation.shake_hands(agents)


@pytest.fixture
def joined(made_joined, tmp_path) -> tuple[Federation, RunState]:
    """A federation whose sites exchanged keys, and one site's state with all its secrets."""
    federation, ciphertexts = made_joined
    federation = federation.copy_to(tmp_path / "run")
    home = federation.homes[SITE]
    own = [item for item in ciphertexts if item.recipient == SITE]
    return federation, learn_secrets(home, load_state(home, RUN_ID), own)


def attempt(joined: tuple[Federation, RunState], round_number: int = 1, number: int = 1, **changes) -> Attempt:
    federation, state = joined
    request = request_in(federation.round_request(SITE, round_number, number, **changes))
    return read_attempt(federation.homes[SITE], state, request)


def answer(joined: tuple[Federation, RunState], ledger: BudgetLedger, asked: Attempt) -> pb.Masked:
    federation, state = joined
    home = federation.homes[SITE]
    engine, _ = choose_engine(state.plan.model, len(CLASSES))
    batch = load_dataset(home, POPULATION, classes=len(CLASSES))
    return answer_attempt(home, ledger, state, asked, engine=engine, batch=batch)


def test_a_context_is_another_for_every_round_attempt_cohort_and_model(joined) -> None:
    federation, _ = joined
    asked = [
        attempt(joined),
        attempt(joined, 2),
        attempt(joined, 1, 2),
        attempt(joined, cohort=federation.names[1:]),
        attempt(joined, parameters=federation.zero_model + 1),
    ]
    assert len({one.context for one in asked}) == 5


def test_the_outbox_holds_an_answer_before_the_ledger_calls_it_settled(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        given = answer(joined, ledger, attempt(joined))
        stored = Outbox(federation.homes[SITE], RUN_ID).read()
        charged = ledger.account(POPULATION).attempt(AttemptKey(run_id=RUN_ID, round_number=1, attempt=1))
    assert stored is not None
    assert charged is not None
    assert stored.vector == given.vector
    assert charged.release == digest_bytes("release", given.vector)


def test_a_spent_budget_answers_nothing_and_leaves_the_outbox_alone(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        spend_everything(ledger, attempt_event(federation.manifest, cohort_size=4))
        with pytest.raises(PrivacyBudgetExhausted, match=r"would reach \d+\.\d+ of 3\.000"):
            answer(joined, ledger, attempt(joined))
    assert Outbox(federation.homes[SITE], RUN_ID).read() is None


def test_the_same_attempt_gives_the_stored_answer(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        assert answer(joined, ledger, attempt(joined)) == answer(joined, ledger, attempt(joined))
        assert ledger.account(POPULATION).reserves == 1


def test_the_same_attempt_under_another_context_is_refused(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        answer(joined, ledger, attempt(joined))
        with pytest.raises(TrustError, match="round 1 attempt 1 was answered under another context"):
            answer(joined, ledger, attempt(joined, cohort=federation.names[1:]))


def test_an_older_attempt_is_refused(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        answer(joined, ledger, attempt(joined, 1, 2))
        with pytest.raises(TrustError, match="round 1 attempt 1 lies before the last one answered"):
            answer(joined, ledger, attempt(joined, 1, 1))


def test_an_attempt_that_was_begun_and_lost_is_burned(joined) -> None:
    federation, _ = joined
    with federation.ledger(SITE) as ledger:
        event = attempt_event(federation.manifest, cohort_size=4)
        ledger.reserve(POPULATION, run_id=RUN_ID, round_number=1, attempt=1, event=event)
        with pytest.raises(AttemptLost, match="begun and lost; it stays charged"):
            answer(joined, ledger, attempt(joined))
    assert federation.charged(SITE) == {(1, 1): "burned"}


def test_bytes_that_the_ledger_never_charged_do_not_leave(joined) -> None:
    federation, _ = joined
    asked = attempt(joined)
    Outbox(federation.homes[SITE], RUN_ID).write(pb.Masked(round=1, attempt=1, context=asked.label, vector=bytes(40)))
    with federation.ledger(SITE) as ledger, pytest.raises(LedgerCorrupt, match="never charged"):
        answer(joined, ledger, asked)


def test_burned_bytes_do_not_leave(joined) -> None:
    federation, state = joined
    asked = attempt(joined)
    with federation.ledger(SITE) as ledger:
        event = attempt_event(federation.manifest, cohort_size=4)
        ledger.reserve(POPULATION, run_id=RUN_ID, round_number=1, attempt=1, event=event)
        Outbox(federation.homes[SITE], RUN_ID).write(
            pb.Masked(round=1, attempt=1, context=asked.label, vector=bytes(40))
        )
        burn_reserved(ledger, state)
        with pytest.raises(PolicyRefused, match="was burned"):
            answer(joined, ledger, asked)
