"""`torchloc-certify --estimate`: a certificate on samples from the user's seat, and what it says that it rests on."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchloc as tl
from torchloc import cli, config
from torchloc.cli import certifying
from torchloc.environments import sis
from torchloc.estimation import (
    SensitivityEstimate,
    TransitionLog,
    estimate_sensitivities,
    model_simulator,
)
from torchloc.sensitivity import RUNGS

Certify = Callable[..., int]
Captured = pytest.CaptureFixture[str]
composed = functools.cache(config.compose)
HIDDEN = sis(4, infection=(0.05, 0.01), recovery=(0.8, 0.9), outside=0.2)
SITE = np.arange(4)
PARENTS: dict[str, Any] = {
    "state_parents": np.stack([(SITE - 1) % 4, SITE, (SITE + 1) % 4], axis=1),
    "action_parents": SITE[:, None],
}


@functools.cache
def sampled(samples: int = 4000) -> SensitivityEstimate:
    """Bounds of a ring whose parents were declared; 4,000 draws a context certify, 30 do not."""
    return estimate_sensitivities(
        model_simulator(HIDDEN),
        delta=0.05,
        samples=samples,
        generator=np.random.default_rng(0),
        description="the ward\x1b[2J in [red]May[/red]",
        **PARENTS,
    )


@functools.cache
def logged() -> SensitivityEstimate:
    """Bounds from twelve transitions of two coordinates, without declared parents: some contexts unseen."""
    draws = np.random.default_rng(0).integers(0, 2, (12, 5))
    log = TransitionLog(draws[:, :2], draws[:, 2:3], draws[:, 3:], [2, 2], [2])
    return estimate_sensitivities(log, delta=0.1)


def uniform(hops: int = 1) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.tabular(HIDDEN, tl.neighbourhood_scopes(HIDDEN, hops))


def skewed() -> tl.SoftmaxPolicy:
    scopes = tl.neighbourhood_scopes(HIDDEN)
    return tl.SoftmaxPolicy.tabular(HIDDEN, scopes, seed=1, scale=1.0)


def fill() -> None:
    """Writes what the arguments below name into this folder."""
    sampled().save("bare.npz")
    sampled().with_rewards(HIDDEN.rewards).save("known.npz")
    sampled().with_reward_bound(np.ones(4)).save("bound.npz")
    sampled(30).save("few.npz")
    logged().save("log.npz")
    HIDDEN.save("model.npz")
    skewed().save("skewed.safetensors")
    small = sis(3)
    tl.SoftmaxPolicy.tabular(small, tl.neighbourhood_scopes(small)).save("other.safetensors")
    Path("folder").mkdir()
    Path("junk.npz").write_text("nothing to see")
    np.savez("foreign.npz", numbers=np.arange(3))
    with np.load("bare.npz") as arrays:
        np.savez("late.npz", **{**arrays, "torchloc_estimate": np.int64(99)})
        np.savez("lost.npz", **{name: arrays[name] for name in arrays if name != "state_data"})
        np.savez("short.npz", **{**arrays, "batches": np.int64(0)})


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files; no test changes it."""
    home = tmp_path_factory.mktemp("estimates")
    with contextlib.chdir(home):
        fill()
    return home


@pytest.fixture
def certify(materials: Path, monkeypatch: pytest.MonkeyPatch) -> Certify:
    """`torchloc-certify ARGUMENTS` in this process, beside the files; returns the exit code."""
    monkeypatch.chdir(materials)
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


def agrees(told: dict[str, Any], certificate: tl.Certificate, epsilon: float | None = None) -> None:
    """Every number of a report is the certificate's, and what needs an unknown reward is null."""

    def number(value: float) -> float | str:
        return "inf" if math.isinf(value) else float(value)

    assert list(told["rungs"]) == list(certificate) == list(RUNGS[1:])
    assert told["floor"] == [certificate.floor.lower, certificate.floor.upper]
    assert told["weakest_entry"] == certificate.weakest and told["delta"] == certificate.delta
    assert "action_sup" not in told
    for name, rung in certificate.items():
        row = told["rungs"][name]
        assert row["rho"] == [rung.rho.lower, rung.rho.upper]
        assert row["contraction"] == [rung.contraction.lower, rung.contraction.upper]
        assert row["certified"] is rung.certified and row["rate_per_step"] == rung.rate
        assert row["row_norm"] == rung.row_norm and row["column_norm"] == rung.column_norm
        needing = ["tail", "poisson", "epsilon", "delta_hat", "bias", "paper_tail"]
        needing += [] if epsilon is None else ["kappa_for"]
        if rung.oscillation is None:
            assert [row[key] for key in needing] == [None] * len(needing)
            continue
        for key in needing[:4]:
            assert row[key] == number(getattr(rung, key).max())
        assert row["bias"] == number(rung.bias)
        assert row["paper_tail"] == number(rung.uniform_tail_at(certificate.kappa))
        if epsilon is not None:
            assert row["kappa_for"] == number(rung.kappa_for(epsilon))


