"""The PettingZoo environment: the interface, the law of its steps, its rewards, and clear errors.

Statistical tests reject at 1e-6 on fixed seeds, 12 in all: a right environment fails one of them for one choice of
seeds in 80,000.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import reference as ref
from gymnasium import spaces
from pettingzoo.utils import parallel_to_aec
from scipy.stats import chi2
from twins import draw, twin_model

import torchloc as tl
from torchloc.environments import hub_spoke, ising, line_msg, sysadmin
from torchloc.graphs import Scopes
from torchloc.interop.pettingzoo import parallel_env
from torchloc.interop.stepping import Shares, Stepper
from torchloc.mdp import CountBatch, CountKernel, CountRewardBatch

with warnings.catch_warnings():
    # PettingZoo's own tests import one of its games in a way that it has itself deprecated.
    warnings.filterwarnings(
        "ignore", "The old environment creation API has been deprecated", DeprecationWarning
    )
    from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test

scopes_of = Scopes.from_lists
LEVEL = 1e-6
EPS = np.finfo(np.float64).eps

MODELS: dict[str, Callable[[], tl.FactoredMDP]] = {
    "sysadmin": lambda: sysadmin(n=4),
    "several kinds of kernels": lambda: line_msg(5),
    "one hub acts": lambda: hub_spoke(4, noise=0.1),
    "N ≠ K, shared actions": lambda: draw(3, n_coordinates=(4, 4), n_agents=(2, 2), sizes=(2, 3))[
        2
    ],
    "names": lambda: tl.FactoredMDP(
        [3, 2],
        [2],
        [tl.LocalKernel((), (), [0.2, 0.3, 0.5]), tl.LocalKernel((0,), (), np.full((3, 2), 0.5))],
        [tl.LocalReward((0,), (), [0.0, 1.0, 2.0])],
        agent_names=["pump"],
        coordinate_names=["level", "valve"],
    ),
}


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of Pearson's χ², cells below five expected counts taken together."""
    expected = law * counts.sum()
    small = expected < 5.0
    found = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    statistic = float(((found - wanted) ** 2 / wanted).sum())
    return float(chi2.sf(statistic, max(1, len(wanted) - 1)))


# -- PettingZoo's own tests ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("observation", ["scope", "one_hot"])
def test_it_passes_the_parallel_api_test(
    name: str, observation: Any, capsys: pytest.CaptureFixture
) -> None:
    mdp = MODELS[name]()
    env = parallel_env(mdp, observation=observation, rewards="local", horizon=20, seed=1)
    parallel_api_test(env, num_cycles=50)
    assert "Passed" in capsys.readouterr().out


def test_blind_agents_pass_it_too(capsys: pytest.CaptureFixture) -> None:
    for observation in ("scope", "one_hot"):
        env = parallel_env(sysadmin(n=3), [(), (1,), (2, 0)], observation=observation)
        parallel_api_test(env, num_cycles=5)
        assert env.reset(seed=0)[0]["agent_0"].shape == (0,)
    assert "Passed" in capsys.readouterr().out


def test_agents_that_act_in_turn_pass_the_other_api_test(capsys: pytest.CaptureFixture) -> None:
    api_test(parallel_to_aec(parallel_env(sysadmin(n=4), horizon=20)), num_cycles=30)
    assert "Passed" in capsys.readouterr().out


@pytest.mark.parametrize("name", MODELS)
def test_it_passes_the_parallel_seed_test(name: str) -> None:
    mdp = MODELS[name]()
    parallel_seed_test(lambda: parallel_env(mdp, horizon=None), num_cycles=20)


# -- seeds -----------------------------------------------------------------------------------------


def walk(env: Any, seed: int | None, steps: int = 30) -> list[list[int]]:
    """Joint states under one fixed sequence of actions."""
    env.reset(seed=seed)
    rng = np.random.default_rng(5)
    states = [env.state().tolist()]
    for _ in range(steps):
        env.step({name: int(rng.integers(2)) for name in env.agents})
        states.append(env.state().tolist())
    return states


