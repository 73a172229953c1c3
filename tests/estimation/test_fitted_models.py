"""Models fitted to counts, their files, and the wall between them and what is certified."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import torchloc as tl
from torchloc.environments import line_msg, sysadmin
from torchloc.errors import InputError
from torchloc.estimation import (
    SensitivityEstimate,
    TransitionLog,
    estimate_sensitivities,
    maximum_likelihood,
    mean_rewards,
    model_simulator,
)

PARENTS = {
    "state_parents": [[1], [2], []],
    "action_parents": [[], [1], [2]],
}


def estimate_of(mdp: tl.FactoredMDP, samples: int = 50, **options: object) -> SensitivityEstimate:
    return estimate_sensitivities(
        model_simulator(mdp),
        delta=0.1,
        samples=samples,
        generator=np.random.default_rng(0),
        description="a test",
        **options,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_laws_are_counts_plus_pseudo_counts(alpha: float) -> None:
    log = TransitionLog([[0], [0], [0]], np.zeros((3, 0), int), [[1], [1], [0]], [2], [])
    fitted = maximum_likelihood(
        estimate_sensitivities(log, delta=0.1, samples=3), pseudo_count=alpha
    )
    table = fitted.training_model.kernels[0].table[0]
    unseen = [0.5, 0.5]
    np.testing.assert_allclose(
        table, [[(1 + alpha) / (3 + 2 * alpha), (2 + alpha) / (3 + 2 * alpha)], unseen]
    )


def test_the_fit_comes_close_to_the_truth() -> None:
    """Each law within 6 standard deviations of it (√(p(1 − p)/n) ≤ .5/√n), at 24 entries."""
    truth = line_msg(3)
    fitted = maximum_likelihood(estimate_of(truth, 20_000, **PARENTS), pseudo_count=0.0)
    policy = tl.SoftmaxPolicy.tabular(truth, [[0], [1], [2]])
    policy.check(fitted.training_model)
    one, two = (
        tl.JointEvaluation(mdp, policy).transition_matrix for mdp in (truth, fitted.training_model)
    )
    assert np.abs(np.asarray(one) - np.asarray(two)).max() <= 3 * 6 * 0.5 / np.sqrt(20_000)


def test_a_fitted_model_is_not_certified_by_accident() -> None:
    truth = sysadmin(3)
    estimate = estimate_of(truth).with_rewards(truth.rewards)
    fitted = maximum_likelihood(estimate, coordinate_names="abc")
    policy = tl.SoftmaxPolicy.tabular(fitted.training_model, [[0], [1], [2]])
    with pytest.raises(
        InputError, match="FittedModel cannot be certified; give the FactoredMDP if it is the truth"
    ):
        tl.certify(fitted, policy)  # pyright: ignore[reportArgumentType]
    assert not isinstance(fitted, tl.FactoredMDP)
    assert tl.certify(fitted.estimate, policy).delta == 0.1
    assert fitted.training_model.coordinate_names == ("a", "b", "c")
    assert fitted.training_model.rewards[0].table.tolist() == truth.rewards[0].table.tolist()


def test_a_run_trains_on_the_fitted_model() -> None:
    truth = sysadmin(3)
    fitted = maximum_likelihood(estimate_of(truth, 2000).with_rewards(truth.rewards))
    policy = tl.SoftmaxPolicy.tabular(fitted.training_model, tl.neighbourhood_scopes(truth))
    before = tl.JointEvaluation(truth, policy).average_reward
    tables = tl.local_logits(fitted.training_model, policy, 2)
    better = tl.SoftmaxPolicy.from_logits(
        fitted.training_model, policy.scopes, [5.0 * tables[k] for k in range(3)]
    )
    assert tl.JointEvaluation(truth, better).average_reward > before


def test_mean_rewards_and_their_errors() -> None:
    log = TransitionLog([[0, 1], [1, 0], [1, 1]], [[1], [0], [1]], [[0, 0]] * 3, [2, 2], [2])
    values = [[1.0, 5.0], [2.0, 7.0], [6.0, 9.0]]
    one, two = mean_rewards(log, [((0,), ()), ((1,), (0,))], values)
    assert (one.states, one.actions, one.table.tolist()) == ((0,), (), [1.0, 4.0])
    # State 1 under action 1 was seen twice (5 and 9); what was never seen has the mean of the column.
    assert two.table.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    for scopes, wrong, words in (
        ([((0,), ())], values, r"values has shape \(3, 2\); it must be \(3, 1\)"),
        ([((2,), ()), ((), ())], values, "term 0 names coordinate 2"),
        ([((0,), (1,)), ((), ())], values, "term 0 names agent 1"),
        ([((0,), ())], [[1.0], [np.nan], [0.0]], r"entry \(1, 0\) is nan"),
    ):
        with pytest.raises(InputError, match=words):
            mean_rewards(log, scopes, wrong)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_pseudo_counts_are_checked(alpha: float) -> None:
    with pytest.raises(InputError, match="pseudo_count is"):
        maximum_likelihood(estimate_of(line_msg(3), **PARENTS), pseudo_count=alpha)


@pytest.mark.parametrize("kind", ["bare", "rewards", "bound", "log"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    mdp = line_msg(3)
    if kind == "log":
        policy = tl.SoftmaxPolicy.tabular(mdp, [[0], [1], [2]])
        log = TransitionLog.rollout(
            mdp, policy, steps=30, generator=torch.Generator().manual_seed(0)
        )
        estimate = estimate_sensitivities(log, delta=0.2)
    else:
        estimate = estimate_of(mdp, **PARENTS)
    if kind == "rewards":
        estimate = estimate.with_rewards(mdp.rewards)
    if kind == "bound":
        estimate = estimate.with_reward_bound([0.0, 1.0, 2.0])
    path = tmp_path / "estimate.npz"
    estimate.save(path)
    loaded = SensitivityEstimate.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["estimate.npz"]
    for name in ("state", "action"):
        one, two = getattr(estimate, name), getattr(loaded, name)
        assert (one.data == two.data).all() and (one.indices == two.indices).all()
        assert (one.indptr == two.indptr).all()
        assert (getattr(estimate, f"{name}_tags") == getattr(loaded, f"{name}_tags")).all()
    for name in ("delta", "absent", "description", "samples", "visited", "weakest", "standing"):
        assert getattr(estimate, name) == getattr(loaded, name)
    assert (estimate.rewards is None) == (loaded.rewards is None)
    assert (estimate.reward_bound is None) == (loaded.reward_bound is None)
    assert repr(loaded) == repr(estimate)
    first, second = (maximum_likelihood(it).training_model for it in (estimate, loaded))
    for one, two in zip(first.kernels, second.kernels, strict=True):
        assert (one.table == two.table).all()


def test_files_that_are_no_estimates_are_told(tmp_path: Path) -> None:
    path = tmp_path / "estimate.npz"
    with pytest.raises(InputError, match="there is no file"):
        SensitivityEstimate.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is damaged or no torchloc estimate"):
        SensitivityEstimate.load(path)
    line_msg(3).save(path)
    with pytest.raises(InputError, match="is no torchloc estimate"):
        SensitivityEstimate.load(path)
    estimate_of(line_msg(3), **PARENTS).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    for change, words in (
        ({"torchloc_estimate": np.int64(9)}, "estimate format 9"),
        ({"delta": None}, "the array 'delta' is missing"),
        ({"delta": np.float64(2.0)}, "delta is 2.0"),
        ({"absent": np.int64(8)}, "is damaged"),
        ({"batch_0_counts": np.zeros((1, 1, 1), int)}, "does not fit its parents"),
        ({"state_tags": np.array([9])}, "state_tags"),
    ):
        altered = {**arrays, **change}
        np.savez(path, **{name: value for name, value in altered.items() if value is not None})
        with pytest.raises(InputError, match=words):
            SensitivityEstimate.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("delta.npy", b"broken")
    with pytest.raises(InputError, match="is damaged"):
        SensitivityEstimate.load(path)
