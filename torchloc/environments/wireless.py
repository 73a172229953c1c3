"""Multi-access communication: users share access points, and two at once collide.

States: s_{i,l} ∈ {0, 1}: whether user i holds a packet that expires after l more steps, slot 0 next.
Actions: a_i: idle, or one of (slot, access point) among the points at the corners of its cell. Law:
point y delivers iff exactly one user selects it, the slot holds a packet, and a coin q_y succeeds; an
empty slot collides all the same. Then slots shift and the last one fills with probability p. Reward:
1 a delivery. Influence: E^s[(i, l), (i, l + 1)] = 1, and a bit of a user is read by no other user, so
ρ(E^s) = 0; E^a reaches the users of neighbouring cells. Source: Qu, Wierman and Li 2020; Lin, Qu,
Huang and Wierman 2021; code published with Qu et al.
"""

from __future__ import annotations

import itertools

import numpy as np

from torchloc.alike import equal_rows
from torchloc.environments.checks import probability, whole
from torchloc.errors import InputError
from torchloc.mdp import CountBatch, CountRewardBatch, FactoredMDP, KernelBatch
from torchloc.mdp.checks import FloatArray, IntArray


def wireless(
    height: int = 3,
    width: int = 4,
    *,
    users: int = 2,
    deadline: int = 2,
    arrival: float = 0.5,
    success: list[float] | None = None,
) -> FactoredMDP:
    """Users on a grid of cells send packets before they expire, through shared access points.

    Agents are the users, cell by cell and row by row; each has `deadline` binary coordinates, the slot
    that expires next first. Action 0 is idle; action 1 + slot · points + y' sends that slot to the y'-th
    of the user's access points in row-major order. Kernels and rewards count how many others select
    each of the user's points, up to one. `neighbourhood_scopes` with d − 1 hops are the user's own slots.

    Args:
        height: Rows of cells, ≥ 2.
        width: Columns of cells, ≥ 2.
        users: Users a cell.
        deadline: d, slots of a user.
        arrival: p, probability of a new packet a step.
        success: q_y, one probability an access point, row by row; None: uniform numbers of NumPy's
            RandomState(0), as published.

    Returns:
        N = height · width · users · d binary coordinates, K = N / d agents, (height − 1)(width − 1)
        access points. Initially only last slots may be full.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> mdp = wireless()
        >>> mdp.n_coordinates, mdp.n_agents, sorted(set(mdp.action_sizes.tolist()))
        (48, 24, [3, 5, 9])
    """
    rows, columns = whole("height", height, 2), whole("width", width, 2)
    count, d = whole("users", users, 1), whole("deadline", deadline, 1)
    p, q = probability("arrival", arrival), _success(success, rows, columns)
    reach = [points for points in points_of(rows, columns) for _ in range(count)]
    n_agents, slots = len(reach), np.arange(d)
    action_sizes = np.array([1 + d * len(points) for points in reach])
    last = d * np.arange(n_agents) + d - 1
    blind = np.zeros((n_agents, 0), dtype=np.int64)
    kernels: list[KernelBatch | CountBatch] = [KernelBatch(last, blind, blind, [[1 - p, p]])]
    rewards: list[CountRewardBatch] = []
    for agents, others in _alike(reach):
        own = [reach[k] for k in agents]
        n_points = len(own[0])
        sizes = [1 + d * len(reach[k]) for k in others[0]]
        weights = np.zeros((len(agents), n_points, len(others[0]), 1 + 4 * d), dtype=np.int64)
        for row, beside in enumerate(others):
            for m, k in enumerate(beside):
                for y, point in enumerate(own[row]):
                    if point in reach[k]:
                        chosen = 1 + slots * len(reach[k]) + reach[k].index(point)
                        weights[row, y, m, chosen] = 1
        coins = q[np.array(own)]
        nobody = np.zeros((len(agents), 0), dtype=np.int64)
        acting = np.array(agents)[:, None]
        sends = np.zeros((d, n_points, 1 + d * n_points))
        for slot, y in itertools.product(range(d), range(n_points)):
            sends[slot, y, 1 + slot * n_points + y] = 1.0
        for slot in range(1, d):
            table, modes, rates = _moves_on(coins, sends[slot])
            kernels.append(
                CountBatch(
                    d * np.array(agents) + slot - 1,
                    d * acting + slot,
                    acting,
                    nobody,
                    others,
                    table,
                    action_weights=weights,
                    action_sizes=sizes,
                    modes=(modes, rates),
                )
            )
        bits = np.stack(np.meshgrid(*[[0.0, 1.0]] * d, indexing="ij"))
        for y in range(n_points):
            # (B, *s, a, c): a term a point, so that it reads the users of one point only.
            alone = np.einsum("b,l...,la->b...a", coins[:, y], bits, sends[:, y])
            rivals = [m for m in range(len(others[0])) if weights[:, y, m].any()]
            rewards += _terms(
                d * acting + slots, acting, others, rivals, alone, weights[:, y], sizes
            )
    initial = np.zeros((n_agents * d, 2))
    initial[:, 0] = 1.0
    initial[last] = [1.0 - p, p]
    return FactoredMDP(np.full(n_agents * d, 2), action_sizes, kernels, rewards, initial=initial)


