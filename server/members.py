"""Who belongs to the consortium: the sites that were enrolled, their pinned keys, and what every site is told of it.

`members.json` is signed by the coordinator, so processes without its passphrase can rely on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, field_validator

from common.canonical import canonical_json
from common.crypto.keys import VerifyKey
from common.enrolment import (
    Consortium,
    Enrolment,
    SiteName,
    node_key_digest,
    node_key_text,
    read_consortium,
    write_consortium,
)
from common.errors import ConfigurationError, FederationError, TrustError
from common.settings import Settings, parse_json_settings, parse_settings
from common.signed import read_signed, write_signed
from server.actlog import ActLog
from server.acts import Actor
from server.home import ServerHome
from server.lock import exclusive
from server.moments import TimeText, time_text

MEMBERS_DOMAIN: Final = "members"


class Member(Settings):
    """One enrolled site.

    Attributes:
        identity_key: `ed25519:…`, as its enrolment names it.
        node_key: OpenSSH public key of its courier.
        nominal_patients: Public, rounded; its weight.
        enrolled: When its keys were pinned.
        revoked: Since when it is no member; None while it is.
        former_keys: Identity and node keys of it that were revoked; they come back only when a person says so.
    """

    identity_key: str
    node_key: str
    nominal_patients: int = Field(ge=1)
    enrolled: TimeText
    revoked: TimeText | None = None
    former_keys: tuple[str, ...] = ()

    @field_validator("identity_key")
    @classmethod
    def _is_an_identity(cls, text: str) -> str:
        return VerifyKey.parse(text).text

    @field_validator("node_key")
    @classmethod
    def _is_a_node_key(cls, text: str) -> str:
        return node_key_text(text.encode())

    @property
    def keys(self) -> tuple[str, str]:
        """Identity and node key."""
        return self.identity_key, self.node_key

    @property
    def node_digest(self) -> str:
        """Which node key it is, as the gateway names it."""
        return node_key_digest(self.node_key)


class MembersFile(Settings):
    """`members.json`."""

    version: Literal[1] = 1
    members: dict[SiteName, Member]


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Every site that was ever enrolled, by name."""

    by_name: dict[str, Member]

    @property
    def active(self) -> dict[str, Member]:
        """Those that are not revoked, sorted by name."""
        return {name: member for name, member in sorted(self.by_name.items()) if member.revoked is None}

    def allowed_node_digests(self) -> frozenset[str]:
        """The node keys that the gateway lets in, as `sha256:<hex>` of their PEM."""
        return frozenset(member.node_digest for member in self.active.values())


def read_members(root: Path, key: VerifyKey) -> Members:
    """Read the members of a coordinator directory.

    Args:
        key: The coordinator's public key: `ServerHome.key.public_key` or `server.home.read_public_key`.

    Raises:
        ConfigurationError: If there is no such file or it is malformed. TrustError: If another key signed it.
    """
    path = root / "members.json"
    document = canonical_json(read_signed(path, MEMBERS_DOMAIN, key))
    return Members(by_name=parse_json_settings(document, MembersFile, source=str(path)).members)


def write_members(home: ServerHome, members: Members) -> None:
    """Sign and write the members, then what every site is told of them."""
    document = MembersFile(members=members.by_name).model_dump(mode="json")
    write_signed(home.members_path, MEMBERS_DOMAIN, document, home.key)
    write_consortium(home.consortium_path, consortium_of(home, members), home.key)


def consortium_of(home: ServerHome, members: Members) -> Consortium:
    """What every site pins; raises ConfigurationError if the authority's certificate is missing or is none."""
    try:
        certificates = (home.pki / "ca.crt").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{home.pki / 'ca.crt'}: cannot be read") from error
    fields = {
        "coordinator": home.key.public_key.text,
        "gateway": home.settings.address,
        "certificates": certificates,
        "sites": {name: member.identity_key for name, member in members.active.items()},
    }
    return parse_settings(fields, Consortium, source="the consortium")