def test_seeds_start_the_random_numbers_anew_and_resets_without_one_go_on() -> None:
    one, other = (parallel_env(sysadmin(n=5), horizon=None, seed=7) for _ in range(2))
    first = walk(one, None)
    assert first == walk(other, None) == walk(one, 7)
    assert walk(one, None) != first
    assert walk(one, 8) != first
    assert walk(parallel_env(sysadmin(n=5), horizon=None), 7) == first


def test_an_environment_travels_to_another_process() -> None:
    env = parallel_env(sysadmin(n=4), horizon=None, rewards="local", seed=3)
    env.reset()
    twin = pickle.loads(pickle.dumps(env))
    actions = dict.fromkeys(env.agents, 0)
    for _ in range(5):
        assert env.step(actions)[1] == twin.step(actions)[1]
    assert env.state().tolist() == twin.state().tolist()


# -- the law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_steps_follow_the_joint_law(seed: int) -> None:
    structure = ("general", "periodic", "nilpotent")[seed % 3]
    model, _, mdp, _ = draw(seed, sizes=(1, 4), structure=structure)
    stepper, rng, repeats = Stepper(mdp), np.random.default_rng(seed), 4000
    s, a = rng.integers(len(model.states)), rng.integers(len(model.actions))
    state, action = np.array(model.states[s]), np.array(model.actions[a], dtype=np.int64)
    drawn = np.array([stepper.following(state, action, rng) for _ in range(repeats)])
    counts = np.bincount(
        np.ravel_multi_index(tuple(drawn.T), model.state_sizes), minlength=len(model.states)
    )
    law = ref.transition(model)[s, a]
    assert counts[law == 0.0].sum() == 0
    assert p_value(counts, law) > LEVEL


@pytest.mark.parametrize("given", [False, True])
def test_first_states_follow_the_initial_law(given: bool) -> None:
    model, *_ = draw(4, n_coordinates=(3, 3), sizes=(2, 3))
    rng = np.random.default_rng(0)
    laws = [rng.dirichlet(np.ones(size)) for size in model.state_sizes]
    env = parallel_env(twin_model(model, initial=laws if given else None), seed=11)
    counts = np.zeros(model.state_sizes)
    for _ in range(3000):
        env.reset()
        counts[tuple(env.state())] += 1
    law = np.ones(())
    for own in laws if given else [np.full(size, 1 / size) for size in model.state_sizes]:
        law = np.multiply.outer(law, own)
    assert p_value(counts.ravel(), law.ravel()) > LEVEL


def test_observations_are_the_scopes_of_the_state_and_steps_are_the_steppers() -> None:
    _, _, mdp, _ = draw(3, n_coordinates=(4, 4), n_agents=(2, 2), sizes=(2, 3))
    scopes = [(3, 0), (1,)]
    env = parallel_env(mdp, scopes, observation="scope", horizon=None, seed=0)
    hot = parallel_env(mdp, scopes, observation="one_hot", horizon=None, seed=0)
    seen, as_hot = env.reset()[0], hot.reset()[0]
    rng, stepper, own = np.random.default_rng(2), Stepper(mdp), np.random.default_rng(0)
    state = stepper.start(own)
    for _ in range(50):
        assert env.state().tolist() == state.tolist()
        for name, scope in zip(env.possible_agents, scopes, strict=True):
            assert seen[name].tolist() == state[list(scope)].tolist()
            wanted = [
                float(state[i] == value) for i in scope for value in range(mdp.state_sizes[i])
            ]
            assert as_hot[name].tolist() == wanted and as_hot[name].dtype == np.float32
            assert seen[name] in env.observation_space(name)
            assert as_hot[name] in hot.observation_space(name)
        assert env.state() in env.state_space
        action = rng.integers(mdp.action_sizes)
        chosen = dict(zip(env.agents, action.tolist(), strict=True))
        gained = float(stepper.terms(state, action).sum())
        state = stepper.following(state, action, own)
        seen, rewards, ended, cut, infos = env.step(chosen)
        as_hot = hot.step(chosen)[0]
        assert set(rewards.values()) == {gained}
        assert not any(ended.values()) and not any(cut.values()) and not any(infos.values())


