"""What a run's ledgers prove, offline and from files alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, FederationError, LedgerCorrupt, LedgerNotWitnessed, PrivacyBudgetExhausted
from common.privacy.account import AttemptState, PopulationAccount
from common.privacy.budget import RELATION, View
from common.privacy.verify import LedgerReport, verify_ledger
from common.report.crosscheck import missing_charges
from common.report.evidence import LEDGER_NAME, SITES_NAME, TRUST_NAME, Evidence, run_of
from common.report.forks import forked_histories, named_terms
from common.report.numbers import VERIFIED, over_limit
from common.report.spending import merged, shown_epsilon
from common.trust import read_trust

VERDICT_VERSION = 1
NOT_WITNESSED = "self-consistent, not witnessed"
FAILED = "failed"
GIVEN, RUN = "given", "run"
_CUT_HINT = "entries were cut, and the heads with them"
_FORK_HINT = "a site has one ledger: ask it which one it goes on with, and hold both against the heads of the others"


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationVerdict:
    """What one population of a ledger spent.

    Attributes:
        epsilon: Total while at most the plan's number of sites cheats; everything reserved counts.
        epsilon_alone: Total when everyone else cheats.
        charged: Answers that were reserved; the next three add up to it.
        unsettled: Reserved, neither settled nor burned: counted as spent.
    """

    name: str
    epsilon: float
    epsilon_limit: float
    epsilon_alone: float
    epsilon_alone_limit: float
    delta: float
    unit: str
    relation: str
    charged: int
    settled: int
    burned: int
    unsettled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerVerdict:
    """What one ledger proves.

    Attributes:
        site: Whose it is, by its first entry, else by its directory.
        verdict: VERIFIED, NOT_WITNESSED or FAILED.
        error: Why it failed, or why it is not witnessed; None if verified.
        report: The verified content; None if it failed to verify.
        populations: What was spent.
        evidence: What it was judged by; None if there is no ledger.
        content: The bytes that were judged.
    """

    path: Path
    site: str
    verdict: str
    error: FederationError | None
    report: LedgerReport | None = None
    populations: tuple[PopulationVerdict, ...] = ()
    evidence: Evidence | None = field(default=None, repr=False)
    content: bytes = field(default=b"", repr=False)

    def to_json(self) -> dict[str, Any]:
        """One element of `ledgers` in the JSON document."""
        report = self.report
        return {
            "path": str(self.path),
            "site": self.site,
            "verdict": self.verdict,
            "error": None if self.error is None else {"name": type(self.error).__name__, "fact": self.error.fact},
            "entries": report.entries if report else None,
            "head": report.head.digest if report else None,
            "witnessed_seq": report.witnessed_seq if report else None,
            "key": report.key.text if report and report.key else None,
            "key_pinned": report.key_pinned if report else None,
            "populations": [
                {name: getattr(population, name) for name in PopulationVerdict.__slots__}
                for population in self.populations
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerdict:
    """What all given ledgers prove together.

    Attributes:
        keys: Where the pinned keys came from: `GIVEN` by the auditor, or found in the `RUN` that is audited.
    """

    ledgers: tuple[LedgerVerdict, ...]
    keys: str

    @property
    def words(self) -> str:
        """The worst verdict of any ledger."""
        found = {ledger.verdict for ledger in self.ledgers}
        return next(verdict for verdict in (FAILED, NOT_WITNESSED, VERIFIED) if verdict in found)

    @property
    def error(self) -> FederationError | None:
        """None if all is verified; else every reason in one error of the first failure's kind."""
        worst = [ledger.error for ledger in self.ledgers if ledger.verdict == self.words and ledger.error is not None]
        if not worst:
            return None
        hints = list(dict.fromkeys(error.hint for error in worst if error.hint))
        return type(worst[0])("\n".join(error.fact for error in worst), hint="; ".join(hints))

    def to_json(self) -> dict[str, Any]:
        """The JSON document of `fedward audit verify --format json`."""
        return {
            "version": VERDICT_VERSION,
            "verdict": self.words,
            "keys": self.keys,
            "ledgers": [ledger.to_json() for ledger in self.ledgers],
        }


