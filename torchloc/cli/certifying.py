"""`torchloc-certify`: how local a policy makes a model, with the reason.

The model is composed as `torchloc-train` composes it (`env=sysadmin env.n=6`), or read from a file that
`FactoredMDP.save` wrote. Exit codes: 0 certified by the asked rung, 3 not certified or undecided, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchloc import config
from torchloc.cli.building import build
from torchloc.cli.outcome import refuse
from torchloc.config.ranges import closest
from torchloc.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from torchloc.certificate import Certificate, RungCertificate
    from torchloc.certificate.diagnosis import Diagnosis, Temperatures
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP
    from torchloc.policy import SoftmaxPolicy


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="torchloc-certify",
        description="Certifies how local a policy makes a model, and says why where it does not.",
        epilog="Exit codes: 0 certified by the asked rung, 3 not certified or undecided, 2 bad input.",
    )
    add = result.add_argument
    add(
        "overrides",
        nargs="*",
        help="settings as of torchloc-train: env=sysadmin env.n=6 scopes.hops=1",
    )
    add("--model", metavar="FILE", help="a model saved by FactoredMDP.save, in place of env=…")
    add(
        "--policy",
        metavar="FILE",
        default="uniform",
        help="uniform (default), a policy or checkpoint (.safetensors), a run folder, or a .npz of tables "
        "(scope_0, probabilities_0 or logits_0, … and optionally temperature)",
    )
    add(
        "--rung",
        default="coupled",
        help="the rung that decides: coupled, coupled_2, …, exact … scope",
    )
    add("--steps", type=int, default=1, metavar="M", help="add the rungs coupled_2 … coupled_M")
    add("--kappa", type=int, default=3, help="truncation radius of tail and ε")
    add("--epsilon", type=float, metavar="E", help="print the κ that brings every ε_k to E")
    add("--discount", type=float, default=1.0, help="γ in (0, 1]; 1 is the average reward")
    add("--dynamics", default="synchronous", help="synchronous or asynchronous (uniform site law)")
    add("--objective", default="reward", help="reward or entropy")
    add("--temperature", type=float, metavar="T", help="certify at this temperature, logits held")
    add("--no-reasons", action="store_true", help="leave the diagnosis out")
    add("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    add("--heat-maps", metavar="FOLDER", help="draw the influence matrices as PNG files")
    add("--config-dir", metavar="DIR", help="one more folder of YAML files to choose from")
    return result


def run(arguments: Sequence[str] | None = None) -> bool:
    """Certifies and reports.

    Returns:
        Whether the asked rung certifies (the upper bound of ρ is below 1).

    Raises:
        InputError: Something is not as it must be.
    """
    args = _parse(arguments)
    mdp, scopes = _model(args)
    policy = _policy(args, mdp, scopes)

    # Late, because it imports torch.
    from torchloc.certificate import certify
    from torchloc.certificate.diagnosis import certifying_temperatures, diagnose

    if args.temperature is not None:
        policy.set_temperature(args.temperature)
    certificate = certify(
        mdp,
        policy,
        args.kappa,
        args.discount,
        args.dynamics,
        objective=args.objective,
        steps=args.steps,
    )
    if args.rung not in certificate:
        raise InputError(
            f"--rung {args.rung} is none of {', '.join(certificate)}"
            f"{closest(args.rung, list(certificate))}"
        )
    asked = certificate[args.rung]
    diagnosis, temperatures = None, []
    if not args.no_reasons:
        diagnosis = diagnose(certificate, policy, args.rung)
        if args.dynamics == "synchronous":
            temperatures = certifying_temperatures(certificate.environment, policy)
    report = as_dict(mdp, certificate, asked, args.epsilon, diagnosis, temperatures)
    if args.json == "-":
        print(json.dumps(report, indent=2))
    else:
        _show(mdp, policy, certificate, asked, args.epsilon, diagnosis, temperatures)
    if args.json not in (None, "-"):
        _writable(Path(args.json)).write_text(json.dumps(report, indent=2) + "\n")
    if args.heat_maps is not None:
        _draw(certificate, policy, Path(args.heat_maps))
    return asked.certified


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    found = parser()

    found.error = refuse  # type: ignore[method-assign]
    args = found.parse_intermixed_args(arguments)
    for flag, words in (
        ("dynamics", ("synchronous", "asynchronous")),
        ("objective", ("reward", "entropy")),
    ):
        value = getattr(args, flag)
        if value not in words:
            raise InputError(
                f"--{flag} {value} is none of {', '.join(words)}{closest(value, words)}"
            )
    if args.epsilon is not None and not args.epsilon > 0:
        raise InputError(f"--epsilon is {args.epsilon}; it must be > 0")
    return args


def _model(args: argparse.Namespace) -> tuple[FactoredMDP, Scopes]:
    cfg = config.compose(args.overrides, config_dir=args.config_dir)
    if args.model is None:
        mdp = build(cfg.env)
    else:
        from torchloc.mdp import FactoredMDP

        if any(override.startswith("env") for override in args.overrides):
            raise InputError("--model and env=… both name a model; give one of them")
        mdp = FactoredMDP.load(args.model)
    return mdp, build(cfg.scopes)(mdp)


def _policy(args: argparse.Namespace, mdp: FactoredMDP, scopes: Scopes) -> SoftmaxPolicy:
    from torchloc import checkpoint
    from torchloc.policy import SoftmaxPolicy

    if args.policy == "uniform":
        return SoftmaxPolicy.tabular(mdp, scopes)
    path = Path(args.policy)
    if not path.exists():
        raise InputError(f"--policy {args.policy}: there is no such file or folder")
    if path.is_dir():
        policy = checkpoint.load(path).policy
    elif path.suffix == ".npz":
        return SoftmaxPolicy.from_tables(mdp, path)
    else:
        policy = SoftmaxPolicy.load(path)
    policy.check(mdp)
    return policy


def as_dict(
    mdp: FactoredMDP,
    certificate: Certificate,
    asked: RungCertificate,
    epsilon: float | None,
    diagnosis: Diagnosis | None,
    temperatures: list[Temperatures],
) -> dict[str, Any]:
    """The whole report as JSON types; an infinite number is the string "inf"."""
    report: dict[str, Any] = {
        "model": {"coordinates": mdp.n_coordinates, "agents": mdp.n_agents},
        "rung": asked.rung,
        "certified": asked.certified,
        "kappa": certificate.kappa,
        "discount": certificate.discount,
        "dynamics": certificate.dynamics,
        "objective": certificate.objective,
        "floor": _pair(certificate.floor),
        "rungs": {
            name: {
                "steps": rung.steps,
                "rho": _pair(rung.rho),
                "contraction": _pair(rung.contraction),
                "rate_per_step": _number(rung.rate),
                "certified": rung.certified,
                "converged": rung.contraction.converged,
                "row_norm": _number(rung.row_norm),
                "column_norm": _number(rung.column_norm),
                "delta_hat": _number(rung.delta_hat.max(initial=0.0)),
                "tail": _number(rung.tail.max(initial=0.0)),
                "poisson": _number(rung.poisson.max(initial=0.0)),
                "bias": _number(rung.bias),
                "epsilon": _number(rung.epsilon.max(initial=0.0)),
                "paper_tail": _number(rung.uniform_tail_at(certificate.kappa)),
                **({} if epsilon is None else {"kappa_for": _number(rung.kappa_for(epsilon))}),
            }
            for name, rung in certificate.items()
        },
    }
    if mdp.n_coordinates == mdp.n_agents:
        prior = _prior(mdp)
        report["action_sup"] = {"row_norm": _number(prior[0]), "rho": _pair(prior[1])}
    if diagnosis is not None:
        report["diagnosis"] = {
            "component": [mdp.coordinate_name(int(i)) for i in diagnosis.component[:1000]],
            "component_size": len(diagnosis.component),
            "cycle": [
                {
                    "cause": mdp.coordinate_name(edge.cause),
                    "influenced": mdp.coordinate_name(edge.influenced),
                    "weight": edge.weight,
                }
                for edge in diagnosis.cycle
            ],
            "cycle_rate": diagnosis.cycle_rate,
            "levers": [
                {
                    "agent": mdp.agent_name(lever.agent),
                    "coordinate": mdp.coordinate_name(lever.coordinate),
                    "sensitivity": lever.sensitivity,
                    "slope": lever.slope,
                }
                for lever in diagnosis.levers
            ],
        }
    if temperatures:
        report["temperatures"] = [
            {"rung": t.rung, "multiples": list(t.multiples), "threshold": t.threshold}
            for t in temperatures
        ]
    return report


def _prior(mdp: FactoredMDP) -> tuple[float, Any]:
    from torchloc.sensitivity import action_sup
    from torchloc.spectral import norm_rows, spectral_radius

    matrix = action_sup(mdp)
    return norm_rows(matrix), spectral_radius(matrix)


def _pair(bound: Any) -> list[float]:
    return [float(bound.lower), float(bound.upper)]


def _number(value: float) -> float | str:
    return "inf" if math.isinf(value) else float(value)


def _show(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    certificate: Certificate,
    asked: RungCertificate,
    epsilon: float | None,
    diagnosis: Diagnosis | None,
    temperatures: list[Temperatures],
) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    console.print(
        f"{mdp.n_coordinates} coordinates, {mdp.n_agents} agents, {certificate.dynamics}, "
        f"discount {certificate.discount:g}, κ = {certificate.kappa}"
    )
    console.print(_ladder(mdp, certificate, epsilon))
    bound = asked.contraction
    verdict = "certified" if asked.certified else "not certified"
    if not asked.certified and bound.lower < 1.0:
        verdict = f"undecided ({bound.note or 'the bracket holds 1'})"
    console.print(
        f"[bold]{verdict}[/bold] by {asked.rung}: {bound.lower:.9g} ≤ ρ ≤ {bound.upper:.9g}",
        highlight=False,
    )
    for line in _reasons(mdp, policy, certificate, diagnosis, temperatures):
        console.print(line, highlight=False, soft_wrap=True)


def _ladder(mdp: FactoredMDP, certificate: Certificate, epsilon: float | None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ["rung", "ρ ≤", "per step", "row norm", "col. norm", "tail", "ε", "paper's tail"]
    if epsilon is not None:
        headings.append(f"κ(ε={epsilon:g})")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "rung" else "right", no_wrap=True)
    for name, rung in certificate.items():
        cells = [name, f"{rung.rho.upper:.6f}", f"{rung.rate:.6f}"]
        cells += [f"{rung.row_norm:.4f}", f"{rung.column_norm:.4f}"]
        numbers = [rung.tail.max(initial=0.0), rung.epsilon.max(initial=0.0)]
        numbers.append(rung.uniform_tail_at(certificate.kappa))
        cells += ["∞" if math.isinf(x) else f"{x:.3g}" for x in numbers]
        if epsilon is not None:
            kappa = rung.kappa_for(epsilon)
            cells.append("∞" if math.isinf(kappa) else str(kappa))
        table.add_row(*cells, style=None if rung.certified else "dim")
    if mdp.n_coordinates == mdp.n_agents:
        norm, rho = _prior(mdp)
        blanks = [""] * (len(headings) - 4)
        table.add_row("action_sup", f"{rho.upper:.6f}", f"{rho.upper:.6f}", f"{norm:.4f}", *blanks)
    return table


def _reasons(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    certificate: Certificate,
    diagnosis: Diagnosis | None,
    temperatures: list[Temperatures],
) -> list[str]:
    if diagnosis is None:
        return []
    floor = certificate.floor
    lines = [
        f"floor ρ(E^s) ≤ {floor.upper:.6g}: "
        + (
            "≥ 1, so no temperature certifies exact, span, tanh, paper or scope"
            if floor.lower >= 1.0
            else "below 1, so hot enough policies are certified by every rung"
            if floor.upper < 1.0
            else "undecided"
        )
    ]
    size = len(diagnosis.component)
    named = ", ".join(mdp.coordinate_name(int(i)) for i in diagnosis.component[:8])
    lines.append(
        f"critical component: {size} of {mdp.n_coordinates} coordinates "
        f"({named}{', …' if size > 8 else ''})"
    )
    if diagnosis.cycle:
        walk = " → ".join(mdp.coordinate_name(edge.cause) for edge in diagnosis.cycle[:12])
        more = " → …" if len(diagnosis.cycle) > 12 else ""
        weights = ", ".join(f"{edge.weight:.3g}" for edge in diagnosis.cycle[:12])
        lines.append(
            f"heaviest cycle: {walk}{more} → {mdp.coordinate_name(diagnosis.cycle[0].cause)}, "
            f"weights {weights}, geometric mean {diagnosis.cycle_rate:.4g}"
        )
    for lever in diagnosis.levers:
        lines.append(
            f"agent {mdp.agent_name(lever.agent)} looking at coordinate "
            f"{mdp.coordinate_name(lever.coordinate)}: Π = {lever.sensitivity:.4g}, "
            f"∂ρ/∂Π ≈ {lever.slope:.4g}; ignoring it lowers ρ by about {lever.share:.3g}"
        )
    lines += [_temperatures(policy, floor.lower >= 1.0, found) for found in temperatures]
    return lines


def _temperatures(policy: SoftmaxPolicy, hopeless: bool, found: Temperatures) -> str:
    """Which temperatures certify a rung, in one line."""
    from torchloc.certificate.diagnosis import GRID

    tau = policy.temperature
    same = bool((tau == tau[0]).all()) if len(tau) else True
    unit, what = (float(tau[0]), "τ") if same and len(tau) else (1.0, "multiples of τ_k")
    if found.threshold is not None:
        where = f"at {what} ≥ {unit * found.threshold:.4g}"
    elif len(found.multiples) == len(GRID):
        where = f"at every {what} checked, {len(GRID)} from {unit * GRID[0]:.3g} to {unit * GRID[-1]:.3g}"
    elif found.multiples:
        listed = ", ".join(f"{unit * multiple:.3g}" for multiple in found.multiples)
        where = f"at {what} = {listed} of {len(GRID)} checked"
    elif hopeless and found.rung != "coupled":
        where = "at no temperature"
    else:
        where = (
            f"at no {what} checked, {len(GRID)} from {unit * GRID[0]:.3g} to {unit * GRID[-1]:.3g}"
        )
    return f"{found.rung} certifies {where} (logits held)"


def _writable(path: Path) -> Path:
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: there is no folder {path.parent}")
    return path


def _draw(certificate: Certificate, policy: SoftmaxPolicy, folder: Path) -> None:
    from torchloc.figures import heat_map
    from torchloc.lipschitz import logit_lipschitz
    from torchloc.sensitivity import policy_sensitivity

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {f"H_{name}": rung.matrix for name, rung in certificate.items()}
    pictures["Pi_exact"] = policy_sensitivity(policy, "exact")
    pictures["L"] = logit_lipschitz(policy)
    for name, matrix in pictures.items():
        heat_map(matrix, name).savefig(folder / f"{name}.png", dpi=130)
