"""Hooks in order whatever happens, event files read back, checkpoints, closing tables."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread
from recorded import Recorder, prepare, train
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchloc as tl
from torchloc import callbacks, checkpoint
from torchloc import environments as env
from torchloc import trainer as room
from torchloc.callbacks import Checkpoint, ProgressBar, TensorBoard, closing_tables
from torchloc.engine import exact
from torchloc.figures import heat_map
from torchloc.improvement import Improvement
from torchloc.sensitivity import RUNGS
from torchloc.trainer import Callback, Evaluation, Trainer, TrainState

PAIR = env.sysadmin(2, topology="line", table="ippc")
JACOBI = Improvement(order="jacobi")


class Raiser(Callback):
    """Raises in one hook, the second time that it is called, or the first in the run's own hooks."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self.calls = 0

        def broken(trainer: Trainer, state: TrainState, *_: Any) -> None:
            self.calls += 1
            if self.calls == (2 if "iteration" in hook else 1):
                raise error

        setattr(self, hook, broken)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    return accumulator.Reload()


def kept(folder: Path) -> list[int]:
    """Iterations of the checkpoints in a folder."""
    return [checkpoint.load(path).iteration for path in checkpoint.saved(folder)]


# Hooks ----------------------------------------------------------------------------------------


def test_hooks_come_in_order_and_callbacks_in_theirs() -> None:
    heard: list[tuple[str, str]] = []

    class Listener(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_run_start(self, trainer: Trainer, state: TrainState) -> None:
            assert state.metrics == {} and state.certificate is None and state.iteration == 0
            heard.append((self.name, "run_start"))

        def on_iteration_start(self, trainer: Trainer, state: TrainState) -> None:
            heard.append((self.name, f"start {state.iteration}"))

        def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
            assert state is trainer.state and state.snapshot.iteration == state.iteration
            heard.append((self.name, f"end {state.iteration}"))

        def on_run_end(
            self, trainer: Trainer, state: TrainState, error: BaseException | None
        ) -> None:
            assert error is None
            heard.append((self.name, "run_end"))

    trainer, recorder = prepare(
        PAIR, iterations=2, callbacks=[Listener("first"), Listener("second")]
    )
    assert trainer.run() is trainer.state is recorder.states[-1]
    order = ["run_start", "start 0", "end 1", "start 1", "end 2", "run_end"]
    assert heard == [(name, hook) for hook in order for name in ("first", "second")]


def test_a_callback_of_ones_own_needs_one_hook_and_no_change_of_the_trainer() -> None:
    class Enough(Callback):
        """Ends a run where the reward has stopped rising."""

        def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
            if state.iteration == 2:
                trainer.iterations = 2

    assert len(train(PAIR, iterations=9, callbacks=[Enough()]).states) == 2


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), KeyboardInterrupt(), tl.SolveError("no solution")], ids=repr
)
@pytest.mark.parametrize("hook", ["on_run_start", "on_iteration_start", "on_iteration_end"])
def test_every_callback_hears_of_the_error_that_ended_the_run(
    hook: str, error: BaseException
) -> None:
    late = Recorder()
    trainer, early = prepare(PAIR, improvement=JACOBI, callbacks=[Raiser(hook, error), late])
    with pytest.raises(type(error)) as raised:
        trainer.run()
    assert raised.value is error is early.error is late.error
    done = {"on_run_start": 0, "on_iteration_start": 1, "on_iteration_end": 2}[hook]
    assert early.hooks[-1] == late.hooks[-1] == ("run_end", done)
    assert [name for name, _ in early.hooks].count("run_end") == 1
    assert trainer.state.iteration == trainer.state.snapshot.iteration == done
    # Those after the one that failed did not hear that hook, but hear of the end.
    name = hook.removeprefix("on_")
    assert (
        len([h for h in late.hooks if h[0] == name])
        == len([h for h in early.hooks if h[0] == name]) - 1
    )


def test_a_callback_that_fails_at_the_end_does_not_keep_it_from_others() -> None:
    late, disk = Recorder(), OSError("disk full")
    trainer, early = prepare(PAIR, iterations=1, callbacks=[Raiser("on_run_end", disk), late])
    with pytest.raises(OSError, match="disk full"):
        trainer.run()
    assert early.hooks[-1] == late.hooks[-1] == ("run_end", 1)
    assert early.error is late.error is None


# Interrupts and checkpoints -------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str, call: int, error: BaseException) -> None:
    """Raises in the `call`-th call of a function that an iteration calls."""
    place = exact if where == "cyclic_sweep" else room
    original, calls = getattr(place, where), []

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == call:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(place, where, broken)


