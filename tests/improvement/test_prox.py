"""The prox step against its definition, and the block target against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from scipy.optimize import minimize
from twins import draw

import torchloc as tl
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import block_target, prox_logits
from torchloc.improvement.prox import entropy, kl, log_law

ATOL = 1e-10


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(8))
def test_step_maximises_its_objective(seed: int, objective: str) -> None:
    rng = np.random.default_rng(seed)
    z, g = rng.normal(size=(2, 4))
    tau, eta = rng.uniform(0.2, 2.0, size=2)
    anchor = log_law(torch.tensor(z), tau)

    def loss(logits: np.ndarray) -> float:
        law = torch.log_softmax(torch.tensor(logits), -1)
        value = float((law.exp() * torch.tensor(g)).sum()) - eta * float(kl(law, anchor))
        return -value - (tau * float(entropy(law)) if objective == "entropy" else 0.0)

    found = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    step = prox_logits(
        torch.tensor(z), torch.tensor(g), temperature=tau, prox=eta, objective=objective
    )
    assert loss((step / tau).numpy()) <= found.fun + 1e-12
    # BFGS with numeric gradients is good to about the root of the rounding of its values.
    np.testing.assert_allclose(
        torch.softmax(step / tau, -1), torch.softmax(torch.tensor(found.x), -1), atol=1e-6
    )


def test_no_prox_is_soft_policy_iteration_and_revives_forbidden_actions() -> None:
    z = torch.tensor([-torch.inf, 0.0]).double()
    g = torch.tensor([1.0, 2.0]).double()
    assert torch.equal(prox_logits(z, g, temperature=0.5, prox=0.0, objective="entropy"), g)
    kept = prox_logits(z, g, temperature=0.5, prox=0.5, objective="entropy")
    assert kept[0] == -torch.inf


@pytest.mark.parametrize(("prox", "objective"), [(-1.0, "entropy"), (0.0, "reward")])
def test_prox_weight_is_checked(prox: float, objective: str) -> None:
    zero = torch.zeros(2)
    with pytest.raises(tl.InputError, match=f"prox is {prox}"):
        prox_logits(zero, zero, temperature=1.0, prox=prox, objective=objective)


@pytest.mark.parametrize("weighting", ["stationary", "uniform"])
@pytest.mark.parametrize("seed", range(20))
def test_target_matches_definition(seed: int, weighting: str) -> None:
    model, policy, mdp, twin = draw(seed, unichain=True)
    joint = JointEvaluation(mdp, twin)
    chain = ref.chain(model, policy)
    law = chain.stationary if weighting == "stationary" else ref.uniform_law(model)
    for kappa in (0, 2):
        advantages = ref.advantage(model, chain.kernel, chain.truncated(kappa), chain.average)
        for k, scope in enumerate(policy.scopes):
            g = ref.block_values(model, policy, advantages, k)
            average = ref.scope_average(model, scope, g, law)
            omega = ref.scope_error(model, scope, g, average)
            target = block_target(joint, k, kappa, weighting)
            centred = average - average.mean(-1, keepdims=True)
            np.testing.assert_allclose(
                target.average.numpy().reshape(centred.shape), centred, atol=ATOL
            )
            np.testing.assert_allclose(
                target.scope_error.numpy().reshape(omega.shape), omega, atol=ATOL
            )


def test_states_that_never_occur_are_weighted_uniformly() -> None:
    """d(s_O) = 0: coordinate 0 is absorbed at 0, so its value 1 is never seen."""
    stay = tl.LocalKernel((), (), [1.0, 0.0])
    coin = tl.LocalKernel((), (), [0.2, 0.8])
    reward = tl.LocalReward((0, 1), (0,), np.arange(8.0).reshape(2, 2, 2) ** 2)
    mdp = tl.FactoredMDP([2, 2], [2], [stay, coin], [reward])
    joint = JointEvaluation(mdp, tl.SoftmaxPolicy.tabular(mdp, [(0,)]))
    target = block_target(joint, 0, 0, "stationary")
    gap = target.average[:, 1] - target.average[:, 0]
    assert gap[0] == pytest.approx(0.2 * 1 + 0.8 * 5, abs=1e-12)
    assert gap[1] == pytest.approx(0.5 * 9 + 0.5 * 13, abs=1e-12)


def test_kl_and_entropy_of_laws_with_zeros() -> None:
    p = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double().log()
    q = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double().log()
    assert kl(p, q).tolist() == [pytest.approx(np.log(2)), np.inf]
    assert entropy(p).tolist() == [0.0, pytest.approx(np.log(2))]
