"""A new policy from a file of the administrator's: checked as a whole, then signed."""

from pathlib import Path

from client.home import SiteHome
from common.errors import ConfigurationError
from common.policy import SitePolicy
from common.settings import MAXIMUM_FILE_BYTES, read_settings


def install_policy(home: SiteHome, path: Path) -> SitePolicy:
    """Put a policy in force; it may be the site's own policy.toml, edited where it lies.

    Raises:
        ConfigurationError: If it cannot be read or does not fit; the one before stays in force then, unless it was
            edited where it lies.
    """
    read_settings(path, SitePolicy)  # names the administrator's own file in what it says
    content = path.read_bytes()
    if len(content) > MAXIMUM_FILE_BYTES:
        raise ConfigurationError(f"{path}: larger than {MAXIMUM_FILE_BYTES} bytes")
    return home.install_policy(content)
