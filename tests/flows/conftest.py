"""The command line."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from common.cli import main


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


Fedward = Callable[..., Finished]


@pytest.fixture
def fedward(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Fedward]:
    """Run the `fedward` command line in this process, with these arguments."""
    on_terminate = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["fedward", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return Finished(code=int(ended.value.code or 0), out=said.out, err=said.err)

    yield run
    signal.signal(signal.SIGTERM, on_terminate)
