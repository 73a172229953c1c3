"""What `torchloc-certify` tells: the same numbers as JSON types and as tables on the terminal."""

from __future__ import annotations

import io
import math
import sys
from typing import TYPE_CHECKING, Any

from torchloc.cli.outcome import printable

if TYPE_CHECKING:
    from rich.table import Table

    from torchloc.certificate import Certificate, RungCertificate
    from torchloc.certificate.diagnosis import Diagnosis, Temperatures
    from torchloc.mdp import FactoredMDP
    from torchloc.policy import SoftmaxPolicy


def as_dict(
    mdp: FactoredMDP,
    certificate: Certificate,
    asked: RungCertificate,
    epsilon: float | None,
    diagnosis: Diagnosis | None,
    temperatures: list[Temperatures],
) -> dict[str, Any]:
    """The whole report as JSON types: an infinite number is the string "inf", an unknown one null.

    Of an estimate, `mdp` gives the sizes and the names alone, and every bracket of ρ is that of a matrix of
    upper bounds, so only its upper end speaks of the system that was sampled.
    """
    report: dict[str, Any] = {
        "model": {"coordinates": mdp.n_coordinates, "agents": mdp.n_agents},
        "rung": asked.rung,
        "certified": asked.certified,
        "kappa": certificate.kappa,
        "discount": certificate.discount,
        "dynamics": certificate.dynamics,
        "objective": certificate.objective,
        "weakest_entry": certificate.weakest,
        "delta": certificate.delta,
        "floor": _pair(certificate.floor),
        "bounded_agents": certificate.bounded.nonzero()[0].tolist(),
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
                **_rewarded(rung, certificate.kappa, epsilon),
            }
            for name, rung in certificate.items()
        },
    }
    if _has_prior(mdp, certificate):
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


def _rewarded(
    rung: RungCertificate, kappa: int, epsilon: float | None
) -> dict[str, float | str | None]:
    """The numbers that need the reward; None where it is not known."""
    if rung.oscillation is None:
        names = ("delta_hat", "tail", "poisson", "bias", "epsilon", "paper_tail")
        return dict.fromkeys([*names, *([] if epsilon is None else ["kappa_for"])])
    return {
        "delta_hat": _number(rung.delta_hat.max(initial=0.0)),
        "tail": _number(rung.tail.max(initial=0.0)),
        "poisson": _number(rung.poisson.max(initial=0.0)),
        "bias": _number(rung.bias),
        "epsilon": _number(rung.epsilon.max(initial=0.0)),
        "paper_tail": _number(rung.uniform_tail_at(kappa)),
        **({} if epsilon is None else {"kappa_for": _number(rung.kappa_for(epsilon))}),
    }


def _has_prior(mdp: FactoredMDP, certificate: Certificate) -> bool:
    """Whether the norm test of prior work applies: an agent a coordinate, and kernels that are known."""
    return mdp.n_coordinates == mdp.n_agents and certificate.environment.model is mdp


def _prior(mdp: FactoredMDP) -> tuple[float, Any]:
    from torchloc.sensitivity import action_sup
    from torchloc.spectral import norm_rows, spectral_radius

    matrix = action_sup(mdp)
    return norm_rows(matrix), spectral_radius(matrix)


def _pair(bound: Any) -> list[float | str]:
    return [_number(bound.lower), _number(bound.upper)]


def _number(value: float) -> float | str:
    if math.isinf(value):
        return "inf"
    return value if isinstance(value, int) else float(value)


def show(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    certificate: Certificate,
    asked: RungCertificate,
    epsilon: float | None,
    diagnosis: Diagnosis | None,
    temperatures: list[Temperatures],
) -> None:
    """Prints the ladder, the verdict and the reasons."""
    from rich.console import Console

    # A terminal without Greek letters shows question marks, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    console.print(
        f"{mdp.n_coordinates} coordinates, {mdp.n_agents} agents, {certificate.dynamics}, "
        f"discount {certificate.discount:g}, κ = {certificate.kappa}"
    )
    console.print(_ladder(mdp, certificate, epsilon))
    console.print(_source(certificate), highlight=False, soft_wrap=True)
    for line in _standing(mdp, certificate):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    bound = asked.contraction
    verdict = "certified" if asked.certified else "not certified"
    if not asked.certified and bound.lower < 1.0:
        verdict = f"undecided ({bound.note or 'the bracket holds 1'})"
    bracket = f"{bound.lower:.9g} ≤ ρ ≤ {bound.upper:.9g}"
    if certificate.environment.model is not mdp:
        # The lower end is one of bounds, not of the system that was sampled.
        bracket = f"ρ ≤ {bound.upper:.9g}"
        if certificate.delta:
            bracket += f" with probability ≥ {1.0 - certificate.delta:.12g}"
    console.print(
        f"[bold]{verdict}[/bold] by {asked.rung}: {bracket}", highlight=False, soft_wrap=True
    )
    others = [name for name, rung in certificate.items() if rung.certified]
    if others and not asked.certified:
        best = min(others, key=lambda name: certificate[name].rate)
        console.print(
            f"certified by {', '.join(others)}; sharpest {best}, {certificate[best].rate:.6g} per step",
            highlight=False,
            soft_wrap=True,
        )
    for line in _reasons(mdp, policy, certificate, diagnosis, temperatures):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


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
        known = _rewarded(rung, certificate.kappa, epsilon)
        cells += [_cell(known[key]) for key in ("tail", "epsilon", "paper_tail")]
        if epsilon is not None:
            cells.append(_cell(known["kappa_for"]))
        table.add_row(*cells, style=None if rung.certified else "dim")
    if _has_prior(mdp, certificate):
        norm, rho = _prior(mdp)
        blanks = [""] * (len(headings) - 4)
        table.add_row("action_sup", f"{rho.upper:.6f}", f"{rho.upper:.6f}", f"{norm:.4f}", *blanks)
    return table