def verify_paths(
    paths: Sequence[Path], *, witness_files: Sequence[Path] = (), trust_file: Path | None = None
) -> AuditVerdict:
    """Verify run directories and single ledgers; a ledger that fails is reported beside the others, not raised.

    A ledger file is judged by what is held against it in the runs that are given beside it, if one of them pins its key
    or names its site, else by what lies beside the file. Ledgers of one key are compared with each other.

    Args:
        paths: Run directories, or ledger files. The run's witness and trust files are found beside its ledgers.
        witness_files: More books of heads; they are used besides those that are found.
        trust_file: Pinned keys, instead of the one that is found.

    Raises:
        ConfigurationError: If a path holds no ledger, or a given file is missing or malformed.
        LedgerCorrupt: If a book of heads cannot be read or contradicts itself.
    """
    if not paths:
        raise ValueError("there is at least one path to verify")
    for path in witness_files:
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such witness file")
    given_trust = read_trust(trust_file) if trust_file is not None else None
    for path in paths:
        if not path.is_dir() and not path.is_file():
            raise ConfigurationError(f"{path}: no such run directory or ledger")
    runs = [Evidence.gather(path, witness_files=witness_files, trust=given_trust) for path in paths if path.is_dir()]
    handed = {path: _runs_of_ledger(path, runs) for path in paths if path.is_file()}
    verdicts: list[LedgerVerdict] = []
    for run in runs:
        verdicts += _verify_run(run, [path for path, judging in handed.items() if run in judging])
    for path, judging in handed.items():
        if not judging:
            evidence = Evidence.gather(run_of(path), witness_files=witness_files, trust=given_trust)
            verdicts.append(_verify_ledger(path, None, evidence))
    forks = forked_histories({verdict.path: verdict.content for verdict in verdicts if verdict.content})
    return AuditVerdict(
        ledgers=tuple(_contradicted(verdict, forks.get(verdict.path), hint=_FORK_HINT) for verdict in verdicts),
        keys=RUN if given_trust is None else GIVEN,
    )


def _runs_of_ledger(path: Path, runs: Sequence[Evidence]) -> list[Evidence]:
    """The runs whose files speak of a ledger that was handed over beside them: by its key, else by its site."""
    terms = named_terms(path.read_bytes())
    if terms is None:
        return []
    naming = [run for run in runs if terms.site in run.expected_sites]
    return [run for run in naming if run.trust and run.trust.sites.get(terms.site) == terms.public_key.text] or naming


def _verify_run(evidence: Evidence, handed: Sequence[Path]) -> list[LedgerVerdict]:
    """Every ledger of a run: those that lie in it, and those that were handed over beside it."""
    run = evidence.run
    found = {path.parent.name: path for path in run.glob(f"{SITES_NAME}/*/{LEDGER_NAME}")}
    if not found and not evidence.expected_sites:
        raise ConfigurationError(
            f"{run}: no ledger at {SITES_NAME}/<name>/{LEDGER_NAME}",
            hint="give a run's directory, or ledger files; a run's sites are named by its trust.json",
        )
    verdicts = [_verify_ledger(path, name, evidence) for name, path in sorted(found.items())]
    verdicts += [_verify_ledger(path, None, evidence) for path in handed]
    for name in sorted(evidence.expected_sites - {verdict.site for verdict in verdicts}):
        error = LedgerCorrupt(
            f"{name}: the ledger is missing",
            hint=f"{TRUST_NAME} or the manifest names the site; give its ledger as one more path",
        )
        path = run / SITES_NAME / name / LEDGER_NAME
        verdicts.append(LedgerVerdict(path=path, site=name, verdict=FAILED, error=error))
    verdicts.sort(key=lambda verdict: verdict.site)
    longest = sorted((verdict for verdict in verdicts if verdict.report is not None), key=_entries)
    missing = missing_charges({verdict.site: verdict.report for verdict in longest if verdict.report is not None})
    return [_contradicted(verdict, missing.get(verdict.site), hint=_CUT_HINT) for verdict in verdicts]


