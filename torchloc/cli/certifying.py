"""`torchloc-certify`: how local a policy makes a model, with the reason.

The model is composed as `torchloc-train` composes it (`env=sysadmin env.n=6`), or read from a file that
`FactoredMDP.save` wrote. In its place an estimate of a system that is not known may stand, read from a file that
`SensitivityEstimate.save` wrote. Exit codes: 0 certified by the asked rung, 3 not certified or undecided, 2 bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchloc import config
from torchloc.cli.building import build_model, build_scopes
from torchloc.cli.outcome import refusing
from torchloc.cli.report import as_dict, show
from torchloc.config.ranges import Range, closest
from torchloc.config.schemas import LARGEST_KAPPA
from torchloc.errors import InputError

if TYPE_CHECKING:
    from torchloc.certificate import Certificate, Sensitivities
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP
    from torchloc.policy import SoftmaxPolicy

MOST_STEPS = 100
ESTIMATED = ("exact", "span", "tanh", "paper", "scope")
"""The rungs that an estimate has, from sharp to blunt."""
UNIFORM, AUTO = "uniform", "auto"
_STEPPED = re.compile(r"coupled_([1-9]\d*)")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="torchloc-certify",
        description="Certifies how local a policy makes a model, and says why where it does not.",
        epilog="Exit codes: 0 certified by the asked rung, 3 not certified or undecided, 2 bad input.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add(
        "overrides",
        nargs="*",
        help="settings as of torchloc-train: env=sysadmin env.n=6 scopes.hops=1",
    )
    add("--model", metavar="FILE", help="a model saved by FactoredMDP.save, in place of env=…")
    add(
        "--estimate",
        metavar="FILE",
        help="an estimate saved by SensitivityEstimate.save, in place of a model: E^s and E^a bounded from "
        "samples; no coupled rungs",
    )
    add(
        "--policy",
        metavar="FILE",
        default=UNIFORM,
        help="uniform (default), a policy or checkpoint (.safetensors), a run folder, or a .npz of tables "
        "(scope_0, probabilities_0 or logits_0, … and optionally temperature)",
    )
    add(
        "--rung",
        help="the rung that decides: coupled (default), coupled_2, …, exact (default of an estimate), span, tanh, "
        "paper or scope",
    )
    kappa = _whole(Range(0, LARGEST_KAPPA))
    positive, discount = _real(Range(0, low_open=True)), _real(Range(0, 1, low_open=True))
    add(
        "--steps",
        type=_steps,
        metavar="M",
        help="add the rungs coupled_2 … coupled_M; auto takes as many as a budget allows",
    )
    add("--kappa", type=kappa, default=3, help="truncation radius of tail and ε")
    add("--epsilon", type=positive, metavar="E", help="print the κ that brings every ε_k to E")
    add("--discount", type=discount, default=1.0, help="γ in (0, 1]; 1 is the average reward")
    add("--dynamics", default="synchronous", help="synchronous or asynchronous (uniform site law)")
    add("--objective", default="reward", help="reward or entropy")
    add(
        "--temperature", type=positive, metavar="T", help="certify at this temperature, logits held"
    )
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
    subject, mdp, scopes = _model(args)
    policy = _policy(args, mdp, scopes)

    # Late, because it imports torch.
    from torchloc.certificate import certify
    from torchloc.certificate.diagnosis import certifying_temperatures, diagnose
    from torchloc.sensitivity import RUNGS

    most = 1 if args.steps == AUTO else args.steps
    names = [*RUNGS, *(f"coupled_{m}" for m in range(2, most + 1))]
    if args.estimate is not None:
        names = list(ESTIMATED)
    if args.rung not in names and not (args.steps == AUTO and _STEPPED.fullmatch(args.rung)):
        raise InputError(
            f"--rung {args.rung or repr('')} is none of {', '.join(names)}{closest(args.rung, names)}"
        )
    if args.temperature is not None:
        policy.set_temperature(args.temperature)
    certificate = certify(
        subject,
        policy,
        args.kappa,
        args.discount,
        args.dynamics,
        objective=args.objective,
        steps=args.steps,
    )
    if args.rung not in certificate:
        raise InputError(
            f"--rung {args.rung} is beyond what --steps {AUTO} gave ({', '.join(certificate)}); give "
            f"--steps a number"
        )
    asked = certificate[args.rung]
    diagnosis, temperatures = None, []
    if not args.no_reasons:
        diagnosis = diagnose(certificate, policy, args.rung)
        if args.dynamics == "synchronous":
            temperatures = certifying_temperatures(
                certificate.environment, policy, discount=args.discount
            )
    if args.json is not None:
        report = as_dict(mdp, certificate, asked, args.epsilon, diagnosis, temperatures)
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        if args.json == "-":
            print(text, end="")
        else:
            _write(Path(args.json), text)
    if args.json != "-":
        show(mdp, policy, certificate, asked, args.epsilon, diagnosis, temperatures)
    if args.heat_maps is not None:
        _draw(certificate, policy, Path(args.heat_maps))
    return asked.certified


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, all that can be checked without a model checked."""
    found = parser()
    args = refusing(found).parse_intermixed_args(arguments)
    for flag, words in (
        ("dynamics", ("synchronous", "asynchronous")),
        ("objective", ("reward", "entropy")),
    ):
        value = getattr(args, flag)
        if value not in words:
            hint = closest(value, words)
            raise InputError(f"--{flag} {value or repr('')} is none of {', '.join(words)}{hint}")
    if args.rung is None:
        args.rung = "coupled" if args.estimate is None else "exact"
    _check_steps(args)
    _check_inputs(args)
    _check_outputs(args)
    return args


