"""Which of Flower's nodes speaks for which site.

A node is whoever holds a node key; a site is whoever signs with an identity key. Agreements are relayed to every site,
so a signed agreement alone does not prove through which node its site is reached. Hence: a node speaks for one site,
and a site keeps its node for as long as that is connected.
"""

from collections.abc import Collection, Iterable, Mapping

from common.errors import TrustError


class Addresses:
    """The nodes of one run."""

    def __init__(self) -> None:
        self._nodes: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._lost: set[str] = set()
        self._passed_over: set[int] = set()

    @property
    def sites(self) -> list[str]:
        """The sites that have a node, sorted."""
        return sorted(self._nodes)

    def node_of(self, site: str) -> int:
        """The node through which a site is asked; raises KeyError if it has none."""
        return self._nodes[site]

    def invitable(self, connected: Iterable[int]) -> list[int]:
        """The connected nodes that an invitation could bring anything from, sorted."""
        speaking = {node for site, node in self._nodes.items() if site not in self._lost}
        return sorted(set(connected) - speaking - self._passed_over)

    def take(self, site: str, node: int, *, connected: Collection[int]) -> bool:
        """Let a node speak for a site that it brought a signed agreement of.

        Returns:
            False if another node speaks for the site and is still connected: two couriers share an identity, and the
            first is asked.

        Raises:
            TrustError: If the node speaks for another site.
        """
        known = {**self._before, **self._nodes}
        others = [name for name, number in known.items() if number == node and name != site]
        if others:
            raise TrustError(f"the node of {others[0]} answered in the name of {site}")
        if known.get(site, node) != node and known[site] in connected:
            return False
        self._nodes[site] = node
        self._lost.discard(site)
        return True

    def pass_over(self, node: int) -> None:
        """Do not invite this node again."""
        self._passed_over.add(node)

    def lose(self, site: str) -> None:
        """A site fell silent for good: its node may be invited again, should it be there."""
        self._lost.add(site)

    def dismiss(self, site: str) -> None:
        """A site is out for good: it is neither asked nor invited again."""
        for nodes in (self._nodes, self._before):
            if site in nodes:
                self.pass_over(nodes.pop(site))

    def to_json(self) -> dict[str, str]:
        """Node id per site, as text: it may pass 2**53."""
        return {site: str(node) for site, node in {**self._before, **self._nodes}.items()}

    def restore(self, nodes: Mapping[str, str]) -> None:
        """Remember who spoke for whom before a restart; every site must be heard anew before it is asked."""
        self._before = {site: int(node) for site, node in nodes.items()}
