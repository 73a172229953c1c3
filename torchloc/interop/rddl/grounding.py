"""From a RDDL problem to a factored MDP.

Coordinates are the ground state fluents and agents the ground action fluents. The kernel of coordinate
j is the law of its CPF (`expressions`), its parents the fluents on which the law depends. A factored model
needs next values that are independent given state and action: an intermediate fluent with draws may
move one coordinate, not two.

What a product of agents cannot keep is refused, or dropped on demand and reported: a cap on the number
of actions, and preconditions that tie actions to each other or to the state.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from os import PathLike

import numpy as np

from torchloc.errors import BudgetError, InputError
from torchloc.interop.rddl.draws import SLACK, TOTAL, expectation, law, sources
from torchloc.interop.rddl.expressions import Evaluator
from torchloc.interop.rddl.finite import conjuncts, evaluator_of, ranges
from torchloc.interop.rddl.problem import Ground, Problem, Value, label, read_problem, text
from torchloc.interop.rddl.rewards import reward_terms
from torchloc.interop.rddl.tables import Table, reordered
from torchloc.mdp import FactoredMDP, LocalKernel, LocalReward

BUDGET = 2**20
CHOICES = ("refuse", "lift")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GroundedProblem:
    """A problem as a model, and what the model does not hold.

    Attributes:
        mdp: The model; coordinates and agents carry the fluents' names, `running(c1)`.
        domain: Name of the domain.
        instance: Name of the instance.
        horizon: Steps of an episode.
        discount: Discount factor.
        max_actions: How many action fluents may leave their default in one step; the model has no cap.
        state_values: What each value of each coordinate stands for.
        action_values: What each action of each agent stands for.
        default_actions: (K,) the agents' default actions.
        notes: What was dropped or is not enforced, a sentence each.
    """

    mdp: FactoredMDP
    domain: str
    instance: str
    horizon: float
    discount: float
    max_actions: float
    state_values: tuple[tuple[Value, ...], ...]
    action_values: tuple[tuple[Value, ...], ...]
    default_actions: tuple[int, ...]
    notes: tuple[str, ...]


def load_rddl(
    domain: str | PathLike[str],
    instance: str | int | PathLike[str] = "1",
    *,
    concurrency: str = "refuse",
    preconditions: str = "refuse",
    budget: int = BUDGET,
) -> FactoredMDP:
    """The factored MDP of a RDDL problem; notes on what was dropped go to the log, one line each.

    The arguments and errors are those of `ground_rddl`, which also tells discount and horizon.
    """
    grounded = ground_rddl(
        domain, instance, concurrency=concurrency, preconditions=preconditions, budget=budget
    )
    for note in grounded.notes:
        _LOG.warning(note)
    return grounded.mdp


def ground_rddl(
    domain: str | PathLike[str],
    instance: str | int | PathLike[str] = "1",
    *,
    concurrency: str = "refuse",
    preconditions: str = "refuse",
    budget: int = BUDGET,
) -> GroundedProblem:
    """Grounds a RDDL problem with finite fluents.

    States: one coordinate a ground state fluent; `bool` (false, true), an enumerated type, or whole
    numbers. Actions: one agent a ground action fluent. Law: that of the CPF, exact up to the rounding of
    its own arithmetic. Reward: the expected reward, as a sum of local terms. Initial law: the
    instance's first state.

    Args:
        domain: A name in rddlrepository, such as `SysAdmin_MDP_ippc2011`, or the path of a `.rddl` file.
        instance: Which instance of it, or the path of its file.
        concurrency: `lift` drops the cap on actions that leave their default (max-nondef-actions);
            `refuse` refuses a problem that has one.
        preconditions: `lift` drops action preconditions that do not always hold; `refuse` refuses them.
        budget: Largest number of entries of a table.

    Raises:
        InputError: The extra `rddl` is missing, the problem cannot be read, or something in it has no
            finite factored form; the message names the expression and the fluent.
        BudgetError: A CPF or a term of the reward reads too much; the message names it and counts.
    """
    for field, value in (("concurrency", concurrency), ("preconditions", preconditions)):
        if value not in CHOICES:
            raise InputError(f"{field} = {value!r}; choose one of {', '.join(CHOICES)}")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InputError(f"budget = {budget!r}; it must be a whole number of entries ≥ 1")
    problem = read_problem(domain, instance)
    coordinates = problem.grounds("state-fluent")
    agents = problem.grounds("action-fluent")
    _check_form(problem, coordinates)
    notes = _concurrency(problem, len(agents), concurrency)
    values = ranges(problem, budget)
    evaluator = evaluator_of(problem, values, budget)
    first = [_place(evaluator, ground, problem.initial[ground]) for ground in coordinates]
    notes += _constraints(evaluator, first, preconditions)
    kernels = _kernels(evaluator, coordinates)
    tables, random = reward_terms(evaluator, problem.reward)
    terms = [_term(table, len(coordinates)) for table in tables]
    if random:
        notes.append("the reward is random given state and action; the model has its expectation")
    mdp = FactoredMDP(
        [len(values[ground]) for ground in coordinates],
        [len(values[ground]) for ground in agents],
        kernels,
        terms or [LocalReward((), (), 0.0)],
        initial=[np.eye(len(values[g]))[x] for g, x in zip(coordinates, first, strict=True)],
        coordinate_names=[label(ground) for ground in coordinates],
        agent_names=[label(ground) for ground in agents],
    )
    return GroundedProblem(
        mdp=mdp,
        domain=problem.domain,
        instance=problem.instance,
        horizon=problem.horizon,
        discount=problem.discount,
        max_actions=problem.max_actions,
        state_values=tuple(_meanings(evaluator, ground) for ground in coordinates),
        action_values=tuple(_meanings(evaluator, ground) for ground in agents),
        default_actions=tuple(_place(evaluator, g, problem.defaults[g[0]]) for g in agents),
        notes=tuple(notes),
    )


def _check_form(problem: Problem, coordinates: list[Ground]) -> None:
    if not coordinates:
        raise InputError(f"{problem.domain} has no state fluent; a model needs one")
    for name, kind in problem.kinds.items():
        if kind == "observ-fluent":
            raise InputError(
                f"{name} is an observ-fluent: partially observed problems are not supported; take the "
                f"problem's MDP form, and say by the scopes what the agents see"
            )


def _concurrency(problem: Problem, agents: int, choice: str) -> list[str]:
    if problem.max_actions >= agents:
        return []
    cap = (
        f"{problem.instance} lets {problem.max_actions:g} of its {agents} action fluents leave their "
        f"default in one step (max-nondef-actions)"
    )
    if choice == "refuse":
        raise InputError(
            f"{cap}, which agents that choose on their own cannot keep; concurrency=lift drops the "
            f"cap, so that all {agents} may act at once"
        )
    return [f"{cap}; the cap is lifted: all {agents} agents may act at once"]


def _constraints(evaluator: Evaluator, first: list[int], choice: str) -> list[str]:
    """Checks invariants, preconditions and terminations; gives a note for each that is not enforced."""
    problem, notes = evaluator.problem, []
    for node, what in (
        *((node, "termination condition") for node in problem.terminations),
        *((node, "action precondition") for node in problem.preconditions),
        *((node, "state-action constraint") for node in problem.constraints),
        *((node, "state invariant") for node in problem.invariants),
    ):
        evaluator.place = f"the {what}"
        if what == "termination condition":
            ends = expectation(evaluator, evaluator.truth(node, {}))
            if ends.values is None or bool(ends.values.any()):
                raise evaluator.refusal(
                    node, "would end an episode, but a factored MDP goes on; take the condition out"
                )
            continue
        parts = (evaluator.truth(*part) for part in conjuncts(evaluator, node, {}))
        loose = [part for part in parts if part.values is None or not part.values.all()]
        if not loose:
            continue
        if any(v >= len(first) for part in loose for v in part.variables):
            if choice == "refuse":
                raise evaluator.refusal(
                    node,
                    "does not always hold, and agents that choose on their own cannot keep it; "
                    "preconditions=lift drops it",
                )
            notes.append(f"the {what} {text(node)} is lifted: agents may break it")
            continue
        for part in loose:
            if part.values is not None and not part.values[tuple(first[v] for v in part.variables)]:
                raise evaluator.refusal(node, "does not hold in the first state")
        notes.append(f"the {what} {text(node)} is not enforced: the model has every state")
    return notes


def _kernels(evaluator: Evaluator, coordinates: list[Ground]) -> list[LocalKernel]:
    kernels, movers = [], dict[int, list[Ground]]()
    for variable, (name, objects) in enumerate(coordinates):
        following = (f"{name}'", objects)
        evaluator.place = f"the CPF of {label(following)}"
        node, binding = evaluator.problem.definition(following)
        current = evaluator.fluents[name, objects]
        evaluator.met.clear()
        outcome = evaluator.space.add(evaluator.space.sizes[variable])
        table = law(evaluator, node, binding, outcome, current.array, current.kind)
        for source in sources(evaluator, table):
            movers.setdefault(source, []).append(following)
        table = expectation(evaluator, table)
        kernels.append(_kernel(evaluator, table, outcome, len(coordinates)))
    for source, ground in evaluator.shared.items():
        moved = movers.get(source, [])
        if ground[0].endswith("'"):
            moved = [ground, *moved]
        names = list(dict.fromkeys(map(label, moved)))
        if len(names) > 1:
            raise InputError(
                f"{label(ground)} is random and moves {', '.join(names[:2])}: their next values are "
                f"not independent given state and action, which a factored model needs; make it a state "
                f"fluent, or let one CPF read it"
            )
    return kernels


def _kernel(evaluator: Evaluator, law: Table, outcome: int, n: int) -> LocalKernel:
    space = evaluator.space
    order = {v: place for place, v in enumerate(evaluator.met)}
    parents = sorted(
        (v for v in law.variables if v != outcome), key=lambda v: (v >= n, order.get(v, n + v))
    )
    states, actions = [v for v in parents if v < n], [v - n for v in parents if v >= n]
    shape = [space.sizes[v] for v in (*parents, outcome)]
    if law.values is None:
        raise BudgetError(
            f"{evaluator.place} reads {len(states)} state and {len(actions)} action fluents: its "
            f"table would have {math.prod(shape):,} entries, {8 * math.prod(shape):,} bytes, over the "
            f"budget of {space.budget:,} entries; raise the budget or take a smaller instance"
        )
    table = np.broadcast_to(reordered(law, (*parents, outcome)), shape).astype(np.float64)
    bad = ~((table.min(axis=-1) >= -SLACK) & (np.abs(table.sum(axis=-1) - 1.0) <= TOTAL))
    if bad.any():
        index = tuple(int(x) for x in np.argwhere(bad)[0])
        where = ", ".join(
            f"{label(evaluator.parents[v])} = {_meaning(evaluator, evaluator.parents[v], x)}"
            for v, x in zip(parents, index, strict=True)
        )
        raise InputError(
            f"{evaluator.place} gives no law{' at ' + where if where else ''}: the probabilities of its "
            f"{shape[-1]} values are {np.round(table[index], 6).tolist()}; they must be nonnegative "
            f"and sum to 1, and the expression must stay within the fluent's values"
        )
    return LocalKernel(states, actions, table.clip(min=0.0))


def _place(evaluator: Evaluator, ground: Ground, value: Value) -> int:
    number = evaluator.problem.index[value] if isinstance(value, str) else value
    listed = evaluator.fluents[ground].array
    found = np.flatnonzero(listed == number)
    if len(found) == 0:
        raise InputError(f"{label(ground)} = {value} is outside its values {listed.tolist()}")
    return int(found[0])


def _meanings(evaluator: Evaluator, ground: Ground) -> tuple[Value, ...]:
    table = evaluator.fluents[ground]
    objects = evaluator.problem.objects.get(table.kind)
    return objects if objects is not None else tuple(table.array.tolist())


def _meaning(evaluator: Evaluator, ground: Ground, place: int) -> str:
    return str(_meanings(evaluator, ground)[place]).lower()


def _term(table: Table, n: int) -> LocalReward:
    variables = table.variables
    return LocalReward(
        [v for v in variables if v < n], [v - n for v in variables if v >= n], table.array
    )