@pytest.mark.parametrize(
    ("kind", "error"), [("mlp", KeyboardInterrupt()), ("tabular", tl.SolveError("no solution"))]
)
def test_an_interrupted_sweep_leaves_the_checkpoint_of_the_iteration_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException
) -> None:
    # A sweep certifies before each of its two blocks, and once more at its end: three an iteration.
    interrupt(monkeypatch, "certify", 5, error)
    saving = Checkpoint(tmp_path, configuration="seed: 0\n")
    trainer, recorder = prepare(PAIR, kind=kind, callbacks=[saving])
    with pytest.raises(type(error)):
        trainer.run()
    # A failed solve is told with its iteration; all else reaches the callbacks as it was raised.
    assert recorder.error is error or recorder.error.__cause__ is error
    assert len(recorder.states) == 1
    before = recorder.parameters[0]
    live = trainer.state.policy.state_dict()
    assert any(not torch.equal(live[name], before[name]) for name in before)
    (path,) = checkpoint.saved(tmp_path)
    found = checkpoint.load(tmp_path)
    assert path == saving.saved
    assert (found.iteration, found.configuration) == (1, "seed: 0\n")
    loaded = found.policy.state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], before[name]) for name in before)
    assert torch.equal(
        found.generator.get_state(), recorder.states[0].snapshot.tensors["generator"]
    )


@pytest.mark.parametrize("where", ["cyclic_sweep", "measure"])
def test_an_interrupt_before_the_first_iteration_is_whole_saves_and_shows_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    interrupt(monkeypatch, where, 1, KeyboardInterrupt())
    bar = ProgressBar(enabled=False)
    trainer, recorder = prepare(PAIR, callbacks=[Checkpoint(tmp_path), TensorBoard(tmp_path), bar])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert isinstance(recorder.error, KeyboardInterrupt) and recorder.states == []
    assert kept(tmp_path) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("every", "keep", "iterations", "left"),
    [
        (0, 2, 5, [5]),
        (2, 2, 5, [4, 5]),
        (2, 9, 5, [2, 4, 5]),
        (2, 1, 4, [4]),
        (1, 2, 4, [3, 4]),
        (7, 2, 3, [3]),
    ],
)
def test_checkpoints_are_kept_as_asked(
    tmp_path: Path, every: int, keep: int, iterations: int, left: list[int]
) -> None:
    folder = tmp_path / "new" / "run"
    saving = Checkpoint(folder, every=every, keep=keep)
    recorder = train(PAIR, iterations=iterations, improvement=JACOBI, callbacks=[saving])
    assert kept(folder) == left
    assert saving.saved == checkpoint.saved(folder)[-1]
    for path in checkpoint.saved(folder):
        found = checkpoint.load(path)
        wanted = recorder.parameters[found.iteration - 1]
        loaded = found.policy.state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (Checkpoint, {"every": -1}),
        (Checkpoint, {"keep": 0}),
        (TensorBoard, {"heat_maps_every": -1}),
    ],
)
def test_settings_are_checked_before_anything_runs(
    tmp_path: Path, callback: Any, options: dict[str, int]
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(tl.InputError, match=rf"{name} (is )?{value}"):
        callback(tmp_path, **options)


# TensorBoard ----------------------------------------------------------------------------------

CONFIGURATION = "env:\n  n: 2\nschedule:\n  start: 1.0\n"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventAccumulator, Recorder]:
    """Sixteen iterations with heat maps every twelve."""
    folder = tmp_path_factory.mktemp("logged")
    board = TensorBoard(folder, heat_maps_every=12, configuration=CONFIGURATION)
    recorder = train(PAIR, iterations=16, callbacks=[board])
    return events(folder), recorder


def test_every_number_of_every_iteration_is_read_back(
    logged: tuple[EventAccumulator, Recorder],
) -> None:
    found, recorder = logged
    tags = set().union(*recorder.metrics)
    assert set(found.Tags()["scalars"]) == tags and len(tags) > 40
    for tag in tags:
        points = found.Scalars(tag)
        assert [point.step for point in points] == list(range(1, 17))
        # Event files hold single precision; infinities stay infinite.
        wanted = np.array([m[tag] for m in recorder.metrics], dtype=np.float32)
        np.testing.assert_array_equal(np.array([p.value for p in points], dtype=np.float32), wanted)


def test_the_configuration_is_in_the_event_file(
    logged: tuple[EventAccumulator, Recorder],
) -> None:
    (value,) = logged[0].Tensors("configuration/text_summary")
    (text,) = value.tensor_proto.string_val
    # Indented by four: TensorBoard reads Markdown, where that is code.
    assert [line[4:] for line in text.decode().splitlines()] == CONFIGURATION.splitlines()
    assert all(line.startswith("    ") for line in text.decode().splitlines())


def cells(pixels: np.ndarray, matrix: Any, name: str) -> np.ndarray:
    """(rows, columns, 3) the colour in the middle of every cell of a heat map's pixels."""
    axes = heat_map(matrix, name).axes[0]
    rows, columns = np.indices(matrix.shape).reshape(2, -1)
    across, up = axes.transData.transform(np.stack([columns, rows], axis=1)).T
    return pixels[len(pixels) - 1 - up.astype(int), across.astype(int)].reshape(*matrix.shape, 3)


