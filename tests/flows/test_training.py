from tests.flows.federation import Federation


def test_four_sites_train_one_model_and_their_ledgers_settle(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train(agents)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    for name in federation.names:
        assert federation.charged(name) == {(1, 1): "settled", (2, 1): "settled", (3, 1): "settled"}
