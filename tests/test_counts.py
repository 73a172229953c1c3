"""Kernels that count, against the same kernels written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from counting_models import random_counted

import torchloc as tl
from torchloc.certificate import Environment, Ladder, reward_oscillation
from torchloc.mdp.counting import grid, reachable
from torchloc.sensitivity import action_sup

KINDS = [
    {},
    {"count_actions": True},
    {"shared": True},
    {"shared": True, "count_actions": True},
    {"noisy": True},
    {"noisy": True, "shared": True},
]


def random_policy(mdp: tl.FactoredMDP, scopes, seed: int) -> tl.SoftmaxPolicy:
    rng = np.random.default_rng(100 + seed)
    scopes = [tuple(scope) for scope in scopes]
    tables = [
        rng.normal(size=(*mdp.state_sizes[list(scope)], mdp.action_sizes[k]))
        for k, scope in enumerate(scopes)
    ]
    return tl.SoftmaxPolicy.from_logits(mdp, scopes, tables)


def pair(seed: int, kind: dict[str, bool]):
    return random_counted(np.random.default_rng(seed), **kind)


def dense(matrix) -> np.ndarray:
    return matrix.toarray()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "plain")
@pytest.mark.parametrize("seed", range(3))
class TestAgainstTables:
    def test_laws_and_rewards(self, seed: int, kind: dict[str, bool]) -> None:
        models = pair(seed, kind)
        written = models.counted.tabulated()
        rng = np.random.default_rng(seed)
        for s in rng.integers(0, models.tables.state_sizes, size=(20, 5)):
            a = rng.integers(0, models.tables.action_sizes)
            for j in range(5):
                np.testing.assert_allclose(
                    law(written, j, s, a), law(models.tables, j, s, a), atol=1e-15
                )

    def test_sensitivities(self, seed: int, kind: dict[str, bool]) -> None:
        models = pair(seed, kind)
        for of in (tl.state_sensitivity, tl.action_sensitivity):
            np.testing.assert_allclose(
                dense(of(models.counted)), dense(of(models.tables)), atol=1e-14
            )

    def test_prior_works_matrix(self, seed: int, kind: dict[str, bool]) -> None:
        models = random_counted(np.random.default_rng(seed), n=4, k=4, **kind)
        found, wanted = dense(action_sup(models.counted)), dense(action_sup(models.tables))
        np.testing.assert_allclose(found, wanted, atol=1e-14)

    @pytest.mark.parametrize("hops", [0, 1])
    def test_every_rung(self, seed: int, kind: dict[str, bool], hops: int) -> None:
        models = pair(seed, kind)
        scopes = tl.neighbourhood_scopes(models.tables, hops=hops)
        policy = random_policy(models.tables, scopes, seed)
        for rung in ("coupled", "exact", "span", "tanh", "paper", "scope"):
            found = dense(tl.influence(models.counted, policy, rung))
            wanted = dense(tl.influence(models.tables, policy, rung))
            np.testing.assert_allclose(found, wanted, atol=1e-14, err_msg=rung)

    def test_certificates(self, seed: int, kind: dict[str, bool]) -> None:
        models = pair(seed, kind)
        scopes = tl.neighbourhood_scopes(models.tables, hops=0)
        policy = random_policy(models.tables, scopes, seed)
        found, wanted = (tl.certify(m, policy) for m in (models.counted, models.tables))
        for rung in found:
            np.testing.assert_allclose(
                dense(found[rung].matrix), dense(wanted[rung].matrix), atol=1e-12
            )
            assert found[rung].rho.lower <= wanted[rung].rho.upper + 1e-12
            assert wanted[rung].rho.lower <= found[rung].rho.upper + 1e-12
            np.testing.assert_allclose(
                found[rung].reward_oscillation, wanted[rung].reward_oscillation, atol=1e-12
            )

    def test_a_saved_model_comes_back(
        self, seed: int, kind: dict[str, bool], tmp_path: Path
    ) -> None:
        models = pair(seed, kind)
        models.counted.save(tmp_path / "m.npz")
        again = tl.FactoredMDP.load(tmp_path / "m.npz")
        for mine, other in zip(models.counted.kernels, again.kernels, strict=True):
            assert type(mine) is type(other)
            assert np.array_equal(mine.table, other.table)
            assert np.array_equal(mine.state_parents, other.state_parents)
        np.testing.assert_array_equal(
            dense(tl.state_sensitivity(models.counted)), dense(tl.state_sensitivity(again))
        )


def law(mdp: tl.FactoredMDP, j: int, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    for batch in mdp.kernels:
        for row in np.flatnonzero(batch.coordinates == j):
            table = batch.table[row if len(batch.table) > 1 else 0]
            return table[(*s[batch.states[row]], *a[batch.actions[row]])]
    raise AssertionError(j)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_too_large_to_write_out_is_bounded_by_exact(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared actions of kernels that are not written out: rows of `exact`, never below the coupled ones."""
    models = pair(seed, {"shared": True, "count_actions": True})
    policy = random_policy(models.tables, tl.neighbourhood_scopes(models.tables), seed)
    sharp = dense(tl.influence(models.tables, policy, "coupled"))
    monkeypatch.setattr("torchloc.sensitivity.COUNT_ENTRIES", 0)
    monkeypatch.setattr("torchloc.certificate.ladder.COUNT_ENTRIES", 0)
    found = dense(tl.influence(models.counted, policy, "coupled"))
    np.testing.assert_allclose(
        found, dense(tl.influence(models.tables, policy, "exact")), atol=1e-14
    )
    assert (found >= sharp - 1e-14).all()
    ladder = Ladder(Environment(models.counted), policy)
    assert (ladder.matrix("coupled").toarray() >= found).all()
    blunt = reward_oscillation(ladder)
    assert (blunt >= reward_oscillation(Ladder(Environment(models.tables), policy)) - 1e-12).all()


