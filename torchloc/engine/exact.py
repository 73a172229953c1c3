"""The joint engine: everything by enumeration."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchloc.colouring import colour_classes, conflict_graph, first_fit
from torchloc.engine.settings import Evaluation
from torchloc.engine.values import Values
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import (
    BlockRecord,
    Charge,
    Gains,
    Improvement,
    coloured_sweep,
    cyclic_sweep,
    jacobi_sweep,
)
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray
from torchloc.mdp.dynamics import Dynamics
from torchloc.policy import SoftmaxPolicy


class JointEngine:
    """Exact values and advantages of models that can be enumerated.

    Attributes:
        kappa: κ.
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy,
        improvement: Improvement,
        evaluation: Evaluation,
        dynamics: Dynamics = "synchronous",
    ) -> None:
        self.improvement = improvement
        self._first = JointEvaluation(
            mdp,
            policy,
            objective=improvement.objective,
            discount=evaluation.discount,
            tolerance=evaluation.tolerance,
            dynamics=dynamics,
        )
        self.kappa = evaluation.radius(mdp, policy, improvement)
        self._mdp, self._scopes = mdp, policy.scopes
        self._colours: dict[int, tuple[IntArray, ...]] = {}

    def look(self, kappa: int, policy: SoftmaxPolicy) -> None:
        """Changes κ."""
        self.kappa = kappa

    def _coloured(self) -> tuple[IntArray, ...]:
        """The agents of each colour at the present κ."""
        if self.kappa not in self._colours:
            objective = self.improvement.objective
            conflicts = conflict_graph(self._mdp, self._scopes, self.kappa, objective=objective)
            self._colours[self.kappa] = tuple(colour_classes(first_fit(conflicts)))
        return self._colours[self.kappa]

    def evaluate(self, policy: SoftmaxPolicy) -> JointEvaluation:
        """The exact evaluation of a policy, computed where it is read."""
        return self._first.renewed(policy)

    def cooled(self, before: Values, policy: SoftmaxPolicy) -> JointEvaluation:
        """The evaluation after the temperature alone has changed."""
        return self.evaluate(policy)

    def effects(self, before: Values, cooled: Values, after: Values) -> dict[str, float]:
        """What the change of τ did, the logits held, and what the updates did: to the objective, and to r̄."""
        return {
            "effect/temperature": cooled.value - before.value,
            "effect/updates": after.value - cooled.value,
            "effect/temperature_reward": cooled.reward_rate - before.reward_rate,
            "effect/updates_reward": after.reward_rate - cooled.reward_rate,
        }

    def sweep(
        self,
        values: Values,
        policy: SoftmaxPolicy,
        epsilon: Callable[[SoftmaxPolicy], Tensor],
        charge: Charge | None = None,
    ) -> tuple[JointEvaluation, list[BlockRecord], Gains]:
        """Every agent once, from the policy that `values` evaluates; changes the policy in place.

        Returns:
            The evaluation after it, the ledger of every block where the order has one, and what each agent
            gained.

        Raises:
            SolveError: A solve failed, or a guarantee was above the gain it bounds.
        """
        if not isinstance(values, JointEvaluation):
            raise TypeError("a joint engine sweeps from its own evaluations")
        if self.improvement.order == "cyclic":
            after, records = cyclic_sweep(
                values, policy, self.improvement, self.kappa, epsilon, charge
            )
            return after, records, Gains.of(records)
        if self.improvement.order == "jacobi":
            after, gains = jacobi_sweep(values, policy, self.improvement, self.kappa, charge)
        else:
            after, gains = coloured_sweep(
                values, policy, self.improvement, self.kappa, self._coloured(), charge
            )
        return after, [], gains
