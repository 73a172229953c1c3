"""Average and discounted reward by simulation, with intervals that account for autocorrelation.

**Average reward.** r̄ is estimated by the mean over the kept steps of all replicas. Rewards along a
replica are correlated, so the variance comes from *batch means*: every one of the R replicas is cut
into a contiguous batches, and with batch means Y_i of lengths l_i and L = Σ l_i,

    s² = Σ_i l_i (Y_i − Ȳ)² / (aR − 1),    half width = t_{aR−1} s / √L    (Student t quantile).

At fixed aR, as the steps grow, the batch means of a chain that mixes geometrically become
independent and normal with variance σ²/l_i, so the coverage tends to the nominal one (Glynn and
Iglehart, Math. Oper. Res. 15, 1990). Some 20 batches are enough: more make the interval hardly
narrower and the batches shorter (Schmeiser, Oper. Res. 30, 1982). Letting their number grow as well
would make s² consistent too (Flegal and Jones, Ann. Statist. 38, 2010), which coverage does not need.

So a = ⌈20/R⌉, less where batches would be shorter than ten integrated autocorrelation times 1 + 2
Σ_k ρ_k, down to five batches of all replicas together. That time is estimated by Geyer's initial
monotone sequence (Statist. Sci. 7, 1992) and reported. Assumed: replicas are independent; the kept
steps are stationary (`burn_in`, or `start` from an earlier run; what is left of the start is a bias
that no interval shows); and, where a > 1, batches as long as just said. If even five are shorter the
interval is too narrow, and more steps or replicas are the cure. With a = 1 correlation within a
replica does not matter. A rare reward that was never seen is in no interval.

**Discounted.** J = E Σ_t γ^t r_t from the initial law is the mean of R independent returns over T
steps, with their Student interval, plus the remainder γ^T max|r| / (1 − γ) on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from torchloc.closed_loop import PolicyTables
from torchloc.errors import InputError
from torchloc.evaluation.joint import Objective
from torchloc.evaluation.simulator import Simulator
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray
from torchloc.policy import SoftmaxPolicy

BATCHES = 20
"""Batch means of an interval, all replicas together, where the batches are long enough."""
FEWEST = 5
"""Batch means of an interval, all replicas together, at least."""
LENGTH = 10.0
"""Length of a batch in autocorrelation times, unless that would leave fewer than `FEWEST`."""
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Rollout:
    """What a simulation found; rewards are per step, of the whole system.

    Attributes:
        average_reward: Estimate of r̄; with a discount, of (1 − γ) E Σ γ^t r_t.
        half_width: The interval is average_reward ± half_width, at `confidence`.
        objective_value: Estimate of r̄, or of J_τ with the entropy objective; with a discount, of
            E Σ γ^t (r_t + entropies if so asked).
        objective_half_width: Half width of its interval, at `confidence`.
        confidence: Nominal coverage of each interval.
        marginals: (N, max S) float64 visit frequencies of the kept steps (weights γ^t with a
            discount), 0 beyond a coordinate's size.
        states: (N, R) states after the last step, one column a replica: samples of d^π, or the
            `start` of a next run.
        steps: Kept steps a replica.
        replicas: R.
        n_batches: Batches of all replicas together; Student's t has one degree of freedom less.
        batch_length: Steps of the shortest batch.
        autocorrelation_time: 1 + 2 Σ_k ρ_k of the objective's rewards, in steps, estimated; 1 with
            a discount, where the samples are the replicas.
    """

    average_reward: float
    half_width: float
    objective_value: float
    objective_half_width: float
    confidence: float
    marginals: Tensor
    states: Tensor
    steps: int
    replicas: int
    n_batches: int
    batch_length: int
    autocorrelation_time: float


def batch_means(samples: FloatArray, batches: int, confidence: float) -> tuple[float, float]:
    """Mean and half width of its Student interval, from contiguous batches of each replica.

    Args:
        samples: (T, R) one column a replica, stationary in time, columns independent.
        batches: Batches a column, of equal length within one step, 1 ≤ batches ≤ T.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        InputError: Fewer than two batches in all, or more batches a column than steps.
    """
    length, replicas = samples.shape
    count = batches * replicas
    if not 1 <= batches <= length or count < 2:
        raise InputError(
            f"{length} kept steps of {replicas} replicas are too few for an interval from "
            f"{batches} batches a replica; raise steps or replicas"
        )
    edges = np.arange(batches + 1) * length // batches
    lengths = np.diff(edges)[:, None]
    mean = float(samples.mean())
    offset = np.add.reduceat(samples, edges[:-1], axis=0) / lengths - mean
    variance = float((lengths * offset**2).sum()) / (count - 1)
    quantile = float(stdtrit(count - 1, 0.5 + 0.5 * confidence))
    return mean, quantile * math.sqrt(variance / samples.size)


def autocorrelation_time(samples: FloatArray) -> float:
    """1 + 2 Σ_k ρ_k by Geyer's initial monotone sequence, the replicas' autocovariances pooled.

    Sums of adjacent autocorrelations are added up to the first that is not positive, each capped by
    the one before. Below 1 where the samples alternate; 1 for a constant.

    Args:
        samples: (T, R) one column a replica, centred by their common mean here.
    """
    length = len(samples)
    columns = samples.T - samples.mean()
    spectrum = np.zeros(length + 1)
    chunk = max(1, _CHUNK // length)
    for first in range(0, len(columns), chunk):
        parts = np.fft.rfft(columns[first : first + chunk], 2 * length)
        spectrum += (parts.real**2 + parts.imag**2).sum(axis=0)
    covariance = np.fft.irfft(spectrum, 2 * length)[:length]
    if covariance[0] <= 0.0:
        return 1.0
    pairs = covariance[: length - length % 2].reshape(-1, 2).sum(axis=1) / covariance[0]
    stop = int(np.argmax(pairs <= 0.0)) if (pairs <= 0.0).any() else len(pairs)
    return max(0.0, 2.0 * float(np.minimum.accumulate(pairs[:stop]).sum()) - 1.0)


def simulate(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy | PolicyTables,
    *,
    steps: int | None = None,
    burn_in: int = 0,
    replicas: int = 8,
    generator: torch.Generator | None = None,
    seed: int = 0,
    objective: Objective = "reward",
    discount: float = 1.0,
    start: Tensor | None = None,
    device: str | torch.device = "cpu",
    confidence: float = 0.95,
    tolerance: float = 1e-4,
    simulator: Simulator | None = None,
) -> Rollout:
    """Estimates what a policy earns, with an interval, by simulating replicas of the whole system.

    Time and memory of a step are linear in the tables' rows that are read, N·R and K·R; nothing
    grows with steps × N.

    Args:
        mdp: The model.
        policy: A policy for it, or a snapshot of one.
        steps: Kept steps T a replica. None, with a discount only: the smallest T with γ^T ≤
            `tolerance`.
        burn_in: Steps before them, not kept; 0 with a discount.
        replicas: R, independent given their starts.
        generator: Source of randomness on `device`; None: a new one from `seed`.
        seed: Its seed where no generator is given.
        objective: `reward`, or `entropy` for J_τ = E[r + Σ_k τ_k Ent π_k].
        discount: γ in (0, 1]; 1 is the average reward.
        start: (N, R) first states, such as an earlier run's `states`, or (N,) for all replicas;
            None: drawn from the model's initial law, uniform where it names none.
        device: `cpu` or `cuda[:i]`; a given simulator brings its own.
        confidence: Nominal coverage of each interval.
        tolerance: Remainder of a discounted sum in units of its bound max|r| / (1 − γ).
        simulator: One of this model and these scopes; its index arrays are reused.

    Raises:
        InputError: An argument is out of range, a start is no state of the model, the samples are too
            few for an interval, or the policy or simulator belongs to another model.
        BudgetError: A scope with more states than are enumerated.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=4)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        >>> found = simulate(mdp, policy, steps=500, burn_in=50, replicas=40, confidence=0.9999)
        >>> exact = tl.JointEvaluation(mdp, policy).average_reward
        >>> abs(found.average_reward - exact) <= found.half_width < 0.1
        True
    """
    if objective not in ("reward", "entropy"):
        raise InputError(f"objective is {objective!r}; choose reward or entropy")
    _check_fraction("confidence", confidence)
    _check_whole("burn_in", burn_in, 0)
    _check_whole("replicas", replicas, 1)
    kept = _kept(steps, burn_in, replicas, discount, tolerance)
    if simulator is None:
        simulator = Simulator(mdp, policy, device=device)
    else:
        if simulator.mdp is not mdp:
            raise InputError("the simulator was made for another model; make a new Simulator")
        simulator = simulator.renewed(policy)
    place = simulator.device
    if generator is None:
        generator = torch.Generator(device=place).manual_seed(seed)
    elif generator.device.type != place.type:
        raise InputError(
            f"the generator lives on {generator.device}, the simulation on {place}; make the "
            f"generator there"
        )
    if start is None:
        states = simulator.start(replicas, generator)
    else:
        states = simulator.checked(start, replicas)
    for _ in range(burn_in):
        states, _ = simulator.step(states, generator)
    rewards = torch.zeros(kept, replicas, dtype=torch.float64, device=place)
    entropies = torch.zeros_like(rewards) if objective == "entropy" else None
    visits = torch.zeros(
        mdp.n_coordinates, int(mdp.state_sizes.max()), dtype=torch.float64, device=place
    )
    for t in range(kept):
        weight = discount**t
        for value in range(1, visits.shape[1]):
            seen = (states == value).view(torch.uint8).sum(dim=1)
            visits[:, value].add_(seen, alpha=weight)
        if entropies is not None:
            entropies[t] = simulator.entropy(states)
        following, actions = simulator.step(states, generator)
        rewards[t] = simulator.reward(states, actions)
        states = following
    visits /= replicas * math.fsum(discount**t for t in range(kept))
    visits[:, 0] = (1.0 - visits.sum(dim=1)).clamp(min=0.0)
    plain = rewards.cpu().numpy()
    total = plain if entropies is None else plain + entropies.cpu().numpy()
    batches, time, factor, rest = 1, 1.0, 1.0, 0.0
    if discount < 1.0:
        weights = discount ** np.arange(kept)[:, None]
        plain, total = ((weights * part).sum(axis=0)[None] for part in (plain, total))
        factor, rest = 1.0 - discount, discount**kept / (1.0 - discount)
    else:
        time = autocorrelation_time(total)
        batches = _batches(kept, replicas, max(time, autocorrelation_time(plain)))
    mean, half = batch_means(plain, batches, confidence)
    value, wide = batch_means(total, batches, confidence)
    return Rollout(
        average_reward=factor * mean,
        half_width=factor * (half + rest * simulator.bound("reward")),
        objective_value=value,
        objective_half_width=wide + rest * simulator.bound(objective),
        confidence=confidence,
        marginals=visits,
        states=states,
        steps=kept,
        replicas=replicas,
        n_batches=batches * replicas,
        batch_length=kept // batches,
        autocorrelation_time=time,
    )


def _batches(steps: int, replicas: int, time: float) -> int:
    """Batches a replica: as many as ten autocorrelation times each allow, within bounds."""
    most, least = math.ceil(BATCHES / replicas), math.ceil(FEWEST / replicas)
    return max(least, min(most, int(steps / (LENGTH * max(time, 1.0)))))


def _kept(steps: int | None, burn_in: int, replicas: int, discount: float, tolerance: float) -> int:
    """Kept steps a replica, after a check that they make an interval."""
    if not 0.0 < discount <= 1.0:
        raise InputError(f"discount is {discount}; it must lie in (0, 1], 1 for average reward")
    if steps is not None:
        _check_whole("steps", steps, 1)
    if discount < 1.0:
        _check_fraction("tolerance", tolerance)
        if burn_in > 0:
            raise InputError(
                f"burn_in is {burn_in} with discount {discount}: a discounted sum starts at the "
                f"first step; set burn_in to 0"
            )
        if replicas < 2:
            raise InputError(
                "replicas is 1: a discounted run has one sample a replica, too few for an "
                "interval; give at least 2"
            )
        return steps or math.ceil(math.log(tolerance) / math.log(discount))
    if steps is None:
        raise InputError("steps is None; an average reward needs a number of kept steps")
    batches = math.ceil(BATCHES / replicas)
    if steps < batches:
        raise InputError(
            f"steps is {steps}: too few samples for an interval, which takes {batches} batches of "
            f"each of {replicas} replicas; give at least {batches} steps, or {BATCHES} replicas"
        )
    return steps


def _check_whole(field: str, value: int, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{field} is {value!r}; it must be a whole number ≥ {least}")


def _check_fraction(field: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InputError(f"{field} is {value}; it must lie strictly between 0 and 1")
