"""The `ParallelEnv` that `torchloc.interop.pettingzoo.parallel_env` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from pettingzoo.utils.env import ParallelEnv

from torchloc.errors import InputError
from torchloc.graphs import Scopes, as_scopes, neighbourhood_scopes
from torchloc.interop.stepping import Shares, Stepper
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray, first, integers

Observations = dict[str, NDArray[Any]]

_WORDS: dict[str, tuple[str | None, ...]] = {
    "rewards": ("global", "local"),
    "observation": ("one_hot", "scope"),
    "render_mode": (None, "ansi"),
}


class FactoredParallelEnv(ParallelEnv[str, NDArray[Any], int]):
    """A factored MDP, all agents acting at every step; `parallel_env` says what its arguments mean.

    Attributes:
        mdp: The model.
        scopes: What each agent sees.
        possible_agents: K names, in the order of the model's agents.
        agents: The same while an episode lasts, else empty.
        observation_spaces, action_spaces: One space an agent, always the same object.
        state_space: Of the joint state.
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        scopes: Scopes | Sequence[ArrayLike] | None,
        *,
        rewards: str,
        horizon: int | None,
        observation: str,
        seed: int | None,
        render_mode: str | None,
    ) -> None:
        given = {"rewards": rewards, "observation": observation, "render_mode": render_mode}
        for field, value in given.items():
            if value not in _WORDS[field]:
                known = " or ".join(map(str, _WORDS[field]))
                raise InputError(f"{field} is {value!r}; choose {known}")
        self.horizon = _horizon(horizon)
        if mdp.n_agents == 0:
            raise InputError("the model has no agents; an environment needs at least one")
        self.mdp = mdp
        self.scopes = as_scopes(mdp, neighbourhood_scopes(mdp) if scopes is None else scopes)
        self.metadata = {
            "name": "torchloc_v0",
            "render_modes": ["ansi"],
            "is_parallelizable": True,
        }
        self.render_mode = render_mode
        self.possible_agents = list(mdp.agent_names or map("agent_{}".format, range(mdp.n_agents)))
        self.agents = []
        self.action_spaces = {
            name: spaces.Discrete(size)
            for name, size in zip(self.possible_agents, mdp.action_sizes.tolist(), strict=True)
        }
        self._one_hot = observation == "one_hot"
        seen = mdp.state_sizes[self.scopes.indices]
        widths = seen if self._one_hot else np.ones_like(seen)
        ends = np.concatenate([[0], np.cumsum(widths)])
        self._first = ends[:-1]
        self._cuts = ends[self.scopes.indptr].tolist()
        self.observation_spaces = {
            name: spaces.Box(0.0, 1.0, (int(widths[low:high].sum()),), np.float32)
            if self._one_hot
            else spaces.MultiDiscrete(seen[low:high])
            for name, low, high in zip(
                self.possible_agents, self.scopes.indptr, self.scopes.indptr[1:], strict=False
            )
        }
        self.state_space = spaces.MultiDiscrete(mdp.state_sizes)
        self._shares = Shares.of(mdp, self.scopes) if rewards == "local" else None
        self._stepper = Stepper(mdp)
        self._generator = np.random.default_rng(_seed(seed))
        self._state: IntArray | None = None
        self._steps = 0
        self._reward = 0.0

    # -- PettingZoo's interface --------------------------------------------------------------------

    def observation_space(self, agent: str) -> spaces.Space[NDArray[Any]]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, dict[str, Any]]]:
        """Starts an episode.

        Args:
            seed: Starts the random numbers anew; None: they go on.
            options: `state`: (N,) values to start in. Other entries are not read.

        Returns:
            Observations and empty infos, by agent.

        Raises:
            InputError: A seed that is no whole number ≥ 0, or a state that the model does not have.
        """
        if seed is not None:
            self._generator = np.random.default_rng(_seed(seed))
        if options is not None and "state" in options:
            self._state = self._checked_state(options["state"])
        else:
            self._state = self._stepper.start(self._generator)
        self._steps, self._reward = 0, 0.0
        self.agents = list(self.possible_agents)
        return self._observed(self._state), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[
        Observations, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
    ]:
        """One step of all agents.

        Args:
            actions: One action an agent.

        Returns:
            Observations, rewards, terminations (all false), truncations and empty infos, by agent.

        Raises:
            InputError: No episode is under way, an agent is missing or unknown, or an action is no
                whole number in range.
        """
        if self._state is None or not self.agents:
            why = "no episode has begun" if self._state is None else "the episode has ended"
            raise InputError(f"step: {why}; call reset first")
        chosen = self._checked_actions(actions)
        terms = self._stepper.terms(self._state, chosen)
        self._reward = float(terms.sum())
        self._state = self._stepper.following(self._state, chosen, self._generator)
        self._steps += 1
        over = self.horizon is not None and self._steps >= self.horizon
        names = self.possible_agents
        if self._shares is None:
            rewards = dict.fromkeys(names, self._reward)
        else:
            rewards = dict(zip(names, self._shares(terms).tolist(), strict=True))
        if over:
            self.agents = []
        return (
            self._observed(self._state),
            rewards,
            dict.fromkeys(names, False),
            dict.fromkeys(names, over),
            {name: {} for name in names},
        )

    def state(self) -> IntArray:
        """(N,) the joint state, a copy.

        Raises:
            InputError: No episode has begun.
        """
        if self._state is None:
            raise InputError("state: no episode has begun; call reset first")
        return self._state.copy()

    def render(self) -> str | None:
        """The state in one line, for `render_mode="ansi"`; else None."""
        if self.render_mode is None or self._state is None:
            return None
        values = (
            f"{self.mdp.coordinate_name(i)}={value}" for i, value in enumerate(self._state.tolist())
        )
        return f"step {self._steps}: {' '.join(values)}, reward {self._reward:.6g}"

    def close(self) -> None:
        """Does nothing; there is nothing to release."""

    # -- what it is made of ------------------------------------------------------------------------

    def _observed(self, state: IntArray) -> Observations:
        """What each agent sees, each array its own part of fresh memory."""
        seen = state[self.scopes.indices]
        if self._one_hot:
            flat: NDArray[Any] = np.zeros(self._cuts[-1], dtype=np.float32)
            flat[self._first + seen] = 1.0
        else:
            flat = seen
        return {
            name: flat[low:high]
            for name, low, high in zip(
                self.possible_agents, self._cuts, self._cuts[1:], strict=False
            )
        }

    def _checked_actions(self, actions: Mapping[str, int]) -> IntArray:
        """(K,) int64 actions in range."""
        names = self.possible_agents
        missing = [name for name in names if name not in actions]
        if missing or len(actions) != len(names):
            unknown = [name for name in actions if name not in self.action_spaces]
            fault = (
                f"{missing[0]!r} has no action" if missing else f"there is no agent {unknown[0]!r}"
            )
            raise InputError(f"step: {fault}; give one action for each of the {len(names)} agents")
        chosen = _whole([actions[name] for name in names])
        if chosen is None:
            alone = {name: _whole([actions[name]]) for name in names}
            for name, value in alone.items():
                if value is None:
                    raise InputError(
                        f"step: the action of {name!r} is {actions[name]!r}; it must be one whole "
                        f"number"
                    )
            chosen = np.array([value for value in alone.values() if value is not None])[:, 0]
        wrong = (chosen < 0) | (chosen >= self.mdp.action_sizes)
        if wrong.any():
            (k,) = first(wrong)
            raise InputError(
                f"step: the action of {names[k]!r} is {int(chosen[k])}; its actions are 0 to "
                f"{int(self.mdp.action_sizes[k]) - 1}"
            )
        return chosen

    def _checked_state(self, given: ArrayLike) -> IntArray:
        state = integers(given, "state of reset's options", 1)
        sizes = self.mdp.state_sizes
        if len(state) != len(sizes):
            raise InputError(
                f"state of reset's options has {len(state)} values, but the model has {len(sizes)} "
                f"coordinates; give one value each"
            )
        wrong = (state < 0) | (state >= sizes)
        if wrong.any():
            (i,) = first(wrong)
            raise InputError(
                f"state of reset's options: coordinate {i} is {int(state[i])}; its values are 0 to "
                f"{int(sizes[i]) - 1}"
            )
        return state


def _whole(values: list[Any]) -> IntArray | None:
    """(n,) int64 of n whole numbers, as Python or NumPy has them; None where one is not."""
    try:
        array = np.asarray(values)
    except ValueError:  # of different shapes
        return None
    if array.shape != (len(values),) or array.dtype.kind not in "iu":
        return None
    return array.astype(np.int64)


def _horizon(value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"horizon is {value!r}; it must be a whole number ≥ 1, or None for no end")
    return int(value)


def _seed(value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InputError(f"seed is {value!r}; it must be a whole number ≥ 0, or None")
    return int(value)
