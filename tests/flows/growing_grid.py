"""A Grid to which nodes come and from which they go while a run goes on, and a clock that only waiting moves."""

from collections.abc import Callable, Mapping

from server.coordinator import Coordinator, RunResult
from server.exchange import GridExchange
from server.rundir import load_run
from simulations.flower_private import task_identity
from simulations.inline_grid import InlineGrid, site_handlers
from tests.flows.federation import PASSPHRASE, Federation, Handle, is_round, request_in


class Clock:
    """Seconds pass only while somebody sleeps, or by hand."""

    def __init__(self, on_sleep: Callable[[float], None] = lambda _: None) -> None:
        self.now_s = 0.0
        self._on_sleep = on_sleep

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._on_sleep(self.now_s)


class GrowingGrid(InlineGrid):
    """Nodes are numbered by the site's place in the roster; `happens` sees every request and may change the grid."""

    def __init__(self, federation: Federation, handlers: Mapping[str, Handle]) -> None:
        self.numbers = {name: number for number, name in enumerate(federation.names, start=1)}
        super().__init__({}, tap=self._see)
        self.happens: Callable[[str, bytes], None] = lambda _name, _data: None
        self.requests: list[tuple[str, str]] = []
        for name, handle in handlers.items():
            self.come(name, handle)

    def come(self, name: str, handle: Handle, *, number: int = 0) -> None:
        """A node of this site connects, under a number of its own if one is given."""
        self._handlers.update(site_handlers({number or self.numbers[name]: handle}))

    def go(self, number: int) -> None:
        """A node is gone."""
        del self._handlers[number]

    def kinds(self, name: str) -> list[str]:
        """What a site's node was asked, in order."""
        return [kind for site, kind in self.requests if site == name]

    def _see(self, way: str, node: int, data: bytes) -> None:
        if way == "request":
            name = next((name for name, number in self.numbers.items() if number == node), str(node))
            self.requests.append((name, type(request_in(data)).__name__.lower()))
            self.happens(name, data)


def run_over(
    federation: Federation, grid: InlineGrid, clock: Clock | None = None, *, resend_after_s: float = 0.0
) -> RunResult:
    """The coordinator's run over this grid, waiting by this clock."""
    clock = clock or Clock()
    with task_identity():
        exchange = GridExchange(grid, clock=clock, sleep=clock.sleep, resend_after_s=resend_after_s)
        run = load_run(federation.root, passphrase=PASSPHRASE)
        return Coordinator(run, exchange, clock=clock, sleep=clock.sleep).run()


def at_round(number: int, attempt: int, act: Callable[[], None]) -> Callable[[str, bytes], None]:
    """Do something when the first site is asked for an attempt."""
    done: list[bool] = []

    def happens(_: str, data: bytes) -> None:
        if not done and is_round(data, (number, attempt)):
            done.append(True)
            act()

    return happens