def test_reachable_counts_are_those_of_the_grid() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        r = int(rng.integers(1, 4))
        levels = rng.integers(1, 5, size=r).tolist()
        members = [
            tuple(map(tuple, rng.integers(0, 4, size=(r, rng.integers(1, 4))).tolist()))
            for _ in range(rng.integers(0, 5))
        ]
        wanted = np.zeros(int(np.prod(levels)), dtype=bool)
        wanted[grid(levels, members).reshape(-1)] = True
        assert np.array_equal(reachable(levels, members), wanted)


class TestRefusals:
    """One sentence that names the field and the mend."""

    def test_negative_weight(self) -> None:
        with pytest.raises(tl.InputError, match="counters only grow"):
            tl.CountKernel((), (), (0, 1), np.full((3, 2), 0.5), weights=[0, -1])

    def test_a_parent_twice(self) -> None:
        with pytest.raises(tl.InputError, match="coordinate 0 stands twice"):
            tl.CountKernel((0,), (), (0, 1), np.full((2, 3, 2), 0.5))

    def test_weights_of_another_shape(self) -> None:
        with pytest.raises(tl.InputError, match="state_weights has shape"):
            tl.CountKernel((), (), (0, 1), np.full((3, 2), 0.5), weights=np.zeros((3, 2), int))

    def test_a_size_that_the_weights_do_not_have(self) -> None:
        kernel = tl.CountKernel((), (), (0,), np.full((2, 3), 1 / 3))
        with pytest.raises(tl.InputError, match="which has size 3, with 2 weights"):
            tl.FactoredMDP([3], [], [kernel], [])

    def test_modes_of_another_law(self) -> None:
        with pytest.raises(tl.InputError, match="differ from the table by"):
            tl.CountKernel(
                (), (), (0, 1), np.full((3, 2), 0.5), modes=([[0.5, 0.5], [0.1, -0.1]], [1.0, 0.5])
            )

    def test_modes_of_a_count_that_stops(self) -> None:
        with pytest.raises(tl.InputError, match="counts that never stop"):
            tl.CountKernel((), (), (0, 1), np.full((2, 2), 0.5), modes=([[0.5, 0.5]], [0.9]))

    def test_a_table_that_does_not_fit(self) -> None:
        kernel = tl.CountKernel((0,), (), range(1, 60), np.full((2, 60, 2), 0.5))
        with pytest.raises(tl.BudgetError, match="written out it is a table over 60 parents"):
            list(kernel.batch.tables())


@pytest.mark.parametrize("degree", [500])
def test_degree_500_certifies(degree: int) -> None:
    """A star with 500 leaves: E^s of the hub by hand, certified by coupled."""
    beta, delta, eps = 0.0005, 0.6, 0.01
    hub = np.zeros((2, degree + 1, 2))
    caught = 1 - (1 - eps) * (1 - beta) ** np.arange(degree + 1)
    hub[0], hub[1] = np.stack([1 - caught, caught], axis=-1), [delta, 1 - delta]
    leaf = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.5, 0.5], [0.4, 0.6]]])
    kernels = [tl.CountKernel((0,), (), range(1, degree + 1), hub)]
    leaves = np.arange(1, degree + 1)
    batch = tl.KernelBatch(leaves, np.stack([np.zeros_like(leaves), leaves], axis=1),
                           np.zeros((degree, 0), int), leaf[None])  # fmt: skip
    mdp = tl.FactoredMDP(
        [2] * (degree + 1), [], [*kernels, batch], [tl.LocalReward((0,), (), [0, 1])]
    )
    entry = tl.state_sensitivity(mdp).toarray()
    assert entry[0, 1] == pytest.approx((1 - eps) * beta, rel=1e-12)
    assert entry[0, 0] == pytest.approx(
        max(abs(1 - delta - caught[0]), abs(1 - delta - caught[-1]))
    )
    policy = tl.SoftmaxPolicy.tabular(mdp, [])
    assert tl.certify(mdp, policy)["coupled"].rho.upper < 1
