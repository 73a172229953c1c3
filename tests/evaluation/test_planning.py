"""Optimal control against a linear program and against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
from twins import draw

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.evaluation.planning import best_deterministic_local, optimal_control


@pytest.mark.parametrize("seed", range(20))
def test_brackets_the_linear_program(seed: int) -> None:
    model, _, mdp, _ = draw(seed, unichain=True, structure=("general", "periodic")[seed % 2])
    best = optimal_control(mdp)
    assert best.upper - best.lower <= 1e-9 * 10
    # The oracle's linear program is good to the solver's 1e-8.
    assert best.gain == pytest.approx(ref.optimal_average(model), abs=1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_local_enumeration_matches_the_oracle(seed: int) -> None:
    model, _, mdp, _ = draw(seed, unichain=True, sizes=(1, 2), n_coordinates=(1, 3))
    rng = np.random.default_rng(seed)
    scopes = ref.random_policy(rng, model, max_scope=1).scopes
    best = best_deterministic_local(mdp, scopes)
    gain = ref.best_deterministic(model, scopes)[0]
    assert best.gain == pytest.approx(gain, abs=1e-10)
    assert best.multichain == 0


def test_discounted_optimum_solves_bellmans_equation() -> None:
    _, _, mdp, _ = draw(2, n_agents=(2, 2))
    best = optimal_control(mdp, discount=0.9)
    assert best.lower <= best.gain <= best.upper
    patient = optimal_control(mdp, discount=0.9, tolerance=1e-12)
    assert best.lower - 1e-9 <= patient.gain <= best.upper + 1e-9


def test_sysadmin_local_rule_is_jointly_optimal() -> None:
    mdp = sysadmin(n=3)
    local = best_deterministic_local(mdp, tl.neighbourhood_scopes(mdp))
    assert local.gain / 3 == pytest.approx(0.887747, abs=1e-6)
    assert local.gain == pytest.approx(optimal_control(mdp).gain, abs=1e-8)
    for k, rule in enumerate(local.actions):
        expected = np.array([[1, 1], [1, 0]])
        np.testing.assert_array_equal(rule, expected, err_msg=str(k))


def test_multichain_policies_are_counted() -> None:
    """s' = a with scope {s}: copying and always-0 / always-1 and negation; copying has two classes."""
    follow = tl.LocalKernel((), (0,), np.eye(2))
    mdp = tl.FactoredMDP([2], [2], [follow], [tl.LocalReward((0,), (), [0.0, 1.0])])
    best = best_deterministic_local(mdp, [(0,)])
    assert best.multichain == 1
    assert best.gain == 1.0


def test_budgets_name_their_sizes() -> None:
    with pytest.raises(tl.BudgetError, match="joint state-action pairs"):
        optimal_control(sysadmin(n=14))
    mdp = sysadmin(n=8)
    with pytest.raises(tl.BudgetError, match=r"4294967296|about 10"):
        best_deterministic_local(mdp, tl.neighbourhood_scopes(mdp))
