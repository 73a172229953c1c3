"""Any factored MDP as a PettingZoo `ParallelEnv`, so that any multi-agent trainer can run on it.

    mdp, scopes  →  parallel_env(mdp, scopes)  →  a trainer of another library  →  its networks
    →  policy_from_modules(mdp, scopes, networks)  →  certify

A step collects r(s_t, a_t), then moves to s_{t+1} ~ Π_j P_j(· | s_t, a_t). The problems are continuing:
nothing ever terminates, an episode is *truncated* at a horizon, and a trainer that tells the two apart
bootstraps there. PettingZoo and Gymnasium come with the `envs` extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.graphs import Scopes
from torchloc.mdp import FactoredMDP

if TYPE_CHECKING:
    from torchloc.interop.parallel import FactoredParallelEnv

Rewards = Literal["global", "local"]
Observation = Literal["scope", "one_hot"]


def parallel_env(
    mdp: FactoredMDP,
    scopes: Scopes | Sequence[ArrayLike] | None = None,
    *,
    rewards: Rewards = "global",
    horizon: int | None = 100,
    observation: Observation = "one_hot",
    seed: int | None = None,
    render_mode: str | None = None,
) -> FactoredParallelEnv:
    """The model as a PettingZoo `ParallelEnv`.

    Agents have the model's names, or are `agent_0`, `agent_1`, …; their actions are `Discrete(A_k)`. The
    first state follows the model's initial law, uniform where it names none.

    Args:
        mdp: The model.
        scopes: What each agent sees; None: `neighbourhood_scopes(mdp)`.
        rewards: `global`: every agent gets r(s, a). `local`: each term of r is divided evenly among
            the agents whose actions it reads; where it reads none, among those that act on a
            coordinate which it reads, else that see one, else all. Local rewards add up to r(s, a).
        horizon: Steps after which an episode is truncated; None: never. Nothing terminates.
        observation: `one_hot`: the values of the coordinates in scope order, coordinate after
            coordinate, as one float32 `Box` of zeros and ones: values are names, not amounts, and
            every trainer's networks read it as it is. `scope`: the values themselves,
            `MultiDiscrete`, for trainers that encode them.
        seed: Of the first `reset` without a seed; None: from the system's entropy.
        render_mode: None, or `ansi`: `render()` returns the state as a line of text.

    Returns:
        The environment. `reset(options={"state": s})` starts in a given state, (N,) values; `state()`
        is the (N,) joint state, of `state_space`.

    Raises:
        InputError: PettingZoo is not installed, scopes that do not fit, a horizon below 1, an unknown
            word, or a model without agents.

    Example:
        >>> from torchloc.environments import sysadmin
        >>> env = parallel_env(sysadmin(n=3), horizon=50, observation="scope")
        >>> observations, _ = env.reset(seed=0, options={"state": [1, 0, 1]})
        >>> observations["agent_0"].tolist()  # machine 0 and its predecessor 2
        [1, 1]
        >>> _, rewards, _, _, _ = env.step({"agent_0": 0, "agent_1": 1, "agent_2": 0})
        >>> rewards["agent_0"]
        1.25
    """
    try:
        # Late: PettingZoo is an extra, and it takes a while to import.
        from torchloc.interop.parallel import FactoredParallelEnv
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("pettingzoo", "gymnasium"):
            raise
        raise InputError(
            f"parallel_env needs {error.name.partition('.')[0]}, which is not installed; run: "
            f'pip install "torchloc[envs]"'
        ) from error
    return FactoredParallelEnv(
        mdp,
        scopes,
        rewards=rewards,
        horizon=horizon,
        observation=observation,
        seed=seed,
        render_mode=render_mode,
    )
