"""Fits reach what the network can represent, touch nobody else, stop by themselves, and say how near."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.improvement import fit_logits
from torchloc.improvement.fit import problem as rooms_problem
from torchloc.improvement.fit import regression as room
from torchloc.policy import AgentGroup

MDP = sysadmin(n=5)
SCOPES = tl.neighbourhood_scopes(MDP)
EPS = torch.finfo(torch.float64).eps


def _wide(n_agents: int = 4, m: int = 2, size: int = 3, n_actions: int = 3) -> tl.FactoredMDP:
    """A model of which only the sizes matter."""
    kernels = [tl.LocalKernel((), (), np.full(size, 1 / size)) for _ in range(m)]
    return tl.FactoredMDP([size] * m, [n_actions] * n_agents, kernels, [])


def _targets(seed: int, agents: int, scale: float = 3.0, rows: int = 4, actions: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(agents, rows, actions, generator=generator, dtype=torch.float64)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _logits(policy: tl.SoftmaxPolicy) -> Tensor:
    return policy.group_logits(0).detach()


class Own(nn.Module):
    """A user's module whose agents own what they use."""

    def __init__(self, group: AgentGroup) -> None:
        super().__init__()
        shapes = [(len(group), len(group.sizes), 12), (len(group), 1, 12), (len(group), 12, 1)]
        self.first, self.bias, self.second = (
            nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes
        )
        self.sign = nn.Parameter(torch.linspace(-1, 1, group.n_actions).expand(len(group), 1, -1))
        self.sign.requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        hidden = torch.sin(observations.double() @ self.first + self.bias)
        return hidden @ self.second * self.sign


class Common(nn.Module):
    """A user's module that all agents of a group share."""

    def __init__(self, group: AgentGroup) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(len(group.sizes), 12, dtype=torch.float64),
            nn.Tanh(),
            nn.Linear(12, group.n_actions, dtype=torch.float64),
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.body(observations.double())


# What is reached ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_networks_interpolate(activation: str) -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16, 16), activation=activation, seed=3)
    rows = torch.tensor([0, 2, 4])
    before = _logits(policy)
    targets = _targets(0, 3)
    report = fit_logits(policy, 0, rows, targets, tolerance=1e-10)
    after = _logits(policy)
    goal = 1e-10 * (1 + float(targets.abs().max()))
    assert (_centred(after[rows]) - _centred(targets)).abs().max() <= goal
    assert report.method == "levenberg" and report.residual <= goal and report.steps < 60
    assert torch.equal(after[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("method", ["levenberg", "adam"])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden": (16, 16)},
        {"hidden": (16,), "activation": "tanh", "bound": 12.0},
        {"hidden": (32,), "activation": "tanh", "sharing": True},
    ],
)
def test_every_method_reaches_representable_targets(method: Any, options: dict[str, Any]) -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, seed=1, **options)
    targets = _targets(5, 5, scale=1.0)
    report = fit_logits(policy, 0, torch.arange(5), targets, method=method, tolerance=1e-4)
    assert report.method == method
    error = _centred(_logits(policy)) - _centred(targets)
    assert error.abs().max() <= 1e-4 * (1 + float(targets.abs().max()))
    limit = {"levenberg": room.LEVENBERG_STEPS, "adam": room.ADAM_STEPS}[method]
    assert 0 < report.steps < limit


@pytest.mark.parametrize("method", ["levenberg", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agents_stop_each_by_itself(method: Any, dtype: torch.dtype) -> None:
    """Targets that are met already take no step and leave every bit; the others are reached."""
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16,), activation="tanh", dtype=dtype)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    targets = _logits(policy).double()
    targets[1] += 7.0  # a constant a row is no error
    targets[3] = _targets(2, 1, 1.0)[0]
    # The sum of a constant of size 8 and a logit is off by 8 u at most.
    report = fit_logits(policy, 0, torch.arange(5), targets, method=method, tolerance=1e-5)
    assert report.taken[[0, 1, 2, 4]].tolist() == [0] * 4 and report.taken[3] > 0
    assert report.residual <= 1e-5 * (1 + float(_centred(targets).abs().max()))
    for name, value in policy.networks.state_dict().items():
        assert torch.equal(value[[0, 1, 2, 4]], before[f"networks.{name}"][[0, 1, 2, 4]])


