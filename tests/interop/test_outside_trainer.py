"""The way back: networks of another trainer as policies, certified by the command line; and one such trainer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from torch import Tensor, nn
from twins import draw

import torchloc as tl
from torchloc.cli import certifying
from torchloc.environments import line_msg, sysadmin
from torchloc.interop.pettingzoo import parallel_env
from torchloc.interop.torch_policy import policy_from_modules

WIDTH = 8


class Constant(nn.Module):
    """Logits of an agent that sees nothing."""

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(n_actions))

    def forward(self, seen: Tensor) -> Tensor:
        return self.logits.expand(*seen.shape[:-1], -1)


def networks(mdp: tl.FactoredMDP, scopes: Any, dtype: torch.dtype, seed: int) -> list[nn.Module]:
    """One MLP an agent, on one-hot observations."""
    torch.manual_seed(seed)
    result = []
    for scope, n_actions in zip(scopes, mdp.action_sizes.tolist(), strict=True):
        width = int(mdp.state_sizes[list(scope)].sum())
        layers = (nn.Linear(width, WIDTH), nn.Tanh(), nn.Linear(WIDTH, n_actions)) if width else ()
        result.append(nn.Sequential(*(layers or (Constant(n_actions),))).to(dtype))
    return result


MODELS: dict[str, Callable[[], tuple[tl.FactoredMDP, list[tuple[int, ...]]]]] = {
    "ring": lambda: (sysadmin(n=4), [(0, 3), (1, 0), (2, 1), (3, 2)]),
    "several groups": lambda: (line_msg(4), [(1, 0), (), (3,), (2, 3, 1)]),
    "mixed sizes": lambda: (
        draw(5, n_coordinates=(4, 4), n_agents=(3, 3), sizes=(2, 3))[2],
        [(3, 0), (1,), (2, 3, 0)],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_laws_are_the_networks_own_softmax(
    name: str, temperature: float, dtype: torch.dtype
) -> None:
    mdp, scopes = MODELS[name]()
    modules = networks(mdp, scopes, dtype, seed=3)
    policy = policy_from_modules(mdp, scopes, modules, temperature=temperature)
    env = parallel_env(mdp, scopes, observation="one_hot", horizon=None, seed=4)
    for _ in range(20):
        seen, _ = env.reset()
        state = env.state()
        for k, agent in enumerate(env.possible_agents):
            with torch.no_grad():
                logits = modules[k](torch.from_numpy(seen[agent]).to(dtype)).detach()
            law = torch.softmax(logits / temperature, dim=-1)
            found = policy.probabilities(k)[tuple(state[list(scopes[k])])]
            # Sums of WIDTH + 1 terms in another order for one row than for many (each bounded by
            # weights below 1), then a softmax: exponents to their rounding, a sum of A terms.
            unit = torch.finfo(dtype).eps
            allowed = (2 * WIDTH + 2 * len(law) + 4) * unit * (1 + float(logits.abs().max()))
            assert allowed / temperature < (1e-12 if dtype == torch.float64 else 1e-4)
            assert float((found - law.double()).abs().max()) <= allowed / temperature


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["ring", "mixed sizes"])
def test_layers_are_the_same_policy_as_tables(name: str, dtype: torch.dtype) -> None:
    mdp, scopes = MODELS[name]()
    modules = networks(mdp, scopes, dtype, seed=3)
    tables = policy_from_modules(mdp, scopes, modules, temperature=0.3)
    layers = policy_from_modules(mdp, scopes, modules, temperature=0.3, form="layers")
    assert {value.dtype for value in layers.parameters()} == {dtype}
    for k in range(mdp.n_agents):
        wanted, found = tables.logits(k), layers.logits(k).double()
        unit = torch.finfo(dtype).eps * (2 * WIDTH + 4)  # as above
        assert float((found - wanted).abs().max()) <= unit * (1 + float(wanted.abs().max()))


def test_layers_may_be_nested_shared_and_without_bias() -> None:
    mdp = sysadmin(n=3)
    scopes = tl.neighbourhood_scopes(mdp)
    curve = nn.ReLU()  # stands twice
    network = nn.Sequential(
        nn.Sequential(nn.Linear(4, 5, bias=False), curve, nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(5, 6), nn.Identity(), curve, nn.Linear(6, 2)),
    )
    tables, layers = (
        policy_from_modules(mdp, scopes, [network] * 3, form=form) for form in ("tables", "layers")
    )
    assert layers.spec == {"kind": "mlp", "hidden": [5, 6], "activation": "relu"}
    torch.testing.assert_close(layers.logits(1).double(), tables.logits(1), rtol=0, atol=1e-6)
    linear = policy_from_modules(mdp, scopes, [nn.Sequential(nn.Linear(4, 2))] * 3, form="layers")
    assert linear.spec["hidden"] == []


def test_layers_on_a_scope_too_large_to_enumerate_are_certified_by_bounds(tmp_path: Path) -> None:
    mdp = sysadmin(n=24)
    scopes = [tuple(range(24)), *((j, j - 1) for j in range(1, 24))]
    torch.manual_seed(0)
    modules = [
        nn.Sequential(nn.Linear(2 * len(scope), 2), nn.Tanh(), nn.Linear(2, 2)) for scope in scopes
    ]
    policy = policy_from_modules(mdp, scopes, modules, form="layers")
    policy.save(tmp_path / "wide.safetensors")
    certificate = tl.certify(
        mdp, tl.SoftmaxPolicy.load(tmp_path / "wide.safetensors"), rungs=("paper", "scope")
    )
    assert certificate.bounded.tolist() == [True] + [False] * 23
    # A bound, not "anything may happen": below what the scope alone says.
    assert certificate["paper"].rho.upper < certificate["scope"].rho.upper - 0.1


class Doubled(nn.Sequential):
    """Says one thing and does another."""

    def forward(self, seen: Tensor) -> Tensor:
        return 2 * super().forward(seen)


NO_LAYERS: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "function": (lambda: [lambda seen: seen] * 3, "modules[0] is no torch.nn.Sequential of Linear"),
    "order": (lambda: [nn.Sequential(nn.ReLU(), nn.Linear(4, 2))] * 3, "modules[0] is no torch.nn"),
    "end": (lambda: [nn.Sequential(nn.Linear(4, 2), nn.ReLU())] * 3, "modules[0] is no torch.nn"),
    "other": (
        lambda: [nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))] * 3,
        "with ReLU, Tanh or exact GELU between them; use form=tables",
    ),
    "rough": (
        lambda: [nn.Sequential(nn.Linear(4, 3), nn.GELU("tanh"), nn.Linear(3, 2))] * 3,
        "exact GELU between them",
    ),
    "widths": (
        lambda: [
            nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
            for width in (3, 3, 4)
        ],
        "modules[2] has hidden widths [4] from 4 inputs to 2 logits; it must have [3] (as modules[0])",
    ),
    "inputs": (lambda: [nn.Sequential(nn.Linear(5, 2))] * 3, "from 5 inputs to 2 logits; it must"),
    "kinds": (
        lambda: [
            nn.Sequential(nn.Linear(4, 3), curve, nn.Linear(3, 2))
            for curve in (nn.Tanh(), nn.ReLU(), nn.Tanh())
        ],
        "the modules have activations ReLU, Tanh; form=layers takes one kind",
    ),
    "liar": (
        lambda: [Doubled(nn.Linear(4, 2))] * 3,
        "modules[0] does not compute what its layers say",
    ),
    "nan": (
        lambda: [nn.Sequential(nn.utils.skip_init(nn.Linear, 4, 2).requires_grad_(False))] * 3,
        "or are NaN or ∞",
    ),
}


@pytest.mark.parametrize("case", NO_LAYERS)
def test_layers_of_another_kind_are_refused(case: str) -> None:
    make, message = NO_LAYERS[case]
    modules = make()
    if case == "nan":
        modules[0][0].weight.fill_(torch.nan)
    mdp = sysadmin(n=3)
    with pytest.raises(tl.InputError) as caught:
        policy_from_modules(mdp, tl.neighbourhood_scopes(mdp), modules, form="layers")
    assert message in str(caught.value)


def test_a_model_without_agents_needs_no_network() -> None:
    mdp = tl.FactoredMDP([2], [], [tl.LocalKernel((), (), [0.5, 0.5])], [])
    for form in ("tables", "layers"):
        assert policy_from_modules(mdp, [], [], form=form).n_agents == 0


def test_unknown_forms_are_refused() -> None:
    mdp = sysadmin(n=3)
    scopes, modules = tl.neighbourhood_scopes(mdp), [nn.Sequential(nn.Linear(4, 2))] * 3
    with pytest.raises(tl.InputError, match="form is 'onnx'; choose tables or layers"):
        policy_from_modules(mdp, scopes, modules, form="onnx")  # type: ignore[arg-type]
    with pytest.raises(tl.InputError, match="form=layers needs observation=one_hot, not scope"):
        policy_from_modules(mdp, scopes, modules, form="layers", observation="scope")


def test_values_in_scope_order_are_read_as_they_are() -> None:
    mdp, scopes = MODELS["mixed sizes"]()
    weights = [torch.randn(len(scope), int(mdp.action_sizes[k])) for k, scope in enumerate(scopes)]
    modules = [lambda seen, w=w: seen.float() @ w for w in weights]
    policy = policy_from_modules(mdp, scopes, modules, observation="scope")
    env = parallel_env(mdp, scopes, observation="scope", horizon=None, seed=4)
    for _ in range(10):
        seen, _ = env.reset()
        for k, agent in enumerate(env.possible_agents):
            wanted = torch.from_numpy(seen[agent])[None].float() @ weights[k]
            found = policy.logits(k)[tuple(seen[agent].tolist())]
            # At most three products of small numbers.
            torch.testing.assert_close(found, wanted[0].double(), rtol=0, atol=1e-5)


def test_one_network_may_serve_all_and_one_that_answers_for_all_is_wrapped() -> None:
    mdp = sysadmin(n=3)
    scopes = tl.neighbourhood_scopes(mdp)
    (network, *_) = networks(mdp, scopes, torch.float64, seed=0)
    shared = policy_from_modules(mdp, scopes, [network] * 3)

    def everyone(seen: Tensor) -> Tensor:
        """(R, K, 4) → (R, K, 2)."""
        return network(seen) * torch.tensor([1.0, 2.0, 3.0])[:, None]

    wrapped = policy_from_modules(
        mdp,
        scopes,
        [
            lambda seen, k=k: everyone(seen.double()[:, None].expand(-1, 3, -1))[:, k]
            for k in range(3)
        ],
    )
    for k in range(3):
        torch.testing.assert_close(shared.logits(k), shared.logits(0), rtol=0, atol=0)
        torch.testing.assert_close(
            wrapped.logits(k), (k + 1) * shared.logits(0), rtol=1e-14, atol=1e-14
        )


def test_networks_are_read_in_evaluation_mode_and_left_as_they_were() -> None:
    mdp = sysadmin(n=3)
    scopes = tl.neighbourhood_scopes(mdp)
    frozen = nn.BatchNorm1d(8).eval()
    network = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), frozen, nn.Linear(8, 2)
    )
    policy = policy_from_modules(mdp, scopes, [network] * 3)
    assert network.training and network[1].training and network[2].training
    assert not frozen.training and network[1].num_batches_tracked == 0
    assert all(value.grad is None for value in network.parameters())
    network.eval()
    rows = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(
        policy.probabilities(1)[0, 1].float(),
        torch.softmax(network(rows), -1)[0],
        atol=1e-6,
        rtol=0,
    )


def test_forbidden_actions_stay_forbidden() -> None:
    mdp = sysadmin(n=3)
    never = lambda seen: torch.tensor([0.0, -torch.inf]).expand(len(seen), 2)  # noqa: E731
    policy = policy_from_modules(mdp, tl.neighbourhood_scopes(mdp), [never] * 3)
    assert bool((policy.probabilities(2)[..., 1] == 0.0).all())


# -- errors ----------------------------------------------------------------------------------------


def _call(f: Callable[[Tensor], Any]) -> list[Callable[[Tensor], Any]]:
    return [lambda seen: seen[:, :2], f, f]


REFUSED: dict[str, tuple[list[Any], str]] = {
    "count": ([nn.Linear(4, 2)] * 2, "modules has 2 entries, but the model has 3 agents; give one"),
    "no function": ([3, 3, 3], "modules[0] is int; give a torch module or a function"),
    "shape": (
        _call(lambda seen: seen),
        "modules[1] returned shape (4, 4) for 4 observations; (R, A)",
    ),
    "pair": (_call(lambda seen: (seen, seen)), "modules[1] returned tuple for 4 observations"),
    "integers": (
        _call(lambda seen: seen[:, :2].long()),
        "modules[1] returned torch.int64; floating",
    ),
    "nan": (_call(lambda seen: seen[:, :2] / 0.0), "logits of agent 1: entry (0, 0, "),
    "chance": (_call(lambda seen: torch.rand(len(seen), 2)), "modules[1] gave two answers to one"),
    "batch": (
        _call(lambda seen: seen[:, :2] - seen[:, :2].mean(dim=0)),
        "modules[1] gave two answers to one observation; it must depend on nothing else",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_of_logits_is_refused(case: str) -> None:
    modules, message = REFUSED[case]
    mdp = sysadmin(n=3)
    with pytest.raises(tl.InputError) as caught:
        policy_from_modules(mdp, tl.neighbourhood_scopes(mdp), modules)
    assert message in str(caught.value)


def test_unknown_observations_and_scopes_too_large_are_refused() -> None:
    mdp = sysadmin(n=30)
    modules = [nn.Linear(60, 2)] * 30
    with pytest.raises(tl.InputError, match="observation is 'all'; choose one_hot or scope"):
        policy_from_modules(mdp, [range(30)] * 30, modules, observation="all")  # type: ignore[arg-type]
    with pytest.raises(tl.BudgetError, match=r"agent 0 sees 30 coordinates.*form=layers"):
        policy_from_modules(mdp, [range(30)] * 30, modules)


# -- the command line ------------------------------------------------------------------------------


def test_the_command_line_certifies_its_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mdp = sysadmin(n=4)
    scopes = tl.neighbourhood_scopes(mdp)
    modules = networks(mdp, scopes, torch.float32, seed=1)
    policy = policy_from_modules(mdp, scopes, modules)
    policy.save(tmp_path / "outside.safetensors")
    arguments = ["env=sysadmin", "env.n=4", "--policy", str(tmp_path / "outside.safetensors")]
    certified = certifying.run([*arguments, "--json", str(tmp_path / "report.json")])
    certificate = tl.certify(mdp, policy)
    assert certified == certificate["coupled"].certified is True
    capsys.readouterr()
    report = json.loads((tmp_path / "report.json").read_text())
    for name in ("coupled", "paper"):
        assert report["rungs"][name]["rho"][1] == certificate[name].rho.upper


# -- a trainer of another library ------------------------------------------------------------------


@pytest.mark.slow
def test_torchrl_runs_the_environment() -> None:
    from torchrl.envs.libs.pettingzoo import PettingZooWrapper
    from torchrl.envs.utils import check_env_specs

    with warnings.catch_warnings():
        # torchrl names the one version of PettingZoo that it is tested with.
        warnings.filterwarnings("ignore", "PettingZoo in TorchRL is tested using", UserWarning)
        for observation in ("scope", "one_hot"):
            env = PettingZooWrapper(
                parallel_env(sysadmin(n=3), observation=observation, rewards="local", horizon=5),
                categorical_actions=True,
                seed=0,
            )
            check_env_specs(env, seed=1)
            steps = env.rollout(12, break_when_any_done=False)
            assert steps["next", "agent", "truncated"][:, 0, 0].nonzero().ravel().tolist() == [4, 9]
            assert not steps["next", "agent", "terminated"].any()


def reference_ring(n: int) -> ref.Model:
    """SysAdmin as its definition has it: reward Σ on_j − .75 reboot_j, one-way ring."""
    law = np.zeros((2, 2, 2, 2))  # predecessor, self, reboot, next
    law[:, :, 0, 1] = [[0.0238, 0.475], [0.0475, 0.95]]
    law[:, :, 1, 1] = 1.0
    law[..., 0] = 1.0 - law[..., 1]
    own = np.array([[0.0, -0.75], [1.0, 0.25]])
    return ref.Model(
        (2,) * n,
        (2,) * n,
        [(((j - 1) % n, j), (j,), law) for j in range(n)],
        [((j,), (j,), own) for j in range(n)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ippo", "mappo"])
def test_a_policy_of_torchrls_ppo_is_better_than_uniform_and_soundly_certified(
    kind: Any, tmp_path: Path
) -> None:
    from benchmarks.outside_trainer import ppo

    n, kappa = 4, 2
    mdp, model = sysadmin(n), reference_ring(n)
    scopes = tl.neighbourhood_scopes(mdp)
    made = policy_from_modules(mdp, scopes, ppo(mdp, kind, frames=12_288, seed=0))
    made.save(tmp_path / "ppo.safetensors")
    policy = tl.SoftmaxPolicy.load(tmp_path / "ppo.safetensors")
    plain = ref.Policy(list(scopes), [policy.logits(k).numpy() for k in range(n)], np.ones(n))

    # Exact rewards, by definition and by the package: a solve of 16 equations.
    chain = ref.policy_transition(ref.transition(model), ref.product_policy(model, plain))
    reward = ref.policy_reward(model, plain)
    average = float(ref.stationary(chain) @ reward)
    assert tl.JointEvaluation(mdp, policy).average_reward == pytest.approx(average, abs=1e-10)
    uniform = tl.JointEvaluation(mdp, tl.SoftmaxPolicy.tabular(mdp, scopes)).average_reward
    assert average / n > uniform / n + 0.1
    assert average / n <= 0.887748  # the joint optimum, to its printed digits

    # The certificate bounds what it says, by brute force: one step, h, and the truncation error.
    certificate = tl.certify(mdp, policy, kappa)
    h = ref.poisson(chain, reward)
    error = h - ref.truncated_value(chain, reward - average, kappa)
    functions = np.random.default_rng(0).normal(size=(200, len(h)))
    for name in ("coupled", "exact", "paper"):
        rung = certificate[name]
        matrix = rung.matrix.toarray()
        assert (matrix >= ref.influence(model, plain, name) - 1e-14).all()
        for f in functions:
            moved = ref.oscillation(model, chain @ f)
            assert (moved <= matrix.T @ ref.oscillation(model, f) + 1e-13).all()
        # `rho.upper` is of the package's own matrix, an eigenvalue of which is computed to 1e-7.
        assert ref.spectral_radius(matrix) <= rung.rho.upper + 1e-7
        assert (ref.oscillation(model, h) <= rung.poisson + 1e-9).all()
        assert (ref.oscillation(model, error) <= rung.tail + 1e-9).all()
    assert certificate["coupled"].certified
