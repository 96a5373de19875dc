"""A look at a node before it is trusted with a run: what is fine, what is not, and how to mend it.

Nothing is written, no lock is taken, and a running node is not disturbed. A check that fails in a way that nobody
foresaw is a finding like any other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from client.preflight_files import (
    check_courier_directory,
    check_home,
    check_passphrase,
    check_socket,
    check_users,
)
from client.preflight_finding import Check, Finding, Premises, Verdict
from client.preflight_machine import check_device, check_disk, check_flower, check_memory, check_python
from client.preflight_network import check_gateway
from client.preflight_plans import check_plans
from client.preflight_site import check_data, check_ledger, check_policy, check_settings, check_trust
from client.preflight_socket import check_agent
from common.errors import FederationError
from common.terminal import one_line

CHECK_VERSION: Final = 1
WRONG_EXIT_CODE: Final = 3
CHECKS: Final[Mapping[str, Check]] = {
    "python": check_python,
    "flower": check_flower,
    "site": check_settings,
    "disk": check_disk,
    "memory": check_memory,
    "device": check_device,
    "home": check_home,
    "courier": check_courier_directory,
    "users": check_users,
    "socket": check_socket,
    "passphrase": check_passphrase,
    "trust": check_trust,
    "policy": check_policy,
    "ledger": check_ledger,
    "data": check_data,
    "plans": check_plans,
    "gateway": check_gateway,
    "agent": check_agent,
}
_MARKS: Final = {Verdict.FINE: "ok", Verdict.WARNING: "WARNING", Verdict.WRONG: "WRONG", Verdict.SKIPPED: "skipped"}


def preflight(premises: Premises, checks: Mapping[str, Check] = CHECKS) -> list[Finding]:
    """Look at everything, in the order in which a node depends on it; never raises."""
    return [finding for name, check in checks.items() for finding in _looked(name, check, premises)]


def is_ready(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(finding.verdict is not Verdict.WRONG for finding in findings)


def check_document(premises: Premises, findings: Sequence[Finding]) -> dict[str, Any]:
    """The JSON document of `fedward site check`; FORMATS.md describes it."""
    return {
        "version": CHECK_VERSION,
        "home": str(premises.home),
        "ready": is_ready(findings),
        "findings": [finding.to_json() for finding in findings],
    }


def check_text(findings: Sequence[Finding]) -> str:
    """The findings for a terminal, worst last in the closing line."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.verdict]:>8}  {finding.check:<10}  {one_line(finding.found)}")
        if finding.verdict is not Verdict.FINE:
            lines.append(f"{'':>20}  looked at: {one_line(finding.looked_at)}")
        if finding.mend:
            lines.append(f"{'':>20}  mend: {one_line(finding.mend)}")
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    said = ", ".join(f"{counts[verdict]} {_MARKS[verdict].lower()}" for verdict in Verdict)
    return "\n".join([*lines, f"{said}: " + ("ready" if is_ready(findings) else "not ready")])


def _looked(name: str, check: Check, premises: Premises) -> list[Finding]:
    """What one check found; whatever it raises becomes a finding, and what it found before is kept."""
    found: list[Finding] = []
    try:
        for finding in check(premises):
            found.append(finding)
    except FederationError as error:
        found.append(_wrong(name, error.fact, error.hint))
    except PermissionError as error:
        found.append(
            Finding(
                check=name,
                looked_at=str(error.filename or premises.home),
                verdict=Verdict.SKIPPED,
                found="this user may not read it",
                mend="run the check as the agent's user, and once more as the courier's",
            )
        )
    except OSError as error:
        found.append(_wrong(name, f"{error.filename or name}: {error.strerror or type(error).__name__}", ""))
    except Exception as error:  # no finding may keep the others from being shown
        found.append(_wrong(name, f"the check itself failed: {type(error).__name__}: {error}", "report this"))
    return found


def _wrong(name: str, found: str, mend: str) -> Finding:
    return Finding(check=name, looked_at=name, verdict=Verdict.WRONG, found=found, mend=mend)