@pytest.mark.parametrize("method", ["levenberg", "adam"])
@pytest.mark.parametrize("build", [Own, Common])
def test_modules_of_the_user_are_fitted(build: Any, method: Any) -> None:
    """To what another draw of the same module says."""
    shared = build is Common
    wanted, policy = (
        tl.SoftmaxPolicy.from_module(MDP, SCOPES, build, shared=shared, seed=seed)
        for seed in (1, 2)
    )
    targets = _logits(wanted)
    sign = None if shared else policy.networks[0].sign.clone()
    report = fit_logits(policy, 0, torch.arange(5), targets, method=method, tolerance=1e-4)
    assert report.residual <= 1e-4 * (1 + float(targets.abs().max()))
    torch.testing.assert_close(_centred(_logits(policy)), _centred(targets), rtol=0, atol=1e-3)
    # What needs no gradient is not fitted.
    assert shared or torch.equal(policy.networks[0].sign, sign)


def test_linear_networks_reach_least_squares_and_stop() -> None:
    policy = tl.SoftmaxPolicy.linear(MDP, SCOPES, seed=1)
    targets = _centred(_targets(2, 5))
    report = fit_logits(policy, 0, torch.arange(5), targets, steps=200, tolerance=1e-12)
    states = policy.groups[0].observations()
    design = torch.cat([nn.functional.one_hot(states, 2).flatten(1), torch.ones(4, 1)], 1)
    best = torch.linalg.pinv(design.double()) @ targets
    # Stopped after 8 steps that won less than a part 1e-6 of the squared error: at damping 2^-k
    # times the size of the Gram matrix each step leaves that part of what is left.
    np.testing.assert_allclose(_centred(_logits(policy)), design.double() @ best, atol=1e-5)
    assert 8 < report.steps < 40


def test_bounded_networks_come_near_what_they_cannot_reach() -> None:
    """Differences up to 2 ℓ = L (A = 2) are within reach; more is asked for as 1 − 2⁻¹⁰ of that."""
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16,), activation="tanh", bound=2.0)
    targets = _targets(0, 5, 0.5)
    targets[0, 2] = torch.tensor([40.0, 31.0])
    report = fit_logits(policy, 0, torch.arange(5), targets, tolerance=1e-9)
    gap = _logits(policy).diff(dim=-1)[..., 0]
    wanted = targets.diff(dim=-1)[..., 0].clamp(-2.0 * (1 - 2**-10), 2.0 * (1 - 2**-10))
    torch.testing.assert_close(gap, wanted, rtol=0, atol=1e-7)
    assert report.error_span[0, 2] == pytest.approx(7.0 + 2.0 * 2**-10, abs=1e-7)
    assert report.steps < 60


# Reports --------------------------------------------------------------------------------------


def test_reports_measure_the_policy_that_is_left() -> None:
    mdp = _wide()
    policy = tl.SoftmaxPolicy.linear(mdp, [(0, 1)] * 4, temperature=[0.5, 1.0, 2.0, 3.0])
    rows = torch.tensor([3, 1])
    targets = _targets(3, 2, rows=9, actions=3)
    report = fit_logits(policy, 0, rows, targets)
    logits, tau = _logits(policy)[rows].numpy(), np.array([3.0, 1.0])[:, None, None]
    error = logits - targets.numpy()
    span = error.max(-1) - error.min(-1)
    np.testing.assert_allclose(report.error_span, span, rtol=0, atol=1e-14)
    error -= error.mean(-1, keepdims=True)
    np.testing.assert_allclose(report.deviation, np.abs(error).max((1, 2)), rtol=0, atol=1e-14)
    np.testing.assert_allclose(report.objective, (error**2).sum(-1).mean(-1), rtol=1e-13)
    logs = [
        z / tau - np.log(np.exp(z / tau).sum(-1, keepdims=True)) for z in (targets.numpy(), logits)
    ]
    gap = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).max(-1)
    np.testing.assert_allclose(report.kl, gap, rtol=1e-12)
    assert report.residual == pytest.approx(float(report.deviation.max()))
    assert report.steps == int(report.taken.max())


def test_tables_are_assigned_exactly_with_forbidden_actions() -> None:
    policy = tl.SoftmaxPolicy.tabular(MDP, SCOPES)
    targets = _targets(1, 1)
    targets[0, 2, 1] = -torch.inf
    report = fit_logits(policy, 0, torch.tensor([3]), targets)
    assert torch.equal(_logits(policy)[3], targets[0])
    assert not _logits(policy)[[0, 1, 2, 4]].any()
    assert report.method == "assigned" and report.residual == report.steps == 0
    assert not report.error_span.any() and not report.kl.any()


def test_coarse_tables_report_their_rounding() -> None:
    policy = tl.SoftmaxPolicy.tabular(MDP, SCOPES, dtype=torch.float32)
    targets = _targets(1, 5)
    report = fit_logits(policy, 0, torch.arange(5), targets)
    error = targets.float().double() - targets
    expected = error.amax(-1) - error.amin(-1)
    assert torch.equal(report.error_span, expected) and 0 < report.residual < 1e-6


