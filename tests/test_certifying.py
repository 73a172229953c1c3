"""`torchloc-certify` from the user's seat: exit codes, files in and out, and one line for a mistake."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchloc as tl
from torchloc import checkpoint, cli, config
from torchloc.cli import certifying
from torchloc.environments import ising, sysadmin
from torchloc.sensitivity import RUNGS

Certify = Callable[..., int]
# Composing takes most of the time of a small command; each line is composed once.
composed = functools.cache(config.compose)
Captured = pytest.CaptureFixture[str]
RING = "env.n=3"


@pytest.fixture
def certify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certify:
    """`torchloc-certify ARGUMENTS` in this process and an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "compose", lambda given, **more: composed(tuple(given), **more))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["torchloc-certify", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.certify()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run


@pytest.fixture
def report(certify: Certify, capsys: Captured) -> Callable[..., dict[str, Any]]:
    """The JSON of `torchloc-certify ARGUMENTS --json -`; whatever the verdict."""

    def run(*arguments: str) -> dict[str, Any]:
        code = certify(*arguments, "--json", "-")
        shown = capsys.readouterr()
        assert shown.err == ""
        told = json.loads(shown.out, parse_constant=pytest.fail)
        assert code == (cli.DONE if told["certified"] else cli.UNCERTIFIED)
        return told

    return run


def uniform(n: int = 3) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """The model and the policy that are certified by default."""
    mdp = sysadmin(n)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))


def skewed(n: int = 3, *, temperature: float = 1.0) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """A policy that looks at something."""
    mdp = sysadmin(n)
    scopes = tl.neighbourhood_scopes(mdp)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, scopes, seed=2, scale=1.0, temperature=temperature)


def agrees(told: dict[str, Any], certificate: tl.Certificate, epsilon: float | None = None) -> None:
    """Every number of a report is the certificate's."""

    def number(value: float) -> float | str:
        return "inf" if math.isinf(value) else float(value)

    assert list(told["rungs"]) == list(certificate)
    assert told["floor"] == [certificate.floor.lower, certificate.floor.upper]
    for name, rung in certificate.items():
        row = told["rungs"][name]
        assert row["rho"] == [rung.rho.lower, rung.rho.upper]
        assert row["contraction"] == [rung.contraction.lower, rung.contraction.upper]
        assert row["certified"] is rung.certified and row["steps"] == rung.steps
        assert row["rate_per_step"] == rung.rate and row["row_norm"] == rung.row_norm
        assert row["column_norm"] == rung.column_norm and row["bias"] == number(rung.bias)
        for key in ("tail", "poisson", "epsilon", "delta_hat"):
            assert row[key] == number(getattr(rung, key).max())
        assert row["paper_tail"] == number(rung.uniform_tail_at(certificate.kappa))
        if epsilon is not None:
            assert row["kappa_for"] == number(rung.kappa_for(epsilon))


# Verdicts -----------------------------------------------------------------------------------------


def test_exit_codes_follow_the_asked_rung(certify: Certify, capsys: Captured) -> None:
    assert certify(RING) == cli.DONE
    shown = capsys.readouterr()
    assert shown.err == "" and "certified by coupled: 0.6887" in shown.out
    assert certify(RING, "--rung", "exact") == cli.UNCERTIFIED
    shown = capsys.readouterr()
    assert shown.err == "" and "not certified by exact: 1.377" in shown.out
    assert "no temperature certifies exact" in shown.out


def test_the_table_shows_every_rung_and_infinities(certify: Certify, capsys: Captured) -> None:
    assert certify(RING, "--epsilon", "0.01") == cli.DONE
    shown = capsys.readouterr().out
    table = [line.split() for line in shown.partition("certified by")[0].splitlines()]
    rows = {cells[0]: cells for cells in table if cells}
    assert {*RUNGS, "action_sup"} <= set(rows)
    certificate = tl.certify(*uniform())
    assert rows["coupled"][1] == f"{certificate['coupled'].rho.upper:.6f}"
    assert rows["coupled"][-1] == str(certificate["coupled"].kappa_for(0.01))
    assert rows["exact"][-3:] == ["∞"] * 3
    assert max(map(len, shown.splitlines()[:14])) <= 100
    assert "critical component: 3 of 3" in shown and "heaviest cycle" in shown


