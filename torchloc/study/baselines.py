"""What a run is compared with: rewards that need no schedule, or no training at all.

All numbers are rewards per step of the whole system, as a run logs them under `reward/average`: r̄,
and with a discount γ < 1 the rate d·r^π = (1 − γ) μ₀·V under the discounted occupancy d. The two
optima are brackets' midpoints (`evaluation/planning.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchloc.environments.rules import HandRule
from torchloc.errors import InputError, SolveError
from torchloc.graphs import Scopes
from torchloc.mdp import FactoredMDP
from torchloc.mdp.dynamics import Dynamics

if TYPE_CHECKING:
    from torchloc.engine import Engine, Evaluation
    from torchloc.policy import SoftmaxPolicy
    from torchloc.trainer import Trainer

MYOPIC_STATES = 4096
"""Joint states up to which the myopic run is made."""


@dataclass(frozen=True)
class Baseline:
    """One number to compare with.

    Attributes:
        name: What it is.
        reward: Reward per step of the whole system.
        note: How it came about, in one line.
    """

    name: str
    reward: float
    note: str


@dataclass(frozen=True)
class Baselines:
    """The baselines of a problem.

    Attributes:
        found: Those that could be computed, from the least informed to the optimum.
        missing: Why the others could not, a sentence each.
    """

    found: tuple[Baseline, ...] = ()
    missing: tuple[str, ...] = ()


def baselines(
    mdp: FactoredMDP,
    scopes: Scopes,
    *,
    engine: Callable[[SoftmaxPolicy], Engine],
    evaluation: Evaluation,
    rule: Callable[[FactoredMDP, Scopes], HandRule | None],
    myopic: Callable[[], Trainer],
    dynamics: Dynamics = "synchronous",
) -> Baselines:
    """The uniform policy, the hand rule, a myopic run and the two optima, where they are known.

    Args:
        mdp: The model.
        scopes: What its agents see.
        engine: Makes what evaluates policies on these scopes as the run does.
        evaluation: The run's settings.
        rule: The hand rule of the model's family.
        myopic: Makes the run with κ = 0, without callbacks; called on up to `MYOPIC_STATES` joint
            states.
        dynamics: Of the run.

    Returns:
        What was found, and why the rest was not.
    """
    # Late, because they import torch: reports name the two classes above and compute nothing.
    from torchloc.engine import SimulatedValues
    from torchloc.evaluation.planning import best_deterministic_local, optimal_control
    from torchloc.policy import SoftmaxPolicy
    from torchloc.trainer import REFERENCE_PAIRS

    found: list[Baseline] = []
    missing: list[str] = []
    blind = SoftmaxPolicy.tabular(mdp, scopes)
    rate = 1.0 - evaluation.discount if evaluation.discount < 1.0 else 1.0

    def add(name: str, compute: Callable[[], tuple[float, str] | str]) -> None:
        """Books a reward and its note, or why there is none."""
        try:
            result = compute()
        except (InputError, SolveError) as error:
            result = " ".join(str(error).split())
        if isinstance(result, str):
            missing.append(f"{name}: {result}")
        else:
            found.append(Baseline(name, *result))

    def of_policy(policy: SoftmaxPolicy, note: str) -> tuple[float, str]:
        values = engine(policy).evaluate(policy)
        if isinstance(values, SimulatedValues):
            note = f"{note}; simulated, ± {values.rollout.half_width:.2g} (95 %)"
        return values.reward_rate, note

    def of_rule() -> tuple[float, str] | str:
        hand = rule(mdp, scopes)
        if hand is None:
            return "this family has none"
        return of_policy(SoftmaxPolicy.from_probabilities(mdp, scopes, hand.tables), hand.text)

    def of_myopic() -> tuple[float, str] | str:
        if mdp.n_states > MYOPIC_STATES:
            return f"left out: {_size(mdp.n_states)} joint states, more than {MYOPIC_STATES:,}"
        trainer = myopic()
        state = trainer.run()
        return state.values.reward_rate, f"κ = 0, {trainer.iterations} iterations"

    def of_local_optimum() -> tuple[float, str] | str:
        if evaluation.discount < 1.0:
            return "searched for the average reward only"
        best = best_deterministic_local(mdp, scopes, dynamics=dynamics)
        left = f", {best.multichain} with several closed classes left out" * (best.multichain > 0)
        return best.gain, f"best of all deterministic policies on these scopes{left}"

    def of_optimum() -> tuple[float, str] | str:
        pairs = mdp.n_states * mdp.n_joint_actions
        if pairs > REFERENCE_PAIRS:
            return (
                f"left out: {_size(pairs)} joint state-action pairs, more than {REFERENCE_PAIRS:,}"
            )
        best = optimal_control(mdp, discount=evaluation.discount, dynamics=dynamics)
        return (
            rate * best.gain,
            f"all joint policies, by value iteration, to ± {0.5 * rate * (best.upper - best.lower):.1g}",
        )

    add("uniform", lambda: of_policy(blind, "every agent at random"))
    add("hand rule", of_rule)
    add("myopic", of_myopic)
    add("local optimum", of_local_optimum)
    add("joint optimum", of_optimum)
    return Baselines(tuple(found), tuple(missing))


def _size(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"about 10^{len(str(count)) - 1}"
