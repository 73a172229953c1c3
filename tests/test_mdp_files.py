from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_mdp import COPY, EYE, Array, model, random_model

from torchloc.errors import InputError
from torchloc.mdp import FactoredMDP


def same(one: FactoredMDP, two: FactoredMDP) -> bool:
    def arrays(mdp: FactoredMDP) -> list[Array]:
        parts = [mdp.state_sizes, mdp.action_sizes]
        parts += [] if mdp.initial is None else [mdp.initial]
        for kernel in mdp.kernels:
            parts += [kernel.coordinates, kernel.states, kernel.actions, kernel.table]
        for term in mdp.rewards:
            parts += [term.states, term.actions, term.table]
        return parts

    left, right = arrays(one), arrays(two)
    return (
        len(left) == len(right)
        and all(
            (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
            for a, b in zip(left, right, strict=True)
        )
        and one.coordinate_names == two.coordinate_names
        and one.agent_names == two.agent_names
    )


@pytest.mark.parametrize("seed", range(5))
def test_round_trip_is_exact(tmp_path: Path, seed: int) -> None:
    mdp = random_model(np.random.default_rng(seed))
    path = tmp_path / "model.npz"
    mdp.save(path)
    loaded = FactoredMDP.load(str(path))
    assert same(mdp, loaded)
    loaded.save(path)
    assert same(mdp, FactoredMDP.load(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.npz"]


def test_round_trip_without_names_law_rewards_or_agents(tmp_path: Path) -> None:
    mdp = FactoredMDP([2], [], [COPY], [])
    mdp.save(tmp_path / "bare")
    assert same(mdp, FactoredMDP.load(tmp_path / "bare"))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.npz"
    model().save(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        random_model(np.random.default_rng(0)).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.npz"]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    mdp = random_model(np.random.default_rng(1))
    path, other = tmp_path / "model.npz", tmp_path / "other.npz"
    mdp.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole), size=40):
        other.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"other\.npz is damaged"):
            FactoredMDP.load(other)
    refused = 0
    for place in rng.integers(0, len(whole), size=300):
        flipped = bytearray(whole)
        flipped[place] ^= int(rng.integers(1, 256))
        other.write_bytes(flipped)
        try:
            # A flip where nothing is read, such as a time stamp, changes nothing.
            assert same(mdp, FactoredMDP.load(other))
        except InputError as error:
            refused += 1
            assert "other.npz is damaged" in str(error)
    assert refused > 150


def contents(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("torchloc_model"), ["no torchloc model"]),
        (lambda a: a.update(torchloc_model=np.int64(3)), ["format 3", "formats 1 to 2"]),
        (lambda a: a.update(torchloc_model=np.arange(3)), ["damaged"]),
        (lambda a: a.pop("kernel_0_table"), ["damaged", "kernel_0_table"]),
        (lambda a: a.pop("state_sizes"), ["damaged", "state_sizes"]),
        (lambda a: a.update(counts=np.array([9, 1])), ["damaged", "kernel_"]),
        (lambda a: a.update(counts=np.array([1.0, np.inf])), ["damaged"]),
        (lambda a: a.update(counts=np.int64(3)), ["damaged"]),
        (lambda a: a.update(initial=np.float64(1)), ["initial"]),
        (lambda a: a.update(agent_names=np.array(1)), ["agent_names"]),
        (lambda a: a.update(kernel_0_table=2 * a["kernel_0_table"]), ["sums to 2"]),
        (lambda a: a.update(state_sizes=a["state_sizes"] + 1), ["size"]),
    ],
)
def test_foreign_contents_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Array]], object], words: list[str]
) -> None:
    path = tmp_path / "model.npz"
    random_model(np.random.default_rng(2)).save(path)
    arrays = contents(path)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(InputError) as error:
        FactoredMDP.load(path)
    assert all(word in str(error.value) for word in words), str(error.value)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "sprung")


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "model.npz"
    model().save(path)
    arrays = contents(path) | {"initial": np.array([Trap(sprung)], dtype=object)}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="damaged or no torchloc model"):
        FactoredMDP.load(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(InputError, match="damaged or no torchloc model"):
        FactoredMDP.load(path)
    assert not sprung.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        FactoredMDP.load(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="damaged or no torchloc model"):
        FactoredMDP.load(tmp_path)
    np.save(tmp_path / "array.npy", EYE)
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    (tmp_path / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "texts.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("array.npy", "text.npz", "empty.npz", "texts.npz"):
        with pytest.raises(InputError, match=rf"{name} is (damaged or )?no torchloc model"):
            FactoredMDP.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", weights=EYE)
    with pytest.raises(InputError, match=r"no torchloc model; write one"):
        FactoredMDP.load(tmp_path / "other.npz")


def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(np.random.default_rng(0))
    with pytest.raises(InputError, match=r"there is no folder .*; create it"):
        model.save(tmp_path / "nowhere" / "model.npz")
    monkeypatch.setattr("torchloc.mdp.archives.LARGEST", 64)
    with pytest.raises(InputError, match="no more than 64 are read again"):
        model.save(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())
