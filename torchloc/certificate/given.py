"""Sensitivities that are given as matrices, where no model is at hand.

E^s and E^a are all that the rungs `exact`, `span`, `tanh`, `paper` and `scope` read of a model:
H = E^s + E^a Π, and Π comes from the policy. H grows with E^s and E^a entry by entry, so upper bounds of
these give a sound H, ρ(H) and tail. Each entry says how it is known,

    exact     computed from a known law
    ucb       an upper confidence bound; all of them hold at once with probability at least 1 − δ
    assumed   taken from the user's word, such as a zero outside declared parents

and what stands on the matrices is as good as their weakest entry. The confidence is over the samples,
and bounds the environment alone: it covers every policy at once, one that was trained on the same
samples too.

`coupled` averages the kernels themselves over the policy, so it is not to be had here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from torchloc.certificate.rounding import outward
from torchloc.errors import InputError
from torchloc.mdp import FactoredMDP, LocalReward, RewardBatch
from torchloc.mdp.checks import FloatArray, check_parents, first, frozen, integers, reals
from torchloc.mdp.gathering import Rewards, gather_rewards
from torchloc.sensitivity import action_sensitivity, state_sensitivity

Tag = Literal["exact", "ucb", "assumed"]
TAGS: tuple[Tag, ...] = ("exact", "ucb", "assumed")
"""From strong to weak; tag arrays hold the positions in this tuple."""
EXACT, UCB, ASSUMED = range(3)
TagArray = NDArray[np.int8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivities:
    """Upper bounds of E^s and E^a, and how each entry is known.

    Attributes:
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.
        state: (N, N) CSR, entry (j, i) ≥ E^s[j, i], in [0, 1]; explicit zeros are kept.
        action: (N, K) CSR, entry (j, k) ≥ E^a[j, k], likewise.
        state_tags: (nnz,) int8 positions in `TAGS`, in the order of `state.data`.
        action_tags: (nnz,) int8 likewise.
        absent: How the zeros that are not stored are known; `assumed` where parents were declared.
        delta: δ: all `ucb` entries are bounds at once with probability ≥ 1 − δ; 0 where there are none.
        description: Where the numbers come from, in words.
        rewards: Reward terms, known exactly; None: unknown.
        reward_bound: (N,) bounds of the change of the reward with each coordinate alone, whatever the policy
            (the actions' share included), on the user's word; None: not given.

    Raises:
        InputError: Something does not fit; the message names the field, the entry and the mend.

    Example:
        >>> import numpy as np
        >>> known = Sensitivities(
        ...     state_sizes=[2, 2], action_sizes=[2], state=[[0.0, 0.5], [0.0, 0.0]], action=[[0.0], [0.3]],
        ...     state_tags="assumed", action_tags="assumed", absent="assumed", description="an expert")
        >>> known.weakest, known.state.nnz
        ('assumed', 1)
    """

    state_sizes: NDArray[np.int64]
    action_sizes: NDArray[np.int64]
    state: sp.csr_array
    action: sp.csr_array
    state_tags: TagArray
    action_tags: TagArray
    absent: Tag
    delta: float = 0.0
    description: str = ""
    rewards: tuple[Rewards, ...] | None = None
    reward_bound: FloatArray | None = None

    def __post_init__(self) -> None:
        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        for field in ("state_sizes", "action_sizes"):
            sizes = integers(getattr(self, field), field, 1)
            if (sizes < 1).any():
                index = int(np.argmax(sizes < 1))
                raise InputError(f"{field}: entry {index} is {int(sizes[index])}; it must be ≥ 1")
            put(field, sizes)
        n, n_agents = len(self.state_sizes), len(self.action_sizes)
        if n == 0:
            raise InputError("state_sizes is empty; there must be at least one coordinate")
        for field, columns in (("state", n), ("action", n_agents)):
            matrix = _matrix(getattr(self, field), field, (n, columns))
            put(field, matrix)
            put(f"{field}_tags", _tags(getattr(self, f"{field}_tags"), field, matrix.nnz))
        if self.absent not in ("exact", "assumed"):
            raise InputError(
                f"absent is {self.absent!r}; a zero that is not stored is exact or assumed"
            )
        if not 0.0 <= self.delta < 1.0:
            raise InputError(f"delta is {self.delta}; it must lie in [0, 1)")
        if self.delta == 0.0 and self.counts["ucb"]:
            raise InputError(
                f"delta is 0, but {self.counts['ucb']} entries are ucb; give the probability that one of them "
                f"fails"
            )
        if self.rewards is not None:
            put("rewards", self._checked(self.rewards))
        if self.reward_bound is not None:
            bound = reals(self.reward_bound, "reward_bound")
            if bound.shape != (n,):
                raise InputError(
                    f"reward_bound has shape {bound.shape}; give one bound a coordinate, ({n},)"
                )
            bad = ~(np.isfinite(bound) & (bound >= 0))
            if bad.any():
                index = int(np.argmax(bad))
                raise InputError(
                    f"reward_bound of coordinate {index} is {bound[index]}; it must be finite and ≥ 0"
                )
            put("reward_bound", frozen(bound))
        if self.rewards is not None and self.reward_bound is not None:
            raise InputError("rewards and reward_bound are both given; give one of them")

    def _checked(self, items: Iterable[LocalReward | Rewards]) -> tuple[Rewards, ...]:
        terms = gather_rewards(items)
        for term, place in terms:
            for kind, parents, sizes, shape in (
                ("coordinate", term.states, self.state_sizes, term.state_shape),
                ("agent", term.actions, self.action_sizes, term.action_shape),
            ):
                check_parents(parents, place, len(sizes), kind)
                wrong = sizes[parents] != np.array(shape, dtype=np.int64)
                if wrong.any():
                    row, column = first(wrong)
                    raise InputError(
                        f"{place(row)}: the axis of {kind} {int(parents[row, column])} has size "
                        f"{shape[column]}, but it has {int(sizes[parents[row, column]])} values"
                    )
            if not isinstance(term, RewardBatch):
                term.counters.check(self.state_sizes, self.action_sizes, place)
        return tuple(term for term, _ in terms)

    @property
    def n_coordinates(self) -> int:
        """N."""
        return len(self.state_sizes)

    @property
    def n_agents(self) -> int:
        """K."""
        return len(self.action_sizes)

    @property
    def counts(self) -> dict[Tag, int]:
        """How many stored entries of both matrices have each tag."""
        tags = np.concatenate([self.state_tags, self.action_tags])
        found = np.bincount(tags, minlength=len(TAGS)).tolist()
        return dict(zip(TAGS, found, strict=True))

    @property
    def weakest(self) -> Tag:
        """The weakest tag of any entry, stored or absent: what a certificate on these matrices inherits."""
        all_stored = self.state.nnz + self.action.nnz == self.n_coordinates * (
            self.n_coordinates + self.n_agents
        )
        present = [TAGS.index(tag) for tag in TAGS if self.counts[tag]]
        return TAGS[max(present if all_stored else [*present, TAGS.index(self.absent)])]

    @property
    def standing(self) -> str:
        """How the matrices are known, in one sentence."""
        counts = self.counts
        listed = ", ".join(f"{counts[tag]} {tag}" for tag in TAGS if counts[tag]) or "none stored"
        parts = [
            f"sensitivities whose weakest entry is `{self.weakest}` ({listed}; other zeros {self.absent})"
        ]
        if self.delta:
            parts.append(f"all bounds hold at once with probability ≥ {1.0 - self.delta:.12g}")
        if self.weakest == "assumed":
            parts.append("provided that what is assumed is true")
        return ", ".join(parts)

    def with_rewards(self, rewards: Iterable[LocalReward | Rewards]) -> Self:
        """The same with exactly known reward terms, so that tails and ε can be computed.

        Raises:
            InputError: A term does not fit.
        """
        return dataclasses.replace(self, rewards=self._checked(rewards), reward_bound=None)

    def with_reward_bound(self, bound: ArrayLike) -> Self:
        """The same with (N,) bounds of δ(r^π) for every policy, so that tails and ε can be computed.

        Raises:
            InputError: Not N finite numbers ≥ 0.
        """
        return dataclasses.replace(self, reward_bound=np.asarray(bound), rewards=None)

    def with_known(self, mdp: FactoredMDP, coordinates: ArrayLike) -> Self:
        """The same with the rows of some coordinates computed from their true kernels, tagged `exact`.

        Args:
            mdp: A model of the same sizes; only its kernels of these coordinates are read, and must be right.
            coordinates: Which rows.

        Raises:
            InputError: The model has other sizes, or there is no such coordinate.
        """
        rows = integers(coordinates, "coordinates", 1)
        if ((rows < 0) | (rows >= self.n_coordinates)).any():
            raise InputError(
                f"coordinates names {int(rows[(rows < 0) | (rows >= self.n_coordinates)][0])}, but there are "
                f"{self.n_coordinates}, numbered from 0"
            )
        for field in ("state_sizes", "action_sizes"):
            if not np.array_equal(getattr(self, field), getattr(mdp, field)):
                raise InputError(
                    f"{field} of the model are not those of the sensitivities; give one of the same sizes"
                )
        chosen = np.isin(np.arange(self.n_coordinates), rows)
        terms = max(kernel.table.shape[-1] for kernel in mdp.kernels)
        changed = {}
        for field, exact in (
            ("state", state_sensitivity(mdp)),
            ("action", action_sensitivity(mdp)),
        ):
            known = outward(exact, 4 * terms)
            matrix, tags = _joined(
                getattr(self, field), getattr(self, f"{field}_tags"), known, chosen
            )
            changed |= {field: matrix, f"{field}_tags": tags}
        return dataclasses.replace(self, **changed)


def _joined(
    given: sp.csr_array, tags: TagArray, known: sp.csr_array, chosen: NDArray[np.bool_]
) -> tuple[sp.csr_array, TagArray]:
    """Chosen rows from `known`, the others from `given`, and the tags in the order of the data."""
    parts = []
    for matrix, marks, wanted in (
        (given, tags, ~chosen), (known, np.full(known.nnz, EXACT, dtype=np.int8), chosen)
    ):  # fmt: skip
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        kept = wanted[rows]
        parts.append((rows[kept], matrix.indices[kept], matrix.data[kept], marks[kept]))
    rows, columns, values, marks = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((columns, rows))
    starts = np.zeros(given.shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=given.shape[0]), out=starts[1:])
    values = np.minimum(values[order], 1.0)
    return sp.csr_array((values, columns[order], starts), shape=given.shape), marks[order]


def _matrix(value: object, field: str, shape: tuple[int, int]) -> sp.csr_array:
    """A frozen canonical CSR copy of nonnegative entries ≤ 1; stored zeros stay."""
    dense = value if sp.issparse(value) else reals(value, field)  # pyright: ignore[reportArgumentType]
    matrix = sp.csr_array(dense, dtype=np.float64, copy=True)
    if matrix.shape != shape:
        raise InputError(f"{field} has shape {matrix.shape}; it must be {shape}")
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise InputError(f"{field} is no CSR matrix: {error}; build it anew") from error
    if not matrix.has_canonical_format:
        raise InputError(
            f"{field} holds an entry twice, or the entries of a row are out of order; call its sum_duplicates()"
        )
    bad = ~((matrix.data >= 0.0) & (matrix.data <= 1.0))
    if bad.any():
        at = int(np.argmax(bad))
        row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
        raise InputError(
            f"{field}: entry ({row}, {int(matrix.indices[at])}) is {matrix.data[at]}; a total variation lies in "
            f"[0, 1]"
        )
    for array in (matrix.data, matrix.indices, matrix.indptr):
        frozen(array)
    return matrix


def _tags(value: object, field: str, count: int) -> TagArray:
    """(count,) int8; a word stands for all entries."""
    if isinstance(value, str):
        if value not in TAGS:
            raise InputError(f"{field}_tags is {value!r}; choose one of {', '.join(TAGS)}")
        return frozen(np.full(count, TAGS.index(value), dtype=np.int8))
    tags = np.asarray(value)
    if tags.shape != (count,):
        raise InputError(
            f"{field}_tags has shape {tags.shape}, but {field} has {count} stored entries; give one tag each"
        )
    if tags.size and (tags.dtype.kind not in "iu" or tags.min() < 0 or tags.max() >= len(TAGS)):
        raise InputError(f"{field}_tags must hold 0 (exact), 1 (ucb) or 2 (assumed)")
    return frozen(tags.astype(np.int8))


NO_KERNELS = (
    "these are sensitivities without a model: the coupled rungs average the kernels themselves, which are not "
    "known; ask for exact, span, tanh, paper or scope"
)
NO_REWARDS = (
    "the sensitivities come without a reward, so δ(h), tails and ε are unknown (ρ and the decay rate are not); "
    "give its terms with `with_rewards`, or bounds with `with_reward_bound`"
)