def counting_model() -> tl.FactoredMDP:
    """Two kinds of kernels and a reward that count, weights shared and not, beside plain tables."""
    rng = np.random.default_rng(8)
    laws = [rng.dirichlet(np.ones(3), shape) for shape in ((3, 2, 5), (2, 4, 3))]
    return tl.FactoredMDP(
        [3, 3, 3, 3],
        [2, 2, 2],
        [
            # reads s_0, a_1; c = min(4, Σ w(s_1, s_2, s_3)), weights of a parent's own
            CountKernel((0,), (1,), (1, 2, 3), laws[0], weights=rng.integers(0, 3, (3, 3))),
            CountBatch(
                [1, 2],
                [[], []],
                [[0], [2]],
                [[0, 3], [1, 3]],
                [[1, 2], [0, 1]],
                laws[1][None],
                state_weights=rng.integers(0, 3, (2, 2, 2, 3)),
                action_weights=rng.integers(0, 2, (2, 2, 2, 2)),
            ),
            tl.LocalKernel((0, 1), (), rng.dirichlet(np.ones(3), (3, 3))),
        ],
        [
            CountRewardBatch(
                [[0], [1]],
                [[], []],
                [[1, 2, 3], [2, 3, 0]],
                [[], []],
                rng.normal(size=(2, 3, 6)),
                state_weights=[0, 1, 2],
            ),
            tl.LocalReward((3,), (2,), rng.normal(size=(3, 2))),
        ],
    )


def test_kernels_and_rewards_that_count_are_their_tables() -> None:
    mdp = counting_model()
    written = mdp.tabulated()
    one, other = Stepper(mdp), Stepper(written)
    scopes = [(0,), (1, 2), ()]
    parts, others = (Shares.of(model, scopes_of(scopes)) for model in (mdp, written))
    rng = np.random.default_rng(1)
    for seed in range(60):
        state, action = rng.integers(mdp.state_sizes), rng.integers(mdp.action_sizes)
        following = [
            stepper.following(state, action, np.random.default_rng(seed)).tolist()
            for stepper in (one, other)
        ]
        assert following[0] == following[1]
        terms = [stepper.terms(state, action) for stepper in (one, other)]
        # Three terms, each in thirds or whole.
        rounding = 16.0 * EPS * np.abs(terms[0]).sum()
        assert abs(terms[0].sum() - terms[1].sum()) <= rounding
        assert np.abs(parts(terms[0]) - others(terms[1])).max() <= rounding


def test_what_is_handed_out_is_nobody_elses() -> None:
    env = parallel_env(sysadmin(n=4), horizon=None, seed=0)
    seen, _ = env.reset()
    state = env.state()
    before = state.copy()
    for array in seen.values():
        array[:] = 1 - array
    state[:] = 7
    assert env.state().tolist() == before.tolist()


# -- rewards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_terms_add_up_to_the_reward_and_local_rewards_do_too(seed: int) -> None:
    model, _, mdp, _ = draw(seed, sizes=(1, 4))
    stepper = Stepper(mdp)
    parts = Shares.of(mdp, tl.neighbourhood_scopes(mdp))
    assert parts.owned.shape == (mdp.n_agents, stepper.n_terms)
    reward = ref.reward(model)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        s, a = rng.integers(len(model.states)), rng.integers(len(model.actions))
        state, action = np.array(model.states[s]), np.array(model.actions[a], dtype=np.int64)
        terms = stepper.terms(state, action)
        # Two sums of M terms in different orders, each share a product and a quotient.
        rounding = 2.0 * (stepper.n_terms * (mdp.n_agents + 1) + 2) * EPS * np.abs(terms).sum()
        assert abs(terms.sum() - reward[s, a]) <= rounding
        assert abs(parts(terms).sum() - reward[s, a]) <= rounding