def points_of(height: int, width: int) -> list[tuple[int, ...]]:
    """The access points at the corners of each cell, cells and points row by row."""
    found = []
    for y, x in itertools.product(range(height), range(width)):
        corners = itertools.product((y - 1, y), (x - 1, x))
        inside = [(r, c) for r, c in corners if 0 <= r < height - 1 and 0 <= c < width - 1]
        found.append(tuple(r * (width - 1) + c for r, c in inside))
    return found


def wireless_aloha(
    height: int = 3,
    width: int = 4,
    *,
    users: int = 2,
    deadline: int = 2,
    rate: float = 0.35,
    success: list[float] | None = None,
) -> list[FloatArray]:
    """Slotted ALOHA: with a fixed probability, send the packet that expires first, to a point ∝ its q.

    Args:
        height: As `wireless`.
        width: As `wireless`.
        users: As `wireless`.
        deadline: As `wireless`.
        rate: Probability that a user with a packet sends.
        success: As `wireless`.

    Returns:
        K tables (2,)*d + (A_k,), laws on the scopes of the users' own slots.
    """
    q, send = _success(success, height, width), probability("rate", rate)
    tables = []
    for points in points_of(height, width):
        share = q[list(points)] / q[list(points)].sum()
        law = np.zeros((*(2,) * deadline, 1 + deadline * len(points)))
        for bits in itertools.product((0, 1), repeat=deadline):
            law[(*bits, 0)] = 1.0
            if any(bits):
                first = 1 + bits.index(1) * len(points)
                law[(*bits, 0)] = 1.0 - send
                law[(*bits, slice(first, first + len(points)))] = send * share
        tables += [law] * users
    return tables


def _success(success: list[float] | None, height: int, width: int) -> FloatArray:
    count = (height - 1) * (width - 1)
    if success is None:
        return np.random.RandomState(0).random_sample(count)
    if len(success) != count:
        raise InputError(
            f"success has {len(success)} entries; give {count} probabilities, one an access point"
        )
    return np.array([probability(f"success[{y}]", value) for y, value in enumerate(success)])


def _alike(reach: list[tuple[int, ...]]) -> list[tuple[list[int], IntArray]]:
    """Users with as many points whose neighbours, ordered by theirs, have as many each."""
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    at_point: dict[int, list[int]] = {}
    for k, points in enumerate(reach):
        for point in points:
            at_point.setdefault(point, []).append(k)
    for k, points in enumerate(reach):
        near = {other for point in points for other in at_point[point]} - {k}
        beside = sorted(near, key=lambda other: (len(reach[other]), other))
        key = (len(points), *(len(reach[other]) for other in beside))
        groups.setdefault(key, []).append((k, beside))
    return [
        ([k for k, _ in rows], np.array([beside for _, beside in rows]).reshape(len(rows), -1))
        for rows in groups.values()
    ]


def _moves_on(coins: FloatArray, sends: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The law of the next slot: full where this one is, unless its packet is sent, alone, with success.

    Args:
        coins: (B, Y) success of each of the user's points.
        sends: (Y, A) 1 where an action sends this slot to a point.

    Returns:
        (B, 2, A, *(2,)*Y, 2) table over the slot, the action and whether others select each point; its modes
        (B, 2, A, 1 + Y, 2), which are the slot as it is and the delivery at each point, and rates
        (1 + Y, Y), 0 where others are in the way.
    """
    n_sites, n_points = coins.shape
    gone = coins[:, :, None] * sends
    modes = np.zeros((n_sites, 2, sends.shape[1], 1 + n_points, 2))
    modes[:, 0, :, 0, 0] = 1.0
    modes[:, 1, :, 0, 1] = 1.0
    modes[:, 1, :, 1:, 0] = gone.transpose(0, 2, 1)
    modes[:, 1, :, 1:, 1] = -gone.transpose(0, 2, 1)
    rates = np.concatenate([np.ones((1, n_points)), 1.0 - np.eye(n_points)])
    free = np.stack(np.meshgrid(*[[1.0, 0.0]] * n_points, indexing="ij"), axis=-1)
    alone = np.concatenate([np.ones((*free.shape[:-1], 1)), free], axis=-1)
    return np.einsum("bsahx,...h->bsa...x", modes, alone), modes, rates


def _terms(
    slots: IntArray,
    acting: IntArray,
    others: IntArray,
    rivals: list[int],
    alone: FloatArray,
    weights: IntArray,
    sizes: list[int],
) -> list[CountRewardBatch]:
    """Expected deliveries at one point a user, split where users have other rivals there."""
    found = []
    seen = np.asarray(weights.any(axis=-1), dtype=np.int64)
    for pattern, rows in equal_rows(seen):
        members = [m for m in rivals if pattern[m]]
        table = np.stack([alone[rows], np.zeros_like(alone[rows])], axis=-1)
        found.append(
            CountRewardBatch(
                slots[rows],
                acting[rows],
                np.zeros((len(rows), 0), dtype=np.int64),
                others[rows][:, members],
                table,
                action_weights=weights[rows][:, None, members],
                action_sizes=[sizes[m] for m in members],
            )
        )
    return found
