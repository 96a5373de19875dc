"""The gateway's log: every request is in it, alone or counted, and nobody can fill the disk with it."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigurationError
from server.gateway_log import LONGEST_TARGET, Entry, GatewayLog, harmless

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestLog:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def log(self, tmp_path: Path, clock: Clock) -> Iterator[GatewayLog]:
        opened = GatewayLog(tmp_path / "gateway.jsonl", clock=lambda: NOON, monotonic=clock)
        yield opened
        opened.close()

    @staticmethod
    def lines(tmp_path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "gateway.jsonl").read_text().splitlines()]

    def test_a_line_is_what_the_formats_say(self, log: GatewayLog, tmp_path: Path) -> None:
        log.write(Entry(address="192.0.2.7", verb="push-object", status=200, bytes_in=9, node="east", key="0" * 12))
        assert self.lines(tmp_path) == [
            {
                "v": 1,
                "time": "2026-01-01T12:00:00.000Z",
                "address": "192.0.2.7",
                "verb": "push-object",
                "status": 200,
                "reason": "",
                "bytes_in": 9,
                "bytes_out": 0,
                "seconds": 0.0,
                "node": "east",
                "key": "0" * 12,
                "times": 1,
            }
        ]

    def test_polls_are_summed_for_a_minute(self, log: GatewayLog, tmp_path: Path, clock: Clock) -> None:
        for _ in range(300):
            log.write(Entry(address="192.0.2.7", verb="pull-messages", status=200, bytes_in=12, node="east"))
        log.tick()
        assert self.lines(tmp_path) == []
        clock.now = 60
        log.tick()
        (line,) = self.lines(tmp_path)
        assert (line["times"], line["bytes_in"], line["node"]) == (300, 3600, "east")

    def test_a_poll_that_failed_is_not_summed_with_those_that_did_not(self, log: GatewayLog, tmp_path: Path) -> None:
        log.write(Entry(address="192.0.2.7", verb="pull-messages", status=401))
        assert self.lines(tmp_path)[0]["status"] == 401

    def test_a_flood_of_refusals_is_counted_and_fills_no_disk(
        self, log: GatewayLog, tmp_path: Path, clock: Clock
    ) -> None:
        for number in range(5000):
            log.write(Entry(address="192.0.2.7", verb=f"GET /{number}", status=404, reason="no such verb"))
        log.close()
        lines = self.lines(tmp_path)
        assert len(lines) == 101
        assert sum(line["times"] for line in lines) == 5000

    def test_a_flood_from_one_address_hides_no_refusal_of_another(self, log: GatewayLog, tmp_path: Path) -> None:
        for _ in range(500):
            log.write(Entry(address="192.0.2.7", status=404, reason="no such verb"))
        log.write(Entry(address="192.0.2.8", status=401, reason="revoked", node="east"))
        assert self.lines(tmp_path)[-1]["node"] == "east"

    def test_it_goes_on_in_a_new_file_after_rotation(self, log: GatewayLog, tmp_path: Path) -> None:
        log.write(Entry(address="a", status=404))
        os.rename(tmp_path / "gateway.jsonl", tmp_path / "gateway.jsonl.1")
        log.write(Entry(address="b", status=404))
        assert [line["address"] for line in self.lines(tmp_path)] == ["b"]

    def test_on_a_full_disk_it_says_that_it_is_not_ready(self) -> None:
        log = GatewayLog(Path("/dev/full"))
        assert log.ready()
        log.write(Entry(address="a", status=404))
        assert not log.ready()
        log.close()

    def test_a_link_in_its_place_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "gateway.jsonl").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="cannot be written"):
            GatewayLog(tmp_path / "gateway.jsonl")

    @given(st.binary(max_size=300), st.text(max_size=20))
    def test_what_strangers_asked_for_is_printable_and_short(self, target: bytes, method: str) -> None:
        shown = harmless(method, target)
        assert shown.isprintable() and len(shown) <= LONGEST_TARGET
