"""Files that nobody wrote: every loader answers with a whole object or with the package's own error.

Valid files are damaged (bits, cuts, splices, repeated parts, numbers made huge), also inside of what checksums
protect; and there are files made to exhaust memory or to run code. Seeds are fixed.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from desk import CONFIGURATION

import torchloc as tl
from torchloc import checkpoint, config
from torchloc.environments import sysadmin, topologies
from torchloc.errors import InputError
from torchloc.mdp import archives

Loader = Callable[[Path], object]
MDP = sysadmin(3)
SCOPES = tl.neighbourhood_scopes(MDP)
LOADERS: dict[str, Loader] = {
    "model.npz": tl.FactoredMDP.load,
    "tables.npz": lambda path: tl.SoftmaxPolicy.from_tables(MDP, path),
    "policy.safetensors": tl.SoftmaxPolicy.load,
    "checkpoint.safetensors": checkpoint.load,
    "graph.graphml": lambda path: topologies.from_file(path, directed=True),
    "graph.txt": lambda path: topologies.from_file(path, directed=True),
    "configuration.yaml": lambda path: config.restored(
        path.read_bytes().decode("utf-8", errors="replace")
    ),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole file for each loader."""
    folder = tmp_path_factory.mktemp("valid")
    named = tl.FactoredMDP(
        MDP.state_sizes,
        MDP.action_sizes,
        MDP.kernels,
        MDP.rewards,
        initial=np.full((3, 2), 0.5),
        coordinate_names=["a", "b", "c"],
        agent_names=["x", "y", "z"],
    )
    named.save(folder / "model.npz")
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(3,), seed=0)
    policy.save(folder / "policy.safetensors")
    snapshot = checkpoint.Snapshot.take(2, policy, torch.Generator())
    path = checkpoint.save(snapshot, folder, configuration=CONFIGURATION)
    path.rename(folder / "checkpoint.safetensors")
    laws: dict[str, Any] = {f"probabilities_{k}": np.full((2, 2, 2), 0.5) for k in range(3)}
    scopes: dict[str, Any] = {f"scope_{k}": np.array(SCOPES[k]) for k in range(3)}
    np.savez(folder / "tables.npz", temperature=np.array(0.5), **scopes, **laws)
    nx.write_graphml(nx.karate_club_graph(), folder / "graph.graphml")
    edges = "".join(f"{i} {j} 1.0 # known\n" for i, j in nx.karate_club_graph().edges)
    (folder / "graph.txt").write_text(edges)
    (folder / "configuration.yaml").write_text(CONFIGURATION)
    whole = {name: (folder / name).read_bytes() for name in LOADERS}
    for name, load in LOADERS.items():
        load(folder / name)
    return whole


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three faults at random places."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place, other = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        length = int(rng.integers(1, 40))
        match int(rng.integers(8)):
            case 0:
                for at in rng.integers(0, max(len(data), 1), length):
                    if data:
                        data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[place:]
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = rng.bytes(length)
            case 4:
                data[place:place] = data[other : other + length * 10]
            case 5:
                data[place : place + 8] = struct.pack("<Q", 2 ** int(rng.integers(64)))
            case 6:
                data[place:other] = data[place:other][::-1]
            case _:
                digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
                if digits:
                    at = int(rng.choice(digits))
                    data[at : at + 1] = str(
                        rng.choice(["-1", "1e999", "9" * 25, "2.5", "0"])
                    ).encode()
        if not data:
            break
    return bytes(data)


