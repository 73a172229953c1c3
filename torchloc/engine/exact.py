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
    Improvement,
    coloured_sweep,
    cyclic_sweep,
    jacobi_sweep,
)
from torchloc.mdp import FactoredMDP
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
    ) -> None:
        self.improvement = improvement
        self._first = JointEvaluation(
            mdp,
            policy,
            objective=improvement.objective,
            discount=evaluation.discount,
            tolerance=evaluation.tolerance,
        )
        self.kappa = evaluation.radius(mdp, policy, improvement)
        self._colours = (
            colour_classes(
                first_fit(
                    conflict_graph(mdp, policy.scopes, self.kappa, objective=improvement.objective)
                )
            )
            if improvement.order == "chromatic"
            else ()
        )

    def evaluate(self, policy: SoftmaxPolicy) -> JointEvaluation:
        """The exact evaluation of a policy, computed where it is read."""
        return self._first.renewed(policy)

    def cooled(self, before: Values, policy: SoftmaxPolicy) -> JointEvaluation:
        """The evaluation after the temperature alone has changed."""
        return self.evaluate(policy)

    def effects(self, before: Values, cooled: Values, after: Values) -> dict[str, float]:
        """What the change of τ did to the objective, and what the updates did."""
        return {
            "effect/temperature": cooled.value - before.value,
            "effect/updates": after.value - cooled.value,
        }

    def sweep(
        self,
        values: Values,
        policy: SoftmaxPolicy,
        epsilon: Callable[[SoftmaxPolicy], Tensor],
        charge: Charge | None = None,
    ) -> tuple[JointEvaluation, list[BlockRecord]]:
        """Every agent once, from the policy that `values` evaluates; changes the policy in place.

        Returns:
            The evaluation after it, and the ledger of every block where the order has one.

        Raises:
            SolveError: A solve failed, or a guarantee was above the gain it bounds.
        """
        if not isinstance(values, JointEvaluation):
            raise TypeError("a joint engine sweeps from its own evaluations")
        if self.improvement.order == "cyclic":
            return cyclic_sweep(values, policy, self.improvement, self.kappa, epsilon, charge)
        if self.improvement.order == "jacobi":
            return jacobi_sweep(values, policy, self.improvement, self.kappa, charge), []
        after = coloured_sweep(values, policy, self.improvement, self.kappa, self._colours, charge)
        return after, []
