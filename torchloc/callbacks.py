"""What listens to a run: TensorBoard, checkpoints, the progress bar and the closing table."""

from __future__ import annotations

import math
import shlex
import sys
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from torchloc import checkpoint
from torchloc.certificate import Ladder
from torchloc.errors import FileError, InputError, SolveError
from torchloc.figures import heat_map
from torchloc.trainer import Callback, Trainer, TrainState


class TensorBoard(Callback):
    """Scalars an iteration, heat maps of H, Π and L, and the configuration as text.

    Args:
        folder: Where event files go.
        heat_maps_every: Iterations between heat maps; 0: only after the last one.
        configuration: Shown as text.

    Raises:
        InputError: `heat_maps_every` is negative.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        heat_maps_every: int = 4,
        configuration: str = "",
    ) -> None:
        if heat_maps_every < 0:
            raise InputError(f"heat_maps_every is {heat_maps_every}; it must be ≥ 0")
        self.folder = Path(folder)
        self.heat_maps_every = heat_maps_every
        self.configuration = configuration
        self._writer: SummaryWriter | None = None

    def on_run_start(self, trainer: Trainer, state: TrainState) -> None:
        # Of a run that goes on, readers drop what was logged beyond its checkpoint.
        purge = state.iteration + 1 if state.iteration else None
        self._writer = SummaryWriter(str(self.folder), purge_step=purge)
        if self.configuration and not state.iteration:
            indented = "\n".join(f"    {line}" for line in self.configuration.splitlines())
            self._writer.add_text("configuration", indented)

    def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
        writer = self._writer
        if writer is None:
            return
        for tag, value in state.metrics.items():
            writer.add_scalar(tag, value, state.iteration)
        last = state.iteration == trainer.iterations
        if last or (self.heat_maps_every and state.iteration % self.heat_maps_every == 0):
            for name, matrix in matrices(state).items():
                figure = heat_map(matrix, name)
                writer.add_figure(f"matrix/{name}", figure, state.iteration)
        # What a checkpoint stands for is on disk before it: a run that is killed lacks no step.
        writer.flush()

    def on_run_end(self, trainer: Trainer, state: TrainState, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()


def matrices(state: TrainState) -> dict[str, Any]:
    """The matrices that are drawn: influence on the sharpest and the paper's rung, Π and L."""
    if state.certificate is None:
        return {}
    ladder = Ladder(state.certificate.environment, state.policy)
    return {
        "H_coupled": state.certificate["coupled"].matrix,
        "H_paper": state.certificate["paper"].matrix,
        "Pi_exact": ladder.exact_policy,
        "L": ladder.spreads.lipschitz,
    }


