"""The guard: blocks whose guaranteed gain is negative are damped or taken back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from twins import draw

import torchloc as tl
from torchloc.environments import line_msg, sysadmin
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import BlockRecord, Improvement, cyclic_sweep

SEEDS = range(8)


def swept(
    seed: int, guard: str, *, error: float = 0.0
) -> tuple[JointEvaluation, JointEvaluation, list[BlockRecord]]:
    """A sweep of a random model with partial scopes, of truncated advantages with ε as given."""
    _, _, mdp, twin = draw(seed, unichain=True, mixing=0.3)
    joint = JointEvaluation(mdp, twin, objective="reward")
    settings = Improvement(objective="reward", weighting="uniform", prox=0.05, guard=guard)

    def epsilon(policy: tl.SoftmaxPolicy) -> torch.Tensor:
        return torch.full((policy.n_agents,), error, dtype=torch.float64)

    # κ = None: exact advantages, so that ε = 0 is true, and every larger one a bound as well.
    return joint, *cyclic_sweep(joint, twin, settings, None, epsilon)


@pytest.mark.parametrize("guard", ["damp", "skip"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_guarded_block_has_a_negative_guarantee(seed: int, guard: str) -> None:
    before, after, records = swept(seed, guard, error=0.05)
    for record in records:
        assert record.guarantee >= -record.slack
        assert record.realised >= -2.0 * record.slack
        if record.share == 0.0:
            assert record.realised == record.guarantee == record.total_variation == 0.0
    total = math.fsum(record.realised for record in records)
    assert after.value - before.value == pytest.approx(total, abs=1e-12)


def test_the_guard_has_something_to_do() -> None:
    """Partial scopes lose without it, and damping keeps more than skipping."""
    free = [record for seed in SEEDS for record in swept(seed, "none", error=0.3)[2]]
    assert min(record.guarantee for record in free) < -1e-2
    assert all(record.share == 1.0 for record in free)
    damped = [record.share for seed in SEEDS for record in swept(seed, "damp", error=0.3)[2]]
    skipped = [record.share for seed in SEEDS for record in swept(seed, "skip", error=0.3)[2]]
    assert {0.0, 1.0} == set(skipped)
    assert any(0.0 < share < 1.0 for share in damped)
    assert damped.count(0.0) <= skipped.count(0.0)


@pytest.mark.parametrize("kind", ["tabular", "mlp", "shared"])
def test_a_block_that_is_taken_back_keeps_every_bit(kind: str) -> None:
    """ε = ∞: nothing is certified, so nothing moves."""
    mdp = sysadmin(n=3)
    scopes = tl.neighbourhood_scopes(mdp)
    make = {
        "tabular": lambda: tl.SoftmaxPolicy.tabular(mdp, scopes, scale=1.0),
        "mlp": lambda: tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(4,)),
        "shared": lambda: tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(4,), sharing=True),
    }
    policy = make[kind]()
    fresh = copy.deepcopy(policy.state_dict())
    joint = JointEvaluation(mdp, policy, objective="entropy")

    def nothing(policy: tl.SoftmaxPolicy) -> torch.Tensor:
        return torch.full((policy.n_agents,), math.inf)

    after, records = cyclic_sweep(joint, policy, Improvement(guard="damp"), 2, nothing)
    assert after is joint
    assert [record.share for record in records] == [0.0] * 3
    for name, value in policy.state_dict().items():
        assert torch.equal(value, fresh[name]), name


def test_a_damped_step_is_measured_against_its_own_aim() -> None:
    """A table realises it exactly; the ledger books what is missing from the whole step as misfit."""
    damped = [r for seed in SEEDS for r in swept(seed, "damp", error=0.3)[2] if 0 < r.share < 1]
    assert damped
    for record in damped:
        assert record.fit_kl < 1e-15
        assert record.fit_error > 0.0
        assert record.balance <= record.guarantee + 1e-12


def test_runs_say_how_often_blocks_were_damped_or_taken_back() -> None:
    mdp = line_msg(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    improvement = Improvement(guard="skip", weighting="uniform")
    state = tl.Trainer(
        mdp, policy, schedule=lambda _: 0.1, improvement=improvement, iterations=2
    ).run()
    shares = [record.share for record in state.records]
    assert state.metrics["ledger/skipped"] == shares.count(0.0)
    assert state.metrics["ledger/damped"] == 0.0
    assert state.metrics["ledger/guarantee"] >= -sum(record.slack for record in state.records)


@pytest.mark.parametrize("order", ["jacobi", "chromatic"])
def test_moves_without_a_guarantee_cannot_be_guarded(order: str) -> None:
    with pytest.raises(tl.InputError, match=f"guard is 'skip' with order={order}"):
        Improvement(order=order, guard="skip")  # pyright: ignore[reportArgumentType]


def test_the_local_engine_has_no_guarantees_to_guard() -> None:
    mdp = sysadmin(n=4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    with pytest.raises(tl.InputError, match="the local engine has no guarantees to guard; use"):
        tl.Trainer(
            mdp,
            policy,
            schedule=lambda _: 0.1,
            improvement=Improvement(guard="damp"),
            evaluation=tl.Evaluation(engine="local"),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guard": "always"}, "guard is 'always'; choose one of none, damp, skip"),
        ({"fit_kl": -1.0}, "fit_kl is -1.0"),
        ({"fit_rate": 0.0}, "fit_rate is 0.0"),
        ({"fit_batch": 0}, "fit_batch is 0"),
        ({"fit_batch": 4, "fit_method": "levenberg"}, "fit_batch is 4, but fit_method=levenberg"),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        Improvement(**options)
