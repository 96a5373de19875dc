import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.canonical import ZERO_DIGEST, canonical_json
from common.crypto.keys import SigningKey
from common.errors import LedgerCorrupt, TrustError
from common.privacy.account import AttemptState
from common.privacy.entries import LedgerHead, line_digest
from common.privacy.events import MechanismEvent
from common.privacy.verify import verify_ledger
from common.privacy.witness import SignedHead

Lines = list[dict[str, Any]]
EventMaker = Callable[..., MechanismEvent]


def resigned(lines: Lines, key: SigningKey) -> bytes:
    """The chain made anew from its contents: what somebody with a key can always do."""
    content, prev = b"", ZERO_DIGEST
    for seq, fields in enumerate(lines, start=1):
        body = {name: value for name, value in fields.items() if name != "sig"} | {"seq": seq, "prev": prev}
        signature = base64.b64encode(key.sign("ledger-entry", canonical_json(body))).decode()
        line = canonical_json(body | {"sig": signature})
        content, prev = content + line + b"\n", line_digest(line)
    return content


def parsed(content: bytes) -> Lines:
    return [json.loads(line) for line in content.splitlines()]


def head_at(content: bytes, seq: int, key: SigningKey, site: str = "north") -> SignedHead:
    head = LedgerHead(seq=seq, digest=line_digest(content.splitlines()[seq - 1]))
    return SignedHead.sign(key, site=site, head=head, run_id="run-1")


def test_an_honest_ledger_is_reported_as_it_is(spent_ledger: bytes, site_key: SigningKey) -> None:
    report = verify_ledger(spent_ledger, key=site_key.public_key, heads=[head_at(spent_ledger, 5, site_key)])
    assert (report.site, report.entries, report.head.seq, report.witnessed_seq) == ("north", 8, 8, 5)
    assert report.key_pinned
    account = report.populations["breast"]
    assert [account.count(state) for state in AttemptState] == [1, 2, 1]
    assert (account.reserves, len(account.unsettled), account.budget.epsilon) == (4, 1, 3.0)


def test_an_honest_ledger_made_anew_by_its_own_key_still_verifies(spent_ledger: bytes, site_key: SigningKey) -> None:
    assert resigned(parsed(spent_ledger), site_key) == spent_ledger


def test_without_a_pinned_key_the_report_says_so(spent_ledger: bytes, site_key: SigningKey) -> None:
    report = verify_ledger(spent_ledger, key=None)
    assert (report.key, report.key_pinned, report.witnessed_seq) == (site_key.public_key, False, None)


def test_an_empty_ledger_is_valid_and_empty() -> None:
    report = verify_ledger(b"", key=None)
    assert (report.site, report.entries, report.key, dict(report.populations)) == ("", 0, None, {})


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_changed_byte_is_found_at_its_entry(data: st.DataObject, honest: tuple[bytes, SigningKey]) -> None:
    content, key = honest
    position = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))
    changed = content[:position] + bytes([byte]) + content[position + 1 :]
    number = content[:position].count(b"\n") + 1
    with pytest.raises(LedgerCorrupt, match=rf"^entry {number}: "):
        verify_ledger(changed, key=key.public_key)


@pytest.fixture(scope="session")
def honest(make_event: EventMaker, site_key: SigningKey, budget: Any) -> tuple[bytes, SigningKey]:
    """Four lines: open, reserve, settle, reserve."""
    empty = {"v": 1, "time": "2026-01-02T03:04:05Z", "population": "breast"}
    terms = {
        "site": "north",
        "public_key": site_key.public_key.text,
        "filter": {"kind": "gaussian", "order": None},
        "budget": budget.to_json(),
        "relation": "add_remove_one",
    }
    first = {"run": "run-1", "round": 0, "attempt": 0}
    lines = [
        empty | {"kind": "open", "run": None, "round": None, "attempt": None, "event": terms},
        empty | first | {"kind": "reserve", "event": make_event().to_json()},
        empty | first | {"kind": "settle", "event": {"release": "sha256:" + "5" * 64}},
        empty | first | {"kind": "reserve", "round": 1, "event": make_event().to_json()},
    ]
    return resigned(lines, site_key), site_key


@pytest.mark.parametrize("number", range(1, 8))
def test_a_removed_line_is_found(spent_ledger: bytes, site_key: SigningKey, number: int) -> None:
    lines = spent_ledger.splitlines(keepends=True)
    with pytest.raises(LedgerCorrupt, match=rf"^entry {number}: numbered {number + 1}; a line was removed"):
        verify_ledger(b"".join(lines[: number - 1] + lines[number:]), key=site_key.public_key)


