"""Who can write into a site's directory but has no passphrase must not decide for the site."""

import json
import threading

import pytest

from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.errors import TrustError
from common.files import write_atomic
from common.trust import TrustFile, write_trust
from tests.flows.federation import POPULATION, Federation, make_plan

SITE = "east"


def test_a_replaced_trust_file_does_not_make_another_coordinator(federation: Federation) -> None:
    home, intruder = federation.homes[SITE], SigningKey.generate()
    write_trust(home.root / "trust.json", TrustFile(coordinator=intruder.public_key.text, sites=federation.trust.sites))
    manifest = federation.manifest.model_copy(update={"coordinator_key": intruder.public_key.text})
    body = pb.Offer(plan=canonical_json(federation.plan.to_json()), manifest=canonical_json(manifest.to_json()))
    with federation.open_agent(SITE) as agent:
        reply = federation.opened(SITE, agent.handle(federation.envelope(body, "any", key=intruder)))
    assert isinstance(reply, pb.Refused)


def test_an_edited_list_of_approvals_approves_nothing(federation: Federation) -> None:
    plan, home = make_plan(rounds=2), federation.homes[SITE]
    asked = federation.under(plan)
    path = home.root / "approvals.json"
    with federation.open_agent(SITE):
        pass
    document = json.loads(path.read_bytes())
    del document["approvals"]["plans"][plan.digest]
    document["approvals"]["plans"] |= {make_plan(rounds=3).digest: POPULATION, plan.digest: POPULATION, "x": "y"}
    write_atomic(path, canonical_json(document) + b"\n")
    with asked.open_agent(SITE) as agent:
        assert isinstance(asked.opened(SITE, agent.handle(asked.offer())), pb.Refused)


def test_a_policy_that_changes_between_its_check_and_its_use_is_not_used(federation: Federation) -> None:
    home = federation.homes[SITE]
    path = home.root / "policy.toml"
    signed = path.read_bytes()
    forged = signed.replace(b"minimum_cohort = 3", b"minimum_cohort = 4")
    assert forged != signed
    stop = threading.Event()

    def swap() -> None:
        spare = path.with_name("spare")
        while not stop.is_set():
            for content in (forged, signed):
                spare.write_bytes(content)
                spare.replace(path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    found = set()
    try:
        for _ in range(2000):
            try:
                found.add(home.policy().minimum_cohort)
            except TrustError:
                continue
    finally:
        stop.set()
        swapper.join()
    assert found <= {3}


def test_a_closed_run_makes_no_new_pair_secrets(federation: Federation) -> None:
    with federation.agents() as handlers:
        federation.shake_hands(handlers)
        for name in federation.names:
            handlers[name](federation.envelope(pb.Close(), name))
        joined = [handlers[name](federation.offer()) for name in federation.names]
        reply = federation.opened(SITE, handlers[SITE](federation.envelope(pb.Keys(joined=joined), SITE)))
    assert isinstance(reply, pb.Refused)


@pytest.mark.parametrize("name", ["identity.pem", "storage.key", "ledger.jsonl", "policy.toml", "populations.sealed"])
def test_only_the_owner_reads_what_is_the_sites_own(federation: Federation, name: str) -> None:
    root = federation.homes[SITE].root
    assert (root / name).stat().st_mode & 0o077 == 0
