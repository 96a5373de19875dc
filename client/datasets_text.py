"""What was registered at a site, in words."""

from collections.abc import Mapping

from client.data.catalogue import Catalogue, Dataset
from client.datasets import Added
from common.privacy.account import PopulationAccount
from common.privacy.budget import View
from common.terminal import one_line

_SPLITS = (
    "Who is held out for evaluation is drawn by this site's own secret, patient by patient; a plan says only which "
    "share, and the same patients are drawn for every plan."
)


def added_text(added: Added) -> str:
    """The outcome of one registration; the three ways a record can end add up to those that came in."""
    report, dataset = added.report, added.dataset
    lines = [
        f"data set {one_line(added.name)}: {report.records_in} records came in",
        f"  released     {report.released}  of {dataset.patients} patients",
        f"  quarantined  {report.quarantined}{_alarms(added)}",
        f"  rejected     {report.rejected}",
        f"  sum          {report.released + report.quarantined + report.rejected}",
        f"  columns      {len(report.columns)} declared, {report.undeclared_columns} undeclared and dropped",
        f"population {one_line(dataset.population)}: {_joined(added)}",
        *_shape(dataset),
        f"  splits       {_SPLITS}",
        "what de-identification did stands in deid.json: counts and digests, no value",
    ]
    return "\n".join(lines)


def catalogue_text(catalogue: Catalogue, populations: dict[str, str]) -> str:
    """Every data set with its population.

    Args:
        populations: What is left of each population's budget, in words.
    """
    if not catalogue.datasets:
        return "no data set is registered; fedward site dataset add registers one"
    lines = []
    for name, dataset in catalogue.datasets.items():
        account = populations.get(dataset.population, "not in the ledger")
        lines += [
            f"{one_line(name)}: {dataset.records} records of {dataset.patients} patients, registered {dataset.added}",
            f"  left out     {dataset.quarantined} quarantined, {dataset.rejected} rejected",
            f"  population   {one_line(dataset.population)}: {account}",
            *_shape(dataset),
        ]
    return "\n".join([*lines, _SPLITS, "These counts are for this site's own eyes; none of them leaves on the wire."])


def populations_in_words(accounts: Mapping[str, PopulationAccount]) -> dict[str, str]:
    """What is left of each population's budget."""
    words = {}
    for name, account in accounts.items():
        admission, budget = account.terms.admission, account.budget
        limits = {view: admission.limit(budget, view) for view in View}
        used = {view: account.cost.of(view) / limit if limit else 1.0 for view, limit in limits.items()}
        words[name] = (
            f"epsilon {budget.epsilon:g}, {budget.epsilon_alone:g} alone, at delta {budget.delta:g}, per "
            f"{budget.unit.value}; {max(used.values()):.0%} of the room used by {account.reserves} answers"
        )
    return words


def _alarms(added: Added) -> str:
    alarms = ", ".join(f"{kind}: {count}" for kind, count in sorted(added.report.alarms.items()))
    return f"  ({alarms})" if alarms else ""


def _joined(added: Added) -> str:
    said = "joined, since it shares patients with it" if added.joined else "its budget and what was spent of it stand"
    said = "opened with the policy's budget, which stands for good" if added.opened else said
    return f"{said}; the records of {one_line(added.replaced)} were replaced" if added.replaced else said


def _shape(dataset: Dataset) -> list[str]:
    features = f"inputs = {list(dataset.inputs)}"
    if dataset.backbone != "none":
        features += f" of {dataset.backbone}, weights {dataset.weights}"
    return [f"  for plans    {features}, classes = {', '.join(map(one_line, dataset.classes))}"]
