"""What one message may cost a site in time and memory."""

from common import wire_pb2 as pb
from common.plan import TrainingPlan
from tests.flows.federation import Federation, make_manifest, make_plan

SITE = "east"


def test_a_plan_that_nobody_approved_is_refused_before_its_epsilon_is_worked_out(federation: Federation) -> None:
    """Ten million sampled steps took the accountant minutes; the manifest's noise is far too little as well."""
    document = make_plan(mode="local").to_json()
    document["training"] |= {"rounds": 1000, "spare_attempts": 0, "local_steps": 10_000, "sampling_rate": 0.01}
    plan = TrainingPlan.model_validate(document)
    cheap = make_manifest(federation.plan, federation.homes, federation.coordinator)
    with federation.open_agent(SITE) as agent:
        reply = federation.opened(SITE, agent.handle(federation.offer(plan=plan, manifest=cheap)))
    assert reply.name == "PlanNotApproved"


def test_a_plan_of_megabytes_is_not_parsed(federation: Federation) -> None:
    body = pb.Offer(plan=b'{"a": [' + b"1," * (3 << 20) + b"1]}", manifest=b"{}")
    with federation.open_agent(SITE) as agent:
        reply = federation.opened(SITE, agent.handle(federation.envelope(body, "any")))
    assert reply.name == "Unavailable"


def test_more_heads_than_sites_are_refused_unread(federation: Federation) -> None:
    with federation.open_agent(SITE) as agent:
        head = federation.opened(SITE, agent.handle(federation.offer())).head
        reply = federation.opened(SITE, agent.handle(federation.offer(heads=[head] * 5)))
    assert reply.name == "TrustError"
