"""Policy files: bit for bit there and back, nothing that runs, and one clear error a fault."""

from __future__ import annotations

import itertools
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from twins import draw

import torchloc as tl
from torchloc.policy import AgentGroup, files
from torchloc.policy.networks import ACTIVATIONS

MDP = tl.FactoredMDP(
    [2, 3, 4],
    [2, 3, 2],
    [tl.LocalKernel((), (), np.full(size, 1 / size)) for size in (2, 3, 4)],
    [],
)
SCOPES = [(2, 0), (), (1, 2)]
TAU = [0.1, 1 / 3, 7.0]
BUILD: dict[str, Callable[..., tl.SoftmaxPolicy]] = {
    "tabular": lambda **o: tl.SoftmaxPolicy.tabular(MDP, SCOPES, temperature=TAU, scale=2.0, **o),
    "linear": lambda **o: tl.SoftmaxPolicy.linear(MDP, SCOPES, temperature=TAU, **o),
} | {
    f"mlp {name}": lambda name=name, **o: tl.SoftmaxPolicy.mlp(
        MDP, SCOPES, hidden=(5, 3), activation=name, temperature=TAU, **o
    )
    for name in ACTIVATIONS
}
BUILD |= {
    name: lambda options=options, **o: tl.SoftmaxPolicy.mlp(
        MDP, SCOPES, hidden=(5, 3), temperature=TAU, **options, **o
    )
    for name, options in {
        "shared": {"sharing": True, "embedding": 4},
        "alike": {"sharing": True, "embedding": 0},
        "bounded": {"bound": 1 / 3},
        "shared bounded": {"sharing": True, "bound": 7.0},
    }.items()
}
FIRST_FORMAT = ("tabular", "linear", *(f"mlp {name}" for name in ACTIVATIONS))


class _Slopes(nn.Module):
    """A user's module: one slope a coordinate and action, and a parameter under two names."""

    def __init__(self, group: AgentGroup) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.randn(len(group), len(group.sizes), group.n_actions))
        self.offset = nn.Parameter(torch.randn(len(group), 1, group.n_actions))
        self.again = self.offset
        self.register_buffer("steps", torch.arange(group.n_actions))

    def forward(self, observations: Tensor) -> Tensor:
        return observations.to(self.slopes) @ self.slopes + self.offset * self.again * self.steps