# Reports ------------------------------------------------------------------------------------------


def test_the_coupled_rungs_are_those_that_an_estimate_lacks() -> None:
    assert certifying.ESTIMATED == RUNGS[1:]


@pytest.mark.parametrize(
    ("file", "line", "options"),
    [
        ("known", "", {}),
        ("known", "--steps 1 --rung paper --kappa 5 --discount .9", {"kappa": 5, "discount": 0.9}),
        ("known", "--dynamics asynchronous", {"dynamics": "asynchronous"}),
        ("known", "--objective entropy", {"objective": "entropy"}),
        ("bare", "--dynamics asynchronous", {"dynamics": "asynchronous"}),
        ("bare", "--objective entropy", {"objective": "entropy"}),
        ("bound", "--objective entropy", {"objective": "entropy"}),
    ],
)
def test_json_is_the_certificate_of_the_estimate(
    report: Callable[..., dict[str, Any]], file: str, line: str, options: dict[str, Any]
) -> None:
    policy = ("--policy", "skewed.safetensors", "--no-reasons")
    told = report("--estimate", f"{file}.npz", *policy, *line.split())
    certificate = tl.certify(SensitivityEstimate.load(f"{file}.npz"), skewed(), **options)
    agrees(told, certificate)
    rung = "paper" if "paper" in line else "exact"
    assert told["rung"] == rung and told["certified"] is certificate[rung].certified
    assert told["model"] == {"coordinates": 4, "agents": 4}
    assert (told["weakest_entry"], told["delta"]) == ("assumed", 0.05)


def test_reasons_of_an_estimate(report: Callable[..., dict[str, Any]]) -> None:
    told = report("--estimate", "bare.npz", "--policy", "skewed.safetensors")
    assert {"agent", "coordinate", "sensitivity", "slope"} == set(told["diagnosis"]["levers"][0])
    assert [row["rung"] for row in told["temperatures"]] == ["exact", "span", "paper"]


def test_scopes_come_from_the_declared_parents(report: Callable[..., dict[str, Any]]) -> None:
    for setting, hops in (("scopes.hops=1", 1), ("scopes.hops=0", 0)):
        told = report("--estimate", "known.npz", "--epsilon", "0.01", "--no-reasons", setting)
        known = sampled().with_rewards(HIDDEN.rewards)
        agrees(told, tl.certify(known, uniform(hops)), 0.01)


def test_a_model_is_exact(report: Callable[..., dict[str, Any]]) -> None:
    told = report("--model", "model.npz", "--no-reasons")
    assert (told["weakest_entry"], told["delta"]) == ("exact", 0.0) and "action_sup" in told


# On the terminal ----------------------------------------------------------------------------------


def table(shown: str) -> dict[str, list[str]]:
    """Cells of the printed ladder by rung."""
    rows = [line.split() for line in shown.partition("Π from")[0].splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0] in (*RUNGS, "action_sup")}


def test_the_report_says_what_it_rests_on(certify: Certify, capsys: Captured) -> None:
    assert certify("--estimate", "known.npz") == cli.DONE
    shown = capsys.readouterr()
    assert shown.err == "" and "\x1b" not in shown.out
    rows = table(shown.out)
    certificate = tl.certify(sampled().with_rewards(HIDDEN.rewards), uniform())
    assert list(rows) == list(RUNGS[1:])
    assert rows["exact"][0] == f"{certificate['exact'].rho.upper:.6f}"
    assert rows["exact"][4] == f"{certificate['exact'].tail.max():.3g}"
    lines = shown.out.splitlines()
    assert f"rests on {certificate.standing}" in lines
    assert "probability ≥ 0.95" in certificate.standing
    assert (
        f"E^s and E^a bounded from {sampled().samples:,} sampled next values "
        r"(the ward\x1b[2J in [red]May[/red]) in 64 of 64 contexts"
    ) in lines
    upper = certificate["exact"].rho.upper
    assert f"certified by exact: ρ ≤ {upper:.9g} with probability ≥ 0.95" in lines
    # A lower end of bounds is none of the system that was sampled.
    assert "≤ ρ ≤" not in shown.out and "–" not in shown.out


def test_dashes_where_the_reward_is_not_known(certify: Certify, capsys: Captured) -> None:
    assert certify("--estimate", "bare.npz", "--epsilon", "0.01", "--no-reasons") == cli.DONE
    shown = capsys.readouterr().out
    assert all(cells[4:] == ["–"] * 4 for cells in table(shown).values())
    assert "–: unknown without the reward; give it by `with_rewards`" in shown


