"""Which sites of a run are members no more, as the coordinator's signed list says now."""

from typing import Final

from common.errors import FederationError
from server.fresh import Fresh
from server.members import Members, read_members
from server.rundir import PreparedRun

REVOKED: Final = "Revoked"
"""Why such a site is not there; it does not come back into the run, whatever becomes of it later."""


class Belonging:
    """Looks into `members.json` again whenever it is another one.

    A run that is no coordinator's, as in a simulation, has no such list: nobody is revoked there.
    """

    def __init__(self, run: PreparedRun) -> None:
        """Args: run: At `<the coordinator's directory>/runs/<run>`."""
        home = run.root.resolve().parent.parent
        self._roster = run.manifest.roster
        self._path = home / "members.json"
        self._members: Fresh[Members] = Fresh(self._path, lambda: read_members(home, run.trust.coordinator_key))
        self._gone: frozenset[str] = frozenset()

    def gone(self) -> frozenset[str]:
        """The sites of the roster that are members no more, or members with another key.

        While the list cannot be relied on, it is as it was before; the gateway lets nobody in then.
        """
        if self._path.exists():
            try:
                active = self._members.get().active
            except FederationError:
                return self._gone
            keys = {name: member.identity_key for name, member in active.items()}
            self._gone = frozenset(entry.name for entry in self._roster if keys.get(entry.name) != entry.identity_key)
        return self._gone