def test_each_term_is_divided_evenly_among_its_owners() -> None:
    kernels = [
        tl.LocalKernel((), (0, 1), np.full((2, 2, 2), 0.5)),
        tl.LocalKernel((), (2,), np.full((2, 2), 0.5)),
        tl.LocalKernel((), (), [0.5, 0.5]),
        tl.LocalKernel((), (), [0.5, 0.5]),
    ]
    table = np.arange(2.0)
    owners = {
        ((1,), (0,)): [0],  # the action that it reads
        ((0,), (0, 1, 2)): [0, 1, 2],
        ((0,), ()): [0, 1],  # they act on the coordinate
        ((0, 1), ()): [0, 1, 2],
        ((2,), ()): [1, 2],  # nobody acts on it; they see it
        ((3,), ()): [0, 1, 2],  # nobody knows it
        ((), ()): [0, 1, 2],
    }
    rewards = []
    for states, actions in owners:
        whole = np.zeros([2] * (len(states) + len(actions)))
        rewards.append(tl.LocalReward(states, actions, whole + (1.0 if whole.ndim == 0 else table)))
    mdp = tl.FactoredMDP([2] * 4, [2] * 3, kernels, rewards)
    parts = Shares.of(mdp, scopes_of([(0,), (1, 2), (2,)]))
    # Terms are gathered into batches by shape: compared as columns, in any order.
    wanted = sorted(
        tuple(Fraction(int(k in who), len(who)) for k in range(3)) for who in owners.values()
    )
    columns = sorted(
        tuple(Fraction(value).limit_denominator(10) for value in parts(column).tolist())
        for column in np.eye(len(owners))
    )
    assert columns == wanted


def test_an_agents_own_cost_is_its_own() -> None:
    env = parallel_env(sysadmin(n=4, cost=0.75), rewards="local", seed=0)
    env.reset(options={"state": [1, 0, 1, 1]})
    rewards = env.step({"agent_0": 0, "agent_1": 1, "agent_2": 1, "agent_3": 0})[1]
    assert rewards == {"agent_0": 1.0, "agent_1": -0.75, "agent_2": 0.25, "agent_3": 1.0}


def test_a_model_without_rewards_gives_none() -> None:
    mdp = tl.FactoredMDP([2], [2], [tl.LocalKernel((), (0,), np.eye(2))], [])
    for rewards in ("global", "local"):
        env = parallel_env(mdp, rewards=rewards, seed=0)
        env.reset()
        assert env.step({"agent_0": 1})[1] == {"agent_0": 0.0}
        assert env.state().tolist() == [1]


# -- episodes, spaces, text ------------------------------------------------------------------------


def test_an_episode_is_truncated_and_never_terminates() -> None:
    env = parallel_env(ising(4), horizon=3, seed=0)
    env.reset()
    for step in range(3):
        assert env.agents == env.possible_agents
        _, _, ended, cut, _ = env.step(dict.fromkeys(env.agents, 0))
        assert set(ended.values()) == {False} and set(cut.values()) == {step == 2}
    assert env.agents == []
    with pytest.raises(tl.InputError, match="the episode has ended; call reset first"):
        env.step({})
    assert len(env.reset()[0]) == 4 and env.agents == env.possible_agents


def test_spaces_and_names() -> None:
    env = parallel_env(MODELS["names"](), [(1, 0)], observation="scope", render_mode="ansi", seed=0)
    assert env.possible_agents == ["pump"] and env.num_agents == 0 and env.max_num_agents == 1
    assert env.observation_space("pump") == spaces.MultiDiscrete([2, 3])
    assert env.action_space("pump") == spaces.Discrete(2)
    assert env.state_space == spaces.MultiDiscrete([3, 2])
    assert env.render() is None
    env.reset(options={"state": [2, 1]})
    assert env.render() == "step 0: level=2 valve=1, reward 0"
    env.step({"pump": 0})
    assert str(env.render()).startswith("step 1: level=") and str(env.render()).endswith("reward 2")
    assert parallel_env(MODELS["names"]()).render() is None
    env.close()