def _whole(rule: Range) -> Callable[[str], int]:
    """Reads a whole number within a range; argparse puts the flag before the message."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) in rule:
                return int(text)
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a whole number {rule}")

    return read


def _steps(text: str) -> int | str:
    """Reads the number of coupled steps."""
    if text == AUTO:
        return AUTO
    try:
        return _whole(Range(1, MOST_STEPS))(text)
    except argparse.ArgumentTypeError as error:
        hint = closest(text, [AUTO])
        raise argparse.ArgumentTypeError(f"{error}, or {AUTO}{hint}") from None


def _real(rule: Range) -> Callable[[str], float]:
    """Reads a number within a range; argparse puts the flag before the message."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if float(text) in rule:
                return float(text)
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number {rule}")

    return read


def _check_steps(args: argparse.Namespace) -> None:
    """Sets `steps` to what the rung needs where it is not given."""
    stepped = _STEPPED.fullmatch(args.rung)
    if args.estimate is not None:
        reason = (
            "which average the kernels of a model over the policy, and an estimate has no kernels"
        )
        if stepped or args.rung == "coupled":
            raise InputError(
                f"--rung {args.rung} is one of the coupled rungs, {reason}; ask for {', '.join(ESTIMATED[:-1])} "
                f"or {ESTIMATED[-1]}"
            )
        if args.steps not in (None, 1):
            raise InputError(
                f"--steps {args.steps} adds coupled rungs, {reason}; leave --steps out"
            )
    needed = int(stepped[1]) if stepped else 1
    if needed > MOST_STEPS:
        raise InputError(f"--rung {args.rung}: at most {MOST_STEPS} steps are computed")
    if args.steps is None:
        args.steps = needed
    if args.steps != AUTO and args.steps < needed:
        raise InputError(
            f"--rung {args.rung} needs --steps {needed}, not {args.steps}; leave --steps out"
        )
    if args.steps != 1 and args.dynamics == "asynchronous":
        given = f"--rung {args.rung}" if stepped else f"--steps {args.steps}"
        raise InputError(
            f"{given} is for --dynamics synchronous; several coupled steps say nothing where one "
            f"coordinate moves per step"
        )


