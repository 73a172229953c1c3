"""The local engine: advantages on balls, rewards by simulation, for any number of agents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchloc.colouring import colour_classes, conflict_graph, first_fit
from torchloc.engine.settings import DTYPES, Evaluation
from torchloc.engine.values import SimulatedValues, Values
from torchloc.errors import InputError
from torchloc.evaluation.local import SAMPLES, LocalEvaluation
from torchloc.evaluation.problem import Selection
from torchloc.evaluation.rollout import Rollout, simulate
from torchloc.evaluation.simulator import Simulator
from torchloc.evaluation.weighting import Weighting
from torchloc.improvement import BlockRecord, Charge, Gains, Improvement, chromatic_sweep
from torchloc.mdp import FactoredMDP
from torchloc.policy import SoftmaxPolicy

_UNSEEN = 1e-6
"""Share of the uniform law in the marginals, so that every state has some weight."""


class LocalEngine:
    """Exact truncated advantages on balls; blocks of one colour move together.

    A `cyclic` order runs through the colours: its iterates are those of one agent after another in
    that order. `jacobi` moves all agents at once.

    Attributes:
        kappa: κ.
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy,
        improvement: Improvement,
        evaluation: Evaluation,
        generator: torch.Generator,
    ) -> None:
        if improvement.guard != "none":
            raise InputError(
                f"guard is {improvement.guard!r}, but the local engine has no guarantees to guard; use "
                f"guard=none, or evaluation=joint where the joint states fit"
            )
        self.mdp = mdp
        self.improvement = improvement
        self.evaluation = evaluation
        device = torch.device(evaluation.device)
        self.generator = generator
        if device.type != generator.device.type:
            self.generator = torch.Generator(device).manual_seed(generator.initial_seed())
        self.kappa = evaluation.radius(mdp, policy, improvement)
        self._plans: dict[int, tuple[LocalEvaluation, tuple[Selection, ...]]] = {}
        self.look(self.kappa, policy)
        self._simulator = Simulator(mdp, policy, device=evaluation.device)

    def look(self, kappa: int, policy: SoftmaxPolicy) -> None:
        """Changes κ; the plan of its balls is made once.

        Raises:
            BudgetError: A ball is too large.
        """
        self.kappa = kappa
        if kappa in self._plans:
            return
        local = LocalEvaluation(
            self.mdp,
            policy,
            kappa,
            objective=self.improvement.objective,
            discount=self.evaluation.discount,
            ball_bytes=self.evaluation.ball_bytes,
            dtype=DTYPES[self.evaluation.dtype],
            device=self.evaluation.device,
        )
        colours = (local.select(),)
        if self.improvement.order != "jacobi":
            objective = self.improvement.objective
            conflicts = conflict_graph(self.mdp, policy.scopes, kappa, objective=objective)
            colours = tuple(map(local.select, colour_classes(first_fit(conflicts))))
        self._plans[kappa] = local, colours

    @property
    def colours(self) -> tuple[Selection, ...]:
        """Agents that move together at the present κ, a selection a colour."""
        return self._plans[self.kappa][1]

    def evaluate(self, policy: SoftmaxPolicy) -> SimulatedValues:
        """What a policy earns, simulated from the initial law with the run's own random numbers."""
        discounted = self.evaluation.discount < 1.0
        rollout = self._simulate(
            policy,
            steps=None if discounted else self.evaluation.steps,
            burn_in=0 if discounted else self.evaluation.burn_in,
            replicas=self.evaluation.replicas,
            discount=self.evaluation.discount,
        )
        return SimulatedValues(rollout, self.improvement.objective, self.evaluation.discount)

    def cooled(self, before: Values, policy: SoftmaxPolicy) -> Values:
        """The evaluation before the temperature changed: a sweep reads no values here."""
        return before

    def effects(self, before: Values, cooled: Values, after: Values) -> dict[str, float]:
        """Nothing: the two effects are smaller than the intervals of a simulation."""
        return {}

    def sweep(
        self,
        values: Values,
        policy: SoftmaxPolicy,
        epsilon: Callable[[SoftmaxPolicy], Tensor],
        charge: Charge | None = None,
    ) -> tuple[SimulatedValues, list[BlockRecord], Gains]:
        """Every agent once, colour by colour; changes the policy in place.

        Returns:
            The evaluation after it, no ledger, as its expectations are not enumerable here, and estimates
            of what each agent gained.
        """
        weighting, states = self._weighting(policy)
        local, colours = self._plans[self.kappa]
        gains = chromatic_sweep(local, colours, policy, self.improvement, weighting, states, charge)
        return self.evaluate(policy), [], gains

    def _weighting(self, policy: SoftmaxPolicy) -> tuple[Weighting, Tensor | None]:
        """How unseen coordinates are averaged during a sweep; simulated laws are frozen in it."""
        name = self.improvement.weighting
        if name == "uniform":
            return "uniform", None
        burn_in = max(self.evaluation.burn_in, 1)
        rollout = self._simulate(
            policy, steps=self.evaluation.steps, burn_in=burn_in, replicas=SAMPLES, discount=1.0
        )
        if name == "stationary":
            return "uniform", rollout.states.T
        sizes = torch.tensor(self.mdp.state_sizes, device=rollout.marginals.device)[:, None]
        inside = torch.arange(int(sizes.max()), device=sizes.device) < sizes
        uniform = inside / sizes
        return (1.0 - _UNSEEN) * rollout.marginals + _UNSEEN * uniform, None

    def _simulate(
        self,
        policy: SoftmaxPolicy,
        *,
        steps: int | None,
        burn_in: int,
        replicas: int,
        discount: float,
    ) -> Rollout:
        return simulate(
            self.mdp,
            policy,
            steps=steps,
            burn_in=burn_in,
            replicas=replicas,
            discount=discount,
            objective="entropy",
            generator=self.generator,
            simulator=self._simulator,
        )
