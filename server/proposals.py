"""Plans that researchers ask for: kept until the coordinator's people run one or remove it.

`proposals/<64 hex digits of the plan's digest>.json`, signed with the key of the acts: the API wrote it. A proposal
moves nothing by itself. What sites are asked is signed anew, by the coordinator's key, when a person runs it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from common.canonical import canonical_json
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError, FederationError, PolicyRefused
from common.plan import TrainingPlan
from common.settings import Settings, parse_json_settings, parse_settings, parse_toml
from common.signed import read_signed, write_signed
from server.lock import exclusive
from server.moments import TimeText, time_text
from server.tokens import PersonName

PROPOSAL_DOMAIN: Final = "proposal"
MAXIMUM_PLAN_BYTES: Final = 256 << 10
MOST_PROPOSALS: Final = 200
MOST_OF_ONE: Final = 20
_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_BEGINNING: Final = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_SHOWN: Final = 12
_MOST_SHOWN: Final = 10


class Proposal(Settings):
    """A plan, and who asked for it, oldest first."""

    version: Literal[1] = 1
    plan: TrainingPlan
    proposers: dict[PersonName, TimeText]


def parse_plan(content: bytes, *, toml: bool) -> TrainingPlan:
    """A plan as TOML or JSON: its sections at the top, or under one table `plan`.

    Raises:
        ConfigurationError: If it is too large, malformed, or no plan. The message names every key at fault.
    """
    if len(content) > MAXIMUM_PLAN_BYTES:
        raise ConfigurationError(f"the plan has {len(content)} bytes, at most {MAXIMUM_PLAN_BYTES} are read")
    try:
        document = parse_toml(content.decode()) if toml else json.loads(content)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if toml else "JSON"
        raise ConfigurationError(f"the plan cannot be read as {kind}: {str(error)[:200]}") from error
    if isinstance(document, dict) and "plan" in document and set(document) <= {"plan", "signature"}:
        document = document["plan"]
    if not isinstance(document, dict):
        raise ConfigurationError("the plan is no table")
    return parse_settings(document, TrainingPlan, source="the plan")


class Proposals:
    """The proposals of one coordinator directory."""

    def __init__(self, root: Path, *, key: VerifyKey) -> None:
        """Args: root: The coordinator's directory. key: `server.acts.read_acts_key(root)`."""
        self._root, self._directory, self._key = root, root / "proposals", key

    def add(self, plan: TrainingPlan, *, proposer: str, key: SigningKey, now: datetime) -> bool:
        """Keep a plan; whether this person had not proposed it before.

        Raises:
            PolicyRefused: If there are too many, of this person or of all.
        """
        path = self._path(plan.digest)
        with exclusive(self._root / "proposals.lock"):
            known = self.all()
            own = sum(proposer in proposal.proposers for proposal in known)
            same = next((proposal for proposal in known if proposal.plan.digest == plan.digest), None)
            proposers = {} if same is None else same.proposers
            if proposer in proposers:
                return False
            if own >= MOST_OF_ONE or (same is None and len(known) >= MOST_PROPOSALS):
                raise PolicyRefused(
                    f"{own} plans of {proposer} and {len(known)} in all wait, "
                    f"at most {MOST_OF_ONE} and {MOST_PROPOSALS} may",
                    hint="ask the coordinator to run or remove some",
                )
            kept = Proposal(plan=plan, proposers={**proposers, proposer: time_text(now)})
            write_signed(path, PROPOSAL_DOMAIN, kept.model_dump(mode="json"), key)
        return True

    def all(self) -> list[Proposal]:
        """Every proposal that the key signed; a file that it did not sign is passed over."""
        return list(self._sound())

    def get(self, digest: str) -> Proposal:
        """One proposal, by `sha256:<hex>` or the 64 hex digits.

        Raises:
            ConfigurationError: If there is none. TrustError: If the API's key did not sign it.
        """
        path = self._path(digest)
        if not path.is_file():
            raise ConfigurationError(f"no plan {digest[:80]!r} was proposed", hint="see: fedward server proposals")
        proposal = self._read(path)
        if proposal.plan.digest.removeprefix("sha256:") != path.stem:
            raise ConfigurationError(f"{path}: holds another plan than its name says")
        return proposal

    def find(self, beginning: str) -> Proposal:
        """One proposal, by its digest or by how that begins: at least 8 hex digits that fit no other.

        Raises:
            ConfigurationError: If it is no beginning of a digest, or that of none or of several.
            TrustError: If the API's key did not sign it.
        """
        form = _BEGINNING.fullmatch(beginning.lower())
        if form is None:
            raise ConfigurationError(
                f"{beginning[:80]!r} is neither a file nor the digest of a proposal",
                hint=f"of a digest 8 hex digits are enough; {self._listed()}",
            )
        found = [path.stem for path in sorted(self._directory.glob(f"{form[1]}*.json"))]
        if len(found) != 1:
            many = f"{len(found)} proposed plans begin" if found else "no proposed plan begins"
            raise ConfigurationError(f"{many} with {form[1]!r}", hint=self._listed(found))
        return self.get(found[0])

    def remove(self, digest: str) -> None:
        """Forget a proposal; raises ConfigurationError if there is none."""
        with exclusive(self._root / "proposals.lock"):
            try:
                self._path(digest).unlink()
            except FileNotFoundError as error:
                raise ConfigurationError(f"no plan {digest[:80]!r} was proposed") from error

    def _listed(self, stems: Sequence[str] = ()) -> str:
        """These proposals, or all, as a hint names them."""
        known = [one for one in self._sound() if not stems or one.plan.digest.removeprefix("sha256:") in stems]
        length = 64 if stems else _SHOWN
        named = [f"{one.plan.digest[7 : 7 + length]} of {', '.join(one.proposers)}" for one in known[:_MOST_SHOWN]]
        more = f" and {len(known) - _MOST_SHOWN} more" if len(known) > _MOST_SHOWN else ""
        return f"proposed are: {'; '.join(named)}{more}" if named else "no plan was proposed"

    def _sound(self) -> Iterator[Proposal]:
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield self.get(path.stem)
            except FederationError:
                continue

    def _read(self, path: Path) -> Proposal:
        document = canonical_json(read_signed(path, PROPOSAL_DOMAIN, self._key))
        return parse_json_settings(document, Proposal, source=str(path))

    def _path(self, digest: str) -> Path:
        form = _DIGEST.fullmatch(digest)
        if form is None:
            raise ConfigurationError(f"{digest[:80]!r} is no digest of a plan: sha256: and 64 hex digits")
        return self._directory / f"{form[1]}.json"
