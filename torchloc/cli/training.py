"""`torchloc-train`: a Hydra application.

The configuration is composed and checked before Hydra makes a run folder and before torch is
imported. A job of a sweep raises and never exits.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from torchloc import config
from torchloc.cli import resuming, sweeping
from torchloc.cli.building import build_model, build_trainer
from torchloc.cli.outcome import heed, refusing
from torchloc.errors import FileError, InputError, SolveError

if TYPE_CHECKING:
    from torchloc.checkpoint import Checkpoint
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP


def run_job(cfg: DictConfig, model: tuple[FactoredMDP, Scopes] | None = None) -> None:
    """One training run, in the folder that Hydra made for it.

    Args:
        cfg: The configuration of the run.
        model: The model of `cfg` where it is built already.

    Raises:
        InputError: The configuration, or the model that it describes, is at fault.
        SolveError: An exact solve failed.
    """
    config.check(cfg)
    job = HydraConfig.get()
    swept = job.mode == RunMode.MULTIRUN
    if swept:
        print(f"job {job.job.num}: {' '.join(job.overrides.task)}")
    # Bars of several jobs at once would draw over each other.
    alone = not swept or not sweeping.parallel(job.launcher)
    train_in(Path(job.runtime.output_dir), cfg, model, bar=alone)


def train_in(
    folder: Path,
    cfg: DictConfig,
    model: tuple[FactoredMDP, Scopes] | None = None,
    *,
    bar: bool = True,
    resume: Checkpoint | None = None,
) -> None:
    """One training run, with everything that it writes.

    Args:
        folder: Where it writes.
        cfg: Its checked configuration.
        model: The model of `cfg` where it is built already.
        bar: Whether a progress bar may be drawn.
        resume: Where it goes on from; None: it begins.

    Raises:
        InputError: The model or the settings are at fault.
        SolveError: An exact solve failed.
    """
    mdp, scopes = build_model(cfg) if model is None else model

    # Late, because it is slow.
    import torch

    from torchloc import callbacks
    from torchloc.trainer import Callback, Trainer, TrainState

    torch.set_num_threads(cfg.threads)
    text = OmegaConf.to_yaml(cfg, resolve=True)
    saving, logging = cfg.checkpoint, cfg.logging
    hooks: list[Callback] = []
    if logging.tensorboard:
        every = logging.heat_maps_every
        hooks.append(callbacks.TensorBoard(folder, heat_maps_every=every, configuration=text))
    # After the events: what a checkpoint stands for is on disk before it.
    hooks.append(
        callbacks.Checkpoint(folder, every=saving.every, keep=saving.keep, configuration=text)
    )

    class Heed(Callback):
        """Ends the run at the next iteration where a signal to end was lost."""

        def on_iteration_start(self, trainer: Trainer, state: TrainState) -> None:
            heed()

    hooks.append(Heed())
    shown = folder if logging.tensorboard else None
    hooks.append(callbacks.ProgressBar(enabled=logging.progress and bar, folder=shown))
    build_trainer(cfg, mdp, scopes, hooks, resume).run()


def run() -> None:
    """Trains as the command line says.

    Raises:
        InputError: The command line, the configuration or the model is at fault.
        SolveError: A run failed.
    """
    config.register()
    args = refusing(get_args_parser()).parse_args()
    if sum(map(bool, (args.run, args.multirun, args.cfg, args.info, args.shell_completion))) > 1:
        raise InputError("give only one of --run, --multirun, --cfg, --info, --shell-completion")
    if args.resolve and not (args.cfg or args.help):
        raise InputError("--resolve goes with --cfg or --help only")
    if args.help:
        print(_help(args))
        return
    resumed = resuming.asked(args.overrides)
    if resumed is not None:
        if _sweeps(args) or args.cfg:
            raise InputError("resume goes with neither --multirun nor --cfg")
        folder, saved, cfg = resuming.settled(resumed, args.overrides)
        sweeping.record(folder, lambda: train_in(folder, cfg, resume=saved), swallow=False)
        return
    chosen = [text for text in args.overrides if text.startswith("launcher=")]
    if chosen and chosen[-1].partition("=")[2] in config.EXTRAS:
        if not (_sweeps(args) or _only_shows_something(args) or args.cfg):
            raise InputError(f"{chosen[-1]} starts the jobs of a sweep; add -m, or leave it out")
    jobs: list[DictConfig] = []
    model = None
    began = False
    if not _only_shows_something(args):
        jobs = _jobs_in_advance(args)
        model = None if _sweeps(args) or args.cfg else build_model(jobs[0])
    refused: list[tuple[Exception, Path]] = []

    def task(cfg: DictConfig) -> None:
        nonlocal began
        began = True
        job = HydraConfig.get()
        folder, swept = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
        try:
            sweeping.record(folder, lambda: run_job(cfg, model), swallow=swept)
        except (InputError, SolveError, FileError) as error:
            # Hydra would print a line of its own before it raises.
            refused.append((error, folder))

    sweeping.start(jobs if _sweeps(args) else [])
    # With full errors Hydra raises to the outermost function in place of printing and exiting.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(
            version_base="1.3", config_path=str(config.home()), config_name=config.CONFIG_NAME
        )(task)()
    except KeyboardInterrupt:
        if _sweeps(args):
            sweeping.stop()
        raise
    except Exception as error:
        if isinstance(error, OSError) and not began:
            raise InputError(
                f"no run folder can be made at {error.filename}: {error.strerror}; run where you may write, or "
                f"give a folder with hydra.run.dir (of a sweep, hydra.sweep.dir)"
            ) from error
        sweeping.report("torchloc-train", jobs)
        raise
    for error, folder in refused:
        if isinstance(error, InputError):
            sweeping.forget(folder)
        raise error
    folders, failed = sweeping.report("torchloc-train", jobs)
    for folder in folders:
        print(f"all jobs: tensorboard --logdir {shlex.quote(str(folder))}")
    if failed:
        raise SolveError(f"{failed} of {len(jobs) or 'the'} jobs failed")


def _sweeps(args: argparse.Namespace) -> bool:
    return bool(args.multirun or "hydra.mode=MULTIRUN" in args.overrides)


def _jobs_in_advance(args: argparse.Namespace) -> list[DictConfig]:
    """Refuses bad input while there is no run folder yet."""
    return config.compose_jobs(
        args.overrides,
        sweep=_sweeps(args),
        config_name=_config_name(args),
        **_search(args),
    )


def _help(args: argparse.Namespace) -> str:
    # Hydra's own help page copies every schema once for every group: a second of waiting.
    search = _search(args)
    choices = config.groups(**search)
    cfg = config.compose(args.overrides, config_name=_config_name(args), **search)
    width = max(map(len, choices))
    return "\n".join(
        (
            "torchloc-train [--config-dir DIR] [-m] [GROUP=CHOICE | SETTING=VALUE] …",
            "",
            "Trains localized policies on a factored multi-agent MDP and certifies their locality.",
            "  resume=RUN          go on with a run, in its own folder",
            "  -m, --multirun      one run for each combination of SETTING=a,b or range(0,9)",
            "  --config-dir DIR    one more folder of YAML files to choose from",
            "  --cfg job           print the configuration in place of running it",
            "  --hydra-help        all flags",
            '  -sc install=bash    with eval "$(…)": shell completion',
            "",
            "Groups and their choices:",
            *(f"  {group:{width}}  {', '.join(names)}" for group, names in choices.items()),
            "",
            "The configuration:",
            *("  " + line for line in OmegaConf.to_yaml(cfg, resolve=args.resolve).splitlines()),
        )
    )


def _config_name(args: argparse.Namespace) -> str:
    if args.config_name == "":
        raise InputError(
            "--config-name is empty; leave it out, or name a YAML file without its .yaml"
        )
    return args.config_name or config.CONFIG_NAME


def _search(args: argparse.Namespace) -> dict[str, str | Path | None]:
    # Hydra reads a relative --config-path from the folder of the application's module.
    path = None if args.config_path is None else Path(__file__).parent / args.config_path
    return {"config_path": path, "config_dir": args.config_dir}


def _only_shows_something(args: argparse.Namespace) -> bool:
    return bool(args.hydra_help or args.shell_completion or args.info or args.experimental_rerun)