def _cell(number: float | str | None) -> str:
    """How a number of the JSON report stands in the table."""
    if isinstance(number, int):
        return str(number)
    return "–" if number is None else "∞" if number == "inf" else f"{number:.3g}"


def _standing(mdp: FactoredMDP, certificate: Certificate) -> list[str]:
    """What a certificate on samples rests on; nothing of a model."""
    estimate = certificate.environment.model
    if estimate is mdp:
        return []
    # Late: no other report needs it.
    from torchloc.estimation import SensitivityEstimate

    if not isinstance(estimate, SensitivityEstimate):
        return [f"rests on {certificate.standing}"]
    about = f" ({estimate.description})" if estimate.description else ""
    unseen = f"; entries that need one of the {estimate.unvisited:,} unseen are 1"
    lines = [
        f"E^s and E^a bounded from {estimate.samples:,} sampled next values{about} in {estimate.visited:,} of "
        f"{estimate.contexts.n_contexts:,} contexts{unseen if estimate.unvisited else ''}",
        f"rests on {certificate.standing}",
    ]
    if certificate.environment.rewards is None and certificate.environment.reward_bound is None:
        lines.append(
            "–: unknown without the reward; give it by `with_rewards` or `with_reward_bound` before the estimate "
            "is saved"
        )
    return lines


def _source(certificate: Certificate) -> str:
    """Where the entries of Π come from."""
    bounded = certificate.bounded.nonzero()[0]
    if not len(bounded):
        return "Π from all local observations, enumerated"
    named = ", ".join(map(str, bounded[:6])) + (", …" if len(bounded) > 6 else "")
    return (
        f"Π of {len(bounded)} of {len(certificate.bounded)} agents ({named}) from certified bounds of their "
        f"networks, whose local observations are too many to enumerate"
    )


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
    lowest, highest = (_contraction(mdp, certificate, end) for end in (floor.lower, floor.upper))
    moved = "" if highest == floor.upper else f", a contraction of {highest:.6g}"
    more = "; with more samples one may" if certificate.delta else ""
    lines = [
        f"floor ρ(E^s) ≤ {floor.upper:.6g}{moved}: "
        + (
            f"≥ 1, so no temperature certifies exact, span, tanh, paper or scope{more}"
            if lowest >= 1.0
            else "below 1, so hot enough policies are certified by every rung but scope"
            if highest < 1.0
            else "undecided"
        )
    ]
    size = len(diagnosis.component)
    named = ", ".join(mdp.coordinate_name(int(i)) for i in diagnosis.component[:8])
    lines.append(
        f"critical component: {size} of {mdp.n_coordinates} coordinates "
        f"({named}{', …' if size > 8 else ''})"
    )
    edges = list(diagnosis.cycle)
    if edges:
        walk = " → ".join(mdp.coordinate_name(edge.cause) for edge in edges[:12])
        more = " → …" if len(edges) > 12 else ""
        weights = ", ".join(f"{edge.weight:.3g}" for edge in edges[:12])
        lines.append(
            f"heaviest cycle: {walk}{more} → {mdp.coordinate_name(edges[0].cause)}, "
            f"weights {weights}, geometric mean {diagnosis.cycle_rate:.4g}"
        )
    for lever in diagnosis.levers:
        lines.append(
            f"agent {mdp.agent_name(lever.agent)} looking at coordinate "
            f"{mdp.coordinate_name(lever.coordinate)}: Π = {lever.sensitivity:.4g}, "
            f"∂ρ/∂Π ≈ {lever.slope:.4g}; ignoring it lowers ρ by about {lever.share:.3g}"
        )
    lines += [_temperatures(policy, lowest >= 1.0, found) for found in temperatures]
    return lines


def _contraction(mdp: FactoredMDP, certificate: Certificate, rho: float) -> float:
    """ρ(M) of an H with this ρ: γρ, and γ((1 − 1/N) + ρ/N) for the uniform site law."""
    if certificate.dynamics == "asynchronous":
        rho = 1.0 - 1.0 / mdp.n_coordinates + rho / mdp.n_coordinates
    return certificate.discount * rho


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