def test_the_pictures_are_there_and_the_last_ones_show_the_last_matrices(
    logged: tuple[EventAccumulator, Recorder],
) -> None:
    found, recorder = logged
    matrices = callbacks.matrices(recorder.states[-1])
    assert set(found.Tags()["images"]) == {f"matrix/{name}" for name in matrices}
    assert set(matrices) == {"H_coupled", "H_paper", "Pi_exact", "L"}
    for name, matrix in matrices.items():
        images = found.Images(f"matrix/{name}")
        assert [image.step for image in images] == [12, 16]
        pixels = imread(io.BytesIO(images[-1].encoded_image_string))[..., :3]
        dense = matrix.toarray()
        wanted = colormaps["viridis"](dense / dense.max())[..., :3]
        assert len(np.unique(dense)) > 1
        # The map has 256 colours and a channel 256 values; no neighbours differ by more than 3.
        np.testing.assert_allclose(cells(pixels, matrix, name), wanted, atol=4 / 255)


def test_without_a_step_for_pictures_they_come_at_the_end(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, heat_maps_every=0)
    train(PAIR, iterations=2, improvement=JACOBI, callbacks=[board])
    found = events(tmp_path)
    assert [image.step for image in found.Images("matrix/L")] == [2]
    assert not [tag for tag in found.Tags()["tensors"] if "configuration" in tag]


def test_an_interrupted_run_leaves_its_whole_iterations_in_the_event_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, "measure", 3, KeyboardInterrupt())
    board = TensorBoard(tmp_path)
    trainer, _ = prepare(PAIR, iterations=3, improvement=JACOBI, callbacks=[board])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    found = events(tmp_path)
    assert [point.step for point in found.Scalars("reward/average")] == [1, 2]


# Terminal -------------------------------------------------------------------------------------


def printed(trainer: Trainer, state: TrainState) -> str:
    console = Console(width=120, file=io.StringIO())
    for table in closing_tables(trainer, state):
        console.print(table)
    return console.file.getvalue()


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("│\n").split("│")]


def test_the_closing_tables_have_the_gaps_and_every_rung() -> None:
    trainer, _ = prepare(env.sysadmin(3), iterations=2)
    state = trainer.run()
    text, m = printed(trainer, state), state.metrics
    rows = [cells_of(line) for line in text.splitlines() if line.startswith("│")]
    named = {row[0]: row[1:] for row in reversed(rows)}
    assert state.optimum is not None and state.local_optimum is not None
    for name, value in {
        "reward r̄": m["reward/average"],
        "objective J": m["reward/objective"],
        "optimum, all joint policies": state.optimum.gain,
        "best deterministic on these scopes": state.local_optimum.gain,
        "gap to it": m["gap/joint_optimum"],
    }.items():
        assert named[name] == [f"{value:.6f}", f"{value / 3:.6f}"]
    assert [row[0] for row in rows].count("gap to it") == 2
    assert state.certificate is not None
    for name, rung in state.certificate.items():
        assert named[name][0] == f"{rung.rho.upper:.6f}"
        assert named[name][-1] == ("yes" if rung.certified else "no")
        assert ("∞" in named[name]) == (not rung.certified)
    assert set(RUNGS) <= set(named)
    assert "After 2 iterations" in text
    assert f"κ = 3; floor ρ(E^s) = {state.certificate.floor.upper:.4f}" in text


def test_the_closing_table_of_a_discounted_run_names_its_rate() -> None:
    trainer, _ = prepare(PAIR, iterations=1, evaluation=Evaluation(discount=0.9))
    text = printed(trainer, trainer.run())
    assert "reward rate (occupancy)" in text and "reward r̄" not in text
    assert "optimum, all joint policies" in text and "deterministic" not in text


def test_an_interrupted_run_closes_with_the_iterations_that_are_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, "measure", 3, KeyboardInterrupt())
    bar = ProgressBar(enabled=False)
    trainer, recorder = prepare(PAIR, iterations=3, improvement=JACOBI, callbacks=[bar])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    text = capsys.readouterr().out
    assert "After 2 iterations" in text
    assert f"{recorder.metrics[-1]['reward/average']:.6f}" in text
    assert "tensorboard" not in text


@pytest.mark.parametrize(
    "folder",
    ["runs/default/2026-01-01", "a b", "[red]x[/red]", ":smile:", "it's", "0_a=[1,2]", "x" * 300],
)
def test_the_command_that_opens_tensorboard_is_one_line_to_paste(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar(enabled=False, folder=folder)
    train(PAIR, iterations=1, improvement=JACOBI, callbacks=[bar])
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ["tensorboard", "--logdir", folder]
    if re.fullmatch(r"[\w/.-]+", folder):
        assert line == f"tensorboard --logdir {folder}"


def test_the_bar_shows_iterations_reward_temperature_and_influence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder = train(PAIR, improvement=JACOBI, callbacks=[ProgressBar()])
    text, m = capsys.readouterr().out, recorder.metrics[-1]
    assert "2/2" in text and "τ 0.05" in text
    assert f"r̄ {m['reward/average']:.5g}" in text
    assert f"ρ paper {m['rho/paper']:.3f}, coupled {m['rho/coupled']:.3f}" in text
