"""Laws against the reference, what a temperature change holds, and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from torch import Tensor
from twins import draw

import torchloc as tl

U = 2.0**-53
Array = np.ndarray


def _sizes_model(
    state_sizes: list[int] | None = None, action_sizes: list[int] | None = None
) -> tl.FactoredMDP:
    """A model whose dynamics do not matter: every next coordinate is uniform."""
    sizes = [2, 3, 4] if state_sizes is None else state_sizes
    kernels = [tl.LocalKernel((), (), np.full(size, 1 / size)) for size in sizes]
    return tl.FactoredMDP(sizes, [2, 3] if action_sizes is None else action_sizes, kernels, [])


MDP = _sizes_model()
SCOPES = [(2, 0), (1,)]


def _tables(seed: int = 0, scale: float = 1.0) -> list[Array]:
    """Logits for `MDP` on `SCOPES`."""
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(4, 2, 2)), scale * rng.normal(size=(3, 3))]


def _law_error(logits: Array | Tensor, temperature: float) -> float:
    """Bound on the error of any probability: d log π ≤ roundings of z/τ, its shift and the sum."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    size = np.abs(scaled[np.isfinite(scaled)]).max(initial=0.0)
    return 4.0 * (2.0 * size + scaled.shape[-1] + 2.0) * U


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_laws_match_the_reference(seed: int) -> None:
    model, policy, _, twin = draw(seed, policy={"minus_infinity": 0.3 * (seed % 2)})
    assert twin.n_agents == model.n_agents
    for k in range(model.n_agents):
        law = twin.probabilities(k)
        shape = (*(model.state_sizes[i] for i in policy.scopes[k]), model.action_sizes[k])
        assert law.shape == shape and law.dtype == torch.float64
        np.testing.assert_array_equal(twin.logits(k), policy.logits[k])
        atol = _law_error(policy.logits[k], policy.temperature[k])
        np.testing.assert_allclose(law, policy.probabilities[k], rtol=0, atol=atol)
        assert not law[torch.isneginf(twin.logits(k))].any()
    for index, group in enumerate(twin.groups):
        rows = group.unflatten(twin.group_probabilities(index))
        for k in group.agents.tolist():
            assert twin.group_of[k] == index
            assert torch.equal(rows[int(twin.row_of[k])], twin.probabilities(k))


def test_scope_order_is_kept() -> None:
    """Agent 0 sees (2, 0): its table has the axes (S_2, S_0, A_0)."""
    tables = _tables()
    policy = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, tables)
    assert policy.scopes[0] == (2, 0)
    tables = [tables[0].swapaxes(0, 1), tables[1]]
    turned = tl.SoftmaxPolicy.from_logits(MDP, [(0, 2), (1,)], tables)
    assert turned.scopes[0] == (0, 2)
    assert torch.equal(turned.probabilities(0), policy.probabilities(0).swapaxes(0, 1))


@pytest.mark.parametrize("shift", [0.0, 1e300, -1e300])
def test_no_temperature_is_too_small_for_finite_logits(shift: float) -> None:
    """z/τ would overflow; the law tends to the indicator of the largest logit, ties halved."""
    tables = [np.zeros((4, 2, 2)) + shift, np.tile([shift, shift, -1.7e308], (3, 1))]
    tables[0][..., 1] = np.nextafter(shift, np.inf)
    policy = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, tables, temperature=5e-324)
    if shift:
        assert torch.equal(policy.probabilities(0)[..., 1], torch.ones(4, 2).double())
    assert torch.equal(policy.probabilities(1), torch.tensor([[0.5, 0.5, 0.0]] * 3).double())
    actions = policy.act(torch.zeros(50, 3, dtype=torch.int64), _generator())
    assert not (actions[:, 1] == 2).any()


