"""A site whose courier is Flower's own SuperNode: it takes part, and after a kill it is let in again."""

import signal

import pytest

from tests.deployment.consortium import consortium
from tests.deployment.waiting import wait_until

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

END_TIMEOUT_S = 400.0


def test_a_stock_supernode_takes_part_and_is_let_in_again_after_a_kill() -> None:
    with consortium() as running:
        settings = running.courier("west") / "courier.toml"
        settings.write_text(settings.read_text().replace('courier = "fedward"', 'courier = "supernode"'))
        running.up()
        running.at_once(lambda site, _: running.site_up(site), "east", "north")
        west = running.start(
            "west",
            running.sites["west"],
            *("site", "up", "--home", running.home("west"), "--courier", running.courier("west")),
            ready=lambda: bool(running.processes("flower-supernode", "west")),
        )
        plan = running.plan("stock", training__rounds=3, training__spare_attempts=12)
        running.approve(plan)
        run_id = running.begin(plan, "--round-timeout", "300")
        wait_until(lambda: running.rounds(run_id) >= 1, what="round 1", timeout_s=END_TIMEOUT_S, says=west.text)
        (killed,) = running.processes("flower-supernode", "west")
        running.kill(killed, signal.SIGKILL)
        assert running.finish(run_id, timeout_s=END_TIMEOUT_S) == "completed"
        assert {running.charged(site) for site in running.sites} == {3}
        assert running.processes("flower-supernode", "west") not in ([], [killed])
        assert "courier ended with exit code" in west.text()
