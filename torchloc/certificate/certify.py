"""`certify`: from a model and a policy to one certificate a rung."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from torchloc.certificate.given import NO_KERNELS, Sensitivities, Tag
from torchloc.certificate.ladder import Environment, Ladder, Spreads, reward_oscillation
from torchloc.certificate.rounding import outward
from torchloc.certificate.rung import RungCertificate
from torchloc.errors import InputError
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray
from torchloc.mdp.dynamics import Dynamics, move_rates
from torchloc.policy import SoftmaxPolicy, checks
from torchloc.policy.groups import ROW_BUDGET
from torchloc.sensitivity import RUNGS
from torchloc.spectral import SpectralBound


class Certificate(Mapping[str, RungCertificate]):
    """One `RungCertificate` a rung, from sharp to blunt; `certificate["paper"].rho.upper` and so on.

    Attributes:
        floor: Bracket of ρ(E^s), of its bounds where these are given: no temperature brings the rungs
            `exact` … `scope` below it.
        kappa, discount, dynamics, objective: What was asked for.
        bounded: (K,) bool: agents whose scope is too large to enumerate. Their rows of Π are certified
            bounds of their networks on every rung but `scope`; those of the others are exact values.
    """

    def __init__(
        self,
        rungs: dict[str, RungCertificate],
        environment: Environment,
        *,
        kappa: int,
        discount: float,
        dynamics: Dynamics,
        objective: str,
        bounded: NDArray[np.bool_],
    ) -> None:
        self.bounded = bounded
        self._rungs = rungs
        self.environment = environment
        self.kappa = kappa
        self.discount = discount
        self.dynamics = dynamics
        self.objective = objective

    def __getitem__(self, rung: str) -> RungCertificate:
        if rung not in self._rungs:
            raise KeyError(f"no rung {rung!r}; this certificate has {', '.join(self._rungs)}")
        return self._rungs[rung]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rungs)

    def __len__(self) -> int:
        return len(self._rungs)

    @property
    def floor(self) -> SpectralBound:
        """lower ≤ ρ(E^s) ≤ upper."""
        return self.environment.floor

    @property
    def weakest(self) -> Tag:
        """How the weakest entry of E^s and E^a is known; `exact` for a model."""
        model = self.environment.model
        return model.weakest if isinstance(model, Sensitivities) else "exact"

    @property
    def delta(self) -> float:
        """δ: everything here holds with probability ≥ 1 − δ over the samples; 0 for a model."""
        model = self.environment.model
        return model.delta if isinstance(model, Sensitivities) else 0.0

    @property
    def standing(self) -> str:
        """What the certificate rests on, in one sentence."""
        model = self.environment.model
        return (
            model.standing
            if isinstance(model, Sensitivities)
            else "sensitivities of the model, exact"
        )

    @cached_property
    def epsilon(self) -> FloatArray:
        """(K,) the smallest ε_k that any rung proves."""
        return np.minimum.reduce([rung.epsilon for rung in self.values()])

    @cached_property
    def tail(self) -> FloatArray:
        """(N,) the smallest tail that any rung proves, componentwise."""
        return np.minimum.reduce([rung.tail for rung in self.values()])


def certify(
    mdp: FactoredMDP | Sensitivities,
    policy: SoftmaxPolicy,
    kappa: int = 3,
    discount: float = 1.0,
    dynamics: Dynamics = "synchronous",
    *,
    objective: Literal["reward", "entropy"] = "reward",
    site_law: ArrayLike | None = None,
    rungs: Sequence[str] | None = None,
    steps: int | Literal["auto"] = 1,
    environment: Environment | None = None,
    budget: int = ROW_BUDGET,
) -> Certificate:
    """Certifies how local a policy makes a model.

    Args:
        mdp: The model; or `Sensitivities`, such as `estimate_sensitivities` gives, where it is not known.
            These have no kernels, hence no coupled rungs; the certificate inherits their weakest tag and δ.
        policy: A policy on its scopes. Scope states are enumerated where they fit a budget; beyond it
            networks are bounded (`lipschitz.logit_bounds`), never sampled.
        kappa: Truncation radius κ ≥ 0 of `delta_hat`, `tail` and `epsilon`.
        discount: γ in (0, 1]; 1 is the average reward.
        dynamics: `synchronous`, or `asynchronous` (one coordinate moves per step; paper, B.6).
        objective: `entropy` adds τ_k Ent π_k to the reward whose oscillation is propagated.
        site_law: (N,) law ν of the coordinate that moves, asynchronous only; uniform if None.
        rungs: Which rungs to compute, among those of `sensitivity.RUNGS`; None: all that there are.
        steps: m ≥ 1; above 1, the rungs `coupled_2` … `coupled_m` join (synchronous dynamics). `auto` takes
            as many as a budget of entries allows.
        environment: E^s and E^a of this model, if computed already.
        budget: Scope states of one agent that are enumerated at most.

    Returns:
        A mapping rung → certificate; spectral bounds and tails are computed on first use.

    Raises:
        InputError: Something is out of range or does not fit, or a network can neither be enumerated
            nor read.
        BudgetError: A closed loop is too large to enumerate.
    """
    _check_model(mdp, policy)
    given = isinstance(mdp, Sensitivities)
    rungs = (RUNGS[1:] if given else RUNGS) if rungs is None else rungs
    _check(kappa, discount, dynamics, objective, rungs, steps)
    if given and ("coupled" in rungs or steps not in (1, 1.0)):
        raise InputError(NO_KERNELS)
    moves = move_rates(mdp.n_coordinates, dynamics, site_law)
    environment = environment or Environment(mdp)
    if environment.model is not mdp:
        raise InputError(
            "environment was computed for another model; give Environment(mdp), or None"
        )
    averaged = dynamics == "asynchronous"
    ladder = Ladder(environment, policy, averaged=averaged, spreads=Spreads(policy, budget=budget))
    known = environment.rewards is not None or environment.reward_bound is not None
    b = reward_oscillation(ladder, entropy=objective == "entropy") if known else None
    reach = outward(discount * (sp.diags_array(moves) @ ladder.action), 4)
    reach.eliminate_zeros()
    result = {}
    for rung in rungs:
        matrix = ladder.matrix(rung)
        if dynamics == "asynchronous":
            moved = sp.diags_array(1.0 - moves) + sp.diags_array(moves) @ matrix
            operator = outward(discount * moved.T, 4)
        else:
            operator = _discounted(matrix, discount)
        plain = dynamics == "synchronous" and discount == 1.0
        result[rung] = RungCertificate(rung, matrix, (operator,), b, reach, int(kappa), plain)
    if steps == "auto" or steps > 1:
        powers = ladder.several_steps(None if steps == "auto" else int(steps))
        operators = tuple(_discounted(m, discount**q) for q, m in enumerate(powers, start=1))
        for m in range(2, len(powers) + 1):
            name = f"coupled_{m}"
            plain = discount == 1.0
            result[name] = RungCertificate(
                name, powers[m - 1], operators[:m], b, reach, int(kappa), plain
            )
    return Certificate(
        result,
        environment,
        kappa=int(kappa),
        discount=discount,
        dynamics=dynamics,
        objective=objective,
        bounded=ladder.bounded,
    )


def _check_model(mdp: FactoredMDP | Sensitivities, policy: SoftmaxPolicy) -> None:
    if isinstance(mdp, FactoredMDP):
        policy.check(mdp)
    elif isinstance(mdp, Sensitivities):
        checks.check_fit(policy.state_sizes, mdp.state_sizes, "coordinate", "values")
        checks.check_fit(policy.action_sizes, mdp.action_sizes, "agent", "actions")
    else:
        raise InputError(
            f"a {type(mdp).__name__} cannot be certified; give the FactoredMDP if it is the truth, or the estimate "
            f"that estimate_sensitivities gave: a model that was fitted to data proves nothing about its source"
        )


def _check(
    kappa: int,
    discount: float,
    dynamics: str,
    objective: str,
    rungs: Sequence[str],
    steps: int | str,
) -> None:
    if isinstance(steps, str) and steps != "auto":
        raise InputError(f"steps is {steps!r}; it must be a whole number ≥ 1, or auto")
    for field, value, least in (("kappa", kappa, 0), ("steps", steps, 1)):
        if isinstance(value, str):
            continue
        if not math.isfinite(value) or value != int(value) or value < least:
            raise InputError(f"{field} is {value}; it must be a whole number ≥ {least}")
    if not 0.0 < discount <= 1.0:
        raise InputError(f"discount is {discount}; it must lie in (0, 1], 1 for average reward")
    if objective not in ("reward", "entropy"):
        raise InputError(f"objective is {objective!r}; choose reward or entropy")
    for rung in rungs:
        if rung not in RUNGS:
            raise InputError(f"rungs holds {rung!r}; choose from {', '.join(RUNGS)}")
    if steps not in (1, 1.0) and dynamics == "asynchronous":
        raise InputError(
            f"steps is {steps}, but several coupled steps are for synchronous dynamics; use steps=1"
        )
    if not rungs:
        raise InputError(f"rungs is empty; choose from {', '.join(RUNGS)}")


def _discounted(matrix: sp.csr_array, factor: float) -> sp.csr_array:
    """factor · matrixᵀ, rounded up."""
    if factor == 1.0:
        return sp.csr_array(matrix.T)
    return outward(factor * matrix.T, 4)