@pytest.mark.parametrize("kind", ["tabular", "linear", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constructors(kind: str, dtype: torch.dtype) -> None:
    build = getattr(tl.SoftmaxPolicy, kind)
    options: dict[str, Any] = {"scale": 1.0} if kind == "tabular" else {}
    first, again, other = (
        build(MDP, SCOPES, temperature=0.5, seed=seed, dtype=dtype, **options) for seed in (3, 3, 4)
    )
    for k in range(2):
        assert first.logits(k).dtype == dtype
        law = first.probabilities(k)
        assert law.dtype == torch.float64
        scaled = first.logits(k).double() / 0.5
        torch.testing.assert_close(law, torch.softmax(scaled, -1), rtol=0, atol=20 * U)
        assert torch.equal(law, again.probabilities(k))
        assert not torch.equal(law, other.probabilities(k))


def test_tables_start_uniform() -> None:
    policy = tl.SoftmaxPolicy.tabular(MDP, SCOPES)
    assert torch.equal(policy.probabilities(0), torch.full((4, 2, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(policy.probabilities(1), torch.full((3, 3), 1 / 3).double())


def test_logits_carry_gradients_through_group_logits_only() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(4,))
    assert not policy.logits(0).requires_grad and not policy.probabilities(0).requires_grad
    policy.group_logits(int(policy.group_of[0])).square().sum().backward()
    touched = {name: p.grad is not None for name, p in policy.named_parameters()}
    assert all(
        grad == name.startswith(f"networks.{policy.group_of[0]}.") for name, grad in touched.items()
    )


def test_empty_scopes_one_agent_and_none() -> None:
    blind = tl.SoftmaxPolicy.from_logits(_sizes_model([2], [3]), [()], [[0.0, 1.0, -np.inf]])
    expected = torch.softmax(torch.tensor([0.0, 1.0, -torch.inf]).double(), -1)
    torch.testing.assert_close(blind.probabilities(0), expected, rtol=0, atol=8 * U)
    assert blind.act(torch.zeros(5, 1, dtype=torch.int64), _generator()).shape == (5, 1)
    for kind in ("tabular", "linear", "mlp"):
        nobody = getattr(tl.SoftmaxPolicy, kind)(_sizes_model([2], []), [])
        assert nobody.n_agents == 0 and nobody.groups == ()
        assert nobody.act(torch.zeros(5, 1, dtype=torch.int64), _generator()).shape == (5, 0)


# Temperature ----------------------------------------------------------------------------------


def test_one_temperature_or_one_an_agent() -> None:
    scalar = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, _tables(), temperature=0.3)
    vector = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, _tables(), temperature=[0.3, 2.0])
    assert scalar.temperature.tolist() == [0.3, 0.3] and vector.temperature.tolist() == [0.3, 2.0]
    assert torch.equal(scalar.probabilities(0), vector.probabilities(0))
    assert not torch.equal(scalar.probabilities(1), vector.probabilities(1))
    scalar.set_temperature(torch.tensor([0.3, 2.0]))
    assert torch.equal(scalar.probabilities(1), vector.probabilities(1))
    given = np.array([1.0, 1.0])
    scalar.set_temperature(given)
    given[:] = -1.0
    assert scalar.temperature.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(6))
def test_holding_logits_keeps_every_bit_of_them(seed: int) -> None:
    _, _, _, policy = draw(seed, policy={"minus_infinity": 0.3})
    before = [policy.logits(k) for k in range(policy.n_agents)]
    policy.set_temperature(0.37)
    policy.set_temperature(np.linspace(0.1, 3.0, policy.n_agents), hold="logits")
    assert all(torch.equal(policy.logits(k), z) for k, z in enumerate(before))


@pytest.mark.parametrize("kind", ["tabular", "linear", "mlp"])
def test_holding_the_policy_keeps_every_bit_of_it_for_powers_of_two(kind: str) -> None:
    policy = getattr(tl.SoftmaxPolicy, kind)(MDP, SCOPES, temperature=[0.75, 3.0])
    before = [policy.probabilities(k) for k in range(2)]
    logits = [policy.logits(k) for k in range(2)]
    policy.set_temperature([0.75 * 8, 3.0 / 16], hold="policy")
    assert policy.temperature.tolist() == [6.0, 0.1875]
    for k, factor in enumerate([8.0, 1 / 16]):
        assert torch.equal(policy.probabilities(k), before[k])
        assert torch.equal(policy.logits(k), factor * logits[k])


@pytest.mark.parametrize("seed", range(10))
def test_holding_the_policy_keeps_it_to_rounding(seed: int) -> None:
    _, plain, _, policy = draw(seed, policy={"minus_infinity": 0.3})
    before = [policy.probabilities(k) for k in range(policy.n_agents)]
    rng = np.random.default_rng(seed)
    for _ in range(5):
        policy.set_temperature(rng.uniform(0.01, 10.0, policy.n_agents), hold="policy")
    for k, law in enumerate(before):
        # Five products and quotients, each with one rounding of z/τ.
        atol = 5 * _law_error(plain.logits[k], plain.temperature[k])
        torch.testing.assert_close(policy.probabilities(k), law, rtol=0, atol=atol)
        assert torch.equal(policy.probabilities(k) == 0, law == 0)


@pytest.mark.parametrize(
    "options",
    [{"hidden": ()}, {}, {"sharing": True}, {"bound": 0.3}, {"sharing": True, "bound": 2}],
)
def test_holding_the_policy_of_a_network(options: dict[str, Any]) -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, temperature=0.7, seed=2, **options)
    before = [policy.probabilities(k) for k in range(2)]
    policy.set_temperature([0.013, 4.0], hold="policy")
    for k, law in enumerate(before):
        # The last layer sums at most 33 products of size about 1/τ.
        torch.testing.assert_close(policy.probabilities(k), law, rtol=0, atol=300 * U)


