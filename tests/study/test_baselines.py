"""Baselines against enumeration, from a configuration to numbers and reasons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from environments import oracle
from omegaconf import OmegaConf

import torchloc as tl
from torchloc import config
from torchloc.cli.references import references
from torchloc.environments import sis, sysadmin
from torchloc.environments.rules import hand_rule
from torchloc.study.baselines import Baselines
from torchloc.trainer import Evaluation, Improvement, Trainer

SOLVE = 1e-9
"""Exact solves are held to 1e-10 in units of max(1, max |r|), which is at most n; planning to 1e-9."""
NAMES = ["uniform", "hand rule", "myopic"]
LOCAL, JOINT = "local optimum", "joint optimum"


def settings(*overrides: str) -> dict[str, Any]:
    """What `.hydra/config.yaml` of such a run holds."""
    cfg = config.compose(["policy=tabular", "trainer.iterations=3", *overrides])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def rewards(found: Baselines) -> dict[str, float]:
    return {baseline.name: baseline.reward for baseline in found.found}


def test_the_jair_ring() -> None:
    found = references(settings("env.n=3"))
    assert [baseline.name for baseline in found.found] == [*NAMES, LOCAL, JOINT]
    assert found.missing == ()
    known = rewards(found)
    mdp = sysadmin(3)
    blind = reference.chain(oracle.as_reference(mdp), oracle.uniform(mdp)).average
    best, _ = oracle.optimum(mdp)
    assert known["uniform"] == pytest.approx(blind, abs=SOLVE)
    # Seven digits from the literature's model; the rule of the ring is the joint optimum.
    assert known["hand rule"] / 3 == pytest.approx(0.8877472, abs=2e-7)
    for name in ("hand rule", LOCAL, JOINT):
        assert known[name] == pytest.approx(best, abs=3 * SOLVE)
    notes = {baseline.name: baseline.note for baseline in found.found}
    assert notes["hand rule"] == "reboot iff the machine or its predecessor is off"
    assert notes["myopic"] == "κ = 0, 3 iterations"


def test_on_smaller_scopes_the_rule_and_the_local_optimum_see_less() -> None:
    found = rewards(references(settings("env.n=4", "scopes.hops=0")))
    assert found["hand rule"] / 4 == pytest.approx(0.85335, abs=5e-6)
    assert found[LOCAL] == pytest.approx(found["hand rule"], abs=4 * SOLVE)
    assert found[JOINT] / 4 == pytest.approx(0.8877472, abs=2e-7)


def test_the_myopic_run_is_the_same_run_with_kappa_0() -> None:
    overrides = ("env=sis", "env.n=4", "schedule=linear", "improvement=jacobi", "seed=7")
    mdp = sis(4)
    options: dict[str, Any] = {
        "schedule": lambda t: 1.0 - 0.98 * t,
        "improvement": Improvement(order="jacobi"),
        "iterations": 3,
    }
    earned = []
    for kappa in (0, 3):
        policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        run = Trainer(mdp, policy, evaluation=Evaluation(kappa=kappa), **options)
        earned.append(run.run().metrics["reward/average"])
    myopic = rewards(references(settings(*overrides)))["myopic"]
    assert myopic == pytest.approx(earned[0], abs=SOLVE)
    assert abs(earned[1] - earned[0]) > 1e-3  # κ counts for something here


def test_a_discounted_run_reports_rates_of_its_occupancy() -> None:
    """(1 − γ) μ₀·V, with V and the occupancy from linear systems on the joint chain."""
    gamma, mdp = 0.9, sis(3)
    found = references(settings("env=sis", "env.n=3", f"evaluation.discount={gamma}"))
    model, scopes = oracle.as_reference(mdp), tl.neighbourhood_scopes(mdp)
    rule = hand_rule({"_target_": "torchloc.environments.sis", "n": 3}, mdp, scopes)
    assert rule is not None
    policies = {
        "uniform": oracle.uniform(mdp),
        "hand rule": oracle.from_probabilities(list(scopes), rule.tables),
    }
    start = np.full(8, 1 / 8)
    for name, policy in policies.items():
        joint = reference.product_policy(model, policy)
        chain = reference.policy_transition(reference.transition(model), joint)
        pay = reference.policy_reward(model, policy)
        occupancy = reference.discounted_occupancy(chain, start, gamma)
        assert rewards(found)[name] == pytest.approx(float(occupancy @ pay), abs=SOLVE)
        value = reference.discounted_value(chain, pay, gamma)
        assert rewards(found)[name] == pytest.approx((1 - gamma) * float(start @ value), abs=SOLVE)
    value = np.zeros(8)
    for _ in range(400):  # .9^400 < 1e-18
        value = (reference.reward(model) + gamma * reference.transition(model) @ value).max(axis=1)
    best = (1 - gamma) * float(start @ value)
    assert rewards(found)[JOINT] == pytest.approx(best, abs=SOLVE)
    assert best >= max(rewards(found)[name] for name in NAMES) - SOLVE
    assert found.missing == (f"{LOCAL}: searched for the average reward only",)


def test_a_model_too_large_to_enumerate_is_simulated() -> None:
    found = references(settings("env.n=60", "evaluation.steps=200"))
    assert [baseline.name for baseline in found.found] == ["uniform", "hand rule"]
    known = rewards(found)
    # Long-run values of a machine, within six standard errors of 8 × 200 steps of 60 machines
    # whose rewards lie in an interval of length 1.75 and forget their past within some ten steps.
    error = 6 * 1.75 / 2 * (10 / (8 * 200 * 60)) ** 0.5
    assert known["hand rule"] / 60 == pytest.approx(0.8877472, abs=error)
    assert all(baseline.note.endswith("(95 %)") for baseline in found.found)
    assert [reason.partition(":")[0] for reason in found.missing] == ["myopic", LOCAL, JOINT]
    assert all(len(reason) < 400 for reason in found.missing)


def test_what_a_model_does_not_have_is_said() -> None:
    found = references(settings("env=random", "env.n=2"))
    assert found.missing == ("hand rule: this family has none",)


@pytest.mark.slow
def test_a_reward_that_depends_on_the_start_is_said() -> None:
    """A deterministic swap; value iteration goes on to its limit before it says so."""
    found = references(settings("env=leader_follower", "env.mutual=true"))
    assert found.found == ()
    assert "uniform: the chain has 3 closed classes" in found.missing[0]
    assert len(found.missing) == 5


def test_a_model_that_cannot_be_built_again_is_a_reason(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.csv")
    found = references(settings("env=sis", f"env.graph_file={gone}"))
    assert found.found == ()
    (reason,) = found.missing
    assert reason.startswith("baselines: ") and gone in reason


@pytest.mark.parametrize(
    ("place", "target"),
    [("env", "pathlib.Path.touch"), ("env.infection", "pathlib.Path.touch")],
)
def test_no_code_is_run_that_a_run_folder_names(tmp_path: Path, place: str, target: str) -> None:
    mark = tmp_path / "touched"
    config = settings("env=sis", "env.n=3")
    strange = {"_target_": target, "_args_": [{"_target_": "pathlib.Path", "_args_": [str(mark)]}]}
    node = OmegaConf.create(config)
    OmegaConf.update(node, place, strange, merge=False)
    found = references(OmegaConf.to_container(node))  # type: ignore[arg-type]
    assert found == Baselines(
        missing=(
            f"baselines: _target_={target} is not of torchloc, and a comparison runs no code that a "
            f"run folder names",
        )
    )
    assert not mark.exists()


def test_the_records_of_a_report_need_no_torch() -> None:
    code = (
        "import sys, torchloc.study.baselines, torchloc.cli.references\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
