"""Flower's SuperLink, whose Control API asks for a token.

Flower's own accounts are in its enterprise edition; without them every user of the machine who reaches the port could
submit code, and the executor would run it as the coordinator, with the passphrase. So SuperLink is started from here,
with an authentication of ours in the place where Flower has one that lets everybody in. The names of Flower's that are
used hold for flwr >=1.41,<1.42.

    python -P -m server.guarded_superlink TOKEN_FILE flower-superlink ...
"""

import hmac
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flwr.common.constant import ACCESS_TOKEN_KEY
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli import flower_superlink

SUPPORTED_FLOWER: Final = ">=1.41,<1.42"
SHORTEST_TOKEN: Final = 32


class TokenPlugin(NoOpControlAuthnPlugin):
    """Lets in who brings the token as `Authorization: Bearer …`."""

    def __init__(self, token: str) -> None:
        """Keep the token; raises ValueError if it is too short to be one."""
        super().__init__()
        if len(token) < SHORTEST_TOKEN:
            raise ValueError(f"a token has at least {SHORTEST_TOKEN} characters, not {len(token)}")
        self._token = token.encode()

    def validate_tokens_in_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[bool, Any]:
        """Whether the token is there, once; in a time that tells nothing of it."""
        given = [value for name, value in metadata if name == ACCESS_TOKEN_KEY]
        if len(given) != 1:
            return False, None
        presented = given[0] if isinstance(given[0], bytes) else given[0].encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(presented, self._token):
            return False, None
        return super().validate_tokens_in_metadata(metadata)

    def refresh_tokens(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[None, None]:
        """Refuse: this token is not refreshed, and nobody gets one for asking."""
        return None, None


def main(arguments: Sequence[str]) -> None:
    """Become SuperLink. Args: arguments: The file with the token, Flower's program, and its arguments."""
    plugin = TokenPlugin(Path(arguments[0]).read_text(encoding="ascii"))
    module = sys.modules[flower_superlink.__module__]
    if not callable(getattr(module, "load_control_authn_plugin", None)):
        raise RuntimeError("this Flower has no place for an authentication of the Control API")
    setattr(module, "load_control_authn_plugin", lambda: plugin)  # noqa: B010 - Flower's module, not an own attribute
    sys.argv = list(arguments[1:])
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