def test_swapped_lines_are_found(spent_ledger: bytes, site_key: SigningKey) -> None:
    lines = spent_ledger.splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    with pytest.raises(LedgerCorrupt, match=r"^entry 4: numbered 5"):
        verify_ledger(b"".join(lines), key=site_key.public_key)


def test_a_repeated_line_is_found(spent_ledger: bytes, site_key: SigningKey) -> None:
    with pytest.raises(LedgerCorrupt, match=r"^entry 9: numbered 8"):
        verify_ledger(spent_ledger + spent_ledger.splitlines(keepends=True)[-1], key=site_key.public_key)


def test_a_cut_tail_is_found_against_a_witnessed_head(spent_ledger: bytes, site_key: SigningKey) -> None:
    cut = b"".join(spent_ledger.splitlines(keepends=True)[:5])
    with pytest.raises(LedgerCorrupt, match=r"^entry 6: missing; a witness holds entry 7"):
        verify_ledger(cut, key=site_key.public_key, heads=[head_at(spent_ledger, 7, site_key)])


def test_an_emptied_ledger_is_found_against_a_witnessed_head(spent_ledger: bytes, site_key: SigningKey) -> None:
    with pytest.raises(LedgerCorrupt, match=r"^entry 1: missing"):
        verify_ledger(b"", key=site_key.public_key, heads=[head_at(spent_ledger, 7, site_key)])


def test_a_cut_tail_without_a_witness_is_only_unwitnessed(spent_ledger: bytes, site_key: SigningKey) -> None:
    cut = b"".join(spent_ledger.splitlines(keepends=True)[:5])
    assert verify_ledger(cut, key=site_key.public_key).witnessed_seq is None


def test_a_line_cut_in_its_middle_is_found(spent_ledger: bytes, site_key: SigningKey) -> None:
    with pytest.raises(LedgerCorrupt, match=r"^entry 8: cut in its middle"):
        verify_ledger(spent_ledger[:-20], key=site_key.public_key)


def test_a_ledger_signed_anew_with_another_key_is_found_by_the_pinned_key(
    spent_ledger: bytes, site_key: SigningKey
) -> None:
    thief = SigningKey.generate()
    lines = parsed(spent_ledger)
    lines[0]["event"]["public_key"] = thief.public_key.text
    with pytest.raises(LedgerCorrupt, match=r"^entry 1: .*signature is not by key"):
        verify_ledger(resigned(lines, thief), key=site_key.public_key)


def test_a_ledger_signed_anew_with_another_key_is_found_by_a_witnessed_head(
    spent_ledger: bytes, site_key: SigningKey
) -> None:
    thief = SigningKey.generate()
    lines = parsed(spent_ledger)
    lines[0]["event"]["public_key"] = thief.public_key.text
    with pytest.raises(LedgerCorrupt, match=r"^entry 1: names a key that did not sign"):
        verify_ledger(resigned(lines, thief), key=None, heads=[head_at(spent_ledger, 8, site_key)])


def test_a_history_rewritten_by_the_site_itself_is_found_by_a_witnessed_head(
    spent_ledger: bytes, site_key: SigningKey
) -> None:
    lines = parsed(spent_ledger)
    lines[1]["event"] |= {"noise_multiplier": 40, "noise_multiplier_alone": 40 / 3**0.5}
    rewritten = resigned(lines, site_key)
    verify_ledger(rewritten, key=site_key.public_key)
    with pytest.raises(LedgerCorrupt, match=r"^entry 8: not the one"):
        verify_ledger(rewritten, key=site_key.public_key, heads=[head_at(spent_ledger, 8, site_key)])


def test_two_heads_of_one_entry_cannot_both_hold(spent_ledger: bytes, site_key: SigningKey) -> None:
    other = LedgerHead(seq=8, digest="sha256:" + "0" * 64)
    heads = [head_at(spent_ledger, 8, site_key), SignedHead.sign(site_key, site="north", head=other, run_id="run-1")]
    with pytest.raises(LedgerCorrupt, match=r"^entry 8"):
        verify_ledger(spent_ledger, key=site_key.public_key, heads=heads)


