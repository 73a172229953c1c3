"""Which runs belong together: panels of one problem each, in them groups that are equal but for the seed.

A *problem* is what is solved: the environment, what agents see, discount, dynamics, objective. Different problems
never share a curve or an average. A *factor* is a setting of the method that differs among the runs of some
problem; a group is a value of every factor. A choice stands for the settings that follow from it
(`schedule=geometric`, not its target), and a setting that is the same throughout every problem is no factor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchloc.study.runs import Run

UNCOUNTED = ("seed", "name", "threads", "logging", "checkpoint", "hydra")
"""Settings that make no other method."""
PROBLEM = (
    "env",
    "scopes",
    "dynamics",
    "evaluation.discount",
    "evaluation.dynamics",
    "improvement.objective",
)
NOTHING = "null"
_MECHANICS = ("_partial_", "_convert_", "_recursive_")
_TARGET = "_target_"


@dataclass(frozen=True, eq=False)
class Group:
    """Whole runs that differ in nothing but the seed, one a seed.

    Attributes:
        label: The values of the factors; "all runs" where there is no factor.
        values: Factor → value.
        runs: In the order of their seeds.
    """

    label: str
    values: dict[str, str]
    runs: tuple[Run, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two groups of different panels the same method."""
        return tuple(self.values.values())