def inside(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """Faults below the checksums and lengths of a container, which are written anew."""
    if name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        chosen = str(rng.choice(list(members)))
        if rng.random() < 0.5:
            members[chosen] = damaged(members[chosen], rng)
        else:
            buffer = io.BytesIO()
            np.save(buffer, strange(rng))
            members[chosen] = buffer.getvalue()
        result = io.BytesIO()
        with zipfile.ZipFile(result, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return result.getvalue()
    if name.endswith(".safetensors"):
        (length,) = struct.unpack("<Q", content[:8])
        header = damaged(content[8 : 8 + length].rstrip(), rng)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    return damaged(content, rng)


def strange(rng: np.random.Generator) -> np.ndarray:
    """An array of an unexpected kind, shape or size of number."""
    kind = rng.choice(["<f8", "<i8", "<u8", "<c16", "?", "<U3", "S2", "<M8[s]", "<f2", "V4", ">i4"])
    shape = tuple(rng.integers(0, 4, rng.integers(0, 5)).tolist())
    raw = np.frombuffer(rng.bytes(np.dtype(kind).itemsize * int(np.prod(shape))), dtype=kind)
    if kind == "<U3":
        raw = np.full(raw.shape, "\x1b[2")
    return raw.reshape(shape)


def fuzz(name: str, content: bytes, folder: Path, seed: int, count: int) -> int:
    """Loads `count` damaged files; how many were refused."""
    rng = np.random.default_rng([seed, list(LOADERS).index(name)])
    refused = 0
    for number in range(count):
        path = folder / name
        path.write_bytes((damaged if number % 2 else lambda c, r: inside(name, c, r))(content, rng))
        try:
            LOADERS[name](path)
        except InputError as error:
            refused += 1
            assert str(error)
    return refused


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_loaded_or_refused(
    name: str, valid: dict[str, bytes], tmp_path: Path
) -> None:
    assert fuzz(name, valid[name], tmp_path, 0, 40) > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", LOADERS)
def test_thousands_of_damaged_files_are_loaded_or_refused(
    name: str, seed: int, valid: dict[str, bytes], tmp_path: Path
) -> None:
    assert fuzz(name, valid[name], tmp_path, seed, 700) > 70


# Made to exhaust memory, or to run code -----------------------------------------------------------


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A `.npy` member with any header."""
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def described(shape: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"


def archive(**members: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return result.getvalue()


def claims(content: bytes, size: int) -> bytes:
    """The archive, its first member said to have `size` < 2³² bytes unpacked."""
    data, at = bytearray(content), content.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = data[22:26] = struct.pack("<I", size)
    return bytes(data)


def tensors(header: Any, data: bytes = b"") -> bytes:
    """A `.safetensors` file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GRAPHML = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed">'
LEVELS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
NPY = npy(described("(1,)"), bytes(8))
HOSTILE: dict[str, tuple[str, bytes]] = {
    "a shape of terabytes": ("model.npz", archive(a=npy(described(f"({2**40},)")))),
    "a shape beyond 64 bits": ("model.npz", archive(a=npy(described(f"({2**70}, {2**70})")))),
    "terabytes of nothing": ("model.npz", archive(a=npy(described(f"({2**40},)", "<U0")))),
    "a negative shape": ("model.npz", archive(a=npy(described("(-1, -8)"), bytes(64)))),
    "a structure": ("model.npz", archive(a=npy(described("(1,)", "V8"), bytes(8)))),
    "an object": ("model.npz", archive(a=npy(described("(1,)", "|O"), b"cos\nsystem\n"))),
    "an expression": ("model.npz", archive(a=npy("__import__('os').system('touch pwned')"))),
    "a nested header": ("model.npz", archive(a=npy("(" * 2000))),
    "a long header": ("model.npz", archive(a=npy("[" + "0," * 10**6 + "]", version=(2, 0)))),
    "a version": ("model.npz", archive(a=npy(described("(1,)"), bytes(8), (9, 9)))),
    "gigabytes said": ("model.npz", claims(archive(**{c: NPY for c in "ab"}), 2**32 - 2)),
    "tables of terabytes": ("tables.npz", archive(logits_0=npy(described(f"({2**40},)")))),
    "a header of exabytes": ("policy.safetensors", struct.pack("<Q", 2**63) + b"{}"),
    "a tensor of exabytes": (
        "policy.safetensors",
        tensors({"a": {"dtype": "F64", "shape": [2**57], "data_offsets": [0, 2**60]}}),
    ),
    "a product that wraps": (
        "policy.safetensors",
        tensors({"a": {"dtype": "F64", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}),
    ),
    "nested JSON": ("policy.safetensors", tensors(b'{"__metadata__":' + b"[" * 10**5)),
    "nested description": (
        "checkpoint.safetensors",
        tensors({"__metadata__": {"torchloc_checkpoint": "[" * 10**5}}),
    ),
    "a number of a million digits": (
        "checkpoint.safetensors",
        tensors({"__metadata__": {"torchloc_checkpoint": '{"format": ' + "9" * 10**6 + "}"}}),
    ),
    "billion laughs": (
        "graph.graphml",
        f'<!DOCTYPE g [<!ENTITY e0 "ha">{LEVELS}]>{GRAPHML}<node id="&e11;"/>'.encode(),
    ),
    "an entity from elsewhere": (
        "graph.graphml",
        f'<!DOCTYPE g [<!ENTITY x SYSTEM "file:///etc/passwd">]>{GRAPHML}<node id="&x;"/>'.encode(),
    ),
    "nested elements": ("graph.graphml", b"<graphml>" + b"<graph>" * 10**5),
    "a label of a million digits": ("graph.txt", b"0 " + b"9" * 10**6 + b" x\n1\n"),
    "steering characters": ("graph.txt", b"0\n\x00\x1b[2J"),
    "alias bomb": (
        "configuration.yaml",
        ("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))).encode(),
    ),
    "merge bomb": ("configuration.yaml", b"a: &a {b: 1}\nenv:\n  <<: [*a, *a]\n"),
    "string bomb": (
        "configuration.yaml",
        ("name: ${s30}\n" + "".join(f"s{i}: ${{s{i - 1}}}${{s{i - 1}}}\n" for i in range(1, 31))).encode(),
    ),
    "the environment": ("configuration.yaml", b"name: ${oc.env:HOME}\n"),
    "a tag that calls": (
        "configuration.yaml",
        b"env: !!python/object/apply:os.system ['touch pwned']\n",
    ),
    "a target that calls": (
        "configuration.yaml",
        b"env: {_target_: os.system, command: touch pwned}\n",
    ),
    "nested lists": ("configuration.yaml", b"env: " + b"[" * 10**4),
    "nested mappings": ("configuration.yaml", b"env: " + b"{a: " * 10**4),
}  # fmt: skip
PEAK = 2**26
"""Bytes of Python objects at most; the largest hostile file has 2 · 10⁶ bytes, YAML tokens some 20 a byte."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_little_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = HOSTILE[kind]
    path = tmp_path / name
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(InputError):
            LOADERS[name](path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK
    assert time.process_time() - begun < 10
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_what_an_archive_unpacks_to_is_known_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(archive(a=npy(described(f"({2**21},)"), bytes(2**24))))
    assert path.stat().st_size < 2**16
    monkeypatch.setattr(archives, "LARGEST", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(InputError, match=r"take 16,777,\d+ bytes, over the limit of 1,048,576"):
        tl.FactoredMDP.load(path)


def test_an_array_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as made:
        made.writestr("a.npy", NPY)
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("a.npy", NPY)
    with pytest.raises(InputError, match="an array stands twice in it"):
        tl.FactoredMDP.load(tmp_path / "model.npz")


def test_a_graph_file_beyond_the_limit_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topologies, "FILE_BYTES", 100)
    (tmp_path / "graph.txt").write_text("0 1\n" * 50)
    with pytest.raises(tl.BudgetError, match="has 200 bytes, over the limit of 100"):
        topologies.from_file(tmp_path / "graph.txt", directed=True)


@pytest.mark.slow
def test_hostile_files_fit_half_a_gigabyte_of_addresses(tmp_path: Path) -> None:
    """Whatever library allocates: the process has that much left when it begins to load."""
    for number, (name, content) in enumerate(HOSTILE.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(content)
    code = (
        "import resource, sys, test_fuzz as t\n"
        "from pathlib import Path\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + 2**29\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for number, (name, _) in enumerate(t.HOSTILE.values()):\n"
        "    try: t.LOADERS[name](Path(sys.argv[1]) / str(number) / name)\n"
        "    except t.InputError: print('refused')\n"
    )
    here = Path(__file__).parent
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == ["refused"] * len(HOSTILE)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert not (tmp_path / "pwned").exists()
