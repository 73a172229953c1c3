"""Small training runs of which every iteration is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import torchloc as tl
from torchloc.schedules import geometric
from torchloc.trainer import Callback, Schedule, Trainer, TrainState


class Recorder(Callback):
    """Keeps the hooks in order, the state after every iteration, and what its live policy was then.

    Attributes:
        hooks: Name of the hook and iterations done, in order.
        states: The state after every iteration.
        parameters: (…) parameters and temperature of the policy after every iteration.
        error: What `on_run_end` was told.
    """

    def __init__(self) -> None:
        self.hooks: list[tuple[str, int]] = []
        self.states: list[TrainState] = []
        self.parameters: list[dict[str, torch.Tensor]] = []
        self.error: BaseException | None = None

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Everything logged, an entry an iteration."""
        return [state.metrics for state in self.states]

    def on_run_start(self, trainer: Trainer, state: TrainState) -> None:
        self.hooks.append(("run_start", state.iteration))

    def on_iteration_start(self, trainer: Trainer, state: TrainState) -> None:
        self.hooks.append(("iteration_start", state.iteration))

    def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
        self.hooks.append(("iteration_end", state.iteration))
        self.states.append(state)
        self.parameters.append(parameters(state.policy))

    def on_run_end(self, trainer: Trainer, state: TrainState, error: BaseException | None) -> None:
        self.hooks.append(("run_end", state.iteration))
        self.error = error


def parameters(policy: tl.SoftmaxPolicy) -> dict[str, torch.Tensor]:
    """A copy of all that a policy is, its temperature included."""
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


def cooling(start: float = 1.0, end: float = 0.05) -> Schedule:
    """The geometric schedule."""
    return lambda progress: geometric(progress, start=start, end=end)


def prepare(
    mdp: tl.FactoredMDP,
    *,
    kind: str = "tabular",
    scopes: Any = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> tuple[Trainer, Recorder]:
    """A trainer with a recorder as its first callback; `kind` is tabular, linear or mlp."""
    scopes = tl.neighbourhood_scopes(mdp) if scopes is None else scopes
    hidden = {"hidden": (4,)} if kind == "mlp" else {}
    policy = getattr(tl.SoftmaxPolicy, kind)(mdp, scopes, seed=seed, **hidden)
    recorder = Recorder()
    options = {"schedule": cooling(), "iterations": 2, "seed": seed, **options}
    return Trainer(mdp, policy, callbacks=[recorder, *callbacks], **options), recorder


def train(mdp: tl.FactoredMDP, **options: Any) -> Recorder:
    """Trains to the end and gives what was recorded."""
    trainer, recorder = prepare(mdp, **options)
    trainer.run()
    return recorder


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    """All but the tags of wall-clock time."""
    return {tag: value for tag, value in metrics.items() if not tag.startswith("seconds/")}
