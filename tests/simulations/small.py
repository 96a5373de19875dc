"""Scenarios that are the packaged ones but for a few values, so that a real run takes a second or two."""

from typing import Any

from simulations.scenario import Scenario, load_scenario


def changed(name: str, **changes: Any) -> Scenario:
    """A packaged scenario with other values; a key such as `plan__training__rounds` is a path."""
    scenario = load_scenario(name)
    document: dict[str, Any] = scenario.model_dump(mode="json", exclude={"deid"})
    document["deid"] = scenario.deid
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = document
        for section in sections:
            place = place[section]
        place[key] = value
    return Scenario.model_validate(document)


def silent(_: str) -> None:
    """A progress report that nobody reads."""