def test_tables_take_targets_at_some_observations() -> None:
    policy = tl.SoftmaxPolicy.tabular(_wide(), [(0, 1)] * 4)
    seen = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 0]]])
    targets = _targets(4, 2, rows=2, actions=3)
    fit_logits(policy, 0, torch.tensor([2, 0]), targets, observations=seen)
    table = policy.groups[0].unflatten(_logits(policy))
    assert torch.equal(table[2, 0, 2], targets[0, 0]) and torch.equal(table[2, 1, 1], targets[0, 1])
    assert torch.equal(table[0, 2, 0], targets[1, 0]) and torch.equal(table[0, 0, 0], targets[1, 1])
    assert int((table != 0).any(-1).sum()) == 4


# Stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["levenberg", "adam"])
def test_a_kl_gap_ends_a_fit_early(method: Any) -> None:
    steps = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16,), activation="tanh", temperature=0.5)
        report = fit_logits(
            policy, 0, torch.arange(5), _targets(0, 5, 1.0), method=method, kl_tolerance=tolerance
        )
        assert (report.kl <= tolerance).all()
        steps.append(report.steps)
    assert 0 < steps[0] < steps[1] < steps[2]


@pytest.mark.parametrize("method", ["levenberg", "adam"])
def test_no_agent_ends_worse_than_it_began(method: Any) -> None:
    """At a pace that throws Adam about, and after too few steps for either."""
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(6,))
    targets = _targets(0, 5)
    start = (_centred(_logits(policy)) - _centred(targets)).square().sum(-1).mean(-1)
    options = {"rate": 30.0} if method == "adam" else {}
    report = fit_logits(policy, 0, torch.arange(5), targets, method=method, steps=3, **options)
    assert (report.objective <= start).all()
    assert report.steps == 3


def test_steps_are_a_limit_and_fits_go_on_from_where_they_were() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16,), activation="tanh")
    targets, values = _targets(0, 5), []
    for _ in range(4):
        values.append(fit_logits(policy, 0, torch.arange(5), targets, steps=2).objective.sum())
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


# Who moves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["levenberg", "adam"])
@pytest.mark.parametrize("options", [{}, {"bound": 9.0}, {"sharing": True, "embedding": 6}])
def test_other_agents_keep_every_bit(method: Any, options: dict[str, Any]) -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16, 16), activation="tanh", **options)
    networks, before = policy.networks, _logits(policy)
    state = {name: value.clone() for name, value in networks.state_dict().items()}
    own = {f"0.{name}" for name in policy.own_state(0)}
    report = fit_logits(policy, 0, torch.tensor([4, 1]), _targets(0, 2), method=method, steps=20)
    after = _logits(policy)
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(after[1], before[1]) and len(report.taken) == 2
    for name, value in networks.state_dict().items():
        kept = [0, 2, 3] if name in own else slice(None)
        assert torch.equal(value[kept], state[name][kept]), name


def test_agents_are_fitted_alike_alone_and_together_and_in_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets, results = _targets(0, 5), []
    for way in ("together", "alone", "chunks"):
        policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(8,), activation="tanh")
        if way == "chunks":
            monkeypatch.setattr(rooms_problem, "CHUNK", 20_000)
        batches = [[k] for k in range(5)] if way == "alone" else [[4, 0, 2, 1, 3]]
        reports = [
            fit_logits(policy, 0, torch.tensor(rows), targets[rows], steps=6) for rows in batches
        ]
        taken = torch.cat([report.taken for report in reports])
        assert taken.tolist() == [6] * 5
        results.append(_logits(policy))
    # Six steps amplify the order of sums little.
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-10)


def test_hooks_see_no_trial() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(8,))
    module = tl.SoftmaxPolicy.from_module(MDP, SCOPES, Own)
    for each in (policy, module):
        each.networks[0].register_forward_hook(lambda *_: pytest.fail("a hook saw a trial"))
        for method in ("levenberg", "adam"):
            fit_logits(each, 0, torch.arange(5), _targets(0, 5), method=method, steps=2)


