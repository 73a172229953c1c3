"""Policies from tables, functions and files of tables: round trips, and one clear error a rule."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
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


def _laws(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(2), (4, 2)), rng.dirichlet(np.ones(3), 3)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("seed", range(10))
def test_round_trips(seed: int) -> None:
    _, plain, mdp, twin = draw(seed, policy={"minus_infinity": 0.3 * (seed % 2)})
    laws = [twin.probabilities(k) for k in range(twin.n_agents)]
    again = tl.SoftmaxPolicy.from_logits(
        mdp,
        twin.scopes,
        [twin.logits(k) for k in range(twin.n_agents)],
        temperature=plain.temperature,
    )

    def f(agent: int, observations: Array) -> Array:
        expected = ref.grid([int(mdp.state_sizes[i]) for i in plain.scopes[agent]])
        np.testing.assert_array_equal(observations, expected)
        return laws[agent][tuple(observations.T)].reshape(len(observations), -1).numpy()

    temperature = np.linspace(0.2, 5.0, twin.n_agents)
    given = tl.SoftmaxPolicy.from_probabilities(mdp, plain.scopes, laws, temperature=temperature)
    called = tl.SoftmaxPolicy.from_callable(mdp, plain.scopes, f, temperature=temperature)
    for k, law in enumerate(laws):
        assert torch.equal(again.probabilities(k), law)
        assert torch.equal(given.logits(k), called.logits(k))
        # π = e^x is recovered from x = log π: an error of |x| u in x, and those of log, ×τ, /τ.
        error = law * (4 * law.clamp(min=1e-323).log().abs() + law.shape[-1] + 8) * U
        assert ((given.probabilities(k) - law).abs() <= error).all()


@pytest.mark.parametrize(
    "convert",
    [
        list,
        lambda x: [t.tolist() for t in x],
        tuple,
        lambda x: [t.astype(np.float32) for t in x],
        lambda x: [torch.from_numpy(t) for t in x],
        lambda x: [torch.from_numpy(t).requires_grad_() for t in x],
        lambda x: [torch.from_numpy(t).to(torch.bfloat16) for t in x],
        lambda x: [torch.from_numpy(t.astype(int)) for t in x],
    ],
    ids=["arrays", "lists", "tuple", "float32", "tensors", "with gradient", "bfloat16", "integers"],
)
def test_tables_of_any_kind(convert: Callable[[list[Array]], Any]) -> None:
    tables = [np.arange(16.0).reshape(4, 2, 2), np.arange(9.0).reshape(3, 3)]
    policy = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, convert(tables))
    for k, table in enumerate(tables):
        np.testing.assert_array_equal(policy.logits(k), table)


def test_tables_are_copied() -> None:
    tables = _tables()
    policy = tl.SoftmaxPolicy.from_logits(MDP, SCOPES, tables)
    before = policy.logits(0)
    tables[0][:] = 0.0
    assert torch.equal(policy.logits(0), before)


def test_callables_see_every_agent_once_and_may_return_tensors() -> None:
    calls: list[tuple[int, tuple[int, ...]]] = []

    def f(agent: int, observations: Array) -> Tensor:
        calls.append((agent, observations.shape))
        observations[:] = -1
        n_actions = (2, 3)[agent]
        return torch.full((len(observations), n_actions), 1 / n_actions, requires_grad=True)

    policy = tl.SoftmaxPolicy.from_callable(MDP, [(), (1, 2)], f)
    assert calls == [(0, (1, 0)), (1, (12, 2))]
    third = torch.full((3, 4, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(policy.probabilities(1), third, rtol=0, atol=8 * U)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_laws_of_a_coarse_dtype_are_laws(dtype: torch.dtype) -> None:
    """A softmax in float32 misses 1 by more than 1e-9; its rows are divided by their sums."""
    logits = [torch.from_numpy(table) for table in _tables(1, scale=2.0)]
    tables = [torch.softmax(z.to(dtype), -1) for z in logits]
    sums = torch.cat([(t.double().sum(-1) - 1.0).abs().flatten() for t in tables])
    assert float(sums.max()) > 1e-9
    given = tl.SoftmaxPolicy.from_probabilities(MDP, SCOPES, tables)

    def f(agent: int, observations: Array) -> Tensor:
        return tables[agent].reshape(len(observations), -1)

    called = tl.SoftmaxPolicy.from_callable(MDP, SCOPES, f)
    for k, table in enumerate(tables):
        law = table.double() / table.double().sum(-1, keepdim=True)
        torch.testing.assert_close(given.probabilities(k), law, rtol=0, atol=50 * U)
        assert torch.equal(given.logits(k), called.logits(k))
    broken = [table.clone() for table in tables]
    broken[1][2, 0] += 8 * torch.finfo(dtype).eps
    with pytest.raises(
        tl.InputError, match=r"probabilities of agent 1: row \(2,\) .* sums to 1\.0"
    ):
        tl.SoftmaxPolicy.from_probabilities(MDP, SCOPES, broken)
    if dtype == torch.float32:
        with pytest.raises(tl.InputError, match="probabilities of agent 1"):
            tl.SoftmaxPolicy.from_probabilities(MDP, SCOPES, [t.numpy() for t in broken])
        as_arrays = tl.SoftmaxPolicy.from_probabilities(MDP, SCOPES, [t.numpy() for t in tables])
        assert torch.equal(as_arrays.logits(1), given.logits(1))


def _replace(tables: list[Array], k: int, index: tuple, value: float) -> list[Array]:
    tables[k][index] = value
    return tables


def _logits(tables: Any, **options: Any) -> Callable[[], object]:
    return lambda: tl.SoftmaxPolicy.from_logits(MDP, SCOPES, tables, **options)


def _probabilities(tables: Any) -> Callable[[], object]:
    return lambda: tl.SoftmaxPolicy.from_probabilities(MDP, SCOPES, tables)


def _callable(f: Callable[[int, Array], Any]) -> Callable[[], object]:
    return lambda: tl.SoftmaxPolicy.from_callable(MDP, SCOPES, f)


def _act(observation: Any) -> Callable[[], object]:
    policy = tl.SoftmaxPolicy.tabular(MDP, SCOPES)
    return lambda: policy.act(observation, _generator())


def _tabular(**options: Any) -> Callable[[], object]:
    return lambda: tl.SoftmaxPolicy.tabular(MDP, SCOPES, **options)


ERRORS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "too few logits": (_logits(_tables()[:1]), ["logits has 1", "2 agents", "one table an agent"]),
    "too many logits": (_logits(_tables() * 2), ["logits has 4", "2 agents"]),
    "shape of logits": (
        _logits([_tables()[0].swapaxes(0, 1), _tables()[1]]),
        ["logits of agent 0", "(2, 4, 2)", "(4, 2, 2)", "order of the scope"],
    ),
    "flat logits": (_logits([_tables()[0], 0.0]), ["logits of agent 1", "()", "(3, 3)"]),
    "ragged logits": (_logits([[[1.0], [1.0, 2.0]], 0.0]), ["logits of agent 0", "rectangular"]),
    "text for logits": (_logits([_tables()[0], ["a"]]), ["logits of agent 1", "numbers"]),
    "complex logits": (_logits([_tables()[0], 1j]), ["logits of agent 1", "complex"]),
    "nan logit": (
        _logits(_replace(_tables(), 1, (2, 0), np.nan)),
        ["logits of agent 1", "(2, 0)", "nan", "finite numbers, or −∞"],
    ),
    "infinite logit": (
        _logits(_replace(_tables(), 0, (3, 1, 0), np.inf)),
        ["logits of agent 0", "(3, 1, 0)", "inf", "forbid"],
    ),
    "all forbidden": (
        _logits(_replace(_tables(), 0, (2, 1), -np.inf)),
        ["logits of agent 0", "(2, 1)", "forbids every action", "leave at least one"],
    ),
    "too few laws": (_probabilities(_laws()[:1]), ["probabilities has 1", "2 agents"]),
    "too many laws": (_probabilities(_laws() * 2), ["probabilities has 4", "one table an agent"]),
    "shape of laws": (
        _probabilities([_laws()[0], _laws()[1][:2]]),
        ["probabilities of agent 1", "(2, 3)", "(3, 3)"],
    ),
    "nan law": (
        _probabilities(_replace(_laws(), 0, (1, 0, 1), np.nan)),
        ["probabilities of agent 0", "(1, 0, 1)", "nan", "finite"],
    ),
    "negative law": (
        _probabilities(_replace(_laws(), 1, (1,), [-0.5, 1.0, 0.5])),
        ["probabilities of agent 1", "(1, 0)", "-0.5", "cannot be negative"],
    ),
    "sum of a law": (
        _probabilities(_replace(_laws(), 1, (1,), [0.5, 0.5, 2e-9])),
        ["probabilities of agent 1", "row (1,)", "1.000000002", "1e-9"],
    ),
    "shape of f": (
        _callable(lambda k, o: np.full((len(o), 3), 1 / 3)),
        ["f returned shape (8, 3) for agent 0", "(8, 2)", "one row an observation"],
    ),
    "text from f": (_callable(lambda k, o: "half"), ["f's result for agent 0", "numbers"]),
    "law from f": (
        _callable(lambda k, o: np.full((len(o), (2, 3)[k]), 0.5)),
        ["probabilities of agent 1", "row (0,)", "1.5"],
    ),
    "zero temperature": (_tabular(temperature=0.0), ["temperature is 0", "finite and > 0"]),
    "one bad temperature": (_tabular(temperature=[1.0, -2.0]), ["temperature of agent 1 is -2"]),
    "nan temperature": (_tabular(temperature=np.nan), ["temperature is nan", "finite"]),
    "infinite temperature": (_tabular(temperature=[np.inf, 1.0]), ["of agent 0 is inf", "finite"]),
    "temperatures": (_tabular(temperature=[1.0] * 3), ["shape (3,)", "each of the 2 agents"]),
    "text temperature": (_tabular(temperature="hot"), ["temperature", "hot"]),
    "temperature of logits": (_logits(_tables(), temperature=-1), ["temperature is -1"]),
    "hold": (
        lambda: tl.SoftmaxPolicy.tabular(MDP, SCOPES).set_temperature(2.0, hold="law"),
        ["hold is 'law'", "logits or policy"],
    ),
    "scopes": (
        lambda: tl.SoftmaxPolicy.tabular(MDP, [(0,)]),
        ["scopes names 1 agents", "2", "one list of coordinates an agent"],
    ),
    "scope": (
        lambda: tl.SoftmaxPolicy.mlp(MDP, [(0,), (3,)]),
        ["scope of agent 1", "coordinate 3", "3 coordinates"],
    ),
    "width": (
        lambda: tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(0,)),
        ["hidden: layer 0", "width 0", "from 1 to"],
    ),
    "activation": (
        lambda: tl.SoftmaxPolicy.mlp(MDP, SCOPES, activation="sigmoid"),
        ["'sigmoid'", "relu, tanh, gelu"],
    ),
    "coordinates": (_act(torch.zeros(4, 2).long()), ["shape (4, 2)", "3 coordinates"]),
    "scalar state": (_act(torch.tensor(0)), ["shape ()", "3 coordinates"]),
    "flattened states": (_act(torch.zeros(6).long()), ["shape (6,)", "last axis"]),
    "real states": (_act(torch.zeros(4, 3)), ["torch.float32", "torch.int64"]),
    "truth values": (_act(torch.zeros(3).bool()), ["torch.bool", "integers"]),
    "state out of range": (
        _act(torch.tensor([[0, 0, 0], [1, 3, 0]])),
        ["coordinate 1 is 3", "joint state 1", "0 to 2"],
    ),
    "negative state": (
        _act(torch.tensor([0, 0, -1])),
        ["coordinate 2 is -1", "joint state 0", "0 to 3"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_agent_the_value_and_the_mend(case: str) -> None:
    call, parts = ERRORS[case]
    with pytest.raises(tl.InputError) as caught:
        call()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


# Tables from files ----------------------------------------------------------------------------


def _archive(kind: str = "probabilities", **changes: Any) -> dict[str, Any]:
    """Arrays for `MDP` on `SCOPES`; a change to None leaves an array out."""
    tables = _laws() if kind == "probabilities" else _tables()
    arrays = {f"scope_{k}": np.array(scope) for k, scope in enumerate(SCOPES)}
    arrays |= {f"{kind}_{k}": table for k, table in enumerate(tables)}
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.mark.parametrize("temperature", [None, 0.3, [0.3, 2.0]])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_tables_from_a_file(
    kind: str, save: Callable[..., None], temperature: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tables.npz"
    save(path, **_archive(kind, temperature=temperature))
    loaded = tl.SoftmaxPolicy.from_tables(MDP, str(path))
    tables = _laws() if kind == "probabilities" else _tables()
    build = getattr(tl.SoftmaxPolicy, f"from_{kind}")
    given = build(MDP, SCOPES, tables, temperature=1.0 if temperature is None else temperature)
    assert list(loaded.scopes) == SCOPES
    assert torch.equal(loaded.temperature, given.temperature)
    assert all(torch.equal(loaded.logits(k), given.logits(k)) for k in range(2))


def test_a_file_of_tables_without_agents(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", note=np.zeros(3))
    mdp = _sizes_model([2], [])
    assert tl.SoftmaxPolicy.from_tables(mdp, tmp_path / "t.npz").n_agents == 0


ARCHIVES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "both kinds": (
        _archive(logits_0=np.zeros((4, 2, 2))),
        ["probabilities_0 and logits_0", "either"],
    ),
    "no table": ({"scope_0": np.zeros(1)}, ["no table", "scope_k with either"]),
    "no scope": (_archive(scope_1=None), ["no array scope_1", "2 agents"]),
    "fewer tables": (_archive(probabilities_1=None), ["no array probabilities_1", "2 agents"]),
    "more agents": (
        _archive(scope_2=np.zeros(1, int)),
        ["scope_2", "2 agents", "leave the others"],
    ),
    "shape": (_archive(probabilities_1=np.ones(3)), ["probabilities of agent 1", "(3, 3)"]),
    "law": (_archive(probabilities_1=np.ones((3, 3))), ["probabilities of agent 1", "sums to 3"]),
    "scope": (_archive(scope_1=np.array([7])), ["scope of agent 1", "coordinate 7"]),
    "fractional scope": (_archive(scope_1=np.array([0.5])), ["scope of agent 1", "whole number"]),
    "temperature": (_archive(temperature=-1.0), ["temperature is -1"]),
    "objects": (
        _archive(probabilities_1=np.array([None, {}])),
        ["damaged", "Python objects, which could run code"],
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_files_of_tables_are_checked(case: str, tmp_path: Path) -> None:
    arrays, parts = ARCHIVES[case]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(tl.InputError) as caught:
        tl.SoftmaxPolicy.from_tables(MDP, tmp_path / "t.npz")
    message = str(caught.value)
    assert all(part in message for part in (str(tmp_path / "t.npz"), *parts)), message
    assert "\n" not in message


def test_missing_and_foreign_files_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with pytest.raises(tl.InputError, match="there is no file"):
        tl.SoftmaxPolicy.from_tables(MDP, path)
    with pytest.raises(tl.InputError, match=r"damaged or no \.npz"):
        tl.SoftmaxPolicy.from_tables(MDP, tmp_path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    contents = [b"", b"hello", bytes(100), (tmp_path / "one.npy").read_bytes(), pickle.dumps({})]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(tl.InputError, match=r"t\.npz is damaged or no \.npz file"):
            tl.SoftmaxPolicy.from_tables(MDP, path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_of_tables(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    save(path, **_archive())
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [raw[: int(length)] for length in rng.integers(0, len(raw), 40)]
    for place in rng.integers(0, len(raw), 150):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << int(rng.integers(8))
        broken.append(bytes(flipped))
    refused = 0
    for content in broken:
        path.write_bytes(content)
        try:
            tl.SoftmaxPolicy.from_tables(MDP, path)
        except tl.InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 80