# Acting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_sampled_frequencies_match_the_laws(seed: int) -> None:
    model, policy, _, twin = draw(
        seed, n_coordinates=(2, 3), n_agents=(2, 3), sizes=(2, 3), policy={"minus_infinity": 0.2}
    )
    repeats = 20_000
    states = torch.tensor(model.states)
    actions = twin.act(states.expand(repeats, *states.shape), _generator(seed)).numpy()
    joint = ref.product_policy(model, policy)
    drawn = np.ravel_multi_index(tuple(np.moveaxis(actions, -1, 0)), model.action_sizes)
    for s, law in enumerate(joint):
        counts = np.bincount(drawn[:, s], minlength=len(law))
        # Five standard deviations of a binomial count, and one for its discreteness.
        assert (np.abs(counts - repeats * law) <= 5 * np.sqrt(repeats * law * (1 - law)) + 1).all()
        assert not counts[law == 0].any()


@pytest.mark.parametrize("kind", ["tabular", "mlp"])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,), (2, 0, 3), (1, 1, 1)])
def test_leading_shapes(kind: str, lead: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"scale": 1.0} if kind == "tabular" else {}
    policy = getattr(tl.SoftmaxPolicy, kind)(MDP, SCOPES, **options)
    states = torch.stack(
        [torch.randint(size, lead, generator=_generator(i)) for i, size in enumerate((2, 3, 4))], -1
    )
    actions = policy.act(states, _generator())
    assert actions.shape == (*lead, 2) and actions.dtype == torch.int64
    flat = policy.act(states.reshape(-1, 3), _generator())
    assert torch.equal(actions.reshape(-1, 2), flat)
    assert torch.equal(policy.act(states.to(torch.int32), _generator()), actions)


def test_same_generator_state_gives_the_same_actions() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES)
    states = torch.zeros(100, 3, dtype=torch.int64)
    generator = _generator(7)
    first, second = policy.act(states, generator), policy.act(states, generator)
    assert not torch.equal(first, second)
    generator.manual_seed(7)
    torch.manual_seed(0)
    assert torch.equal(policy.act(states, generator), first)
    assert torch.equal(policy.act(states, generator), second)


@pytest.mark.parametrize("kind", ["tabular", "mlp"])
def test_only_scope_entries_are_read(kind: str) -> None:
    options: dict[str, Any] = {"scale": 1.0} if kind == "tabular" else {}
    policy = getattr(tl.SoftmaxPolicy, kind)(MDP, [(2,), (2,)], **options)
    states = torch.randint(4, (50, 3), generator=_generator())
    garbage = states.clone()
    garbage[:, 0], garbage[:, 1] = -7, 2**40
    assert torch.equal(policy.act(states, _generator(1)), policy.act(garbage, _generator(1)))


