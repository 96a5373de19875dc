"""Where a site's files are: told by the site's own machine, never by a message or a run's config."""

from collections.abc import Mapping
from pathlib import Path

from common.errors import ConfigurationError

SITE_DIRECTORY_KEY = "site-dir"
AGENT_KEY = "agent"
PARTITION_KEY = "partition-id"
SITES_DIRECTORY_VARIABLE = "FEDWARD_SITES_DIR"


def agent_socket(node_config: Mapping[str, object]) -> Path | None:
    """The socket of the site's agent, as the SuperNode's own node config names it; None if the agent is no process."""
    named = node_config.get(AGENT_KEY)
    return Path(named) if isinstance(named, str) and named else None


def site_directory(node_config: Mapping[str, object], environment: Mapping[str, str]) -> Path:
    """The directory of the site that this node speaks for.

    A SuperNode names it in its own node config as `site-dir`. A simulated node has a `partition-id` instead, and the
    site is the sub-directory at that place of `FEDWARD_SITES_DIR`, sorted by name.

    Raises:
        ConfigurationError: If neither is given, or the place does not exist.
    """
    named = node_config.get(SITE_DIRECTORY_KEY)
    if isinstance(named, str) and named:
        return _existing(Path(named))
    partition = node_config.get(PARTITION_KEY)
    parent = environment.get(SITES_DIRECTORY_VARIABLE)
    if not isinstance(partition, int) or not parent:
        raise ConfigurationError(
            "this node is not told which site it speaks for",
            hint=f"Start the SuperNode with --node-config '{SITE_DIRECTORY_KEY}=\"/path/of/the/site\"'.",
        )
    sites = sorted(entry for entry in _existing(Path(parent)).iterdir() if entry.is_dir())
    if not 0 <= partition < len(sites):
        raise ConfigurationError(f"node {partition} has no site: {SITES_DIRECTORY_VARIABLE} holds {len(sites)}")
    return sites[partition]


def _existing(directory: Path) -> Path:
    if not directory.is_dir():
        raise ConfigurationError(f"{directory.name}: no such directory on this machine")
    return directory