class Checkpoint(Callback):
    """Saves every `every` iterations (0: never before the end) and at the end, also when interrupted.

    A `SolveError` that ended the run is told where the last whole iteration is saved.

    Args:
        folder: The run folder.
        every: Iterations between checkpoints.
        keep: How many of the newest stay.
        configuration: Stored in every checkpoint.

    Raises:
        InputError: `every` is negative, or `keep` below 1.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        every: int = 0,
        keep: int = 2,
        configuration: str = "",
    ) -> None:
        if every < 0 or keep < 1:
            raise InputError(f"every is {every} and keep {keep}; they must be ≥ 0 and ≥ 1")
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self.configuration = configuration
        self.saved: Path | None = None

    def _save(self, state: TrainState) -> None:
        try:
            path = checkpoint.save(state.snapshot, self.folder, configuration=self.configuration)
        except FileError as error:
            left = (
                f"the last one is whole: {self.saved}" if self.saved else "there is none before it"
            )
            raise FileError(f"{error}; {left}") from error
        self.saved = path
        checkpoint.prune(self.folder, self.keep)

    def on_run_start(self, trainer: Trainer, state: TrainState) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.tidy(self.folder)

    def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
        if self.every and state.iteration % self.every == 0:
            self._save(state)

    def on_run_end(self, trainer: Trainer, state: TrainState, error: BaseException | None) -> None:
        if state.snapshot.iteration or error is None:
            self._save(state)
        if isinstance(error, SolveError):
            where = f"saved in {self.saved}" if self.saved else "so there is no checkpoint"
            error.args = (f"{error}, {where}",)


class ProgressBar(Callback):
    """A progress bar with r̄, τ and ρ, and a closing table.

    Args:
        enabled: Draw the bar; the closing table comes anyway.
        folder: Named in the command that opens TensorBoard; None: not printed.
    """

    def __init__(self, *, enabled: bool = True, folder: str | PathLike[str] | None = None) -> None:
        self.enabled = enabled
        self.folder = folder
        self._console = Console(file=sys.stdout)
        self._bar: Progress | None = None

    def on_run_start(self, trainer: Trainer, state: TrainState) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self.enabled,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "training", total=trainer.iterations, completed=state.iteration, numbers=""
        )

    def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
        if self._bar is None:
            return
        m = state.metrics
        numbers = (
            f"r̄ {m['reward/average']:.5g}   τ {m['schedule/temperature']:.3g}   "
            f"ρ paper {m['rho/paper']:.3f}, coupled {m['rho/coupled']:.3f}"
        )
        self._bar.update(self._task, completed=state.iteration, numbers=numbers)

    def on_run_end(self, trainer: Trainer, state: TrainState, error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if state.certificate is not None:
            for table in closing_tables(trainer, state):
                self._console.print(table)
        if self.folder is not None:
            # `out` takes no brackets or colons of a folder's name for markup, and wraps no line.
            command = f"tensorboard --logdir {shlex.quote(str(self.folder))}"
            self._console.out(command, highlight=False)


def closing_tables(trainer: Trainer, state: TrainState) -> list[Table]:
    """What a run ends with: the reward beside the optima, and every rung."""
    m, n = state.metrics, trainer.mdp.n_agents
    discounted = state.values.discount < 1.0
    reward = Table(title=f"After {state.iteration} iterations", title_justify="left")
    for heading in ("", "system", "per agent"):
        reward.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, value: float) -> None:
        reward.add_row(name, *(f"{round(x, 6) + 0.0:.6f}" for x in (value, value / n)))

    row("reward r̄" if not discounted else "reward rate (occupancy)", m["reward/average"])
    if "reward/half_width" in m:
        row("± (95 % interval)", m["reward/half_width"])
    row("objective J", m["reward/objective"])
    if state.optimum is not None:
        row("optimum, all joint policies", state.optimum.gain)
        row("gap to it", m["gap/joint_optimum"])
    if state.local_optimum is not None:
        row("best deterministic on these scopes", state.local_optimum.gain)
        row("gap to it", m["gap/deterministic_local"])
    if state.missing:
        reward.caption = "\n".join(state.missing)
    ladder = Table(title="Certificate", title_justify="left")
    for heading in ("rung", "ρ ≤", "row norm", "column norm", "tail", "ε", "certified"):
        ladder.add_column(heading, justify="left" if heading == "rung" else "right")
    certificate = state.certificate
    if certificate is None:
        return [reward]
    for name, rung in certificate.items():
        ladder.add_row(
            name,
            f"{rung.rho.upper:.6f}",
            f"{rung.row_norm:.4f}",
            f"{rung.column_norm:.4f}",
            _short(rung.tail),
            _short(rung.epsilon),
            "yes" if rung.certified else "no",
        )
    bounded = int(certificate.bounded.sum())
    source = "" if not bounded else f"; Π of {bounded} agents from bounds of their networks"
    ladder.caption = (
        f"κ = {certificate.kappa}; floor ρ(E^s) = {certificate.floor.upper:.4f}; "
        f"tail and ε are the largest component{source}"
    )
    return [reward, ladder]


def _short(values: np.ndarray) -> str:
    value = float(values.max(initial=0.0))
    return "∞" if math.isinf(value) else f"{value:.3g}"
