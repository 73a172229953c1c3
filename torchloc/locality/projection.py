"""Hard projection: the least shrinking of a policy that brings a rung under a target, certified anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from torchloc.certificate import Environment, Ladder
from torchloc.errors import InputError, SolveError
from torchloc.locality.loads import checked_weights
from torchloc.locality.rows import (
    EnumeratedRows,
    ExplicitRows,
    Rows,
    coupled_scales,
    linear_scales,
)
from torchloc.locality.scales import MONOTONE, spreads
from torchloc.locality.shrinking import (
    HOWS,
    Family,
    How,
    check_how,
    checked_marginals,
    shrink,
)
from torchloc.mdp.checks import FloatArray
from torchloc.policy import SoftmaxPolicy
from torchloc.spectral import SpectralBound, spectral_radius
from torchloc.spectral.matrices import checked
from torchloc.spectral.weights import check_weights

PROJECTED = ("coupled", "exact", *MONOTONE)
"""Rungs that a policy can be projected on: all but `scope`, which does not depend on the policy."""
_MARGIN = 1e-6
"""Scales are made for target · (1 − this), so that the rounding of what they are written into stays below."""
_ATTEMPTS = 6


@dataclass(frozen=True, eq=False)
class ProjectionReport:
    """What a projection did, and what is certified of the policy that it left.

    Attributes:
        target: λ.
        rung: The rung that was kept under it.
        how: How the policy was shrunk.
        scales: (K,) α: what the differences of each agent's logits over τ were multiplied by; 1: untouched.
        before: Certified upper bound of ρ of the rung before.
        rho: Certified upper bound of ρ of the rung now, ≤ target.
        weights: (N,) w > 0 for the next projection, frozen.
        loads: (N,) (H w)_j / w_j now, under these weights, right to rounding.
        wished: (N,) the same before anything was shrunk: what a penalty's duals should feel.
        rounds: Choices of weights that were made; 0 where nothing was to be done.
    """

    target: float
    rung: str
    how: str
    scales: FloatArray
    before: float
    rho: float
    weights: FloatArray
    loads: FloatArray
    wished: FloatArray
    rounds: int

    @property
    def changed(self) -> int:
        """How many agents were shrunk."""
        return int((self.scales < 1.0).sum())


@dataclass(frozen=True)
class Locality:
    """What a run keeps under a target: the settings of `project`, checked once.

    Attributes:
        target: λ > 0 for ρ of the rung, synchronous dynamics without discount.
        rung: `coupled`, `exact`, `span`, `tanh` or `paper`.
        how: `temperature`, `logits` or `centre`.
        rounds: Most choices of weights in one projection, ≥ 1.
        price: Step of the dual ascent of `LocalityPenalty`, > 0: prox steps then pay for the loads
            that the projections met, so that less is left for them to take. None: no prices. The
            rows of `coupled` are not linear in Π and have none.

    Raises:
        InputError: A value is out of range.
    """

    target: float = 0.9
    rung: str = "exact"
    how: How = "logits"
    rounds: int = 6
    price: float | None = None

    def __post_init__(self) -> None:
        _check(self.target, self.rung, self.rounds)
        if self.price is not None and not 0.0 < self.price < np.inf:
            raise InputError(f"price is {self.price}; it must be finite and > 0, or null")
        if self.price is not None and self.rung == "coupled":
            raise InputError(
                f"price is {self.price} with rung=coupled, whose rows are not linear in the policies; "
                f"use price=null, or one of the rungs {', '.join(PROJECTED[1:])}"
            )
        if self.how not in HOWS:
            raise InputError(f"how is {self.how!r}; choose {', '.join(HOWS)}")

    def keep(
        self,
        environment: Environment,
        policy: SoftmaxPolicy,
        *,
        weights: FloatArray | None = None,
        marginals: Tensor | None = None,
    ) -> ProjectionReport:
        """`project` with these settings."""
        return project(
            environment,
            policy,
            target=self.target,
            rung=self.rung,
            how=self.how,
            weights=weights,
            marginals=marginals,
            rounds=self.rounds,
        )


def project(
    environment: Environment,
    policy: SoftmaxPolicy,
    *,
    target: float,
    rung: str = "exact",
    how: How = "logits",
    weights: FloatArray | None = None,
    marginals: Tensor | None = None,
    rounds: int = 6,
) -> ProjectionReport:
    """Shrinks a policy in place until ρ of a rung is certified to be at most a target.

    A policy that is there already keeps every bit. On `span`, `tanh` and `paper` the scales are maximal
    under the weights of the last round: no agent that was shrunk could keep more without a row passing
    the target or an agent with a smaller share losing some. On `exact` they are at least those of `span`,
    on `coupled` one for all agents that share rows.

    Args:
        environment: E^s and E^a of the model (`certificate.Environment`).
        policy: Changed in place; on an error it is as it was, but for a `SolveError`.
        target: λ > 0, for ρ(H) of synchronous dynamics without discount.
        rung: `coupled`, `exact`, `span`, `tanh` or `paper`.
        how: `temperature` raises τ_k, `logits` multiplies z_k, `centre` shrinks z_k towards its mean over
            what the agent sees (`shrinking`).
        weights: (N,) w > 0 frozen from the last certificate or report; they are kept for a first round if
            they leave every agent something. None: chosen here. Not read on `coupled`.
        marginals: (N, S) laws of the coordinates, padded with 0, for the means of `centre`; None: uniform.
        rounds: Most choices of weights, ≥ 1.

    Returns:
        What was done; `rho` is certified after the change.

    Raises:
        InputError: Something is out of range, the networks do not know this way, or no scale is small
            enough: the floor of the rung is not below the target.
        SolveError: Rounding kept the certificate above the target (logits of some 1e9 τ).

    Example:
        >>> import torchloc as tl
        >>> from torchloc.certificate import Environment
        >>> from torchloc.environments import ising
        >>> mdp = ising(6, beta=0.35)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0)
        >>> report = project(Environment(mdp), policy, target=0.9, rung="span")
        >>> report.before > 1.0, 0.89 < report.rho <= 0.9
        (True, True)
    """
    policy.check(environment.mdp)
    check_how(policy, how)
    _check(target, rung, rounds)
    if weights is not None:
        weights = checked_weights(weights, environment.mdp.n_coordinates)
    seen = checked_marginals(marginals, policy.state_sizes)
    total = np.ones(policy.n_agents)
    wished = matrix = Ladder(environment, policy).matrix(rung)
    bound = spectral_radius(matrix)
    before = reached = bound.upper
    aim, made = target * (1.0 - _MARGIN), 0
    refused: InputError | None = None
    for attempt in range(_ATTEMPTS):
        if reached <= target:
            weights = _next_weights(bound, target)
            loads, wish = ((h @ weights) / weights for h in (matrix, wished))
            return ProjectionReport(
                target, rung, how, total, before, reached, weights, loads, wish, made
            )
        try:
            scale, weights, again = _scales(
                environment, policy, rung, how, aim, weights, seen, rounds
            )
        except InputError as error:
            if attempt == 0:
                raise
            refused = error  # of an aim that rounding has pushed below the floor
            break
        shrink(policy, scale, how, seen)
        total, made = total * scale, made + again
        matrix = Ladder(environment, policy).matrix(rung)
        bound = spectral_radius(matrix)
        checks = check_weights(checked(matrix), weights)
        reached = bound.upper if checks is None else min(bound.upper, checks.rate)
        # What was hidden by rounding is left free the next time, twice over.
        aim -= 2.0 * max(reached - target, _MARGIN * target)
    raise SolveError(
        f"the rung {rung} was shrunk for a target of {target:.6g}, but is certified only below "
        f"{reached:.9g}: rounding of logits much larger than τ; raise the lowest temperatures"
    ) from refused


def _check(target: float, rung: str, rounds: int) -> None:
    """Refuses settings that are out of range."""
    if rung not in PROJECTED:
        raise InputError(f"rung is {rung!r}; a policy can be kept on {', '.join(PROJECTED)}")
    if not 0.0 < target < np.inf:
        raise InputError(f"target is {target}; it must be finite and > 0")
    if rounds < 1 or rounds != int(rounds):
        raise InputError(f"rounds is {rounds}; it must be a whole number ≥ 1")


def _scales(
    environment: Environment,
    policy: SoftmaxPolicy,
    rung: str,
    how: How,
    target: float,
    weights: FloatArray | None,
    marginals: Tensor | None,
    rounds: int,
) -> tuple[FloatArray, FloatArray, int]:
    """(K,) scales for a target, the weights that they were found with, and the rounds made."""
    if rung == "coupled":
        family = Family(policy, how, marginals)
        return coupled_scales(environment, family, target=target, rounds=rounds)
    rows: Rows
    if rung == "exact":
        rows = EnumeratedRows(Family(policy, how, marginals), spreads(policy, "span"))
    else:
        rows = ExplicitRows(spreads(policy, rung), rung)
    return linear_scales(
        environment, rows, rung=rung, target=target, weights=weights, rounds=rounds
    )


def _next_weights(bound: SpectralBound, target: float) -> FloatArray:
    """Weights of the policy as it is: of rate `target` where ρ is below it, else just above ρ."""
    found = bound.weights_at(target) or bound.weighted
    if found is None:
        raise SolveError("the weights of the rung leave the range of floats; give others")
    return found.weights
