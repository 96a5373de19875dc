"""TOML files read into frozen models; an error names the file, the key and the nearest key that exists."""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import ConfigurationError

MAXIMUM_FILE_BYTES = 4 << 20
LONGEST_KEY = 64
"""Names in a dotted key. The parser's time grows with the square of them: 64 kB of one key take it 17 s."""

_BETWEEN_KEYS = re.compile(r"[,=\n\[\]{}]")


class Settings(BaseModel):
    """A frozen table of settings: unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; what was worked out from the old values, such as a digest, is left behind."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(copied).model_fields.keys():
            del copied.__dict__[name]
        return copied


Model = TypeVar("Model", bound=BaseModel)


def read_settings(path: Path, model: type[Model]) -> Model:
    """Read one TOML file into `model`.

    Raises:
        ConfigurationError: If the file is missing, too large, not TOML, or does not fit the model. The
            message names the file and every key at fault; an unknown key comes with the nearest known one.
    """
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than {MAXIMUM_FILE_BYTES} bytes")
        document = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from error
    return parse_settings(document, model, source=str(path))


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document, in a time that grows with its length alone; raises ValueError if it is none."""
    if any(piece.count(".") > LONGEST_KEY for piece in _BETWEEN_KEYS.split(text)):
        raise ValueError(f"a key or a text has more than {LONGEST_KEY} dots")
    return tomllib.loads(text)


def parse_json_settings(content: bytes, model: type[Model], *, source: str) -> Model:
    """Fit a JSON document into `model`; raises ConfigurationError as `read_settings` does."""
    if len(content) > MAXIMUM_FILE_BYTES:
        raise ConfigurationError(f"{source}: larger than {MAXIMUM_FILE_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{source}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: holds no JSON object")
    return parse_settings(document, model, source=source)


def parse_settings(document: dict[str, Any], model: type[Model], *, source: str) -> Model:
    """Fit an already parsed document into `model`; raises ConfigurationError as `read_settings` does."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [_describe(fault, model) for fault in error.errors(include_url=False)]
        raise ConfigurationError(f"{source}: " + "; ".join(faults), hint=f"correct {source}") from error


def _describe(fault: Any, model: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        nearest = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"
        return f"unknown key {location!r}{nearest}"
    if fault["type"] == "missing":
        return f"key {location!r} is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    got = "" if isinstance(fault["input"], dict | list | BaseModel) else f" (got {_shown(fault['input'])})"
    return f"{location or 'document'}: {reason}{got}"


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in path:
        if current is None:
            return []
        field = current.model_fields.get(str(part))
        current = _model_in(field.annotation) if field is not None else current
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
