"""What has no finite factored form is refused by naming it; what is dropped is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rddl_problems as kit

from torchloc import config
from torchloc.cli.building import build_env
from torchloc.errors import BudgetError, InputError
from torchloc.interop.rddl import ground_rddl, load_rddl

SYSADMIN = "SysAdmin_MDP_ippc2011"
X = "x : { state-fluent, bool, default = false }; v : { action-fluent, bool, default = false };"
TWO = X + "y : { state-fluent, bool, default = false }; g : { interm-fluent, bool };"
MANY = X + "z(thing) : { state-fluent, bool, default = false };"
THINGS: dict[str, Any] = {
    "types": "thing : object;",
    "objects": f"thing : {{ {', '.join(f'o{i}' for i in range(30))} }};",
}

REFUSED: list[tuple[str, str, str, dict[str, Any], str]] = [
    (
        X + "r : { state-fluent, real, default = 0.0 };",
        "x' = x; r' = r;",
        "0",
        {},
        r"^r is of kind real: a fluent with infinitely many",
    ),
    (X, "x' = Normal(0, 1) > 0.5;", "0", {}, r"^the CPF of x': Normal\(0, 1\) is not supported"),
    (X, "x' = x;", "Poisson(2.0)", {}, r"^the reward: Poisson\(2.0\) is not supported"),
    (
        X,
        "x' = Bernoulli(0.7 + 0.5 * v);",
        "0",
        {},
        r"^the CPF of x' gives no law at v = true: .* \[-0.2, 1.2\]",
    ),
    (
        X,
        "x' = Bernoulli(1.2) ^ v;",
        "0",
        {},
        r"^the CPF of x': Bernoulli\(1.2\) has probabilities that are negative",
    ),
    (
        X,
        "x' = x + 1;",
        "0",
        {},
        r"^the CPF of x': .*x \+ 1.* is of kind int, but the fluent is of kind bool",
    ),
    (X, "x' = if (1) then x else v;", "0", {}, r"1 is of kind int, where true or false is needed"),
    (
        X,
        "x' = nothing;",
        "0",
        {},
        r"^the CPF of x': nothing is neither a declared fluent nor an object",
    ),
    (X, "x' = nothing(?x);", "0", {}, r"reads nothing, which is not declared"),
    (X, "x' = cube[2.0] > 1;", "0", {}, r"cube\[2.0\] is not supported: the function is not known"),
    (
        X,
        "x' = (argmax_{?t : thing} 1.0) == @o1;",
        "0",
        THINGS,
        r"is not supported: there is no finite table",
    ),
    (
        TWO,
        "g = Bernoulli(0.5); x' = g; y' = g | v;",
        "0",
        {},
        r"^g is random and moves x', y': .* not independent",
    ),
    (TWO, "g = x; x' = Bernoulli(0.5); y' = x';", "0", {}, r"^x' is random and moves x', y'"),
    (TWO, "g = ~g; x' = g; y' = y;", "0", {}, r"^the CPF of g: g -> g is a circle"),
    (
        X + "o : { observ-fluent, bool };",
        "x' = x; o = x;",
        "0",
        {},
        r"^o is an observ-fluent: partially observed",
    ),
    (
        X + "k : { action-fluent, int, default = 0 };",
        "x' = k > 1;",
        "0",
        {},
        r"^k is of kind int without both bounds",
    ),
    (
        X + "k : { action-fluent, int, default = 0 };",
        "x' = k > 1;",
        "0",
        {"domain": "action-preconditions { k >= 3; k <= 2; };"},
        r"^k lies between 3 and 2; it must have at least one",
    ),
    (
        X + "k : { state-fluent, int, default = 0 };",
        "x' = x; k' = k + v;",
        "0",
        {},
        r"^k has more than 256 values within reach",
    ),
    (
        X,
        "x' = x;",
        "0",
        {"domain": "termination { x; };"},
        r"^the termination condition: x would end an episode",
    ),
    (
        X,
        "x' = x;",
        "0",
        {"domain": "action-preconditions { x => ~v; };"},
        r"^the action precondition: .*x => .* does not always hold, .* preconditions=lift",
    ),
    (
        X,
        "x' = x;",
        "0",
        {"domain": "state-invariants { x; };"},
        r"^the state invariant: x does not hold in the first state",
    ),
    (X, "x' = x;", "1 / (x - v)", {}, r"^the reward: .* is not a finite number everywhere"),
    (X, "x' = x", "0", {}, r"Syntax error on line \d+"),
    (X, "x' = x # v;", "0", {}, r"skipping illegal character # at line"),
    (X, "", "0", {}, r"^RDDL problem .*cpfs"),
    (X, "x' = y';", "0", {}, r"^the CPF of x': y' is neither"),
    (
        X,
        "x' = x;",
        "0",
        {"instance": "max-nondef-actions = 0;"},
        r"^one lets 0 of its 1 action fluents",
    ),
]


@pytest.mark.parametrize(("pvariables", "cpfs", "reward", "blocks", "message"), REFUSED)
def test_refused_by_name(
    tmp_path: Path, pvariables: str, cpfs: str, reward: str, blocks: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ground_rddl(*kit.write(tmp_path, pvariables, cpfs, reward, **blocks))


def test_a_law_of_too_many_parents_is_counted(tmp_path: Path) -> None:
    cpfs = "x' = Bernoulli((v + sum_{?t : thing} z(?t)) / 31); z'(?t) = z(?t);"
    with pytest.raises(BudgetError) as caught:
        ground_rddl(*kit.write(tmp_path, MANY, cpfs, "0", **THINGS))
    message = str(caught.value)
    assert message.startswith("the CPF of x' reads 30 state and 1 action fluents")
    assert f"{2**32:,} entries" in message


def test_a_reward_of_too_many_parents_is_counted(tmp_path: Path) -> None:
    paths = kit.write(
        tmp_path, MANY, "x' = x; z'(?t) = z(?t);", "(sum_{?t : thing} z(?t)) > 15", **THINGS
    )
    with pytest.raises(
        BudgetError, match=f"^the reward: a term reads 30 fluents, {2**30:,} entries"
    ):
        ground_rddl(*paths)
    linear = kit.write(
        tmp_path, MANY, "x' = x; z'(?t) = z(?t);", "sum_{?t : thing} z(?t)", **THINGS
    )
    assert sum(map(len, ground_rddl(*linear, budget=64).mdp.rewards)) == 30


def test_what_is_lifted_or_not_enforced_is_told(tmp_path: Path) -> None:
    paths = kit.write(
        tmp_path,
        X,
        "x' = v;",
        "x",
        domain="action-preconditions { x => ~v; v | ~v; }; state-invariants { ~x; };",
    )
    found = ground_rddl(*paths, preconditions="lift")
    assert len(found.notes) == 2
    assert found.notes[0].startswith("the action precondition ") and "lifted" in found.notes[0]
    assert found.notes[1].startswith("the state invariant ") and "not enforced" in found.notes[1]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("SysAdmin", 1), {}, "rddlrepository has no such problem; did you mean"),
        (("zzzzzz", 1), {}, "no such problem; give the path of a .rddl file"),
        ((SYSADMIN, 11), {}, r"instance = 11: .* instances 1, 2, .*, 10; give one of them"),
        (("missing.rddl", "i.rddl"), {}, "domain = missing.rddl: there is no such file"),
        (
            (SYSADMIN, 1),
            {"concurrency": "keep"},
            "concurrency = 'keep'; choose one of refuse, lift",
        ),
        ((SYSADMIN, 1), {"preconditions": "x"}, "preconditions = 'x'; choose one of refuse, lift"),
        ((SYSADMIN, 1), {"budget": 0}, "budget = 0; it must be a whole number"),
        (("SysAdmin_POMDP_ippc2011", 1), {}, "^running-obs is an observ-fluent"),
    ],
)
def test_arguments_are_checked(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ground_rddl(*arguments, **options)


@pytest.mark.parametrize("library", ["pyRDDLGym", "rddlrepository"])
def test_a_missing_library_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r'pip install "torchloc\[rddl\]"'):
        load_rddl(SYSADMIN, 1, concurrency="lift")


def test_the_configuration_builds_it() -> None:
    cfg = config.compose(
        ["env=rddl", f"env.domain={SYSADMIN}", "env.instance=2", "env.concurrency=lift"]
    )
    assert build_env(cfg).n_agents == 10
    with pytest.raises(InputError, match=r"env.domain is required"):
        config.compose(["env=rddl"])
    with pytest.raises(InputError, match=r"env\.concurrency = 'lifted' is not allowed"):
        config.compose(["env=rddl", f"env.domain={SYSADMIN}", "env.concurrency=lifted"])
    refused = config.compose(["env=rddl", f"env.domain={SYSADMIN}"])
    with pytest.raises(InputError, match="concurrency=lift drops the cap"):
        build_env(refused)


def test_files_round_trip_without_the_library(tmp_path: Path) -> None:
    from torchloc import FactoredMDP

    mdp = load_rddl(SYSADMIN, 1, concurrency="lift")
    mdp.save(tmp_path / "model.npz")
    again = FactoredMDP.load(tmp_path / "model.npz")
    state, action = kit.draw(mdp, np.random.default_rng(0))
    for one, two in zip(kit.laws(mdp, state, action), kit.laws(again, state, action), strict=True):
        assert one.tolist() == two.tolist()


def run(code: str, folder: Path) -> tuple[str, str]:
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return shown.stdout, shown.stderr


def test_importing_it_imports_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, torchloc.interop.rddl\n"
        "print(sorted({'pyRDDLGym', 'rddlrepository', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert run(code, tmp_path) == ("[]\n", "")


@pytest.mark.slow
def test_terminal_and_folder_stay_clean(tmp_path: Path) -> None:
    code = (
        "import sys, torchloc.interop.rddl as rddl\n"
        f"rddl.ground_rddl({SYSADMIN!r}, 1, concurrency='lift')\n"
        "assert 'torch' not in sys.modules"
    )
    assert run(code, tmp_path) == ("", "")
    assert list(tmp_path.iterdir()) == []
