"""Whether the site itself is in order: its pinned keys, rules, ledger and data."""

import tomllib
from collections.abc import Iterator
from typing import Final

from client.home import POLICY_DOMAIN, TRUST_DOMAIN, SiteHome, open_home, read_signed_file
from client.preflight_finding import Finding, Premises, Verdict
from common.errors import ConfigurationError
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE, read_passphrase
from common.policy import SitePolicy
from common.privacy.account import PopulationAccount
from common.privacy.budget import View
from common.report.site_ledger import read_site_ledger
from common.settings import parse_json_settings, parse_settings
from common.trust import TrustFile

FEWEST_SITES: Final = 3


def check_settings(premises: Premises) -> Iterator[Finding]:
    """site.json and node.toml can be read."""
    yield Finding(
        check="site",
        looked_at=f"site.json and node.toml in {premises.home}",
        verdict=Verdict.FINE,
        found=f"the site {premises.site.name!r}, device {premises.node.device!r}, {premises.key.text[:20]}…",
    )


def check_trust(premises: Premises) -> Iterator[Finding]:
    """The keys of the coordinator and of the other sites are pinned."""
    path = premises.home / "trust.json"
    if not path.exists():
        yield Finding(
            check="trust",
            looked_at=str(path),
            verdict=Verdict.WRONG,
            found="no keys are pinned: every message is refused",
            mend="fedward site trust consortium.json, with the fingerprint that the coordinator reads out",
        )
        return
    content = read_signed_file(path, TRUST_DOMAIN, key=premises.key, site=premises.site.name)
    trust = parse_json_settings(content, TrustFile, source=str(path))
    absent = premises.site.name not in trust.sites or trust.sites[premises.site.name] != premises.key.text
    few = len(trust.sites) < FEWEST_SITES
    facts = [f"{len(trust.sites)} sites and the coordinator {trust.coordinator[:20]}… are pinned"]
    facts += ["this site is not among them with its own key"] if absent else []
    facts += [f"a secure sum needs {FEWEST_SITES}"] if few else []
    yield Finding(
        check="trust",
        looked_at=f"{path} and its signature",
        verdict=Verdict.WRONG if absent else Verdict.WARNING if few else Verdict.FINE,
        found="; ".join(facts),
        mend="pin the newest consortium.json: fedward site trust" if absent or few else "",
    )


def check_policy(premises: Premises) -> Iterator[Finding]:
    """The policy is the one that the site signed, and gives somebody a budget."""
    policy = _policy(premises)
    limits = [
        f"{name}: epsilon {limit.epsilon:g} ({limit.epsilon_alone:g} alone) at delta {limit.delta:g} per {limit.unit}"
        for name, limit in policy.budget.items()
    ]
    yield Finding(
        check="policy",
        looked_at="policy.toml and its signature",
        verdict=Verdict.FINE,
        found=f"signed by this site; {'; '.join(limits)}; minimum cohort {policy.minimum_cohort}",
    )
    if policy.auto_approve:
        yield Finding(
            check="policy",
            looked_at="auto_approve in policy.toml",
            verdict=Verdict.WARNING,
            found="every plan that fits into policy and budget is approved without anybody reading it",
            mend="write auto_approve = false and sign the policy again",
        )


def check_ledger(premises: Premises) -> Iterator[Finding]:
    """The ledger verifies up to its high-water mark, and holds every population that has data."""
    path = premises.home / "ledger.jsonl"
    registered = {path.stem for path in (premises.home / "data").glob("*.sealed")}
    if not path.exists():
        yield Finding(
            check="ledger",
            looked_at=str(path),
            verdict=Verdict.WRONG if registered else Verdict.WARNING,
            found="there is no ledger" + (f", but data of {len(registered)} populations" if registered else " yet"),
            mend="restore the newest copy of the ledger; never begin a new one for the same patients"
            if registered
            else "fedward site dataset add opens it",
        )
        return
    ledger = read_site_ledger(premises.home)
    lost = sorted(registered - set(ledger.populations))
    used = [f"{name}: {_room_used(account):.0%} of the budget used" for name, account in ledger.populations.items()]
    yield Finding(
        check="ledger",
        looked_at=f"{path} and ledger.head",
        verdict=Verdict.WRONG if lost else Verdict.FINE,
        found=f"{len(lost)} registered populations are missing in it: {', '.join(lost)}"
        if lost
        else f"{ledger.head.seq} entries verify and end where the high-water mark says; {', '.join(used) or 'empty'}",
        mend="restore the newest copy of the ledger" if lost else "",
    )


def check_data(premises: Premises) -> Iterator[Finding]:
    """Data is registered, under a budget, and of enough patients; the number is said on this screen alone."""
    policy = _policy(premises)
    names = sorted(path.stem for path in (premises.home / "data").glob("*.sealed"))
    looked_at = str(premises.home / "data")
    if not names:
        yield Finding(
            check="data",
            looked_at=looked_at,
            verdict=Verdict.WRONG,
            found="no data set is registered",
            mend="fedward site dataset add",
        )
        return
    for name in names:
        if name not in policy.budget:
            yield Finding(
                check="data",
                looked_at=looked_at,
                verdict=Verdict.WARNING,
                found=f"{name}: the policy has no budget for it; no plan may use it",
                mend=f"add [budget.{name}] to policy.toml, or leave it so",
            )
    if not _has_passphrase(premises):
        yield Finding(
            check="data",
            looked_at=looked_at,
            verdict=Verdict.SKIPPED,
            found=f"{', '.join(names)} registered; without the passphrase the patients cannot be counted",
        )
        return
    yield from _patients(premises, policy, names)


def opened_home(premises: Premises) -> SiteHome:
    """The site's directory with its keys; raises ConfigurationError or TrustError if the passphrase does not do it."""
    return open_home(premises.home, passphrase=read_passphrase(premises.environment))


def _room_used(account: PopulationAccount) -> float:
    """The share of the budget that is charged, of the view that has less left."""
    limits = {view: account.terms.admission.limit(account.budget, view) for view in View}
    return max(account.cost.of(view) / limit if limit else 1.0 for view, limit in limits.items())


def _patients(premises: Premises, policy: SitePolicy, names: list[str]) -> Iterator[Finding]:
    from client.data.registry import count_patients

    home = opened_home(premises)
    for name in names:
        patients = count_patients(home, name)
        few = patients < policy.minimum_patients
        yield Finding(
            check="data",
            looked_at=f"data/{name}.sealed",
            verdict=Verdict.WARNING if few else Verdict.FINE,
            found=f"{patients} patients; the policy wants {policy.minimum_patients} (this number leaves on no wire)",
            mend="register more patients, or lower minimum_patients: until then the site stays out" if few else "",
        )


def _policy(premises: Premises) -> SitePolicy:
    path = premises.home / "policy.toml"
    if not path.exists():
        raise ConfigurationError(
            f"{path}: there is no policy", hint="fedward site init writes one to be read and edited"
        )
    content = read_signed_file(path, POLICY_DOMAIN, key=premises.key, site=premises.site.name)
    return parse_settings(tomllib.loads(content.decode()), SitePolicy, source=str(path))


def _has_passphrase(premises: Premises) -> bool:
    given = (premises.environment.get(name) for name in (PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE))
    return any(given)