def test_a_false_head_is_told_from_a_false_ledger_by_the_pinned_key(spent_ledger: bytes, site_key: SigningKey) -> None:
    with pytest.raises(TrustError, match="not signed by its key"):
        verify_ledger(spent_ledger, key=site_key.public_key, heads=[head_at(spent_ledger, 8, SigningKey.generate())])


def test_heads_of_other_sites_vouch_for_nothing(spent_ledger: bytes, site_key: SigningKey) -> None:
    heads = [head_at(spent_ledger, 8, SigningKey.generate(), site="south")]
    assert verify_ledger(spent_ledger, key=site_key.public_key, heads=heads).witnessed_seq is None


def test_the_ledger_of_another_site_is_refused(spent_ledger: bytes, site_key: SigningKey) -> None:
    with pytest.raises(LedgerCorrupt, match=r"^entry 1: .*'north'"):
        verify_ledger(spent_ledger, key=site_key.public_key, site="south")


def changed_at(lines: Lines, index: int, **changed: object) -> Lines:
    return [line | changed if number == index else line for number, line in enumerate(lines)]


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (lambda lines: changed_at(lines, 1, kind="refund"), "entry 2: unknown kind 'refund'"),
        (lambda lines: changed_at(lines, 1, v=2), "entry 2: version 2 is newer"),
        (lambda lines: changed_at(lines, 1, v=0), "entry 2: version 0 is unknown"),
        (lambda lines: changed_at(lines, 1, note="x"), "entry 2: a line has an unknown field: 'note'"),
        (lambda lines: changed_at(lines, 1, event=None), "entry 2: an event is a JSON object"),
        (lambda lines: changed_at(lines, 1, time="2026-01-02 03:04:05"), "entry 2: time is RFC 3339"),
        (lambda lines: changed_at(lines, 1, population="xray"), "entry 2: reserve in population 'xray'"),
        (lambda lines: changed_at(lines, 2, event={"release": "x"}), "entry 3: release is"),
        (lambda lines: changed_at(lines, 2, kind="burn"), "entry 3: a burn entry has no event"),
        (lambda lines: changed_at(lines, 3, round=0), "entry 4: .* is already charged"),
        (lambda lines: changed_at(lines, 2, round=7), "entry 3: settle without a reserve"),
        (lambda lines: [*lines[:3], lines[2]], "entry 4: settle of what is already settled"),
        (lambda lines: [lines[0], lines[0]], "entry 2: population 'breast' is already open"),
        (lambda lines: lines[1:], "entry 1: the first entry opens"),
        (
            lambda lines: changed_at(
                lines, 1, event=lines[1]["event"] | {"noise_multiplier": 1, "noise_multiplier_alone": 3**-0.5}
            ),
            "entry 2: epsilon would reach",
        ),
        (
            lambda lines: changed_at(lines, 1, event=lines[1]["event"] | {"noise_multiplier": 40}),
            "entry 2: noise_multiplier_alone",
        ),
        (lambda lines: changed_at(lines, 0, event=lines[0]["event"] | {"relation": "replace"}), "entry 1: relation"),
        (lambda lines: changed_at(lines, 0, run="run-1"), "entry 1: an open entry has no run"),
        (
            lambda lines: [
                *lines,
                lines[0] | {"population": "xray", "event": lines[0]["event"] | {"site": "south"}},
            ],
            "entry 5: the site is 'south'",
        ),
    ],
)
def test_what_the_site_itself_signed_but_should_not_have_is_found(
    honest: tuple[bytes, SigningKey], tamper: Callable[[Lines], Lines], found: str
) -> None:
    content, key = honest
    with pytest.raises(LedgerCorrupt, match=rf"^{found}"):
        verify_ledger(resigned(tamper(parsed(content)), key), key=None)


@pytest.mark.parametrize("line", [b"", b"[]", b"null", b"\xff", b'{"v": 1}', b'{"v":NaN}', b"[" * 5000])
def test_a_line_that_is_no_entry_is_named(spent_ledger: bytes, site_key: SigningKey, line: bytes) -> None:
    with pytest.raises(LedgerCorrupt, match=r"^entry 9: "):
        verify_ledger(spent_ledger + line + b"\n", key=site_key.public_key)


def test_the_same_fields_in_another_form_are_refused(spent_ledger: bytes, site_key: SigningKey) -> None:
    loose = spent_ledger.replace(b'"v":1', b'"v": 1', 1)
    with pytest.raises(LedgerCorrupt, match="entry 1: not in canonical form"):
        verify_ledger(loose, key=site_key.public_key)