@dataclass(frozen=True, eq=False)
class Panel:
    """All groups of one problem.

    Attributes:
        label: What tells this problem from the others.
        problem: Every setting of the problem.
        fixed: Settings of the method that are the same here and differ between problems.
        groups: In order of appearance.
    """

    label: str
    problem: dict[str, str]
    fixed: dict[str, str]
    groups: tuple[Group, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs of the panel."""
        return [run for group in self.groups for run in group.runs]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs sorted.

    Attributes:
        panels: A problem each.
        factors: Factor → its values, in order of appearance.
        common: Settings of the method that all compared runs share.
        left_out: Runs that are not compared, each with the reason.
    """

    panels: tuple[Panel, ...]
    factors: dict[str, tuple[str, ...]]
    common: dict[str, str]
    left_out: tuple[tuple[Run, str], ...]

    @property
    def methods(self) -> dict[tuple[str, ...], str]:
        """Key → label of all groups, in order of appearance over the panels."""
        return {group.key: group.label for panel in self.panels for group in panel.groups}


def compare(runs: Sequence[Run], metric: str) -> Comparison:
    """Sorts runs into panels and groups.

    A run that is not whole is left out with its trouble, and so is one whose metric is not. Of runs
    with the same settings and the same seed, which would repeat one number, the latest stays.

    Args:
        runs: What `read_runs` gave.
        metric: The tag that is compared.
    """
    reasons = [run.trouble or _lack(run, metric) for run in runs]
    left_out = [(run, reason) for run, reason in zip(runs, reasons, strict=True) if reason]
    whole = [run for run, reason in zip(runs, reasons, strict=True) if not reason]
    every = [settings(run.config) for run in whole]
    problems = [{k: v for k, v in s.items() if _in(k, PROBLEM)} for s in every]
    methods = [{k: v for k, v in s.items() if not _in(k, PROBLEM)} for s in every]
    members: dict[str, list[int]] = {}
    for i, problem in enumerate(problems):
        members.setdefault(json.dumps(problem, sort_keys=True), []).append(i)

    factors = list(
        dict.fromkeys(
            key
            for inside in members.values()
            for key in differences([whole[i] for i in inside], [methods[i] for i in inside])
        )
    )
    values = [{k: _value(k, r, m) for k in factors} for r, m in zip(whole, methods, strict=True)]
    between = [key for key in differences(whole, methods) if key not in factors]
    panels = []
    for inside, label in zip(members.values(), _titles(whole, problems, members), strict=True):
        sorted_out: dict[tuple[str, ...], list[int]] = {}
        for i in inside:
            sorted_out.setdefault(tuple(values[i].values()), []).append(i)
        groups = []
        for rows in sorted_out.values():
            kept, repeated = _one_a_seed([whole[i] for i in rows])
            left_out += repeated
            groups.append(Group(_label(values[rows[0]]), values[rows[0]], tuple(kept)))
        first = inside[0]
        fixed = {key: _value(key, whole[first], methods[first]) for key in between}
        panels.append(Panel(label, problems[first], fixed, tuple(groups)))
    shared = methods[0] if methods else {}
    common = {k: v for k, v in shared.items() if all(m.get(k, NOTHING) == v for m in methods)}
    seen = {key: tuple(dict.fromkeys(v[key] for v in values)) for key in factors}
    return Comparison(tuple(panels), seen, common, tuple(left_out))


def told(run: Run, keys: Iterable[str]) -> dict[str, str]:
    """The values that a run has for some factors; empty where its settings are unknown."""
    flat = settings(run.config)
    return {key: _value(key, run, flat) for key in keys} if flat else {}


def settings(config: dict[str, Any]) -> dict[str, str]:
    """Dotted key → value as text, of all settings that count; null and missing are one.

    >>> settings({"seed": 1, "env": {"_target_": "a.b", "n": 3, "rows": None}, "beta": [0.1, True]})
    {'env._target_': 'a.b', 'env.n': '3', 'beta': '[0.1, true]'}
    """
    found: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                if key not in _MECHANICS:
                    walk(f"{prefix}.{key}" if prefix else str(key), value)
        elif node is not None:
            found[prefix] = node if isinstance(node, str) else json.dumps(node, default=str)

    walk("", {key: value for key, value in config.items() if key not in UNCOUNTED})
    return found


def differences(runs: Sequence[Run], flat: Sequence[dict[str, str]]) -> list[str]:
    """The keys that tell runs apart: choices, where they explain the settings, and single settings.

    Runs with the same value of all of them have the same settings.

    Args:
        runs: For their choices.
        flat: The settings of each to look at.
    """
    keys = list(dict.fromkeys(key for one in flat for key in one))
    nodes = [key.removesuffix(f".{_TARGET}") for key in keys if key.count(".") == 1]
    nodes = [node for node in nodes if f"{node}.{_TARGET}" in keys]
    found: list[str] = []
    for node in dict.fromkeys(nodes):
        inside = [key for key in keys if key.startswith(f"{node}.")]
        parts = [tuple(one.get(key) for key in inside) for one in flat]
        if len(set(parts)) == 1:
            continue
        names = [_value(node, run, one) for run, one in zip(runs, flat, strict=True)]
        if not all(node in run.choices for run in runs):
            names = [_short(one.get(f"{node}.{_TARGET}")) for one in flat]
        told = dict(zip(parts, names, strict=True))
        if len(set(names)) > 1 and all(
            told[p] == name for p, name in zip(parts, names, strict=True)
        ):
            found.append(node)
            classes = [[p for p in set(parts) if told[p] == name] for name in dict.fromkeys(names)]
        else:
            classes = [list(set(parts))]
        found += [
            key
            for column, key in enumerate(inside)
            if any(len({part[column] for part in members}) > 1 for members in classes)
        ]
    outside = [key for key in keys if key.split(".")[0] not in nodes]
    return found + [key for key in outside if len({one.get(key) for one in flat}) > 1]


def _lack(run: Run, metric: str) -> str:
    """Why a whole run cannot be compared by a metric."""
    if metric not in run.series:
        return f"it logged no {metric}"
    steps, values = run.series[metric]
    if steps[-1] < run.iterations:
        return f"its {metric} ends at iteration {steps[-1]:g} of {run.iterations}"
    return "" if np.isfinite(values).all() else f"its {metric} is not always finite"


def _value(key: str, run: Run, flat: dict[str, str]) -> str:
    """The value of a setting, or the choice of a node."""
    if key in flat or "." in key:
        return flat.get(key, NOTHING)
    return run.choices.get(key) or _short(flat.get(f"{key}.{_TARGET}"))


def _short(target: str | None) -> str:
    return NOTHING if target is None else target.rpartition(".")[2]


def _in(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _label(values: dict[str, str]) -> str:
    """`geometric` of one factor, `schedule=geometric, evaluation.kappa=3` of several."""
    if not values:
        return "all runs"
    if len(values) == 1:
        ((key, value),) = values.items()
        return value if not _is_number(value) else f"{key}={value}"
    return ", ".join(f"{k}={v}" for k, v in values.items() if v != NOTHING or "." not in k)


def _is_number(text: str) -> bool:
    return text == NOTHING or text[:1] in "-0123456789[" or text in ("true", "false")


def _titles(
    runs: Sequence[Run], problems: Sequence[dict[str, str]], members: dict[str, list[int]]
) -> list[str]:
    """The environment's name, and what else tells its problem from the others."""
    keys = [key for key in differences(runs, problems) if key != "env"]
    titles = []
    for first, *_ in members.values():
        run, flat = runs[first], problems[first]
        told = [(key, _value(key, run, flat)) for key in keys]
        parts = [f"{key}={value}" for key, value in told if value != NOTHING or "." not in key]
        titles.append(" ".join([_value("env", run, flat), *parts]))
    return titles


def _one_a_seed(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """The latest run of every seed, and the others with the reason."""
    latest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.started):
        latest[json.dumps(run.config.get("seed"), default=str)] = run
    kept = sorted(latest.values(), key=_seed)
    names = {json.dumps(run.config.get("seed"), default=str): run.name for run in kept}
    repeated = [
        (run, f"same settings and seed as {names[json.dumps(run.config.get('seed'), default=str)]}")
        for run in runs
        if run not in kept
    ]
    return kept, repeated


def _seed(run: Run) -> tuple[float, str]:
    seed = run.config.get("seed")
    return (seed, "") if isinstance(seed, int) else (float("inf"), str(seed))