def test_too_few_samples_are_told_apart_from_a_hopeless_system(
    certify: Certify, capsys: Captured
) -> None:
    assert certify("--estimate", "few.npz") == cli.UNCERTIFIED
    shown = capsys.readouterr().out
    assert "not certified by exact: ρ ≤ 1." in shown
    assert "no temperature certifies exact, span, tanh, paper or scope; with more samples" in shown


def test_a_log_without_declared_parents(certify: Certify, capsys: Captured) -> None:
    estimate = logged()
    assert estimate.unvisited > 0
    assert certify("--estimate", "log.npz") == cli.UNCERTIFIED
    shown = capsys.readouterr().out
    assert (
        f"bounded from {estimate.samples} sampled next values in {estimate.visited} of 16 contexts; entries that "
        f"need one of the {estimate.unvisited} unseen are 1"
    ) in shown
    assert "rests on sensitivities whose weakest entry is `ucb`" in shown
    assert "provided" not in shown


@pytest.mark.slow
def test_heat_maps_of_an_estimate(certify: Certify, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    asked = ("--estimate", "bare.npz", "--no-reasons", "--heat-maps", str(maps))
    assert certify(*asked) == cli.DONE
    names = {f"H_{rung}.png" for rung in RUNGS[1:]} | {"Pi_exact.png", "L.png"}
    assert set(os.listdir(maps)) == names


# Bad input ----------------------------------------------------------------------------------------

NO_KERNELS = "average the kernels of a model over the policy, and an estimate has no kernels"
BAD: list[tuple[str, list[str]]] = [
    ("--estimate", ["--estimate expected one argument"]),
    ("--estimate=", ["--estimate ''", "no such file"]),
    ("--estimate nowhere.npz", ["--estimate 'nowhere.npz'", "SensitivityEstimate.save"]),
    ("--estimate folder", ["--estimate folder is a folder", "give the file in it"]),
    ("--estimate junk.npz", ["junk.npz is damaged or no torchloc estimate"]),
    ("--estimate foreign.npz", ["foreign.npz is no torchloc estimate", "SensitivityEstimate.save"]),
    ("--estimate model.npz", ["model.npz is no torchloc estimate", "SensitivityEstimate.save"]),
    ("--estimate late.npz", ["late.npz has estimate format 99", "upgrade torchloc"]),
    ("--estimate lost.npz", ["lost.npz is damaged", "state_data"]),
    ("--estimate short.npz", ["--estimate short.npz: ", "4 coordinates but 0 kernels"]),
    ("--model bare.npz", ["bare.npz is no torchloc model", "FactoredMDP.save"]),
    ("--estimate bare.npz --model model.npz",
     ["--model model.npz and --estimate bare.npz", "give one of them"]),
    ("--estimate bare.npz env=sis", ["--estimate bare.npz and env=sis", "give one of them"]),
    ("--estimate bare.npz ++env.n=4", ["--estimate bare.npz and ++env.n=4", "give one of them"]),
    ("--estimate bare.npz --policy other.safetensors",
     ["--policy other.safetensors does not fit --estimate bare.npz", "3 coordinates", "has 4"]),
    ("--estimate bare.npz --policy nowhere", ["--policy 'nowhere'", "no such file"]),
    ("--estimate bare.npz --rung coupled", ["--rung coupled is", NO_KERNELS, "paper or scope"]),
    ("--estimate bare.npz --rung coupled_3", ["--rung coupled_3 is", NO_KERNELS]),
    ("--estimate bare.npz --rung exac", ["--rung exac", "did you mean exact?"]),
    ("--estimate bare.npz --steps 2", ["--steps 2 adds coupled rungs", NO_KERNELS, "leave --steps"]),
    ("--estimate bare.npz --steps auto", ["--steps auto adds coupled rungs", NO_KERNELS]),
    ("--estimate bare.npz scopes=explicit scopes.scopes=[[9]]", ["scopes names 1 agents", "has 4"]),
    ("--estimat bare.npz", ["no argument --estimat", "did you mean --estimate?"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "parts"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_written(
    certify: Certify, capsys: Captured, materials: Path, line: str, parts: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in materials.rglob("*")}
    outputs = ["--json", "out.json", "--heat-maps", "maps"]
    assert certify(*outputs, *line.split()) == cli.BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("torchloc-certify: ") and shown.err.count("\n") == 1
    assert all(part in shown.err for part in parts), shown.err
    assert {path: path.stat().st_mtime_ns for path in materials.rglob("*")} == before


def test_help_tells_what_an_estimate_lacks(certify: Certify, capsys: Captured) -> None:
    assert certify("--help") == cli.DONE
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "--estimate FILE an estimate saved by SensitivityEstimate.save, in place of a model" in told
    )
    assert "E^s and E^a bounded from samples; no coupled rungs" in told
