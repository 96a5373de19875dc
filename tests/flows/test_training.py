import io
import json

from common.journal import FIELDS, Journal
from common.privacy.witness import WitnessBook
from common.wire import LEAVES_A_SITE, REACHES_A_SITE, read_envelope
from simulations.identities import IDENTIFIER_KINDS
from simulations.residual import ResidualScan
from tests.flows.federation import Federation, Handle


def kinds_in_ledger(federation: Federation, name: str) -> list[tuple[str, int | None, int | None]]:
    lines = map(json.loads, federation.homes[name].ledger_path.read_bytes().splitlines())
    return [(line["kind"], line["round"], line["attempt"]) for line in lines]


def reopening(federation: Federation, name: str) -> Handle:
    """A site whose agent is opened for each message and closed after it."""

    def answer(data: bytes) -> bytes:
        with federation.open_agent(name) as agent:
            return agent.handle(data)

    return answer


def test_four_sites_train_one_model_and_their_ledgers_settle(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train(agents)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    for name in federation.names:
        assert federation.charged(name) == {(1, 1): "settled", (2, 1): "settled", (3, 1): "settled"}


def test_agents_rebuilt_between_every_two_messages_run_the_same_run(
    federation: Federation, made_federation: Federation, tmp_path
) -> None:
    steady = made_federation.copy_to(tmp_path / "steady")
    with steady.agents() as agents:
        expected = steady.train(agents)
    result = federation.train({name: reopening(federation, name) for name in federation.names})
    assert (result.rounds, result.attempts, result.left) == (expected.rounds, expected.attempts, {})
    for name in federation.names:
        assert kinds_in_ledger(federation, name) == kinds_in_ledger(steady, name)


def test_every_site_and_the_coordinator_hold_the_last_head_of_every_other(federation: Federation) -> None:
    with federation.agents() as agents:
        federation.train(agents)
    books = {name: WitnessBook(home.witness_path, holder=name) for name, home in federation.homes.items()}
    books["coordinator"] = WitnessBook(federation.root / "witnesses.jsonl", holder="coordinator")
    for name in federation.names:
        with federation.ledger(name) as ledger:
            end = ledger.head
        for holder, book in books.items():
            latest = book.latest(name)
            assert (latest is None) == (holder == name)
            assert latest is None or (latest.seq, latest.digest) == (end.seq, end.digest)


def test_only_listed_kinds_of_message_pass_and_each_in_its_direction(federation: Federation) -> None:
    seen: dict[str, set[str]] = {"request": set(), "reply": set()}
    with federation.agents() as agents:
        federation.train(agents, tap=lambda way, node, body: seen[way].add(read_envelope(body).kind))
    assert seen["request"] == {kind.DESCRIPTOR.name.lower() for kind in REACHES_A_SITE} - {"evaluate"}
    assert seen["reply"] == {kind.DESCRIPTOR.name.lower() for kind in LEAVES_A_SITE} - {"refused", "histogram"}


def test_an_answer_is_as_long_as_the_model_whatever_a_site_holds(federation: Federation) -> None:
    sizes: dict[int, set[int]] = {}
    with federation.agents() as agents:

        def note(way: str, node: int, body: bytes) -> None:
            envelope = read_envelope(body)
            if envelope.kind == "masked":
                sizes.setdefault(node, set()).add(len(envelope.body) - len(envelope.sender))

        federation.train(agents, tap=note)
    first = next(iter(sizes.values()))
    assert len(sizes) == 4
    assert all(found == first for found in sizes.values())


def test_no_identifier_of_any_patient_is_in_a_message_or_a_file_of_the_run(federation: Federation) -> None:
    scan = ResidualScan(federation.identifiers, kinds=IDENTIFIER_KINDS)
    passed = bytearray()
    with federation.agents() as agents:
        federation.train(agents, tap=lambda way, node, body: passed.extend(body + b"\n"))
    assert scan.scan_bytes(bytes(passed)) == []
    report = scan.scan_tree(federation.root)
    assert report.hits == ()
    assert report.files > 40


def test_the_same_scan_finds_an_identifier_that_is_planted(federation: Federation) -> None:
    scan = ResidualScan(federation.identifiers, kinds=IDENTIFIER_KINDS)
    stolen = federation.identifiers[3][0]
    (federation.root / "sites" / "south" / "note.txt").write_text(f"seen today: {stolen}")
    assert [(hit.record, hit.file) for hit in scan.scan_tree(federation.root).hits] == [(3, "sites/south/note.txt")]


def test_log_lines_carry_listed_fields_only(federation: Federation) -> None:
    stream = io.StringIO()
    journal = Journal(stream)
    with federation.agents(journal=journal) as agents:
        agents["east"](b"nonsense")
        federation.train(agents, journal=journal)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    of_sites, of_coordinator = {"offer", "keys", "round", "close", "engine", "refused"}, {"joined", "attempt", "closed"}
    assert {line["event"] for line in lines} == of_sites | of_coordinator
    assert set().union(*lines) <= FIELDS | {"time", "event"}


def test_the_log_names_no_path_and_no_patient(federation: Federation) -> None:
    stream = io.StringIO()
    journal = Journal(stream)
    with federation.agents(journal=journal) as agents:
        federation.train(agents, journal=journal)
    assert str(federation.root) not in stream.getvalue()
    assert ResidualScan(federation.identifiers).scan_bytes(stream.getvalue().encode()) == []
