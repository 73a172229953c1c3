"""The graph statement of B.4: the support graph, balls, and influence that falls with distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference as ref
from twins import draw

import torchloc as tl
from torchloc.certificate import RungCertificate
from torchloc.environments import sysadmin


def _ring(n: int = 12) -> RungCertificate:
    mdp = sysadmin(n)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    return tl.certify(mdp, policy, rungs=("coupled",))["coupled"]


def test_balls_of_a_one_way_ring() -> None:
    rung = _ring()
    assert rung.ball(5, 0).tolist() == [5]
    assert rung.ball(5, 3).tolist() == [2, 3, 4, 5]
    assert rung.ball(1, 3).tolist() == [0, 1, 10, 11]
    assert len(rung.ball(0, 100)) == 12


def test_influence_falls_geometrically_with_distance() -> None:
    rung = _ring()
    bounds = [rung.influence_bound((6 - d) % 12, 6) for d in range(12)]
    assert [d for d, _ in bounds] == list(range(12))
    values = np.array([bound for _, bound in bounds])
    # Constant weights on a uniform ring: the ratio is the rate itself.
    np.testing.assert_allclose(values[1:] / values[:-1], rung._closing.rate, rtol=1e-9)
    exact = np.linalg.inv(np.eye(12) - rung.operators[0].toarray())
    assert (exact[[(6 - d) % 12 for d in range(12)], 6] <= values).all()


@pytest.mark.parametrize("seed", range(25))
def test_nothing_arrives_before_its_time(seed: int) -> None:
    model, policy, mdp, twin = draw(seed, unichain=True, mixing=0.3)
    rung = tl.certify(mdp, twin, rungs=("coupled",))["coupled"]
    step = ref.chain(model, policy).matrix
    rng = np.random.default_rng(seed)
    for j, size in enumerate(model.state_sizes):
        f = rng.random(size)[model.states[:, j]]
        spread = ref.oscillation(model, f).max()
        moved = [ref.oscillation(model, np.linalg.matrix_power(step, t) @ f) for t in range(60)]
        for i in range(model.n_coordinates):
            distance, bound = rung.influence_bound(i, j)
            for t, values in enumerate(moved):
                if t < distance:
                    assert values[i] <= 1e-12
            if math.isfinite(bound):
                assert sum(values[i] for values in moved) <= bound * spread + 1e-9
            for radius in range(3):
                assert (i in rung.ball(j, radius)) == (distance <= radius)


def test_weighted_oscillation_contracts() -> None:
    rung = _ring()
    weighted = rung.weighted
    assert weighted is not None and weighted.rate < 1.0
    moved = rung.operators[0] @ weighted.weights
    assert (moved <= weighted.rate * weighted.weights).all()


def test_bad_questions_are_named() -> None:
    rung = _ring(4)
    with pytest.raises(tl.InputError, match="coordinate is 4"):
        rung.ball(4, 1)
    with pytest.raises(tl.InputError, match="radius is -1"):
        rung.ball(0, -1)
    with pytest.raises(tl.InputError, match="cause is 9"):
        rung.influence_bound(9, 0)
