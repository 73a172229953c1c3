"""The house: a room imports only rooms above it, and the fast rooms never import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchloc

PACKAGE = Path(torchloc.__file__).parent
ROOMS = (
    "errors",
    "shapes",
    "mdp",
    "alike",
    "graphs",
    "colouring",
    "environments",
    "policy",
    "lipschitz",
    "einsum",
    "closed_loop",
    "closed_counts",
    "contraction",
    "sensitivity",
    "coupling",
    "spectral",
    "certificate",
    "evaluation",
    "improvement",
    "locality",
    "engine",
    "schedules",
    "annealing",
    "checkpoint",
    "measures",
    "trainer",
    "figures",
    "callbacks",
    "interop",
    "estimation",
    "study",
    "config",
    "cli",
)
TORCH_FREE = (
    "torchloc",
    "cli",
    "config",
    "errors",
    "mdp",
    "alike",
    "graphs",
    "environments",
    "schedules",
    "study",
)
ONLY_IN = {
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli"},
    "tensorboard": {"callbacks", "study"},
    "torch.utils.tensorboard": {"callbacks", "study"},
    "pyRDDLGym": {"interop"},
    "rddlrepository": {"interop"},
    "pettingzoo": {"interop"},
    "gymnasium": {"interop"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The room that a file belongs to; the package's own two files are rooms of their own."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "torchloc" if name == "__init__" else name


def imports(tree: ast.AST, *, late: bool) -> Iterator[str]:
    """Dotted names that a file imports at run time; `late` adds those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for child in node.orelse for name in imports(child, late=late))
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, late=late)


def names(path: Path, *, late: bool) -> list[str]:
    return list(imports(ast.parse(path.read_text(encoding="utf-8")), late=late))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    here = room(path)
    if here in ("torchloc", "__main__"):
        return
    assert here in ROOMS, f"{here} has no place in the order of rooms"
    for name in names(path, late=True):
        package, _, rest = name.partition(".")
        if package == "torchloc":
            there = rest.split(".")[0]
            # The bare package is the way to no room; its public names hide which room they are in.
            assert there in ROOMS, f"{path.name} imports {name}: import the room that defines it"
            assert ROOMS.index(there) <= ROOMS.index(here), f"{here} imports {there}, below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_stays_in_its_rooms(path: Path) -> None:
    for name in names(path, late=True):
        for library, rooms in ONLY_IN.items():
            if f"{name}.".startswith(f"{library}."):
                assert room(path) in rooms, f"{room(path)} imports {name}"


def test_spectral_knows_only_matrices_and_schedules_only_numbers() -> None:
    for name, allowed in {
        "spectral": {"errors", "spectral"},
        "schedules": {"errors"},
        "errors": set[str](),
    }.items():
        for path in (path for path in FILES if room(path) == name):
            ours = {n.split(".")[1] for n in names(path, late=True) if n.startswith("torchloc.")}
            assert ours <= allowed, f"{name} imports {ours - allowed}"


def test_the_fast_rooms_do_not_import_torch_even_through_others() -> None:
    files: dict[str, list[Path]] = {}
    for path in FILES:
        files.setdefault(room(path), []).append(path)
    reached, todo = set[str](), list(TORCH_FREE)
    while todo:
        here = todo.pop()
        if here in reached:
            continue
        reached.add(here)
        for name in (name for path in files[here] for name in names(path, late=False)):
            assert name.split(".")[0] != "torch", f"{here} imports torch"
            if name.startswith("torchloc."):
                todo.append(name.split(".")[1])
    assert reached == set(TORCH_FREE)


def test_starting_the_command_line_imports_no_heavy_library() -> None:
    code = (
        "import sys, torchloc.cli\n"
        "heavy = {'torch', 'numpy', 'scipy', 'networkx', 'matplotlib', 'tensorboard', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_models_build_without_torch() -> None:
    rooms = ", ".join(f"torchloc.{name}" for name in TORCH_FREE if name != "torchloc")
    code = f"import sys, {rooms}\nprint('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_public_names_are_lazy_and_all_there() -> None:
    code = "import sys, torchloc\nprint('torch' in sys.modules or 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
    assert sorted(torchloc.__all__) == torchloc.__all__
    assert set(torchloc.__all__) == set(torchloc._MODULES)
    for name in torchloc.__all__:
        assert getattr(torchloc, name).__name__ == name
        assert name in dir(torchloc)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        torchloc.nothing  # noqa: B018
