"""Directed graphs as index arrays: generated ones, networkx graphs, edge lists and GraphML files.

An edge i → j says that node i influences node j. Nodes are numbered from 0. A two-way or undirected
graph holds both directions of every edge.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from torchloc.environments.checks import choice, sites, whole
from torchloc.errors import BudgetError, InputError
from torchloc.mdp.checks import IntArray, frozen

if TYPE_CHECKING:
    import networkx as nx

SHAPES = ("ring", "line", "star", "three_leg", "grid", "torus", "random_regular")
CONTACTS = ("karate", "les_miserables", "davis")
FILE_BYTES = 2**26
"""Of a graph file at most; some five million edges."""


@dataclass(frozen=True, eq=False)
class Digraph:
    """Nodes 0 … n − 1 and edges sources[e] → targets[e], each once, ordered by target, then source.

    Attributes:
        n: Number of nodes.
        sources: (E,) tails of the edges.
        targets: (E,) heads of the edges.
        names: n labels, or None where the nodes are called by number.

    Raises:
        InputError: A self-loop. (Every family that wants a site's own state reads it anyway.)
    """

    n: int
    sources: IntArray
    targets: IntArray
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        loops = self.sources == self.targets
        if loops.any():
            raise InputError(
                f"the graph has a self-loop at {self.name(int(self.sources[np.argmax(loops)]))}; "
                f"remove it, a site's own state is no neighbour"
            )
        pairs = _distinct(self.targets * np.int64(self.n) + self.sources)
        object.__setattr__(self, "targets", frozen(pairs // self.n))
        object.__setattr__(self, "sources", frozen(pairs % self.n))

    def name(self, node: int) -> str:
        """How an error calls the node."""
        return f"node {self.names[node]!r}" if self.names else f"node {node}"

    @property
    def in_degrees(self) -> IntArray:
        """(n,) number of predecessors."""
        return np.bincount(self.targets, minlength=self.n)

    def groups(self) -> Iterator[tuple[IntArray, IntArray]]:
        """Nodes of equal in-degree d: indices (B,) and predecessors (B, d), both ascending."""
        degrees = self.in_degrees
        starts = np.cumsum(degrees) - degrees
        for degree in np.unique(degrees):
            nodes = np.flatnonzero(degrees == degree)
            yield nodes, self.sources[starts[nodes][:, None] + np.arange(degree)]

    def links(self) -> IntArray:
        """(E', 2) pairs i < j joined by an edge in either direction, each once."""
        low, high = np.minimum(self.sources, self.targets), np.maximum(self.sources, self.targets)
        pairs = _distinct(low * np.int64(self.n) + high)
        return np.stack([pairs // self.n, pairs % self.n], axis=1)


def _distinct(values: IntArray) -> IntArray:
    # np.unique hashes first, which takes ten times as long on a million integers.
    ordered = np.sort(values)
    return ordered[np.diff(ordered, prepend=-1) > 0]


def shaped(
    shape: str,
    n: int,
    *,
    two_way: bool,
    rows: int | None = None,
    degree: int = 3,
    seed: int = 0,
) -> Digraph:
    """A generated graph of `SHAPES`.

    Args:
        shape: `ring` j − 1 → j; `line` j − 1 → j without closing; `star` hub 0 → leaves;
            `three_leg` hub 0 → three lines, nodes dealt in turn; `grid` and `torus` (4 neighbours),
            which are two-way always; `random_regular`, undirected, every node with `degree`
            neighbours.
        n: Number of nodes.
        two_way: Whether ring, line, star and three_leg hold the opposite edges too.
        rows: Rows of a grid or torus, a divisor of n; None: the largest divisor ≤ √n.
        degree: Neighbours a node has in `random_regular`.
        seed: Seed of `random_regular`.

    Raises:
        InputError: An unknown shape, or one that n, rows or degree cannot make.
    """
    choice("graph", shape, SHAPES)
    least = {"ring": 3 if two_way else 2, "three_leg": 4}.get(shape, 2)
    if sites(n, 1) < least:
        raise InputError(f"n = {n}; a {shape} needs at least {least} nodes")
    node = np.arange(n, dtype=np.int64)
    if shape in ("grid", "torus"):
        sources, targets = _lattice(shape, n, rows)
        two_way = True
    elif shape == "random_regular":
        sources, targets = _random_regular(n, degree, seed)
        two_way = True
    else:
        targets = node if shape == "ring" else node[1:]
        sources = {
            "ring": np.roll(node, 1),
            "line": node[:-1],
            "star": np.zeros(n - 1, dtype=np.int64),
            "three_leg": np.maximum(node[1:] - 3, 0),
        }[shape]
    if two_way:
        sources, targets = np.concatenate([sources, targets]), np.concatenate([targets, sources])
    return Digraph(n, sources, targets)


def _lattice(shape: str, n: int, rows: int | None) -> tuple[IntArray, IntArray]:
    """Each edge once: to the right and down."""
    if rows is None:
        rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    elif n % whole("rows", rows, 1):
        raise InputError(f"rows = {rows} does not divide n = {n}; give a divisor of n")
    least = 3 if shape == "torus" else 2
    if min(rows, n // rows) < least:
        raise InputError(
            f"n = {n} in {rows} rows is no {shape}: both sides need at least {least} nodes; "
            f"choose n as a product of two such sides, or name the rows"
        )
    cell = np.arange(n, dtype=np.int64).reshape(rows, -1)
    if shape == "torus":
        ends = [(cell, np.roll(cell, -1, axis=1)), (cell, np.roll(cell, -1, axis=0))]
    else:
        ends = [(cell[:, :-1], cell[:, 1:]), (cell[:-1], cell[1:])]
    first, second = (np.concatenate([pair[side].ravel() for pair in ends]) for side in (0, 1))
    return first, second


def _random_regular(n: int, degree: int, seed: int) -> tuple[IntArray, IntArray]:
    import networkx as nx  # late: generated models start without it

    if whole("degree", degree, 1) >= n or n * degree % 2:
        raise InputError(
            f"degree = {degree}; a random regular graph on n = {n} nodes needs a degree below n, "
            f"and n · degree even"
        )
    graph = nx.random_regular_graph(degree, n, seed=whole("seed", seed, 0))
    edges = np.array(list(graph.edges), dtype=np.int64)
    return edges[:, 0], edges[:, 1]


def contact(name: str) -> Digraph:
    """A real contact graph that networkx carries, both directions of every edge.

    `karate` (Zachary 1977; 34 nodes, degree up to 17), `les_miserables` (Knuth 1993; 77, 36),
    `davis` (Davis, Gardner and Gardner 1941, women and the events they attended; 32, 14).
    """
    import networkx as nx  # late: generated models start without it

    if choice("graph", name, CONTACTS) == "karate":
        return from_networkx(nx.karate_club_graph())
    if name == "les_miserables":
        return from_networkx(nx.les_miserables_graph())
    return from_networkx(nx.davis_southern_women_graph())


def from_networkx(graph: nx.Graph) -> Digraph:
    """A networkx graph; an undirected one holds both directions, parallel edges count once.

    Nodes labelled 0 … n − 1, in any order, keep their numbers and get no names. Other labels are
    names, whole numbers in ascending order, others in the graph's own.

    Raises:
        InputError: Not a graph, no nodes, or a self-loop.
    """
    if not (hasattr(graph, "edges") and hasattr(graph, "is_directed")):
        raise InputError(f"graph is a {type(graph).__name__}; give a networkx graph")
    return _labelled(list(graph.nodes), list(graph.edges()), graph.is_directed(), "graph")


def from_file(path: str | PathLike[str], *, directed: bool) -> Digraph:
    """A graph read from a file.

    Args:
        path: A GraphML file (`.graphml` or `.xml`), which says itself whether it is directed, or an
            edge list: a line `i j` an edge (commas in a `.csv`), `#` starts a comment, columns
            after the second are not read.
        directed: How an edge list is read: i → j, or both directions.

    Raises:
        InputError: The file is missing, unreadable, malformed or empty.
        BudgetError: It is larger than `FILE_BYTES`.
    """
    path = Path(path)
    content = _content(path)
    if path.suffix.lower() in (".graphml", ".xml"):
        return _graphml(content, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(
            f"graph_file: {path} cannot be read: it is no UTF-8 text; give an edge list or a .graphml file"
        ) from None
    edges = list(_edge_lines(text, path))
    nodes = dict.fromkeys(node for edge in edges for node in edge)
    return _labelled(list(nodes), edges, directed, f"graph_file {path}")


def _content(path: Path) -> bytes:
    """The bytes of a graph file."""
    try:
        if not path.exists():
            raise InputError(f"graph_file: there is no file {path}")
        if not path.is_file():
            raise InputError(
                f"graph_file: {path} cannot be read: it is no regular file; give an edge list or GraphML"
            )
        size = path.stat().st_size
        if size > FILE_BYTES:
            raise BudgetError(
                f"graph_file: {path} has {size:,} bytes, over the limit of {FILE_BYTES:,}; build the model in "
                f"code with FactoredMDP and batches"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"graph_file: {path} cannot be read: {error.strerror}") from error


def _edge_lines(text: str, path: Path) -> Iterator[tuple[str, str]]:
    separator = "," if path.suffix.lower() == ".csv" else None
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.split("#", 1)[0].strip()
        fields = [field.strip() for field in content.split(separator)]
        if content and (len(fields) < 2 or not all(fields[:2])):
            raise InputError(
                f"graph_file: line {number} of {path} is {line.strip()[:80]!r}; an edge needs two nodes "
                f"with {'a comma' if separator else 'a space'} between them"
            )
        if content:
            yield fields[0], fields[1]


def _graphml(content: bytes, path: Path) -> Digraph:
    import networkx as nx  # late: generated models start without it

    def refuse(*_: object) -> None:
        # A few lines of entities expand to more text than a memory holds.
        raise InputError(
            f"graph_file: {path} declares XML entities; write the GraphML without them"
        )

    scan = expat.ParserCreate()
    scan.EntityDeclHandler = refuse
    try:
        scan.Parse(content, True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of attributes, which are not read
            graph: Any = nx.read_graphml(io.BytesIO(content))
    except InputError:
        raise
    except (
        ElementTree.ParseError, expat.ExpatError, nx.NetworkXError, AttributeError, LookupError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        raise InputError(f"graph_file: {path} is no valid GraphML: {error}") from error
    nodes, edges = list(graph.nodes), list(graph.edges())
    return _labelled(nodes, edges, graph.is_directed(), f"graph_file {path}")


def _labelled(
    nodes: list[Hashable], edges: Iterable[tuple[Hashable, Hashable]], directed: bool, origin: str
) -> Digraph:
    if not nodes:
        raise InputError(f"{origin} has no nodes; a model needs at least one")
    numbered = {number: node for node in nodes if (number := _number(node)) is not None}
    if len(numbered) == len(nodes):
        nodes = [numbered[number] for number in sorted(numbered)]
    plain = {*numbered} == {*range(len(nodes))}
    names = None if plain else tuple(str(node) for node in nodes)
    index = {node: i for i, node in enumerate(nodes)}
    pairs = np.array([(index[i], index[j]) for i, j in edges], dtype=np.int64).reshape(-1, 2)
    sources, targets = pairs[:, 0], pairs[:, 1]
    if not directed:
        sources, targets = np.concatenate([sources, targets]), np.concatenate([targets, sources])
    return Digraph(len(nodes), sources, targets, names)


def _number(label: Hashable) -> int | None:
    """The whole number that a label is or spells."""
    if isinstance(label, int):
        return label
    if isinstance(label, str) and label.isascii() and label.isdecimal() and len(label) < 20:
        return int(label)
    return None