def _extreme_draws(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    def full(*shape: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype)

    monkeypatch.setattr(torch, "rand", full)


@pytest.mark.parametrize("u", [0.0, U, 0.5, 1.0 - U])
def test_forbidden_actions_are_never_drawn(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the ends of the range of a uniform draw, [0, 1 − 2⁻⁵³]."""
    n_actions, n_rows = 16, 500
    rng = np.random.default_rng(0)
    logits = 3.0 * rng.normal(size=(n_rows, n_actions))
    logits[rng.random(logits.shape) < 0.4] = -np.inf
    logits[:, 0], logits[:, -1] = -np.inf, -np.inf
    logits[np.arange(n_rows), rng.integers(1, n_actions - 1, n_rows)] = 0.0
    mdp = _sizes_model([n_rows], [n_actions])
    policy = tl.SoftmaxPolicy.from_logits(mdp, [(0,)], [logits])
    states = torch.arange(n_rows)[:, None]
    for seed in range(20):
        drawn = policy.act(states, _generator(seed))[:, 0].numpy()
        assert np.isfinite(logits[np.arange(n_rows), drawn]).all()
    _extreme_draws(monkeypatch, u)
    drawn = policy.act(states, _generator())[:, 0].numpy()
    allowed = np.isfinite(logits)
    assert allowed[np.arange(n_rows), drawn].all()
    if u == 0.0:
        np.testing.assert_array_equal(drawn, allowed.argmax(1))


@pytest.mark.parametrize("u", np.linspace(0.0, 0.999, 9))
def test_draws_invert_the_distribution_function(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, _tables(3))
    states = torch.cartesian_prod(*(torch.arange(size) for size in (2, 3, 4)))
    _extreme_draws(monkeypatch, float(u))
    actions = policy.act(states, _generator())
    for k, scope in enumerate(SCOPES):
        mass = policy.probabilities(k)[tuple(states[:, i] for i in scope)].cumsum(-1)
        assert torch.equal(actions[:, k], (mass > u).long().argmax(-1))


# Fit to a model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state_sizes", "action_sizes", "message"),
    [
        ([2, 3, 4], [2, 4], "made for 3 actions of agent 1, but the model has 4; use the model"),
        ([2, 2, 4], [2, 3], "made for 3 values of coordinate 1, but the model has 2; use the"),
        ([2, 3, 4, 2], [2, 3], "made for 3 coordinates, but the model has 4; use the model that"),
        ([2, 3], [2, 3], "scope of agent 0: coordinate 2 is out of range"),
        ([2, 3, 4], [2, 3, 2], "scopes names 2 agents, but the model has 3"),
    ],
)
def test_a_policy_for_another_model_is_refused(
    state_sizes: list[int], action_sizes: list[int], message: str
) -> None:
    policy = tl.SoftmaxPolicy.tabular(MDP, SCOPES)
    policy.check(MDP)
    with pytest.raises(tl.InputError, match=message):
        policy.check(_sizes_model(state_sizes, action_sizes))


# Budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ["tabular", "from_callable"])
def test_scopes_over_budget_are_refused_before_anything_is_allocated(build: str) -> None:
    mdp = _sizes_model([2] * 60, [2])
    arguments = [lambda k, o: o] if build == "from_callable" else []
    with pytest.raises(tl.BudgetError, match=rf"agent 0 sees 60 coordinates with {2**60} joint"):
        getattr(tl.SoftmaxPolicy, build)(mdp, [range(60)], *arguments)


def test_networks_act_on_scopes_that_cannot_be_enumerated() -> None:
    policy = tl.SoftmaxPolicy.mlp(_sizes_model([2] * 60, [2]), [range(60)], hidden=(4,))
    states = torch.randint(2, (10, 60), generator=_generator())
    assert policy.act(states, _generator()).shape == (10, 1)
    with pytest.raises(tl.BudgetError, match="give it a smaller scope"):
        policy.probabilities(0)
