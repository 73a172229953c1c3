"""The same run twice: bit for bit in another process, and certificates to 10⁻¹² with another number of threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from torchloc import checkpoint
from torchloc.study import read_run

RUN = """
import json, sys
import torch
import torchloc as tl
from torchloc import environments
from torchloc import trainer as room
from torchloc.schedules import geometric

class Keep(tl.Callback):
    def on_iteration_end(self, trainer, state):
        kept.append({t: float(v).hex() for t, v in state.metrics.items() if t[:8] != "seconds/"})

room.REFERENCE_PAIRS = 0
threads, engine, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(threads)
kept = []
# Large enough that threads share the work: torch splits from 2^15 numbers on.
mdp = environments.sis(9) if engine == "joint" else environments.sis(1200)
scopes = tl.neighbourhood_scopes(mdp)
if kind == "mlp":
    policy = tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(8,), seed=5)
else:
    policy = tl.SoftmaxPolicy.tabular(mdp, scopes, seed=5, scale=1.0)
trainer = tl.Trainer(
    mdp, policy, schedule=lambda p: geometric(p, start=1.0, end=0.1), iterations=2, seed=5,
    evaluation=tl.Evaluation(engine=engine, kappa=1), callbacks=[Keep()],
    improvement=tl.Improvement(order="chromatic"),
)
state = trainer.run()
bounds = {}
for name, rung in state.certificate.items():
    numbers = [rung.rho.lower, rung.rho.upper, rung.row_norm, rung.column_norm]
    numbers += [*rung.tail[:50], *rung.epsilon[:50], *rung.delta_hat[:50]]
    bounds[name] = [float(x).hex() for x in numbers]
policies = [value.reshape(-1).double()[:500].tolist() for value in policy.state_dict().values()]
print(json.dumps([kept, bounds, [[x.hex() for x in one] for one in policies]]))
"""


def run(threads: int, engine: str, kind: str = "tabular") -> Any:
    """Metrics of every iteration, bounds of the last certificate, parameters: in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(threads), engine, kind],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kind"), [("joint", "mlp"), ("local", "tabular")])
def test_one_seed_gives_one_run_bit_for_bit_and_certificates_whatever_the_threads(
    engine: str, kind: str
) -> None:
    first, again, threaded = run(1, engine, kind), run(1, engine, kind), run(2, engine, kind)
    assert first == again
    # Sums of another order: 10⁻¹² is some thousand roundings of 2⁻⁵³.
    assert first[1].keys() == threaded[1].keys()
    for name, numbers in first[1].items():
        ours, theirs = ([float.fromhex(x) for x in one] for one in (numbers, threaded[1][name]))
        assert theirs == pytest.approx(ours, rel=1e-12, abs=0.0), name


TRAIN = (sys.executable, "-m", "torchloc", "train")
SETTINGS = ("env=sleepy", "policy=tabular", "trainer.iterations=60", "logging.progress=false")
SETTINGS = (*SETTINGS, "logging.heat_maps_every=0", "name=t")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_told_to_end_saves_and_goes_on_as_if_it_had_not_been(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Told after its first event; nothing but the signal makes it save."""
    done = subprocess.run([*TRAIN, *SETTINGS], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (whole,) = (tmp_path / "runs" / "t").iterdir()
    whole = whole.rename(tmp_path / "whole")
    with subprocess.Popen(
        [*TRAIN, *SETTINGS, "checkpoint.every=0"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not told(tmp_path / "runs" / "t"):
            time.sleep(0.01)
        process.send_signal(number)
        _, message = process.communicate(timeout=120)
    assert process.returncode == code and message.count("\n") == 1, message
    (folder,) = (tmp_path / "runs" / "t").iterdir()
    assert 0 < checkpoint.load(folder).iteration < 60
    command = [*TRAIN, f"resume={folder}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = read_run(folder), read_run(whole)
    assert ours.keys() == theirs.keys()
    for tag, (steps, values) in theirs.items():
        assert ours[tag][0].tolist() == steps.tolist(), tag
        if not tag.startswith("seconds/"):
            assert ours[tag][1].tolist() == values.tolist(), tag
    policies = [checkpoint.load(one).policy.state_dict() for one in (folder, whole)]
    assert all(torch.equal(policies[0][name], value) for name, value in policies[1].items())


def told(runs: Path) -> bool:
    """Whether a run has logged an iteration."""
    return any(path.stat().st_size > 4000 for path in runs.glob("*/events.*"))
