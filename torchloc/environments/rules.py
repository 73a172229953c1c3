"""Hand rules: what a practitioner would write for each family, to be beaten.

A rule is deterministic and local: agent k acts on some of the coordinates that it sees. It stands
on the scopes that a run trains on, so it competes on equal terms, and is refused where they hide
what it reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchloc.environments.game_of_life import game_of_life
from torchloc.environments.hub_spoke import hub_spoke
from torchloc.environments.ising import ising
from torchloc.environments.line_msg import line_msg
from torchloc.environments.sysadmin import sysadmin
from torchloc.errors import InputError
from torchloc.graphs import Scopes
from torchloc.mdp import CountBatch, FactoredMDP
from torchloc.mdp.checks import FloatArray, IntArray

Choose = Callable[[IntArray], IntArray]
"""(R, m) values of what an agent reads → (R,) actions."""


@dataclass(frozen=True, eq=False)
class HandRule:
    """A rule as a policy.

    Attributes:
        text: The rule in one line.
        tables: K arrays (*S[scope_k], A_k) of probabilities 0 and 1, what
            `SoftmaxPolicy.from_probabilities` takes; agents that act alike share one.
    """

    text: str
    tables: tuple[FloatArray, ...]


def hand_rule(env: Mapping[str, Any], mdp: FactoredMDP, scopes: Scopes) -> HandRule | None:
    """The rule of a family on given scopes.

    Args:
        env: The family as a configuration: `_target_`, the dotted path of its function in
            `torchloc.environments`, and arguments; those left out have their defaults.
        mdp: What it builds.
        scopes: What the agents see.

    Returns:
        The rule; None for a family without one.

    Raises:
        InputError: An agent does not see what its rule reads.

    Example:
        >>> from torchloc.graphs import neighbourhood_scopes
        >>> mdp, env = sysadmin(4), {"_target_": "torchloc.environments.sysadmin", "n": 4}
        >>> rule = hand_rule(env, mdp, neighbourhood_scopes(mdp))
        >>> rule.text, rule.tables[0][1, 0].tolist()
        ('reboot iff the machine or its predecessor is off', [0.0, 1.0])
    """
    room, _, family = str(env["_target_"]).rpartition(".")
    if room != "torchloc.environments":
        return None
    if family == "sysadmin":
        return _sysadmin(_arguments(sysadmin, env), mdp, scopes)
    if family == "sis":
        own = [(k,) for k in range(mdp.n_agents)]
        return _rule("treat iff infected", mdp, scopes, own, lambda seen: seen[:, 0])
    if family == "ising":
        return _ising(_arguments(ising, env), mdp, scopes)
    if family == "line_msg":
        return _line_msg(_arguments(line_msg, env), mdp, scopes)
    if family == "hub_spoke":
        return _hub_spoke(_arguments(hub_spoke, env), mdp, scopes)
    if family == "firefighting":
        return _firefighting(mdp, scopes)
    if family == "game_of_life":
        return _game_of_life(_arguments(game_of_life, env), mdp, scopes)
    return None


def _sysadmin(arguments: Mapping[str, Any], mdp: FactoredMDP, scopes: Scopes) -> HandRule:
    # In the table of JAIR a machine that is on falls with .525 once its predecessor is off.
    parents = _parents(mdp)
    shown = all(set(parents[k]) <= set(scope) for k, scope in enumerate(scopes))
    if arguments["table"] == "jair" and shown:
        text, reads = "reboot iff the machine or its predecessor is off", parents
    else:
        text, reads = "reboot iff the machine is off", [(k,) for k in range(mdp.n_agents)]
    return _rule(text, mdp, scopes, reads, lambda seen: (seen == 0).any(axis=1).astype(np.int64))


def _ising(arguments: Mapping[str, Any], mdp: FactoredMDP, scopes: Scopes) -> HandRule:
    up = int(mdp.action_sizes[0]) - 1  # the last field pushes up, the one before it is off
    if arguments["reward"] == "alignment":
        blind: list[tuple[int, ...]] = [()] * mdp.n_agents
        return _rule("push up, always", mdp, scopes, blind, lambda seen: np.full(len(seen), up))

    def push(seen: IntArray) -> IntArray:
        return np.where(2 * seen.sum(axis=1) > seen.shape[1], up - 1, up)

    text = "push up unless most neighbours are up"
    return _rule(text, mdp, scopes, _parents(mdp), push)


def _line_msg(arguments: Mapping[str, Any], mdp: FactoredMDP, scopes: Scopes) -> HandRule:
    n = int(arguments["n"])
    # What agent 0 does is read by no kernel, and costs.
    reads = [(), *((i + 1,) for i in range(1, n - 1)), ()]
    sends = [
        lambda seen: np.zeros(len(seen), dtype=np.int64),
        *[lambda seen: seen[:, 0]] * (n - 2),
        lambda seen: np.ones(len(seen), dtype=np.int64),
    ]
    text = "the source transmits always, a relay iff its right neighbour holds 1, the sink never"
    return _rule(text, mdp, scopes, reads, sends)


def _hub_spoke(arguments: Mapping[str, Any], mdp: FactoredMDP, scopes: Scopes) -> HandRule:
    n = int(arguments["n"])
    acts = [
        lambda seen: np.ones(len(seen), dtype=np.int64),
        *[lambda seen: np.zeros(len(seen), dtype=np.int64)] * (n - 1),
    ]
    blind: list[tuple[int, ...]] = [()] * n
    return _rule("the hub writes 1, always", mdp, scopes, blind, acts)


def _firefighting(mdp: FactoredMDP, scopes: Scopes) -> HandRule:
    houses = [(k, k + 1) for k in range(mdp.n_agents)]

    def higher(seen: IntArray) -> IntArray:
        return (seen[:, 1] > seen[:, 0]).astype(np.int64)

    return _rule("go to the house with the higher level", mdp, scopes, houses, higher)


def _game_of_life(arguments: Mapping[str, Any], mdp: FactoredMDP, scopes: Scopes) -> HandRule:
    # A setting moves P(alive) by e = 1 − 2p at once, and by e², e³, … in the steps after where the
    # cell then lives on: e / (1 − e) in all, what its neighbours gain or lose not counted.
    noise = arguments["noise"]
    effect = 1.0 - 2.0 * np.broadcast_to(arguments["p"] if noise is None else noise, mdp.n_agents)
    cost = float(arguments["cost"])

    def dies(seen: IntArray) -> IntArray:
        living, own = seen[:, :-1].sum(axis=1), seen[:, -1]
        return ((living != 3) & ((living != 2) | (own == 0))).astype(np.int64)

    def stays_dead(seen: IntArray) -> IntArray:
        return dies(seen) * (1 - seen[:, -1])

    def never(seen: IntArray) -> IntArray:
        return np.zeros(len(seen), dtype=np.int64)

    rules = np.where(effect > cost, 0, np.where(effect > cost * (1.0 - effect), 1, 2)).tolist()
    texts = (
        "set iff the cell would die or stay dead",
        "set iff the cell would stay dead",
        "never set",
    )
    text = texts[rules[0]] if len({*rules}) == 1 else "set where it pays for the noise of the cell"
    chosen = [(dies, stays_dead, never)[rule] for rule in rules]
    return _rule(text, mdp, scopes, _parents(mdp), chosen)


def _arguments(family: Callable[..., FactoredMDP], env: Mapping[str, Any]) -> Mapping[str, Any]:
    """All arguments of a call, defaults included; words of the configuration itself left out."""
    given = {name: value for name, value in env.items() if not name.startswith("_")}
    call = inspect.signature(family).bind(**given)
    call.apply_defaults()
    return call.arguments


def _parents(mdp: FactoredMDP) -> list[tuple[int, ...]]:
    """The state parents of coordinate k, itself last, for every agent k (one agent a coordinate)."""
    parents: list[tuple[int, ...]] = [()] * mdp.n_coordinates
    for batch in mdp.kernels:
        read = batch.states
        if isinstance(batch, CountBatch):
            read = np.concatenate([batch.counters.states, read], axis=1)
        rows = map(tuple, read.tolist())
        for j, row in zip(batch.coordinates.tolist(), rows, strict=True):
            parents[j] = row
    return parents


def _rule(
    text: str,
    mdp: FactoredMDP,
    scopes: Scopes,
    reads: Sequence[tuple[int, ...]],
    choose: Choose | Sequence[Choose],
) -> HandRule:
    """Tables of a rule.

    Args:
        text: The rule in words.
        mdp: The model.
        scopes: What the agents see.
        reads: The coordinates that each agent's choice reads.
        choose: From their values to an action, one for all agents or one an agent.
    """
    made: dict[tuple[Any, ...], FloatArray] = {}
    tables = []
    for k, scope in enumerate(scopes):
        hidden = [i for i in reads[k] if i not in scope]
        if hidden:
            raise InputError(
                f'the rule "{text}" reads coordinate {mdp.coordinate_name(hidden[0])}, which '
                f"agent {mdp.agent_name(k)} does not see"
            )
        f = choose[k] if isinstance(choose, Sequence) else choose
        shape = tuple(mdp.state_sizes[list(scope)].tolist())
        places = [scope.index(i) for i in reads[k]]
        size = int(mdp.action_sizes[k])
        key = (f, shape, tuple(places), size)
        if key not in made:
            rows = int(np.prod(shape, dtype=np.int64))
            seen = np.indices(shape).reshape(len(shape), rows)[places].T
            made[key] = np.eye(size)[f(seen)].reshape(*shape, size)
        tables.append(made[key])
    return HandRule(text, tuple(tables))