def current_consortium(path: Path, members: Members, *, key: VerifyKey) -> Consortium | None:
    """What sites are given, if this coordinator signed it and it names exactly the active members; else None."""
    try:
        found = read_consortium(path)
    except FederationError:
        return None
    sites = {name: member.identity_key for name, member in members.active.items()}
    return found if found.coordinator == key.text and found.sites == sites else None


def enrol(
    home: ServerHome,
    enrolments: Sequence[Enrolment],
    *,
    actor: Actor,
    log: ActLog,
    now: datetime,
    again: bool = False,
) -> Members:
    """Pin the keys of sites whose fingerprints were compared; all of them or none.

    An enrolment that is already in force changes nothing.

    Args:
        again: Whether keys of the same site that were revoked may come back.

    Raises:
        TrustError: If a name is enrolled with other keys, or a key belongs or belonged to another site.
    """
    with exclusive(home.root / "members.lock"):
        members = dict(read_members(home.root, home.key.public_key).by_name)
        new = []
        for enrolment in enrolments:
            if _is_in_force(members.get(enrolment.name), enrolment):
                continue
            members[enrolment.name] = _enrolled(members, enrolment, now=now, again=again)
            new.append(enrolment)
        for enrolment in new:
            detail = {"fingerprint": enrolment.fingerprint, "node_key": enrolment.node_digest}
            log.append("enrol", actor=actor, subject=enrolment.name, detail=detail)
        changed = Members(by_name=members)
        write_members(home, changed)
    return changed


def revoke(home: ServerHome, name: str, *, actor: Actor, log: ActLog, now: datetime) -> Members:
    """Take a site out: no run gets it, and the gateway refuses its node key at once.

    Raises:
        ConfigurationError: If no such site is a member.
    """
    with exclusive(home.root / "members.lock"):
        members = dict(read_members(home.root, home.key.public_key).by_name)
        member = members.get(name)
        if member is None or member.revoked is not None:
            known = ", ".join(Members(by_name=members).active) or "none"
            raise ConfigurationError(f"{name[:63]!r} is no member", hint=f"members: {known}")
        log.append("revoke", actor=actor, subject=name, detail={"node_key": member.node_digest})
        members[name] = member.model_copy(update={"revoked": time_text(now)})
        changed = Members(by_name=members)
        write_members(home, changed)
    return changed


def _is_in_force(member: Member | None, enrolment: Enrolment) -> bool:
    return (
        member is not None
        and member.revoked is None
        and member.keys == (enrolment.identity_key, enrolment.node_key)
        and member.nominal_patients == enrolment.nominal_patients
    )


def _enrolled(members: dict[str, Member], enrolment: Enrolment, *, now: datetime, again: bool) -> Member:
    name, keys = enrolment.name, (enrolment.identity_key, enrolment.node_key)
    for other, member in members.items():
        if other != name and set(keys) & {*member.keys, *member.former_keys}:
            raise TrustError(
                f"{name}: a key of this enrolment is or was that of {other!r}",
                hint="every site makes keys of its own: fedward site init",
            )
    known = members.get(name)
    if known is not None and known.revoked is None:
        raise TrustError(
            f"{name} is enrolled since {known.enrolled}, with other keys or another number of patients",
            hint=f"if the site did change them: fedward server revoke {name}, then enrol it",
        )
    former = () if known is None else tuple(dict.fromkeys((*known.former_keys, *known.keys)))
    if set(keys) & set(former) and not again:
        raise TrustError(
            f"{name} was revoked, and this enrolment brings a key of it back",
            hint="if nobody else can hold that key: --again; else the site makes new keys",
        )
    return Member(
        identity_key=enrolment.identity_key,
        node_key=enrolment.node_key,
        nominal_patients=enrolment.nominal_patients,
        enrolled=time_text(now),
        former_keys=tuple(key for key in former if key not in keys),
    )