# -- errors ----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rewards": ({"rewards": "mine"}, "rewards is 'mine'; choose global or local"),
    "observation": ({"observation": "all"}, "observation is 'all'; choose one_hot or scope"),
    "render": ({"render_mode": "human"}, "render_mode is 'human'; choose None or ansi"),
    "horizon": ({"horizon": 0}, "horizon is 0; it must be a whole number ≥ 1"),
    "horizon type": ({"horizon": 2.5}, "horizon is 2.5"),
    "seed": ({"seed": -1}, "seed is -1; it must be a whole number ≥ 0"),
    "scopes": ({"scopes": [(0,)]}, "scopes names 1 agents, but the model has 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(tl.InputError) as caught:
        parallel_env(sysadmin(n=3), **options)
    assert message in str(caught.value)


def test_a_model_without_agents_is_refused() -> None:
    mdp = tl.FactoredMDP([2], [], [tl.LocalKernel((), (), [0.5, 0.5])], [])
    with pytest.raises(tl.InputError, match="the model has no agents"):
        parallel_env(mdp)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"agent_0": 0, "agent_1": 1}, "'agent_2' has no action; give one action for each"),
        (
            {"agent_0": 0, "agent_1": 1, "agent_2": 0, "agent_3": 0},
            "there is no agent 'agent_3'",
        ),
        ({"agent_0": 0, "agent_1": 2, "agent_2": 0}, "'agent_1' is 2; its actions are 0 to 1"),
        ({"agent_0": 0, "agent_1": -1, "agent_2": 0}, "'agent_1' is -1; its actions are 0 to 1"),
        ({"agent_0": 0, "agent_1": 0.5, "agent_2": 0}, "'agent_1' is 0.5; it must be one whole"),
        ({"agent_0": 0, "agent_1": [0, 1], "agent_2": 0}, "'agent_1' is [0, 1]; it must be one"),
        ({"agent_0": 0, "agent_1": None, "agent_2": 0}, "'agent_1' is None; it must be one whole"),
    ],
)
def test_actions_that_do_not_fit_are_refused(actions: dict[str, Any], message: str) -> None:
    env = parallel_env(sysadmin(n=3), seed=0)
    env.reset()
    before = env.state().tolist()
    with pytest.raises(tl.InputError) as caught:
        env.step(actions)
    assert message in str(caught.value)
    assert env.state().tolist() == before


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([0, 1], "has 2 values, but the model has 3 coordinates"),
        ([0, 1, 2], "coordinate 2 is 2; its values are 0 to 1"),
        ([0, 0.5, 1], "must be a whole number"),
    ],
)
def test_states_that_do_not_fit_are_refused(state: list[float], message: str) -> None:
    with pytest.raises(tl.InputError) as caught:
        parallel_env(sysadmin(n=3)).reset(options={"state": state})
    assert message in str(caught.value)


def test_a_seed_of_reset_is_checked_and_steps_need_a_reset() -> None:
    env = parallel_env(sysadmin(n=3))
    with pytest.raises(tl.InputError, match="seed is -3"):
        env.reset(seed=-3)
    with pytest.raises(tl.InputError, match="step: no episode has begun; call reset first"):
        env.step(dict.fromkeys(env.possible_agents, 0))
    with pytest.raises(tl.InputError, match="state: no episode has begun; call reset first"):
        env.state()


def test_numpy_scalars_and_zero_dimensional_arrays_are_actions() -> None:
    env = parallel_env(sysadmin(n=3), seed=0)
    env.reset()
    env.step({"agent_0": np.int32(0), "agent_1": np.array(1), "agent_2": np.uint8(1)})
    assert env.state()[1:].tolist() == [1, 1]
    # NumPy has no whole numbers for both, and makes them float64.
    env.step({"agent_0": np.uint64(1), "agent_1": np.int64(1), "agent_2": 1})
    assert env.state().tolist() == [1, 1, 1]


def test_without_the_extra_one_error_names_it_and_all_else_works() -> None:
    code = (
        "import sys\n"
        "sys.modules['pettingzoo'] = None\n"
        "import torchloc as tl\n"
        "from torchloc.environments import sysadmin\n"
        "from torchloc.interop.pettingzoo import parallel_env\n"
        "print('torch' in sys.modules)\n"
        "try:\n"
        "    parallel_env(sysadmin(n=3))\n"
        "except tl.InputError as error:\n"
        "    print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "False",
        'parallel_env needs pettingzoo, which is not installed; run: pip install "torchloc[envs]"',
    ]