def test_no_reasons(certify: Certify, capsys: Captured) -> None:
    assert certify(RING, "--no-reasons") == cli.DONE
    shown = capsys.readouterr().out
    assert "critical" not in shown and "temperature" not in shown and "floor" not in shown


def test_levers_and_temperatures_are_named(certify: Certify, capsys: Captured) -> None:
    name = as_file(skewed()[1], "safetensors")
    assert certify(RING, "--policy", name, "--rung", "paper") == cli.UNCERTIFIED
    shown = capsys.readouterr().out
    assert re.search(r"agent \d looking at coordinate \d: Π = .*ignoring it lowers ρ", shown)
    assert re.search(r"coupled certifies at .*τ.* \(logits held\)", shown)
    assert "paper certifies at no temperature" in shown


def test_a_discount_moves_the_floor_and_the_temperatures(
    certify: Certify, capsys: Captured
) -> None:
    """ρ(E^s) = 1.3775 is above 1, but .7 of it is not: what is said must fit the verdict."""
    assert certify(RING, "--discount", "0.7", "--rung", "exact") == cli.DONE
    shown = capsys.readouterr().out
    assert "certified by exact" in shown and "no temperature certifies" not in shown
    assert "a contraction of 0.96425: below 1" in shown
    assert "exact certifies at every τ checked" in shown
    assert certify(RING, "--discount", "0.7", "--dynamics", "asynchronous") == cli.DONE
    assert "below 1" in capsys.readouterr().out


# Reports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--kappa", "0"], {"kappa": 0}),
        (["--discount", "0.9", "--kappa", "7"], {"discount": 0.9, "kappa": 7}),
        (["--dynamics", "asynchronous"], {"dynamics": "asynchronous"}),
        (["--objective", "entropy"], {"objective": "entropy"}),
        (["--steps", "3"], {"steps": 3}),
        (["--steps", "auto"], {"steps": "auto"}),
        (["--steps", "auto", "--rung", "coupled_3"], {"steps": "auto"}),
        (["--rung", "coupled_2"], {"steps": 2}),
        (["--rung", "coupled_2", "--steps", "3"], {"steps": 3}),
    ],
    ids=" ".join,
)
def test_json_is_the_certificate(
    report: Callable[..., dict[str, Any]], arguments: list[str], options: dict[str, Any]
) -> None:
    told = report(RING, *arguments)
    certificate = tl.certify(*uniform(), **options)
    agrees(told, certificate)
    rung = arguments[arguments.index("--rung") + 1] if "--rung" in arguments else "coupled"
    assert told["rung"] == rung and told["certified"] is certificate[rung].certified
    assert told["model"] == {"coordinates": 3, "agents": 3}
    for key in ("kappa", "discount", "dynamics", "objective"):
        assert told[key] == getattr(certificate, key)
    assert told["rungs"]["scope"]["tail"] == "inf" or told["rungs"]["scope"]["certified"]
    assert told["diagnosis"]["component_size"] == 3
    assert ("temperatures" in told) == ("asynchronous" not in arguments)


def test_kappa_of_an_epsilon_is_a_whole_number_or_infinite(
    report: Callable[..., dict[str, Any]],
) -> None:
    told = report(RING, "--epsilon", "0.01", "--no-reasons")
    agrees(told, tl.certify(*uniform()), 0.01)
    assert isinstance(told["rungs"]["coupled"]["kappa_for"], int)
    assert told["rungs"]["exact"]["kappa_for"] == "inf"
    assert "diagnosis" not in told and "temperatures" not in told


