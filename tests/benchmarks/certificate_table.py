"""Prints the README's table: environment × {uniform, trained, greedy} × rung → ρ.

Run by hand: `python tests/benchmarks/certificate_table.py`. Trained: 16 cyclic sweeps, entropy objective, κ = 3, τ from
1 to .02, on the scopes named. Greedy: the trained logits at τ = 1e-6. The last line counts what each test certifies.
"""

from __future__ import annotations

from functools import partial

import torch

import torchloc as tl
from torchloc import environments as envs
from torchloc.certificate import RungCertificate
from torchloc.schedules import geometric
from torchloc.sensitivity import action_sup
from torchloc.spectral import norm_rows

MODELS = {
    "sleepy": envs.sleepy(),
    "hub_spoke n=6, noise .1": envs.hub_spoke(6, noise=0.1),
    "line_msg n=8": envs.line_msg(8),
    "sysadmin jair ring n=8": envs.sysadmin(8),
    "sysadmin ippc ring n=8": envs.sysadmin(8, table="ippc"),
    "sysadmin ippc star n=6": envs.sysadmin(6, topology="star", table="ippc"),
    "sis ring n=8": envs.sis(8),
    "sis ring n=8, β .4/.1": envs.sis(8, infection=(0.4, 0.1), recovery=(0.2, 0.5)),
    "ising ring n=8, β=.2": envs.ising(8, beta=0.2),
    "ising ring n=8, β=.6": envs.ising(8, beta=0.6),
    "ising torus 3×3, β=.2": envs.ising(9, lattice="torus", rows=3, beta=0.2),
    "ising torus 3×3, β=.4": envs.ising(9, lattice="torus", rows=3, beta=0.4),
    "random ring n=6": envs.random_mdp(6),
}
RUNGS = ("paper", "exact", "coupled", "coupled_2")


def row(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy) -> list[RungCertificate]:
    """The rungs of the table for one policy."""
    certificate = tl.certify(mdp, policy, rungs=("coupled", "exact", "paper"), steps=2)
    return [certificate[name] for name in RUNGS]


def main() -> None:
    """Prints the table in Markdown; a cell is uniform / trained / greedy, bold where certified."""
    torch.set_num_threads(1)
    print("| environment | prior work | paper | exact | coupled | coupled, 2 steps |")
    print("|---|---|---|---|---|---|")
    counts = dict.fromkeys(("prior work", *RUNGS), 0)
    total = 0
    for name, mdp in MODELS.items():
        prior = norm_rows(action_sup(mdp))
        scopes = tl.parent_scopes(mdp) if name.startswith("line") else tl.neighbourhood_scopes(mdp)
        policy = tl.SoftmaxPolicy.tabular(mdp, scopes)
        cells: dict[str, list[str]] = {rung: [] for rung in RUNGS}
        for kind in ("uniform", "trained", "greedy"):
            if kind == "trained":
                cool = partial(geometric, start=1.0, end=0.02)
                tl.Trainer(mdp, policy, schedule=cool).run()
            if kind == "greedy":
                policy.set_temperature(1e-6)
            total += 1
            counts["prior work"] += prior < 1.0
            for rung in row(mdp, policy):
                shown = f"{rung.rate:.3f}"
                cells[rung.rung].append(f"**{shown}**" if rung.certified else shown)
                counts[rung.rung] += rung.certified
        bold = f"**{prior:.3f}**" if prior < 1.0 else f"{prior:.3f}"
        columns = [" / ".join(cells[rung]) for rung in RUNGS]
        print(f"| {' | '.join([name, bold, *columns])} |", flush=True)
    certified = " | ".join(f"{count} of {total}" for count in counts.values())
    print(f"| *certified* | {certified} |")


if __name__ == "__main__":
    main()
