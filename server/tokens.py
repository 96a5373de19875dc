"""Who may use the API: bearer tokens, shown once, kept as digests, in a file that the coordinator signs.

A token is `fwt_<id>_<secret>`: 16 hex digits that name it, 43 characters of base64url for 256 random bits. The API
verifies the file and cannot write it, so whoever breaks into the API makes no tokens.
"""

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from common.canonical import canonical_json, digest_bytes
from common.crypto.keys import VerifyKey
from common.enrolment import SiteName
from common.errors import ConfigurationError, TrustError
from common.settings import Settings, parse_json_settings
from common.signed import read_signed, write_signed
from server.actlog import ActLog
from server.acts import Actor
from server.home import ServerHome
from server.lock import exclusive
from server.members import read_members
from server.moments import TimeText, time_text

TOKENS_DOMAIN: Final = "tokens"
SECRET_DOMAIN: Final = "token-secret"
LONGEST_DAYS: Final = 366
SECRET_BYTES: Final = 32
_FORM: Final = re.compile(r"fwt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = digest_bytes(SECRET_DOMAIN, b"")

TokenId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
PersonName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._@-]{0,62}$")]


class Role(StrEnum):
    """What a token's bearer is."""

    COORDINATOR = "coordinator"
    RESEARCHER = "researcher"
    AUDITOR = "auditor"
    SITE = "site"


class Token(Settings):
    """One token; its secret is not here.

    Attributes:
        digest: `sha256:<hex>` of the secret.
        name: Of the person or machine; the actor of every act.
        site: Of which site; only and always with the role site.
        expires: From then on it opens nothing.
        revoked: Since when it opens nothing; None while it does.
    """

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    role: Role
    name: PersonName
    site: Literal[""] | SiteName = ""
    created: TimeText
    expires: TimeText
    revoked: TimeText | None = None

    @model_validator(mode="after")
    def _site_fits(self) -> Self:
        if (self.role is Role.SITE) != bool(self.site):
            raise ValueError("a token of role 'site' names its site, and no other token does")
        return self

    def is_live(self, now: datetime) -> bool:
        """Whether it opens anything now."""
        return self.revoked is None and time_text(now) < self.expires


class TokensFile(Settings):
    """`tokens.json`."""

    version: Literal[1] = 1
    tokens: dict[TokenId, Token]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Every token that was ever made, by id."""

    by_id: dict[str, Token]

    def check(
        self, presented: str, *, now: datetime, equal: Callable[[bytes, bytes], bool] = hmac.compare_digest
    ) -> Token:
        """The token that was presented.

        The secret's digest is compared in a time that tells nothing, and as long for an id that nobody has. Only who
        knows the secret learns that a token expired or was revoked.

        Raises:
            TrustError: If it is malformed, unknown, expired or revoked.
        """
        form = _FORM.fullmatch(presented)
        if form is None:
            raise TrustError("no token of this coordinator")
        token = self.by_id.get(form[1])
        right = equal(_digest(form[2]).encode(), (token.digest if token else _NOBODY).encode())
        if token is None or not right:
            raise TrustError("no token of this coordinator")
        if not token.is_live(now):
            state = "expired" if token.revoked is None else "was revoked"
            raise TrustError(f"the token {state} at {token.revoked or token.expires}")
        return token


def read_tokens(root: Path, key: VerifyKey) -> Tokens:
    """Read the tokens of a coordinator directory.

    Raises:
        ConfigurationError: If there is no such file or it is malformed. TrustError: If `key` did not sign it.
    """
    path = root / "tokens.json"
    document = canonical_json(read_signed(path, TOKENS_DOMAIN, key))
    return Tokens(by_id=parse_json_settings(document, TokensFile, source=str(path)).tokens)


def write_tokens(home: ServerHome, tokens: Tokens) -> None:
    """Sign and write the tokens."""
    document = TokensFile(tokens=tokens.by_id).model_dump(mode="json")
    write_signed(home.tokens_path, TOKENS_DOMAIN, document, home.key)


def create_token(
    home: ServerHome, *, role: Role, name: str, site: str, days: int, actor: Actor, log: ActLog, now: datetime
) -> tuple[str, str]:
    """Make a token: its id, and its text, which is not kept anywhere.

    Raises:
        ConfigurationError: If days, name, role and site do not fit, or a live token has this name.
    """
    if not 1 <= days <= LONGEST_DAYS:
        raise ConfigurationError(f"a token lasts 1 to {LONGEST_DAYS} days, not {days}")
    if (role is Role.SITE) != bool(site):
        raise ConfigurationError(
            "a token of role site names its site, and no other token does", hint="--role site --site NAME"
        )
    with exclusive(home.root / "tokens.lock"):
        tokens = dict(read_tokens(home.root, home.key.public_key).by_id)
        if any(token.name == name and token.is_live(now) for token in tokens.values()):
            raise ConfigurationError(
                f"a token of {name!r} is in force; acts name people, so a name is one token's",
                hint="revoke that one first, or choose another name",
            )
        if role is Role.SITE and site and site not in read_members(home.root, home.key.public_key).active:
            raise ConfigurationError(f"{site[:63]!r} is no member", hint="enrol it first: fedward server enrol")
        token_id, secret = secrets.token_hex(8), _text(secrets.token_bytes(SECRET_BYTES))
        fields = {
            "digest": _digest(secret),
            "role": role.value,
            "name": name,
            "site": site,
            "created": time_text(now),
            "expires": time_text(now + timedelta(days=days)),
        }
        document = canonical_json({"tokens": {token_id: fields}})
        made = parse_json_settings(document, TokensFile, source="the new token").tokens[token_id]
        detail = {"name": name, "role": role.value, "site": site, "expires": made.expires}
        log.append("token create", actor=actor, subject=token_id, detail=detail)
        write_tokens(home, Tokens(by_id={**tokens, token_id: made}))
    return token_id, f"fwt_{token_id}_{secret}"


def revoke_token(home: ServerHome, token_id: str, *, actor: Actor, log: ActLog, now: datetime) -> Token:
    """End a token; the API refuses it from its next request on. Raises ConfigurationError if it is not in force."""
    with exclusive(home.root / "tokens.lock"):
        tokens = dict(read_tokens(home.root, home.key.public_key).by_id)
        token = tokens.get(token_id)
        if token is None or token.revoked is not None:
            raise ConfigurationError(f"no token {token_id[:63]!r} is in force", hint="see: fedward server token list")
        log.append("token revoke", actor=actor, subject=token_id, detail={"name": token.name, "role": token.role.value})
        tokens[token_id] = token.model_copy(update={"revoked": time_text(now)})
        write_tokens(home, Tokens(by_id=tokens))
    return tokens[token_id]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _digest(secret: str) -> str:
    try:
        raw = base64.b64decode(secret + "=", altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise TrustError("no token of this coordinator") from error
    return digest_bytes(SECRET_DOMAIN, raw)
