"""The command line: `torchloc-train` is a Hydra application.

The configuration is composed and checked before Hydra makes a run folder and before torch is
imported. Exit codes, set only in the outermost function: 0 done, 1 the run failed, 2 bad input,
130 Ctrl-C, 143 SIGTERM. A job of a sweep raises and never exits.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from torchloc import config
from torchloc.errors import InputError, SolveError

if TYPE_CHECKING:
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that a run saves itself in the same way."""


def train() -> None:
    """The console command `torchloc-train`."""
    sys.exit(_exit_code("torchloc-train", _train))


def build_model(cfg: DictConfig) -> tuple[FactoredMDP, Scopes]:
    """The model of a configuration and what its agents see. Imports no torch.

    Raises:
        InputError: The environment or the scopes cannot be built as described.
    """
    mdp = build(cfg.env)
    return mdp, build(cfg.scopes)(mdp)


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
    folder = Path(job.runtime.output_dir)
    if job.mode == RunMode.MULTIRUN:
        print(f"job {job.job.num}: {' '.join(job.overrides.task)}")
    mdp, scopes = build_model(cfg) if model is None else model
    schedule = build(cfg.schedule)

    # Late, because it is slow.
    import torch

    from torchloc import callbacks
    from torchloc.trainer import Callback, Trainer

    torch.set_num_threads(cfg.threads)
    text = OmegaConf.to_yaml(cfg, resolve=True)
    saving, logging = cfg.checkpoint, cfg.logging
    hooks: list[Callback] = [
        callbacks.Checkpoint(folder, every=saving.every, keep=saving.keep, configuration=text)
    ]
    if logging.tensorboard:
        every = logging.heat_maps_every
        hooks.append(callbacks.TensorBoard(folder, heat_maps_every=every, configuration=text))
    shown = folder if logging.tensorboard else None
    hooks.append(callbacks.ProgressBar(enabled=logging.progress, folder=shown))
    Trainer(
        mdp,
        build(cfg.policy)(mdp, scopes, temperature=schedule(0.0), seed=cfg.seed),
        schedule=schedule,
        improvement=build(cfg.improvement),
        evaluation=build(cfg.evaluation),
        iterations=cfg.trainer.iterations,
        hold=cfg.trainer.hold,
        callbacks=hooks,
        seed=cfg.seed,
    ).run()


def build(node: Any) -> Any:
    """What a configuration node describes; errors of the user's input come out bare.

    Raises:
        InputError: The target does not exist, or it refused its arguments.
    """
    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError | SolveError):
            raise error.__cause__ from None
        if str(error).startswith("Error locating target") or _is_misfit(error.__cause__):
            raise InputError(f"_target_={node._target_}: {error.__cause__}") from None
        raise


def _is_misfit(error: BaseException | None) -> bool:
    """Whether a call failed on its arguments' names, before any line of the target ran."""
    trace = error.__traceback__ if isinstance(error, TypeError) else None
    return trace is not None and trace.tb_next is None


def _train() -> None:
    config.register()
    parser = get_args_parser()
    parser.error = _refuse  # one line in place of argparse's usage
    args = parser.parse_args()
    if sum(map(bool, (args.run, args.multirun, args.cfg, args.info, args.shell_completion))) > 1:
        raise InputError("give only one of --run, --multirun, --cfg, --info, --shell-completion")
    if args.resolve and not (args.cfg or args.help):
        raise InputError("--resolve goes with --cfg or --help only")
    if args.help:
        print(_help(args))
        return
    model = None if _only_shows_something(args) else _model_in_advance(args)
    refused: list[Exception] = []
    sweeps: dict[str, None] = {}

    def task(cfg: DictConfig) -> None:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            sweeps[str(Path(job.sweep.dir).resolve())] = None
        try:
            run_job(cfg, model)
        except (InputError, SolveError) as error:
            if job.mode == RunMode.MULTIRUN:
                raise
            # Hydra would print a line of its own before it raises.
            refused.append(error)

    # With full errors Hydra raises to the outermost function in place of printing and exiting.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    hydra.main(version_base="1.3", config_path=str(config.home()), config_name=config.CONFIG_NAME)(
        task
    )()
    if refused:
        raise refused[0]
    for folder in sweeps:
        print(f"all jobs: tensorboard --logdir {shlex.quote(folder)}")


def _model_in_advance(args: argparse.Namespace) -> tuple[FactoredMDP, Scopes] | None:
    """Refuses bad input while there is no run folder yet; the model of a single run is kept."""
    sweep = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    jobs = config.compose_jobs(
        args.overrides,
        sweep=sweep,
        config_name=args.config_name or config.CONFIG_NAME,
        **_search(args),
    )
    return None if sweep or args.cfg else build_model(jobs[0])


def _help(args: argparse.Namespace) -> str:
    # Hydra's own help page copies every schema once for every group: a second of waiting.
    search = _search(args)
    choices = config.groups(**search)
    name = args.config_name or config.CONFIG_NAME
    cfg = config.compose(args.overrides, config_name=name, **search)
    width = max(map(len, choices))
    return "\n".join(
        (
            "torchloc-train [--config-dir DIR] [-m] [GROUP=CHOICE | SETTING=VALUE] …",
            "",
            "Trains localized policies on a factored multi-agent MDP and certifies their locality.",
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


def _search(args: argparse.Namespace) -> dict[str, str | Path | None]:
    # Hydra reads a relative --config-path from the folder of the application's module.
    path = None if args.config_path is None else Path(__file__).parent / args.config_path
    return {"config_path": path, "config_dir": args.config_dir}


def _only_shows_something(args: argparse.Namespace) -> bool:
    return bool(args.hydra_help or args.shell_completion or args.info or args.experimental_rerun)


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}; see --help")


def _exit_code(name: str, body: Callable[[], None]) -> int:
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        body()
        return DONE
    except InputError as error:
        _complain(name, error)
        return BAD_INPUT
    except SolveError as error:
        _complain(name, error)
        return FAILED
    except Terminated:
        print(f"{name}: terminated", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        traceback.print_exception(type(error), error, _from_job(error.__traceback__))
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _complain(name: str, error: Exception) -> None:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)


def _from_job(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from `run_job` on, where the error came from there."""
    start = trace
    while start is not None and start.tb_frame.f_code is not run_job.__code__:
        start = start.tb_next
    return start or trace
