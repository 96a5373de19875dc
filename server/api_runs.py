"""What the API tells of runs: their state, and those files that were made to be shown."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from common.canonical import canonical_json
from common.crypto.keys import VerifyKey
from common.errors import ConfigurationError, FederationError
from common.plan import Manifest
from common.settings import parse_json_settings
from common.signed import read_signed
from server.run_status import FlowerRuns, asks_flower, read_result, run_status

PUBLIC_FILES: Final = {
    "plan.json": "plan.json",
    "manifest.json": "manifest.json",
    "trust.json": "trust.json",
    "witnesses.jsonl": "witnesses.jsonl",
    "result.json": "result.json",
    "evaluation.json": "evaluation.json",
    "card.json": "model/card.json",
    "signature.json": "model/signature.json",
}
_RUN_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
UNREADABLE: Final = "unreadable"
"""The state of a run whose files are damaged."""


class Runs:
    """The runs of one coordinator directory, as far as their manifest is signed by it."""

    def __init__(self, root: Path, *, key: VerifyKey) -> None:
        self._root, self._directory, self._key = root, root / "runs", key

    def all(self, *, site: str = "") -> Iterator[dict[str, Any]]:
        """A summary of each, sorted by id; of those with `site` in their roster if one is given."""
        if not self._directory.is_dir():
            return
        flower_runs = cache(asks_flower(self._root))
        for path in sorted(self._directory.iterdir()):
            found = self.one(path.name, site=site, flower_runs=flower_runs)
            if found is not None:
                yield found

    def one(self, run_id: str, *, site: str = "", flower_runs: FlowerRuns | None = None) -> dict[str, Any] | None:
        """The summary of one run; None if there is none, or `site` is given and not in its roster.

        Its state is that which `fedward server runs` shows.
        """
        manifest = self._manifest(run_id)
        if manifest is None or (site and site not in manifest.names):
            return None
        path = self._directory / run_id
        try:
            status = run_status(path, flower_runs=flower_runs or asks_flower(self._root))
            state, error, result = str(status.state), status.error, read_result(path)
        except ConfigurationError:
            state, error, result = UNREADABLE, "", None
        shown = result and {name: getattr(result, name) for name in ("rounds", "attempts", "model_digest")}
        return {
            "run_id": run_id,
            "plan_digest": manifest.plan_digest,
            "manifest_digest": manifest.digest,
            "sites": list(manifest.names),
            "planned_rounds": manifest.rounds,
            "state": state,
            "error": error,
            "result": shown,
            "files": [name for name, place in PUBLIC_FILES.items() if (path / place).is_file()],
        }

    def file(self, run_id: str, name: str) -> Path | None:
        """Where one of `PUBLIC_FILES` lies; None for every other name, and if it is not there."""
        place = PUBLIC_FILES.get(name)
        if place is None or self._manifest(run_id) is None:
            return None
        path = self._directory / run_id / place
        return path if path.is_file() and not path.is_symlink() else None

    def _manifest(self, run_id: str) -> Manifest | None:
        if _RUN_ID.fullmatch(run_id) is None:
            return None
        path = self._directory / run_id / "manifest.json"
        try:
            document = canonical_json(read_signed(path, "manifest", self._key))
            manifest = parse_json_settings(document, Manifest, source=str(path))
        except FederationError:
            return None
        return manifest if manifest.run_id == run_id else None