def _bits(policy: tl.SoftmaxPolicy) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Every number of a policy as bytes, so that −0, denormals and −∞ count."""
    return {
        name: (value.dtype, tuple(value.shape), value.detach().numpy().tobytes())
        for name, value in policy.state_dict().items()
    }


def _assert_equal(a: tl.SoftmaxPolicy, b: tl.SoftmaxPolicy) -> None:
    assert _bits(a) == _bits(b)
    assert list(a.scopes) == list(b.scopes)
    assert a.state_sizes.tolist() == b.state_sizes.tolist()
    assert a.action_sizes.tolist() == b.action_sizes.tolist()
    assert str(a) == str(b)
    for k in range(a.n_agents):
        assert torch.equal(a.probabilities(k), b.probabilities(k))


# Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", BUILD)
def test_round_trip_keeps_every_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = BUILD[kind](seed=5, dtype=dtype)
    policy.save(tmp_path / "policy.safetensors")
    loaded = tl.SoftmaxPolicy.load(str(tmp_path / "policy.safetensors"))
    _assert_equal(policy, loaded)
    states = torch.zeros(20, 3, dtype=torch.int64)
    drawn = [p.act(states, torch.Generator().manual_seed(1)) for p in (policy, loaded)]
    assert torch.equal(*drawn)
    loaded.save(tmp_path / "again.safetensors")
    _assert_equal(policy, tl.SoftmaxPolicy.load(tmp_path / "again.safetensors"))


@pytest.mark.parametrize("kind", ["shared", "bounded", "shared bounded", "mlp tanh"])
def test_a_rescaled_agent_survives(kind: str, tmp_path: Path) -> None:
    """Per-agent scales and limits are part of a policy."""
    policy = BUILD[kind]()
    policy.set_temperature([0.2, 0.1, 5.0], hold="policy")
    policy.save(tmp_path / "p.safetensors")
    loaded = tl.SoftmaxPolicy.load(tmp_path / "p.safetensors")
    _assert_equal(policy, loaded)
    for one in (policy, loaded):
        one.set_temperature(TAU, hold="policy")
    _assert_equal(policy, loaded)


def test_a_users_module_is_loaded_into_what_build_makes(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    policy = tl.SoftmaxPolicy.from_module(MDP, SCOPES, _Slopes, temperature=TAU, seed=3)
    policy.save(path)
    state = torch.random.get_rng_state()
    loaded = tl.SoftmaxPolicy.load(path, build=_Slopes)
    assert torch.equal(state, torch.random.get_rng_state())
    _assert_equal(policy, loaded)
    # What was tied stays tied.
    assert loaded.networks[0].again is loaded.networks[0].offset
    with pytest.raises(tl.InputError, match=r"kind 'module'; give build, the function"):
        tl.SoftmaxPolicy.load(path)
    with pytest.raises(tl.InputError, match=r"does not fit build: network parameter .* is missing"):
        tl.SoftmaxPolicy.load(path, build=lambda group: nn.Sequential(_Slopes(group)))
    with pytest.raises(tl.InputError, match=r"does not fit build: .*torch.float32, but .*float64"):
        tl.SoftmaxPolicy.load(path, build=lambda group: _Slopes(group).double())
    BUILD["linear"]().save(path)
    with pytest.raises(tl.InputError, match=r"kind 'mlp'; give build, .* and nowhere else"):
        tl.SoftmaxPolicy.load(path, build=_Slopes)


@pytest.mark.parametrize("seed", range(10))
def test_round_trip_of_random_tables(seed: int, tmp_path: Path) -> None:
    _, _, _, policy = draw(seed, policy={"minus_infinity": 0.3})
    policy.save(tmp_path / "p.safetensors")
    _assert_equal(policy, tl.SoftmaxPolicy.load(tmp_path / "p.safetensors"))


def test_extreme_numbers_survive(tmp_path: Path) -> None:
    table = np.array([[-0.0, 5e-324, 1.7e308], [-np.inf, np.pi, -1e-300], [0.0, -np.inf, -np.inf]])
    mdp = tl.FactoredMDP([3], [3], [tl.LocalKernel((), (), np.full(3, 1 / 3))], [])
    policy = tl.SoftmaxPolicy.from_logits(mdp, [(0,)], [table], temperature=5e-324)
    policy.save(tmp_path / "p.safetensors")
    loaded = tl.SoftmaxPolicy.load(tmp_path / "p.safetensors")
    assert loaded.logits(0).numpy().tobytes() == table.tobytes()
    assert loaded.temperature.tolist() == [5e-324]


@pytest.mark.parametrize("kind", ["tabular", "linear", "mlp"])
def test_policies_without_agents(kind: str, tmp_path: Path) -> None:
    mdp = tl.FactoredMDP([2], [], [tl.LocalKernel((), (), [0.5, 0.5])], [])
    getattr(tl.SoftmaxPolicy, kind)(mdp, []).save(tmp_path / "p.safetensors")
    loaded = tl.SoftmaxPolicy.load(tmp_path / "p.safetensors")
    assert loaded.n_agents == 0 and loaded.state_sizes.tolist() == [2]


def test_a_loaded_policy_learns_and_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    policy = BUILD["mlp tanh"]()
    policy.save(path)
    loaded = tl.SoftmaxPolicy.load(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    _assert_equal(policy, loaded)
    before = path.read_bytes()
    loaded.group_logits(0).sum().backward()
    for parameter in loaded.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    loaded.set_temperature(2.0)
    assert path.read_bytes() == before


# What a file holds ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILD)
def test_a_file_is_json_and_numbers_only(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    BUILD[kind]().save(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    about = header.pop("__metadata__")
    # Files of the kinds that the first format has can be read by what reads that only.
    version = json.loads(about["torchloc_policy"])["format"]
    assert set(about) == {"torchloc_policy"} and version == (1 if kind in FIRST_FORMAT else 2)
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert {entry["dtype"] for entry in header.values()} == {"F64", "I64"}
    assert spans[0][0] == 0 and spans[-1][1] == len(raw) - 8 - length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    tl.SoftmaxPolicy.load(path)


class _Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "p.safetensors"
    for dump in (lambda bomb: path.write_bytes(pickle.dumps(bomb)), lambda b: torch.save(b, path)):
        dump(_Bomb(trace))
        with pytest.raises(tl.InputError, match="damaged or no torchloc policy"):
            tl.SoftmaxPolicy.load(path)
    assert not trace.exists()


# Damage ---------------------------------------------------------------------------------------


def _refused(path: Path, *parts: str) -> None:
    with pytest.raises(tl.InputError) as caught:
        tl.SoftmaxPolicy.load(path)
    message = str(caught.value)
    assert all(part in message for part in (str(path), *parts)), message
    assert "\n" not in message


def test_missing_foreign_and_folder(tmp_path: Path) -> None:
    _refused(tmp_path / "none.safetensors", "there is no policy file")
    _refused(tmp_path, "is a folder")
    path = tmp_path / "p.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    _refused(path, "no torchloc policy", "SoftmaxPolicy.save")
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    _refused(path, "no torchloc policy")
    for content in (b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(100), b"\xff" * 100):
        path.write_bytes(content)
        _refused(path, "damaged or no torchloc policy")


@pytest.mark.parametrize("kind", ["tabular", "mlp relu"])
def test_truncated_at_any_byte(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    BUILD[kind]().save(path)
    raw = path.read_bytes()
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        _refused(path, "damaged or no torchloc policy")
    path.write_bytes(raw + b"\0")
    _refused(path, "damaged or no torchloc policy")


@pytest.mark.parametrize("kind", ["tabular", "mlp relu", "shared bounded"])
def test_flipped_bits_give_a_policy_or_one_clear_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    BUILD[kind]().save(path)
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(raw), 150):
        broken = bytearray(raw)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            tl.SoftmaxPolicy.load(path)
        except tl.InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 30


def _arrays(change: Callable[[dict[str, Tensor]], dict[str, Tensor | None]]) -> Callable:
    """A fault: some tensors of a tabular file replaced, or left out where None."""

    def write(path: Path) -> None:
        BUILD["tabular"]().save(path)
        arrays = load_file(path)
        arrays = {k: v for k, v in {**arrays, **change(arrays)}.items() if v is not None}
        save_file(arrays, path, metadata=files.metadata(BUILD["tabular"]()))

    return write


def _about(text: str | dict[str, Any], kind: str = "tabular") -> Callable[[Path], None]:
    """A fault: another description."""

    def write(path: Path) -> None:
        text_ = text if isinstance(text, str) else json.dumps(text)
        save_file(files.tensors(BUILD[kind]()), path, metadata={"torchloc_policy": text_})

    return write


def _mlp(**changes: Any) -> Callable[[Path], None]:
    mlp = {"format": 1, "kind": "mlp", "hidden": [5, 3], "activation": "relu"}
    return _about({**mlp, **changes}, "mlp relu")


def _with(tensor: Tensor, index: Any, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


FAULTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "later format": (_about({"format": 3, "kind": "?"}), ["policy format 3", "upgrade torchloc"]),
    "no format": (_about({"kind": "tabular"}), ["no format number"]),
    "text format": (_about({"format": "1", "kind": "tabular"}), ["no format number"]),
    "format 0": (_about({"format": 0, "kind": "tabular"}), ["no format number"]),
    "no object": (_about("[1]"), ["no format number"]),
    "no JSON": (_about("{kind"), ["damaged"]),
    "nested JSON": (_about("[" * 100_000), ["damaged"]),
    "no kind": (_about({"format": 1}), ["holds []", "kind"]),
    "unknown key": (_about({"format": 1, "kind": "tabular", "x": 1}), ["['kind', 'x']"]),
    "unknown kind": (_about({"format": 1, "kind": "cnn"}), ["kind of network is 'cnn'"]),
    "another kind": (
        _about({"format": 1, "kind": "tabular"}, "linear"),
        ["parameter 0.1.bias is (1, 1, 3)", "need absent"],
    ),
    "activation": (_mlp(activation="sin"), ["activation is 'sin'", "relu, tanh"]),
    "no activation": (_mlp(activation=None), ["activation is None"]),
    "widths": (_mlp(hidden=[4, 3]), ["parameter 0.1.bias is (1, 1, 5)", "(1, 1, 4)"]),
    "fewer layers": (_mlp(hidden=[5]), ["parameter 0.5.bias is (1, 1, 3)", "need absent"]),
    "more layers": (_mlp(hidden=[5, 3, 3]), ["parameter 0.7.bias is missing", "need (1, 1, 3)"]),
    "no widths": (_mlp(hidden=3), ["hidden is 3"]),
    "width 0": (_mlp(hidden=[5, 0]), ["layer 1 has width 0"]),
    "width 1e6": (_mlp(hidden=[10**6, 3]), ["parameter 0.1.bias is (1, 1, 5)", "(1, 1, 1000000)"]),
    "width 1e30": (_mlp(hidden=[10**30, 3]), ["layer 0 has width 1000", "from 1 to 1048576"]),
    "bound 0": (_mlp(format=2, bound=0), ["bound is 0"]),
    "no bound": (_mlp(format=2, bound=1.0), ["parameter 0.6.limit is missing", "need (1, 1, 1)"]),
    "embedding -1": (_mlp(format=2, embedding=-1), ["embedding is -1"]),
    "no embedding": (_mlp(format=2, embedding=2), ["parameter 0.1.bias is (1, 1, 5)", "absent"]),
    "module": (_about({"format": 2, "kind": "module", "shared": False}), ["give build"]),
    "half a module": (_about({"format": 2, "kind": "module"}), ["['kind']", "no kind of network"]),
    "unsure module": (
        _about({"format": 2, "kind": "module", "shared": 1}),
        ["['kind', 'shared']", "no kind of network"],
    ),
    "shared table": (
        _about({"format": 2, "kind": "tabular", "shared": True}),
        ["['kind', 'shared']", "no kind of network"],
    ),
    "no temperature": (_arrays(lambda a: {"temperature": None}), ["lacks", "temperature"]),
    "temperature 0": (
        _arrays(lambda a: {"temperature": _with(a["temperature"], 1, 0.0)}),
        ["temperature of agent 1 is 0", "> 0"],
    ),
    "temperature nan": (
        _arrays(lambda a: {"temperature": _with(a["temperature"], 2, np.nan)}),
        ["temperature of agent 2 is nan"],
    ),
    "temperatures": (
        _arrays(lambda a: {"temperature": a["temperature"][:2].clone()}),
        ["temperature has shape (2,)", "3 agents"],
    ),
    "scope out of range": (
        _arrays(lambda a: {"scope_indices": _with(a["scope_indices"], 0, 3)}),
        ["coordinate 3", "state_sizes has 3"],
    ),
    "negative scope": (
        _arrays(lambda a: {"scope_indices": _with(a["scope_indices"], 3, -1)}),
        ["scope of agent 2", "-1"],
    ),
    "repeated scope": (
        _arrays(lambda a: {"scope_indices": _with(a["scope_indices"], 0, 0)}),
        ["scope of agent 0", "twice"],
    ),
    "cut scopes": (_arrays(lambda a: {"scope_indptr": a["scope_indptr"][:-1].clone()}), ["indptr"]),
    "falling scopes": (_arrays(lambda a: {"scope_indptr": a["scope_indptr"].flip(0)}), ["indptr"]),
    "no scopes": (_arrays(lambda a: {"scope_indptr": torch.zeros(0).long()}), ["indptr"]),
    "coarse temperature": (
        _arrays(lambda a: {"temperature": a["temperature"].bfloat16()}),
        ["temperature is torch.bfloat16, not torch.float64"],
    ),
    "fractional size": (
        _arrays(lambda a: {"state_sizes": a["state_sizes"] + 0.5}),
        ["state_sizes is torch.float32, not torch.int64"],
    ),
    "empty space": (
        _arrays(lambda a: {"state_sizes": _with(a["state_sizes"], 1, 0)}),
        ["state_sizes: entry 1 is 0"],
    ),
    "negative actions": (
        _arrays(lambda a: {"action_sizes": -a["action_sizes"]}),
        ["action_sizes: entry 0 is -2"],
    ),
    "sizes in two axes": (
        _arrays(lambda a: {"state_sizes": a["state_sizes"][None]}),
        ["state_sizes must have 1 axes"],
    ),
    "fewer action sizes": (
        _arrays(lambda a: {"action_sizes": a["action_sizes"][:2].clone()}),
        ["action_sizes has 2", "3"],
    ),
    "huge sizes": (
        _arrays(lambda a: {"state_sizes": a["state_sizes"] * 10**15}),
        ["agent", "bytes", "smaller scope"],
    ),
    "other sizes": (
        _arrays(lambda a: {"state_sizes": _with(a["state_sizes"], 2, 5)}),
        ["parameter 1.table is (1, 12, 2)", "(1, 15, 2)"],
    ),
    "table missing": (
        _arrays(lambda a: {"networks.1.table": None}),
        ["parameter 1.table is missing"],
    ),
    "table too many": (
        _arrays(lambda a: {"networks.9.table": torch.zeros(1, 1, 2).double()}),
        ["parameter 9.table is (1, 1, 2)", "absent"],
    ),
    "integer tables": (
        _arrays(lambda a: {k: v.long() for k, v in a.items() if k.startswith("networks")}),
        ["torch.int64", "floating dtype"],
    ),
    "mixed dtypes": (
        _arrays(lambda a: {"networks.1.table": a["networks.1.table"].float()}),
        ["torch.float32", "torch.float64", "one floating dtype"],
    ),
    "nan logit": (
        _arrays(lambda a: {"networks.1.table": _with(a["networks.1.table"], (0, 3, 1), np.nan)}),
        ["logits of agent 2: entry (0, 3, 1) is nan"],
    ),
    "all forbidden": (
        _arrays(lambda a: {"networks.1.table": _with(a["networks.1.table"], (0, 3), -np.inf)}),
        ["logits of agent 2: row (0, 3)", "forbids every action"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_name_the_file_and_what_is_wrong(case: str, tmp_path: Path) -> None:
    write, parts = FAULTS[case]
    path = tmp_path / "p.safetensors"
    write(path)
    _refused(path, "p.safetensors", *parts)


def test_infinite_weights_are_refused(tmp_path: Path) -> None:
    policy = BUILD["linear"]()
    network = policy.networks[int(policy.group_of[2])]
    network[-1].weight.data[int(policy.row_of[2]), 0, 1] = torch.inf
    policy.save(tmp_path / "p.safetensors")
    _refused(tmp_path / "p.safetensors", "weight of agent 2 holds NaN or ∞")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("shared", "5.scale", 0.0),
        ("shared", "5.scale", np.nan),
        ("bounded", "6.limit", -1.0),
        ("bounded", "6.limit", np.inf),
    ],
)
def test_scales_and_limits_are_positive(kind: str, name: str, value: float, tmp_path: Path) -> None:
    policy = BUILD[kind]()
    index, row = int(policy.group_of[2]), int(policy.row_of[2])
    policy.networks[index].get_buffer(name)[row] = value
    policy.save(tmp_path / "p.safetensors")
    _refused(tmp_path / "p.safetensors", f"{name} of agent 2 holds a number that is not finite")


# Writing --------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    old = BUILD["tabular"]()
    old.save(path)

    def fail(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        target.write_bytes(b"half a file")
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(tl.FileError, match="cannot be written: no space left"):
        BUILD["linear"]().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]
    _assert_equal(old, tl.SoftmaxPolicy.load(path))


def test_save_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    for kind in ("tabular", "linear"):
        BUILD[kind]().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]
    _assert_equal(BUILD["linear"](), tl.SoftmaxPolicy.load(path))


def test_save_needs_a_folder_and_a_name(tmp_path: Path) -> None:
    policy = BUILD["tabular"]()
    with pytest.raises(tl.InputError, match=r"there is no folder .*none; create it"):
        policy.save(tmp_path / "none" / "p.safetensors")
    with pytest.raises(tl.InputError, match="it is a folder; give the name of a file"):
        policy.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