# Too much to enumerate ------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 16])
def test_sampled_observations_stand_in_for_scope_states(batch: int | None) -> None:
    mdp = _wide(n_agents=2, m=50, size=2, n_actions=3)
    teacher, policy = (tl.SoftmaxPolicy.linear(mdp, [range(50)] * 2, seed=seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(0)
    seen = torch.randint(2, (2, 32, 50), generator=generator)
    with torch.no_grad():
        targets = teacher.networks[0](seen)
    report = fit_logits(
        policy, 0, torch.arange(2), targets, observations=seen, batch=batch, tolerance=1e-2,
        generator=generator,
    )  # fmt: skip
    assert report.method == ("levenberg" if batch is None else "adam")
    assert report.residual <= 1e-2 * (1 + float(targets.abs().max()))
    with torch.no_grad():
        error = _centred(policy.networks[0](seen)) - _centred(targets)
    assert float(error.abs().max()) == pytest.approx(report.residual, abs=1e-14)
    with pytest.raises(tl.BudgetError, match="sees 50 coordinates"):
        fit_logits(policy, 0, torch.arange(2), targets)


def test_batches_serve_shared_networks_too() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16,), activation="tanh", sharing=True)
    targets = _targets(0, 5, 0.5)
    before = fit_logits(policy, 0, torch.arange(5), targets, method="adam", steps=1).objective
    after = fit_logits(policy, 0, torch.arange(5), targets, batch=2, steps=150).objective
    assert (after < 0.1 * before).all()


def test_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TANGENT_BUDGET", 10_000)
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES)
    with pytest.raises(tl.BudgetError, match=r"takes \d+ bytes \(an agent, 4 observations each"):
        fit_logits(policy, 0, torch.tensor([0]), _targets(0, 1), method="levenberg")
    shared = tl.SoftmaxPolicy.mlp(MDP, SCOPES, sharing=True)
    with pytest.raises(tl.BudgetError, match=r"\(5 agents that share parameters, 4 obs.*=adam"):
        fit_logits(shared, 0, torch.arange(5), _targets(0, 5), method="levenberg")
    report = fit_logits(policy, 0, torch.tensor([0]), _targets(0, 1), steps=20)
    assert report.method == "adam"


# Errors ---------------------------------------------------------------------------------------


def test_networks_refuse_forbidden_actions() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES)
    targets = _targets(0, 1)
    targets[0, 0, 0] = -torch.inf
    with pytest.raises(tl.InputError, match="use policy=tabular"):
        fit_logits(policy, 0, torch.tensor([0]), targets)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([0, 0], {}, r"distinct rows of group 0, int64 from 0 to 4, .*\[0, 0\]"),
        ([0, 5], {}, "from 0 to 4"),
        ([-1, 2], {}, "from 0 to 4"),
        ([[0, 1]], {}, "must be a vector"),
        ([0.0, 1.0], {}, "int64"),
        ([0, 1, 2], {}, r"shape \(B, M, A\) = \(3, 4, 2\) .* it is \(2, 4, 2\)"),
        ([0, 1], {"observations": torch.zeros(2, 4, 3).long()}, r"shape \(2, 4, 3\).* m = 2"),
        ([0, 1], {"observations": torch.zeros(2, 3, 2).long()}, r"= \(2, 3, 2\) "),
        ([0, 1], {"method": "newton"}, "method is 'newton'; choose auto, levenberg or adam"),
        ([0, 1], {"steps": 0}, "steps is 0; it must be ≥ 1"),
        ([0, 1], {"rate": 0.0}, "rate is 0.0"),
        ([0, 1], {"batch": 0}, "batch is 0; it must be ≥ 1"),
        ([0, 1], {"batch": 2, "method": "levenberg"}, "levenberg takes all rows; use method=adam"),
        ([0, 1], {"tolerance": -1.0}, "tolerance is -1.0; it must be ≥ 0"),
        ([0, 1], {"kl_tolerance": float("nan")}, "kl_tolerance is nan"),
    ],
)
def test_calls_are_checked(rows: list[Any], options: dict[str, Any], message: str) -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES)
    with pytest.raises(tl.InputError, match=message):
        fit_logits(policy, 0, torch.tensor(rows), _targets(0, 2), **options)


def test_agents_without_parameters_of_their_own_move_together_or_not_at_all() -> None:
    policy = tl.SoftmaxPolicy.from_module(MDP, SCOPES, Common, shared=True)
    with pytest.raises(tl.InputError, match=r"5 agents of group 0 have no parameters of their own"):
        fit_logits(policy, 0, torch.tensor([0, 1]), _targets(0, 2))


def test_one_action_needs_no_fit() -> None:
    policy = tl.SoftmaxPolicy.mlp(_wide(n_actions=1), [(0, 1)] * 4, hidden=(3,))
    report = fit_logits(policy, 0, torch.arange(4), _targets(0, 4, rows=9, actions=1))
    assert report.steps == 0 and report.residual == 0.0