def test_json_to_a_file_beside_the_table(
    certify: Certify, report: Callable[..., dict[str, Any]], capsys: Captured, tmp_path: Path
) -> None:
    (tmp_path / "out.json").write_text("an old report")
    assert certify(RING, "--json", "out.json") == cli.DONE
    assert "certified by coupled" in capsys.readouterr().out
    assert os.listdir() == ["out.json"]
    assert json.loads(Path("out.json").read_text()) == report(RING)


def test_a_report_is_whole_or_not_there(
    certify: Certify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "out.json").write_text("an old report")

    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    assert certify(RING, "--no-reasons", "--json", "out.json") == cli.INTERRUPTED
    assert os.listdir() == ["out.json"] and Path("out.json").read_text() == "an old report"


def test_a_link_stays_a_link(certify: Certify, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert certify(RING, "--no-reasons", "--json", "link.json") == cli.DONE
    assert Path("link.json").is_symlink()
    assert json.loads(Path("real.json").read_text())["certified"]


def test_heat_maps(certify: Certify, capsys: Captured) -> None:
    assert certify(RING, "--no-reasons", "--steps", "2", "--heat-maps", "maps/here") == cli.DONE
    names = {f"H_{rung}.png" for rung in (*RUNGS, "coupled_2")} | {"Pi_exact.png", "L.png"}
    assert set(os.listdir("maps/here")) == names
    for name in names:
        assert (Path("maps/here") / name).read_bytes().startswith(b"\x89PNG")


# Models and policies ------------------------------------------------------------------------------


def test_a_model_from_a_file(report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    mdp = ising(3)
    mdp.save(tmp_path / "spins.npz")
    scopes = tl.neighbourhood_scopes(mdp, hops=2)
    told = report("--model", "spins.npz", "scopes.hops=2")
    agrees(told, tl.certify(mdp, tl.SoftmaxPolicy.tabular(mdp, scopes)))
    assert told["rungs"] == report("env=ising", RING, "scopes.hops=2")["rungs"]


def test_models_with_names_and_without_agents(
    certify: Certify, report: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    copy = tl.LocalKernel((0,), (), [[0.9, 0.1], [0.5, 0.5]])
    reward = tl.LocalReward((0,), (), [0.0, 1.0])
    alone = tl.FactoredMDP([2], [], [copy], [reward], coordinate_names=["Köln"])
    alone.save(tmp_path / "alone.npz")
    told = report("--model", "alone.npz")
    assert told["certified"] and told["diagnosis"]["component"] == ["Köln"]
    assert told["rungs"]["exact"]["epsilon"] == 0.0 and "action_sup" not in told
    assert certify("--model", "alone.npz", "--no-reasons", "--heat-maps", "maps") == cli.DONE


def as_file(policy: tl.SoftmaxPolicy, kind: str) -> str:
    """Writes a policy into this folder and gives the argument that names it."""
    if kind == "safetensors":
        policy.save("p.safetensors")
        return "p.safetensors"
    if kind == "checkpoint":
        generator = torch.Generator()
        Path("run").mkdir()
        saved = checkpoint.save(checkpoint.Snapshot.take(4, policy, generator), "run")
        return str(saved)
    arrays: dict[str, Any] = {"temperature": policy.temperature.numpy()}
    for k, scope in enumerate(policy.scopes):
        arrays[f"scope_{k}"] = np.array(scope, dtype=np.int64)
        table = policy.probabilities(k) if kind == "probabilities" else policy.logits(k)
        arrays[f"{kind}_{k}"] = table.numpy()
    np.savez("tables.npz", **arrays)
    return "tables.npz"


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint", "run", "probabilities", "logits"])
def test_policies_from_files(report: Callable[..., dict[str, Any]], kind: str) -> None:
    mdp, policy = skewed(temperature=0.7)
    name = as_file(policy, "checkpoint" if kind == "run" else kind)
    told = report(RING, "--no-reasons", "--policy", "run" if kind == "run" else name)
    if kind == "probabilities":
        scopes = policy.scopes
        laws = [policy.probabilities(k) for k in range(policy.n_agents)]
        policy = tl.SoftmaxPolicy.from_probabilities(mdp, scopes, laws, temperature=0.7)
    agrees(told, tl.certify(mdp, policy))


def test_a_run_folder_means_its_newest_checkpoint(report: Callable[..., dict[str, Any]]) -> None:
    Path("run").mkdir()
    for iteration, temperature in ((1, 5.0), (12, 0.5), (3, 2.0)):
        policy = skewed(temperature=temperature)[1]
        checkpoint.save(checkpoint.Snapshot.take(iteration, policy, torch.Generator()), "run")
    agrees(report(RING, "--no-reasons", "--policy", "run"), tl.certify(*skewed(temperature=0.5)))


def test_temperature_holds_the_logits(report: Callable[..., dict[str, Any]]) -> None:
    name = as_file(skewed(temperature=0.7)[1], "safetensors")
    arguments = (RING, "--no-reasons", "--policy", name, "--temperature")
    agrees(report(*arguments, "3.5"), tl.certify(*skewed(temperature=3.5)))
    hot, cold = (report(*arguments, tau)["rungs"]["paper"]["rho"][1] for tau in ("9", "0.01"))
    assert hot < cold


def test_scopes_given_beside_a_policy_must_be_its_own(certify: Certify, capsys: Captured) -> None:
    name = as_file(skewed()[1], "safetensors")
    assert certify(RING, "--no-reasons", "--policy", name, "scopes.hops=1") == cli.UNCERTIFIED
    capsys.readouterr()
    assert certify(RING, "--policy", name, "scopes.hops=2") == cli.BAD_INPUT
    assert (
        "brings scopes of its own, which are not those of scopes.hops=2" in capsys.readouterr().err
    )


# Bad input ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files and folders that the mistakes below are about; none of them changes it."""
    home = tmp_path_factory.mktemp("materials")
    with contextlib.chdir(home):
        fill()
    return home


def fill() -> None:
    for folder in ("folder", "empty"):
        Path(folder).mkdir()
    for name in ("junk", "junk.npz", "junk.safetensors"):
        Path(name).write_text("nothing to see")
    mdp, policy = uniform()
    mdp.save("model.npz")
    policy.save("policy.safetensors")
    uniform(4)[1].save("other.safetensors")
    spins = ising(3, control="both")
    tl.SoftmaxPolicy.tabular(spins, tl.neighbourhood_scopes(spins)).save("spins.safetensors")
    half = np.full((2, 2), 0.5)
    np.savez("one.npz", scope_0=[0], probabilities_0=half)
    np.savez("sum.npz", **{f"{n}_{k}": v for k in range(3) for n, v in
                           (("scope", [0]), ("probabilities", half + 0.1 * (k == 1)))})  # fmt: skip


BAD: list[tuple[str, list[str]]] = [
    ("--kappa -1", ["--kappa is '-1'", "whole number in [0, 100000]"]),
    ("--kappa x", ["--kappa is 'x'", "whole number"]),
    ("--kappa 1.5", ["--kappa is '1.5'", "whole number"]),
    ("--kappa 1000000000", ["--kappa is '1000000000'", "in [0, 100000]"]),
    ("--steps 0", ["--steps is '0'", "whole number in [1, 100], or auto"]),
    ("--steps two", ["--steps is 'two'", "whole number"]),
    ("--discount 2", ["--discount is '2'", "number in (0, 1]"]),
    ("--discount 0", ["--discount is '0'", "number in (0, 1]"]),
    ("--discount nan", ["--discount is 'nan'", "number in (0, 1]"]),
    ("--temperature 0", ["--temperature is '0'", "number > 0"]),
    ("--temperature -1", ["--temperature is '-1'", "number > 0"]),
    ("--temperature hot", ["--temperature is 'hot'", "number > 0"]),
    ("--temperature inf", ["--temperature is 'inf'", "number > 0"]),
    ("--epsilon 0", ["--epsilon is '0'", "number > 0"]),
    ("--epsilon small", ["--epsilon is 'small'", "number > 0"]),
    ("--rung coupld", ["--rung coupld", "coupled, exact, span", "did you mean coupled?"]),
    ("--rung sharpest", ["--rung sharpest", "coupled, exact, span, tanh, paper, scope"]),
    ("--rung coupled_1", ["--rung coupled_1", "did you mean coupled?"]),
    ("--rung coupled_3 --steps 2", ["--rung coupled_3 needs --steps 3, not 2"]),
    ("--rung coupled_101", ["--rung coupled_101", "at most 100"]),
    ("--dynamics asynchronos", ["--dynamics asynchronos", "did you mean asynchronous?"]),
    ("--dynamics sync", ["--dynamics sync", "did you mean synchronous?"]),
    ("--objective rewrad", ["--objective rewrad", "did you mean reward?"]),
    ("--steps 2 --dynamics asynchronous", ["--steps 2 is for --dynamics synchronous"]),
    ("--steps auto --dynamics asynchronous", ["--steps auto is for --dynamics synchronous"]),
    ("--steps auto --rung coupled_50", ["--rung coupled_50 is beyond", "coupled_8", "a number"]),
    ("--rung coupled_2 --dynamics asynchronous", ["--rung coupled_2 is for --dynamics sync"]),
    ("--model nowhere.npz", ["--model 'nowhere.npz'", "no such file", "FactoredMDP.save"]),
    ("--model folder", ["--model folder is a folder", "give the file in it"]),
    ("--model junk.npz", ["junk.npz is damaged or no torchloc model"]),
    ("--model one.npz", ["one.npz is no torchloc model", "FactoredMDP.save"]),
    ("--model model.npz env=ising", ["--model model.npz and env=ising", "give one of them"]),
    ("--model model.npz ++env.n=4", ["--model model.npz and ++env.n=4", "give one of them"]),
    ("--policy nowhere", ["--policy 'nowhere'", "no such file or folder", "uniform"]),
    ("--policy Uniform", ["--policy 'Uniform'", "did you mean uniform?"]),
    ("--policy empty", ["empty holds no checkpoint_*.safetensors", "run folder"]),
    ("--policy junk", ["junk is damaged or no torchloc policy"]),
    ("--policy junk.npz", ["junk.npz is damaged or no .npz file of tables"]),
    ("--policy junk.safetensors", ["junk.safetensors is damaged or no torchloc policy"]),
    ("--policy model.npz", ["model.npz holds no table", "scope_k", "probabilities_k or logits_k"]),
    ("--policy one.npz", ["one.npz has no array scope_1", "3 agents"]),
    ("--policy sum.npz", ["sum.npz: probabilities of agent 1", "1.2"]),
    ("--policy other.safetensors", ["other.safetensors", "4 coordinates", "model has 3"]),
    ("--policy spins.safetensors", ["spins.safetensors", "3 actions of agent 0", "has 2"]),
    ("policy=mlp", ["policy=mlp", "--policy", "uniform"]),
    ("--json nowhere/out.json", ["--json nowhere/out.json", "no folder nowhere", "create it"]),
    ("--json folder", ["--json folder is a folder", "name of a file"]),
    ("--json= ", ["--json", "is a folder"]),
    ("--heat-maps junk", ["--heat-maps junk", "no folder"]),
    ("--heat-maps junk/maps", ["--heat-maps junk/maps", "junk is no folder"]),
    ("--kapa 3", ["no argument --kapa", "did you mean --kappa?"]),
    ("--heatmaps=x", ["no argument --heatmaps=x", "did you mean --heat-maps?"]),
    ("--js out.json", ["no argument --js", "did you mean --json?"]),
    ("--zzz", ["no argument --zzz", "--help"]),
    ("--json", ["--json expected one argument", "--help"]),
    ("--config-dir nowhere", ["--config-dir nowhere is no folder"]),
    ("env=sysadmn", ["env=sysadmn", "did you mean sysadmin?"]),
    ("env.coste=1", ["env.coste", "did you mean env.cost?"]),
    ("env.n=many", ["env.n = 'many'", "whole number >= 2"]),
    ("env.n", ["'env.n'", "setting=value"]),
    ("scopes=explicit scopes.scopes=[[9]]", ["scopes names 1 agents", "model has 3"]),
]


@pytest.mark.parametrize(("line", "parts"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_written(
    certify: Certify,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    materials: Path,
    line: str,
    parts: list[str],
) -> None:
    monkeypatch.chdir(materials)
    before = {path: path.stat().st_mtime_ns for path in materials.rglob("*")}
    model = [] if "--model" in line else [RING]
    assert certify(*model, *line.split()) == cli.BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("torchloc-certify: ") and shown.err.count("\n") == 1
    assert all(part in shown.err for part in parts), shown.err
    assert {path: path.stat().st_mtime_ns for path in materials.rglob("*")} == before


def test_what_the_disk_refuses_is_bad_input(
    certify: Certify, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert certify(RING, "--no-reasons", "--heat-maps", "maps") == cli.BAD_INPUT
    assert "--heat-maps maps cannot be written: Permission denied" in capsys.readouterr().err
    monkeypatch.setattr(Path, "write_text", refused)
    assert certify(RING, "--no-reasons", "--json", "out.json") == cli.BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == "" and os.listdir() == []
    assert "--json out.json cannot be written: Permission denied" in shown.err


def test_bad_arguments_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom torchloc import cli\n"
        "sys.argv = ['torchloc-certify', '--json', 'nowhere/out.json']\n"
        "try: cli.certify()\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["2", "False"]


# Help and the commands themselves -----------------------------------------------------------------


def test_help_names_every_argument_and_the_exit_codes(certify: Certify, capsys: Captured) -> None:
    assert certify("--help") == cli.DONE
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.startswith("usage: torchloc-certify")
    told = " ".join(shown.out.split())
    for action in certifying.parser()._actions:
        assert all(flag in told for flag in action.option_strings)
        assert action.help
    for words in ("0 certified by the asked rung", "3 not certified", "2 bad input", "scope_0"):
        assert words in told


@pytest.mark.slow
def test_both_commands_run_from_another_folder(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("torchloc-certify")
    for command in ([str(script)], [sys.executable, "-m", "torchloc", "certify"]):
        for arguments, code in (
            ([RING], cli.DONE),
            ([RING, "--rung", "exact"], cli.UNCERTIFIED),
            ([RING, "--rung", "none"], cli.BAD_INPUT),
        ):
            done = subprocess.run(
                [*command, *arguments, "--json", "out.json"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == code, done.stderr
            assert done.stderr.count("\n") == (code == cli.BAD_INPUT)
            assert (tmp_path / "out.json").exists() == (code != cli.BAD_INPUT)
            (tmp_path / "out.json").unlink(missing_ok=True)


@pytest.mark.slow
def test_a_terminal_without_greek_letters(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torchloc", "certify", RING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == cli.DONE, done.stderr
    assert "certified by coupled" in done.stdout


def test_the_rungs_that_certify_are_named_where_the_asked_one_does_not(
    certify: Certify, capsys: Captured
) -> None:
    supercritical = ("env=sis", "env.n=4", "env.infection=[.4,.1]", "env.recovery=[.2,.5]")
    assert certify(*supercritical, "--steps", "4", "--no-reasons") == cli.UNCERTIFIED
    # Theory, section 3: 1.135, 1.054, 1.008, .979 per step.
    assert "certified by coupled_4; sharpest coupled_4, 0.97" in capsys.readouterr().out
