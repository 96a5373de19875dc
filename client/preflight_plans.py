"""Plans that a coordinator offered and on which nobody at the site has decided."""

from collections.abc import Iterator
from typing import Final

from client.decisions import APPROVALS_FILE, read_decisions
from client.plans import OFFERS_DIRECTORY, read_offers
from client.preflight_finding import Finding, Premises, Verdict

MOST_NAMED: Final = 3
WAITING: Final = "waiting"


def check_plans(premises: Premises) -> Iterator[Finding]:
    """Offers that wait, and offers that are not this site's."""
    kept, decisions = read_offers(premises.home, premises.key), read_decisions(premises.home, premises.key)
    looked_at = f"{premises.home / OFFERS_DIRECTORY} and {APPROVALS_FILE}"
    if kept.unreadable:
        yield Finding(
            check="plans",
            looked_at=looked_at,
            verdict=Verdict.WARNING,
            found=f"{kept.unreadable} kept offers cannot be read, or this site did not keep them",
            mend="delete them; the coordinator offers its plan again",
        )
    waiting = [offer.digest for offer in kept.offers if decisions.state(offer.digest, offer.manifest.run_id) == WAITING]
    shown = ", ".join(f"{digest[:19]}…" for digest in waiting[:MOST_NAMED])
    yield Finding(
        check="plans",
        looked_at=looked_at,
        verdict=Verdict.WARNING if waiting else Verdict.FINE,
        found=f"{len(waiting)} of {len(kept.offers)} offered plans wait for a decision"
        + (f": {shown}" if waiting else ""),
        mend="fedward site plans list; then plans approve or plans reject" if waiting else "",
    )