def _check_inputs(args: argparse.Namespace) -> None:
    """Refuses a model, an estimate or a policy that is not there."""
    settings = {_group(text): text for text in args.overrides}
    if args.model is not None and args.estimate is not None:
        raise InputError(
            f"--model {args.model} and --estimate {args.estimate} both say what is certified; give one of them"
        )
    for flag, file, what, writer in (
        ("--model", args.model, "name a model", "FactoredMDP.save"),
        ("--estimate", args.estimate, "say what is certified", "SensitivityEstimate.save"),
    ):
        if file is None:
            continue
        if "env" in settings:
            raise InputError(f"{flag} {file} and {settings['env']} both {what}; give one of them")
        if not file or not Path(file).exists():
            raise InputError(f"{flag} {file!r}: there is no such file; write one with {writer}")
        if Path(file).is_dir():
            raise InputError(f"{flag} {file} is a folder; give the file in it")
    if args.policy == UNIFORM:
        if "policy" in settings:
            raise InputError(
                f"{settings['policy']} describes a policy to be trained; give a trained one with "
                f"--policy, or leave the setting out for the uniform policy"
            )
    elif not args.policy or not Path(args.policy).exists():
        hint = closest(args.policy, [UNIFORM]) or f", and it is not the word {UNIFORM}"
        raise InputError(f"--policy {args.policy!r}: there is no such file or folder{hint}")


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuses what cannot be written before anything is computed."""
    if args.json not in (None, "-"):
        path = Path(args.json)
        if path.is_dir():
            given = args.json or "''"
            raise InputError(f"--json {given} is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise InputError(f"--json {path}: there is no folder {path.parent}; create it")
    if args.heat_maps == "":
        raise InputError("--heat-maps is empty; give the name of a folder")
    if args.heat_maps is not None:
        folder = Path(args.heat_maps)
        blocking = next((up for up in (folder, *folder.parents) if up.exists()), folder)
        if blocking.exists() and not blocking.is_dir():
            raise InputError(f"--heat-maps {folder}: {blocking} is no folder; give another name")


def _model(
    args: argparse.Namespace,
) -> tuple[FactoredMDP | Sensitivities, FactoredMDP, Scopes]:
    """What is certified, the model that tells its sizes and names, and what the agents see."""
    cfg = config.compose(args.overrides, config_dir=args.config_dir)
    if args.estimate is not None:
        estimate, mdp = _estimate(args.estimate)
        return estimate, mdp, build_scopes(cfg, mdp)
    if args.model is None:
        mdp, scopes = build_model(cfg)
        return mdp, mdp, scopes
    from torchloc.mdp import FactoredMDP

    with _naming("--model", args.model):
        mdp = FactoredMDP.load(args.model)
    return mdp, mdp, build_scopes(cfg, mdp)


def _estimate(file: str) -> tuple[Sensitivities, FactoredMDP]:
    """An estimate, and a model of its sizes and declared parents, from which no bound is taken."""
    # Late, because it imports torch.
    from torchloc.estimation import SensitivityEstimate, maximum_likelihood

    with _naming("--estimate", file):
        estimate = SensitivityEstimate.load(file)
        return estimate, maximum_likelihood(estimate, rewards=()).training_model


@contextlib.contextmanager
def _naming(flag: str, file: str) -> Iterator[None]:
    """Lets every complaint about a file name it."""
    try:
        yield
    except InputError as error:
        if file in str(error):
            raise
        raise InputError(f"{flag} {file}: {error}") from error


def _group(override: str) -> str:
    """The first word of an override: env of env.n=3."""
    return re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]


def _policy(args: argparse.Namespace, mdp: FactoredMDP, scopes: Scopes) -> SoftmaxPolicy:
    from torchloc import checkpoint
    from torchloc.policy import SoftmaxPolicy, checks

    settings = {_group(text): text for text in args.overrides}
    if args.policy == UNIFORM:
        return SoftmaxPolicy.tabular(mdp, scopes)
    path = Path(args.policy)
    if path.is_dir():
        policy = checkpoint.load(path).policy
    elif path.suffix == ".npz":
        policy = SoftmaxPolicy.from_tables(mdp, path)
    else:
        policy = SoftmaxPolicy.load(path)
    try:
        # Sizes first: what is said of them names the cure, what is said of scopes does not.
        checks.check_fit(policy.state_sizes, mdp.state_sizes, "coordinate", "values")
        checks.check_fit(policy.action_sizes, mdp.action_sizes, "agent", "actions")
        policy.check(mdp)
    except InputError as error:
        misfit = "" if args.estimate is None else f" does not fit --estimate {args.estimate}"
        raise InputError(f"--policy {args.policy}{misfit}: {error}") from error
    if "scopes" in settings and list(map(set, policy.scopes)) != list(map(set, scopes)):
        raise InputError(
            f"--policy {args.policy} brings scopes of its own, which are not those of "
            f"{settings['scopes']}; leave that setting out"
        )
    return policy


def _write(path: Path, text: str) -> None:
    """Writes a temporary file beside `path` and renames it: never half a report to read."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A link or a device such as /dev/stdout is written to; a rename would put a file in its place.
    direct = path.is_symlink() or (path.exists() and not path.is_file())
    try:
        if direct:
            path.write_text(text)
        else:
            scratch.write_text(text)
            scratch.replace(path)
    except OSError as error:
        raise InputError(f"--json {path} cannot be written: {error.strerror}") from error
    finally:
        if not direct:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)


def _draw(certificate: Certificate, policy: SoftmaxPolicy, folder: Path) -> None:
    from torchloc.certificate.ladder import Ladder
    from torchloc.figures import heat_map

    pictures = {f"H_{name}": rung.matrix for name, rung in certificate.items()}
    ladder = Ladder(certificate.environment, policy)
    pictures["Pi_exact"], pictures["L"] = ladder.exact_policy, ladder.spreads.lipschitz
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, matrix in pictures.items():
            heat_map(matrix, name).savefig(folder / f"{name}.png", dpi=130)
    except OSError as error:
        raise InputError(f"--heat-maps {folder} cannot be written: {error.strerror}") from error
