"""Scales of logits: Π is what the definitions say at every scale, and the largest scale is the largest."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference as ref
import scipy.sparse as sp
from twins import draw

from torchloc.errors import InputError
from torchloc.locality import largest_scales, sensitivity_at, spreads
from torchloc.locality.scales import MONOTONE, largest_on_grid

Array = np.ndarray
# Differences of logits lose digits of their size, up to 150 τ here; then one tanh.
ROUNDING = 1e-12
# A solution to rounding, its error divided by a slope; smaller slopes are left out.
SOLVED = 1e-9


def scaled(policy: ref.Policy, scale: Array) -> ref.Policy:
    """The definition's policy with all logits of agent k times scale[k]."""
    logits = [s * np.asarray(z) for s, z in zip(scale, policy.logits, strict=True)]
    return ref.Policy(policy.scopes, logits, policy.temperature)


@pytest.mark.parametrize("rung", MONOTONE)
@pytest.mark.parametrize("seed", range(10))
def test_sensitivity_at_a_scale_is_that_of_scaled_logits(seed: int, rung: str) -> None:
    model, policy, _, twin = draw(seed, policy={"minus_infinity": 0.2 * (seed % 2)})
    scale = np.random.default_rng(seed).uniform(0.01, 1.0, size=model.n_agents)
    mine = sensitivity_at(spreads(twin, rung), scale, rung).toarray()
    expected = ref.policy_sensitivity(model, scaled(policy, scale), rung)
    np.testing.assert_allclose(mine, expected, rtol=ROUNDING, atol=ROUNDING)


def test_at_scale_zero_only_what_is_forbidden_is_left() -> None:
    x = sp.csr_array([[2.0, np.inf], [0.5, 0.0]])
    left = sensitivity_at(x, np.zeros(2), "span").toarray()
    assert left.tolist() == [[0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("rung", ["exact", "coupled", "scope", "none"])
def test_other_rungs_have_no_spreads(rung: str) -> None:
    _, _, _, twin = draw(0)
    with pytest.raises(InputError, match="rung"):
        spreads(twin, rung)


@pytest.mark.parametrize("rung", MONOTONE)
@pytest.mark.parametrize("seed", range(10))
def test_the_largest_scale_is_allowed_and_a_millionth_more_is_not(seed: int, rung: str) -> None:
    rng = np.random.default_rng(seed)
    k, n = 6, 5
    x = rng.exponential(size=(k, n)) * 10.0 ** rng.uniform(-2, 1, size=(k, 1))
    x = np.where(rng.random((k, n)) < 0.7, x, 0.0)
    x[0, :2] = np.inf
    matrix, weights = sp.csr_array(x), np.exp(2 * rng.normal(size=n))
    whole = sensitivity_at(matrix, np.ones(k), rung) @ weights
    rest = sensitivity_at(matrix, np.zeros(k), rung) @ weights
    allowed = rest + rng.uniform(0.05, 1.3, size=k) * (whole - rest)
    scale = largest_scales(matrix, weights, allowed, rung)

    def used(at: Array) -> Array:
        return sensitivity_at(matrix, at, rung) @ weights

    assert ((scale > 0) & (scale <= 1)).all()
    assert (used(scale) <= allowed * (1 + ROUNDING)).all()
    short = scale < 1.0
    assert (allowed[~short] >= whole[~short] * (1 - ROUNDING)).all()
    more = used(np.where(short, scale * (1 + 1e-6), scale))
    rises = more - used(scale) > SOLVED * allowed
    assert (more > allowed)[short & rises].all()
    assert rises[short].any() or not short.any()


def test_a_start_that_is_allowed_is_kept_and_nothing_allowed_is_zero() -> None:
    x, weights = sp.csr_array([[1.0], [1.0]]), np.ones(1)
    allowed = np.array([np.tanh(0.5), 0.0])
    scale = largest_scales(x, weights, allowed, "span", start=np.array([0.49, 0.0]))
    np.testing.assert_allclose(scale, [0.5, 0.0], rtol=ROUNDING)


@pytest.mark.parametrize("seed", range(8))
def test_a_grid_finds_scales_that_were_evaluated_and_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = 7
    wave = rng.uniform(0.0, 3.0, size=k)
    seen: list[tuple[Array, Array]] = []

    def row(scale: Array) -> Array:
        value = scale * (1.0 + np.sin(wave * np.log(scale)))
        seen.append((scale.copy(), value))
        return value

    allowed = rng.uniform(0.05, 1.2, size=k)
    safe = np.where(rng.random(k) < 0.8, 1e-3, 0.0)
    found = largest_on_grid(row, allowed, safe)
    assert (found[safe == 0.0] == 0.0).all()
    for agent in np.flatnonzero(safe > 0.0):
        fits = [v[agent] <= allowed[agent] for s, v in seen if s[agent] == found[agent]]
        assert found[agent] == safe[agent] or (fits and all(fits))
        whole = [v[agent] <= allowed[agent] for s, v in seen if s[agent] == 1.0]
        assert (found[agent] == 1.0) == whole[0]


@pytest.mark.parametrize("seed", range(6))
def test_spreads_divide_by_each_agents_own_temperature(seed: int) -> None:
    model, _, _, twin = draw(seed)
    tau = np.random.default_rng(seed).uniform(0.3, 3.0, size=model.n_agents)
    other = copy.deepcopy(twin)
    other.set_temperature(tau)
    for rung in MONOTONE:
        factor = (twin.temperature.numpy() / tau)[:, None]
        np.testing.assert_allclose(
            spreads(other, rung).toarray(), spreads(twin, rung).toarray() * factor, rtol=1e-14
        )
