"""The prox objective over network parameters: its supremum where it is reached, more of it where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.improvement import fit_logits, prox_logits
from torchloc.improvement.fit import ascend_prox

MDP = sysadmin(n=5)
SCOPES = tl.neighbourhood_scopes(MDP)
TAU = np.array([0.5, 1.0, 2.0, 0.8, 1.5])
ETA = torch.tensor([1.0, 0.3, 2.0, 0.6, 0.9], dtype=torch.float64)
RATES = {"reward": 0.0, "entropy": 1.0}


def _policy(kind: str = "mlp", **options: Any) -> tl.SoftmaxPolicy:
    return getattr(tl.SoftmaxPolicy, kind)(MDP, SCOPES, temperature=TAU, seed=1, **options)


def _gain(seed: int = 0) -> Tensor:
    return torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _value(
    policy: tl.SoftmaxPolicy, before: Tensor, gain: Tensor, law: np.ndarray, objective: str
) -> np.ndarray:
    """(5,) E_s[⟨μ, g⟩ + τ' Ent μ − η KL(μ ‖ π)] by definition."""
    mu, pi = policy.group_probabilities(0).numpy(), before.numpy()
    terms = mu * gain.numpy() - ETA.numpy()[:, None, None] * mu * np.log(mu / pi)
    terms = terms - RATES[objective] * TAU[:, None, None] * mu * np.log(mu)
    return (law * terms.sum(-1)).sum(-1)


def _wanted(policy: tl.SoftmaxPolicy, gain: Tensor, objective: Any) -> Tensor:
    tau, eta = torch.tensor(TAU)[:, None, None], ETA[:, None, None]
    logits = policy.group_logits(0).detach().double()
    return prox_logits(logits, gain, temperature=tau, prox=eta, objective=objective)


@pytest.mark.parametrize("objective", ["reward", "entropy"])
def test_the_supremum_is_reached_where_it_can_be(objective: Any) -> None:
    policy, gain = _policy(hidden=(16,), activation="tanh"), 0.3 * _gain()
    wanted = _wanted(policy, gain, objective)
    report = ascend_prox(
        policy, 0, torch.arange(5), gain, prox=ETA, objective=objective, tolerance=1e-8
    )
    assert (report.objective <= 1e-8).all() and report.method == "adam"
    best = torch.softmax(wanted / torch.tensor(TAU)[:, None, None], dim=-1)
    # Pinsker: TV ≤ √(KL / 2), and KL ≤ 4 rows · 1e-8 / η.
    gap = (policy.group_probabilities(0) - best).abs().amax()
    assert gap <= (4e-8 / float(ETA.min()) / 2) ** 0.5


@pytest.mark.parametrize(
    ("options", "objective"),
    [({"hidden": ()}, "reward"), ({"hidden": (3,), "sharing": True}, "entropy")],
)
def test_ascent_gains_at_least_what_regression_does(
    options: dict[str, Any], objective: Any
) -> None:
    """On networks too small for the target; and what is left out is what the report says."""
    gain, law = 3.0 * _gain(1), np.random.default_rng(0).uniform(0.1, 1.0, (5, 4))
    weights, rows = torch.tensor(law), torch.arange(5)
    law /= law.sum(1, keepdims=True)
    ascended, fitted, exact = _policy(**options), _policy(**options), _policy("tabular")
    before = ascended.group_probabilities(0)
    wanted = _wanted(ascended, gain, objective)
    fit_logits(exact, 0, rows, wanted)
    start, best = (_value(p, before, gain, law, objective) for p in (ascended, exact))
    fit_logits(fitted, 0, rows, wanted, method="adam", steps=250)
    report = ascend_prox(
        ascended, 0, rows, gain, prox=ETA, objective=objective, weights=weights, steps=250
    )
    value, other = (_value(p, before, gain, law, objective) for p in (ascended, fitted))
    assert (value > start).all() if "sharing" not in options else value.sum() > start.sum()
    assert value.sum() > other.sum()
    # F(μ*) − F(μ) = (η + τ') KL(μ ‖ μ*), both sums of terms of size up to 10.
    np.testing.assert_allclose(report.objective, best - value, rtol=0, atol=1e-13)
    after = ascended.group_logits(0).detach() - wanted
    torch.testing.assert_close(report.error_span, after.amax(-1) - after.amin(-1))


@pytest.mark.parametrize("options", [{"hidden": ()}, {"hidden": (2,), "activation": "tanh"}])
def test_a_fit_can_be_ascended_from_its_anchor(options: dict[str, Any]) -> None:
    """No agent loses value by it, and on networks too small for the target they gain."""
    policy, gain, law = _policy(**options), 3.0 * _gain(2), np.full((5, 4), 0.25)
    before, anchor = policy.group_probabilities(0), policy.group_logits(0).detach().clone()
    fit_logits(policy, 0, torch.arange(5), _wanted(policy, gain, "entropy"))
    fitted = _value(policy, before, gain, law, "entropy")
    ascend_prox(
        policy, 0, torch.arange(5), gain, prox=ETA, objective="entropy", anchor=anchor, steps=100
    )
    value = _value(policy, before, gain, law, "entropy")
    # Values of size up to 10, a few roundings each.
    assert (value >= fitted - 1e-13).all() and value.sum() > fitted.sum()


def test_tables_are_assigned_the_maximiser() -> None:
    policy, gain = _policy("tabular", scale=1.0), _gain()
    with torch.no_grad():
        policy.networks[0].table[2, 1, 0] = -torch.inf
    before = policy.group_logits(0).detach().clone()
    wanted, rows = _wanted(policy, gain, "entropy"), torch.tensor([2, 4])
    report = ascend_prox(policy, 0, rows, gain[rows], prox=ETA[rows], objective="entropy")
    after = policy.group_logits(0).detach()
    assert torch.equal(after[rows], wanted[rows]) and torch.equal(
        after[[0, 1, 3]], before[[0, 1, 3]]
    )
    assert report.method == "assigned" and not report.objective.any() and report.steps == 0


def test_soft_policy_iteration_has_no_anchor() -> None:
    policy, gain = _policy("tabular", scale=1.0), _gain()
    ascend_prox(policy, 0, torch.arange(5), gain, prox=0.0, objective="entropy")
    # (τ g) / τ
    torch.testing.assert_close(policy.group_logits(0).detach(), gain, rtol=1e-15, atol=0)


def test_some_agents_ascend_and_the_others_stay() -> None:
    policy, gain = _policy(hidden=(8,), activation="tanh"), _gain()
    before, rows = policy.group_logits(0).detach().clone(), torch.tensor([3, 0])
    report = ascend_prox(
        policy, 0, rows, gain[:2], prox=1.0, objective="reward", steps=30, batch=2,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    after = policy.group_logits(0).detach()
    assert torch.equal(after[[1, 2, 4]], before[[1, 2, 4]])
    assert not torch.equal(after[rows], before[rows]) and report.taken.tolist() == [30, 30]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prox": 0.0}, "prox is 0; it must be > 0"),
        ({"prox": torch.ones(4)}, r"prox has shape \(4,\).* each of the 5 rows"),
        ({"prox": -1.0}, "must be > 0"),
        ({"weights": torch.ones(5, 3)}, r"weights has shape \(5, 3\); \(5, 4\) is needed"),
        ({"anchor": torch.ones(5, 4)}, r"anchor has shape \(5, 4\); \(5, 4, 2\) is needed"),
        ({"weights": torch.zeros(5, 4)}, "weights must be finite and ≥ 0, and > 0 somewhere"),
        ({"weights": -torch.ones(5, 4)}, "weights must be finite and ≥ 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_calls_are_checked(options: dict[str, Any], message: str) -> None:
    arguments = {"prox": 1.0, "objective": "reward", **options}
    with pytest.raises(tl.InputError, match=message):
        ascend_prox(_policy(), 0, torch.arange(5), _gain(), **arguments)
