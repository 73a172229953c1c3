"""RDDL problems for tests: written from blocks, simulated by the library, and read off the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import torchloc as tl
from torchloc.interop.rddl.problem import parsed
from torchloc.mdp import CountBatch, KernelBatch


def write(
    folder: Path,
    pvariables: str,
    cpfs: str,
    reward: str,
    *,
    types: str = "",
    objects: str = "",
    constants: str = "",
    initial: str = "",
    instance: str = "",
    domain: str = "",
) -> tuple[Path, Path]:
    """The files of a domain and an instance."""

    def block(name: str, text: str) -> str:
        return f"{name} {{ {text} }};" if text else ""

    first, second = folder / "domain.rddl", folder / "instance.rddl"
    first.write_text(
        f"domain small {{\n{block('types', types)}\n{block('pvariables', pvariables)}\n"
        f"{block('cpfs', cpfs)}\nreward = {reward};\n{domain}\n}}\n",
        encoding="utf-8",
    )
    second.write_text(
        f"non-fluents nf {{\ndomain = small;\n{block('objects', objects)}\n"
        f"{block('non-fluents', constants)}\n}}\n"
        f"instance one {{\ndomain = small;\nnon-fluents = nf;\n{block('init-state', initial)}\n"
        f"{instance}\nhorizon = 12;\ndiscount = 0.9;\n}}\n",
        encoding="utf-8",
    )
    return first, second


class Simulated:
    """The library's simulator, one step at a time from any state."""

    def __init__(self, domain: Path, instance: Path, seed: int) -> None:
        from pyRDDLGym.core.compiler.model import RDDLLiftedModel
        from pyRDDLGym.core.parser.reader import RDDLReader
        from pyRDDLGym.core.simulator import RDDLSimulator

        self.model = RDDLLiftedModel(parsed(RDDLReader(str(domain), str(instance)).rddltxt))
        rng = np.random.default_rng(seed)
        self.simulator = RDDLSimulator(
            self.model, rng=rng, keep_tensors=True, objects_as_strings=False
        )

    def step(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float]:
        """Next values and reward, fluents in the order of declaration."""
        subs = self.simulator.init_values
        given = self._filled(self.model.state_fluents, state, subs)
        self.simulator.subs.update(given)
        actions = self._filled(self.model.action_fluents, action, subs)
        after, reward, _ = self.simulator.step(actions)
        return np.concatenate([np.ravel(after[name]) for name in self.model.state_fluents]), reward

    def _filled(self, names: Any, flat: np.ndarray, like: Any) -> dict[str, Any]:
        found, start = {}, 0
        for name in names:
            size = np.size(like[name])
            part = np.asarray(flat[start : start + size], dtype=np.asarray(like[name]).dtype)
            found[name] = part.reshape(np.shape(like[name])) if np.shape(like[name]) else part[0]
            start += size
        return found


def kernel_tables(mdp: tl.FactoredMDP) -> Iterator[KernelBatch]:
    """The model's kernels as tables, those that count written out."""
    for batch in mdp.kernels:
        if isinstance(batch, CountBatch):
            yield from batch.tables()
        else:
            yield batch


def laws(mdp: tl.FactoredMDP, state: np.ndarray, action: np.ndarray) -> list[np.ndarray]:
    """The law of each coordinate's next value."""
    found: dict[int, np.ndarray] = {}
    for batch in kernel_tables(mdp):
        for row, j in enumerate(batch.coordinates.tolist()):
            table = batch.table[row % len(batch.table)]
            found[j] = table[(*state[batch.states[row]], *action[batch.actions[row]])]
    return [found[j] for j in range(mdp.n_coordinates)]


def reward(mdp: tl.FactoredMDP, state: np.ndarray, action: np.ndarray) -> float:
    """The reward at a state and an action."""
    total = 0.0
    for batch in mdp.rewards:
        for row in range(len(batch)):
            table = batch.table[row % len(batch.table)]
            total += table[(*state[batch.states[row]], *action[batch.actions[row]])]
    return float(total)


def parents(mdp: tl.FactoredMDP) -> dict[int, tuple[set[int], set[int]]]:
    """State and action parents of each coordinate."""
    return {
        j: (set(batch.states[row].tolist()), set(batch.actions[row].tolist()))
        for batch in kernel_tables(mdp)
        for row, j in enumerate(batch.coordinates.tolist())
    }


def draw(mdp: tl.FactoredMDP, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A state and an action, uniformly."""
    return rng.integers(mdp.state_sizes), rng.integers(mdp.action_sizes)