def _entries(verdict: LedgerVerdict) -> int:
    return verdict.report.entries if verdict.report is not None else 0


def _contradicted(verdict: LedgerVerdict, reason: str | None, *, hint: str) -> LedgerVerdict:
    """A verdict that also counts what other ledgers say of this one; None if they say nothing."""
    if verdict.verdict == FAILED or reason is None:
        return verdict
    error = LedgerCorrupt(f"{verdict.site}: {reason}", hint=hint)
    return replace(verdict, verdict=FAILED, error=error)


def _verify_ledger(path: Path, directory_site: str | None, evidence: Evidence) -> LedgerVerdict:
    content = path.read_bytes()
    named = _named_site(content)
    site = directory_site or named or path.stem
    judged = LedgerVerdict(path=path, site=site, verdict=FAILED, error=None, evidence=evidence, content=content)
    try:
        if named is not None and named != site:
            raise LedgerCorrupt("entry 1: this is the ledger of another site", hint="the files were swapped")
        key, heads = evidence.key(site), evidence.heads(site, path)
        report = verify_ledger(content, key=key, heads=heads)
        populations = tuple(_population(name, account) for name, account in report.populations.items())
        judged = replace(judged, report=report, populations=populations)
        _check_limits(populations)
    except FederationError as error:
        return replace(judged, error=type(error)(f"{site}: {error.fact}", hint=error.hint))
    except (ValueError, OverflowError) as error:
        return replace(judged, error=LedgerCorrupt(f"{site}: no epsilon can be derived from its entries: {error}"))
    missing = _missing(report)
    return replace(
        judged,
        verdict=NOT_WITNESSED if missing else VERIFIED,
        error=LedgerNotWitnessed(f"{site}: {NOT_WITNESSED}: {missing}", hint=_MISSING_HINT) if missing else None,
    )


_MISSING_HINT = "give the pinned keys with --trust, and heads that another party holds with --witness"


def _missing(report: LedgerReport) -> str:
    """What keeps a self-consistent ledger from being verified; "" if nothing does."""
    reasons = []
    if not report.key_pinned:
        reasons.append("its key is the one that the ledger names itself")
    if report.witnessed_seq is None:
        reasons.append("nobody holds a head of it")
    return " and ".join(reasons)


def _named_site(content: bytes) -> str | None:
    """The site that a ledger's first entry names, unverified; None if it cannot be read."""
    terms = named_terms(content)
    return None if terms is None else terms.site


def _population(name: str, account: PopulationAccount) -> PopulationVerdict:
    budget, events = account.budget, merged(account.events)
    return PopulationVerdict(
        name=name,
        epsilon=shown_epsilon(events, budget.delta, View.TRUSTED),
        epsilon_limit=budget.epsilon,
        epsilon_alone=shown_epsilon(events, budget.delta, View.ALONE),
        epsilon_alone_limit=budget.epsilon_alone,
        delta=budget.delta,
        unit=budget.unit.value,
        relation=RELATION,
        charged=account.reserves,
        settled=account.count(AttemptState.SETTLED),
        burned=account.count(AttemptState.BURNED),
        unsettled=len(account.unsettled),
    )


def _check_limits(populations: Sequence[PopulationVerdict]) -> None:
    for population in populations:
        for words, spent, limit in (
            ("epsilon", population.epsilon, population.epsilon_limit),
            ("epsilon alone", population.epsilon_alone, population.epsilon_alone_limit),
        ):
            if over_limit(spent, limit):
                raise PrivacyBudgetExhausted(
                    f"population {population.name!r} spent {words} = {spent:.4f} of {limit:.4f} at delta = "
                    f"{population.delta:g}, per {population.unit}, {population.relation}"
                )
