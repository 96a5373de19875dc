"""Where an audit report goes: one HTML file and one JSON file beside it, each whole or not there."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, OutputExists
from common.files import write_atomic
from common.report.dossier_page import render_dossier

REPORT_NAME = "audit-report"
_SUFFIXES = (".html", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """The two files of one report."""

    html: Path
    json: Path

    @classmethod
    def at(cls, out: Path, *, force: bool) -> "ReportFiles":
        """The files for `out`: a directory, or a file that ends in .html or .json and whose sibling is the other.

        Raises:
            OutputExists: If one of them is there and `force` is off.
            ConfigurationError: If `out` is a file of another kind, or one of the two is a directory.
        """
        if out.suffix in _SUFFIXES and not out.is_dir():
            files = cls(html=out.with_suffix(".html"), json=out.with_suffix(".json"))
        elif out.exists() and not out.is_dir():
            raise ConfigurationError(
                f"{out}: a report is a directory, or a file that ends in .html or .json", hint="choose another --out"
            )
        else:
            files = cls(html=out / f"{REPORT_NAME}.html", json=out / f"{REPORT_NAME}.json")
        for path in (files.html, files.json):
            if path.is_dir():
                raise ConfigurationError(f"{path}: is a directory", hint="choose another --out")
            if os.path.lexists(path) and not force:
                raise OutputExists(f"{path}: is already there", hint="choose another --out, or give --force")
        return files

    def write(self, document: Mapping[str, Any]) -> None:
        """Write both, readable by their owner only: counts in them stay at a site.

        Raises:
            ConfigurationError: If they cannot be written.
        """
        page = render_dossier(document)
        try:
            write_atomic(self.json, encode_dossier(document))
            write_atomic(self.html, page.encode())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigurationError(f"{self.html.parent}: the report cannot be written: {reason}") from error


def encode_dossier(document: Mapping[str, Any]) -> bytes:
    """The JSON document as it is written and printed; raises ValueError for NaN and infinities.

    All of it is ASCII: a terminal obeys some signs that JSON would leave raw.
    """
    return json.dumps(document, allow_nan=False).encode() + b"\n"
