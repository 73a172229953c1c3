"""A RDDL problem read with pyRDDLGym: its objects, fluents and syntax trees, lifted, as plain data.

The library is imported when a problem is read, not before. Its parser writes its tables beside its
own code and its remarks to the terminal unless told otherwise; here it is told otherwise.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from torchloc.errors import InputError

Node = Any  # an Expression of the library: `etype` and `args`
Ground = tuple[str, tuple[str, ...]]  # a fluent and the objects it is about
Value = bool | int | float | str
EXTRA = 'RDDL problems need an extra: pip install "torchloc[rddl]"'
_SHOWN = 160  # characters of an expression in a message


@dataclass(frozen=True, eq=False)
class Problem:
    """A domain and an instance.

    Attributes:
        domain: Name of the domain.
        instance: Name of the instance.
        objects: Objects of each type, in order.
        kinds: What each fluent is (`state-fluent`, `next-state-fluent` with a prime, …).
        ranges: `bool`, `int`, `real` or a type, by fluent.
        parameters: Types of each fluent's arguments.
        constants: Values of the ground non-fluents; objects as strings.
        initial: First values of the ground state fluents.
        defaults: Default values of the action fluents.
        cpfs: Parameters and expression of each fluent that has a CPF.
        reward: Its expression.
        invariants: State invariants.
        preconditions: Action preconditions.
        constraints: State-action constraints.
        terminations: Termination conditions.
        horizon: Steps of an episode.
        discount: Discount factor.
        max_actions: How many action fluents may leave their default in one step.
    """

    domain: str
    instance: str
    objects: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, str]
    ranges: Mapping[str, str]
    parameters: Mapping[str, tuple[str, ...]]
    constants: Mapping[Ground, Value]
    initial: Mapping[Ground, Value]
    defaults: Mapping[str, Value]
    cpfs: Mapping[str, tuple[tuple[str, ...], Node]]
    reward: Node
    invariants: tuple[Node, ...]
    preconditions: tuple[Node, ...]
    constraints: tuple[Node, ...]
    terminations: tuple[Node, ...]
    horizon: float
    discount: float
    max_actions: float

    @functools.cached_property
    def type_of(self) -> dict[str, str]:
        """Type of each object."""
        return {x: kind for kind, objects in self.objects.items() for x in objects}

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Place of each object within its type."""
        return {x: i for objects in self.objects.values() for i, x in enumerate(objects)}

    def grounds(self, kind: str) -> list[Ground]:
        """The ground fluents of a kind, in the order of declaration and of the objects."""
        return [
            (name, objects)
            for name, found in self.kinds.items()
            if found == kind
            for objects in itertools.product(*(self.objects[t] for t in self.parameters[name]))
        ]

    def definition(self, ground: Ground) -> tuple[Node, dict[str, str]]:
        """Expression of a ground fluent's CPF, and the objects of its parameters."""
        parameters, node = self.cpfs[ground[0]]
        return node, dict(zip(parameters, ground[1], strict=True))


def label(ground: Ground) -> str:
    """A ground fluent as RDDL writes it.

    >>> label(("running", ("c1",))), label(("alarm", ()))
    ('running(c1)', 'alarm')
    """
    name, objects = ground
    return f"{name}({','.join(objects)})" if objects else name


def text(node: Node) -> str:
    """An expression as RDDL writes it, on one line, cut where it is long."""
    from pyRDDLGym.core.debug.decompiler import RDDLDecompiler

    line = " ".join(RDDLDecompiler().decompile_expr(node).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def read_problem(domain: str | PathLike[str], instance: str | int | PathLike[str]) -> Problem:
    """Reads a problem.

    Args:
        domain: A name in rddlrepository, or the path of a domain file (`*.rddl`).
        instance: Which instance of that name, or the path of an instance file.

    Raises:
        InputError: The extra is missing, there is no such problem, or the library refuses the text.
    """
    with _quiet():
        try:
            import pyRDDLGym  # noqa: F401  (pygame greets on import)
            from pyRDDLGym.core.compiler.model import RDDLLiftedModel
            from pyRDDLGym.core.parser.reader import RDDLReader
        except ModuleNotFoundError as error:
            raise InputError(EXTRA) from error
    files = _files(domain, instance)
    place = f"RDDL problem {domain}, instance {instance}"
    with _quiet():
        # The library warns where it skips a character, and reads on.
        warnings.simplefilter("error", UserWarning)
        try:
            model = RDDLLiftedModel(parsed(RDDLReader(*map(str, files)).rddltxt))
        except (
            SyntaxError, ValueError, TypeError, NotImplementedError, OSError, UserWarning
        ) as error:  # fmt: skip
            plain = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).replace("...", "").split())
            raise InputError(f"{place}: {plain}") from error
        except (LookupError, AttributeError) as error:
            raise InputError(
                f"{place}: a block or a field is missing, the library stops with "
                f"{type(error).__name__}: {error}"
            ) from error
    return _plain(model)


def _files(domain: str | PathLike[str], instance: str | int | PathLike[str]) -> tuple[Path, Path]:
    if str(domain).endswith(".rddl"):
        files = Path(domain), Path(str(instance))
        for field, file in zip(("domain", "instance"), files, strict=True):
            if not file.is_file():
                raise InputError(f"{field} = {file}: there is no such file")
        return files
    with _quiet():
        try:
            from rddlrepository import RDDLRepoManager
        except ModuleNotFoundError as error:
            raise InputError(EXTRA) from error
        try:
            repository = RDDLRepoManager()
        except OSError as error:
            raise InputError(
                f"domain = {domain}: rddlrepository cannot write its list of problems beside its code "
                f"({error}); make that folder writable once, or give the paths of .rddl files"
            ) from error
    names = repository.list_problems()
    if str(domain) not in names:
        close = [name for name in names if str(domain).lower() in name.lower()][:4]
        close = close or difflib.get_close_matches(str(domain), names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "give the path of a .rddl file"
        raise InputError(f"domain = {domain}: rddlrepository has no such problem; {hint}")
    problem = repository.get_problem(str(domain))
    known = [str(i) for i in problem.list_instances()]
    if str(instance) not in known:
        raise InputError(
            f"instance = {instance}: {domain} has the instances {', '.join(known)}; give one of them"
        )
    return Path(problem.get_domain()), Path(problem.get_instance(str(instance)))


def parsed(written: str) -> Any:
    """The library's syntax tree of a text."""
    built = _parser()
    built.lexer.build()  # counts lines from 1 again
    return built.parse(written)


@functools.cache
def _parser() -> Any:
    """The library's parser; its tables take most of a second to build, so they are built once."""
    from pyRDDLGym.core.parser.parser import RDDLParser

    built = RDDLParser(lexer=None, verbose=False)
    built.build(write_tables=False, debug=False)
    return built


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the libraries print and warn of when they are imported and build their parser."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _plain(model: Any) -> Problem:
    objects = {kind: tuple(names) for kind, names in model.type_to_objects.items()}
    kinds = dict(model.variable_types)
    parameters = {name: tuple(model.variable_params[name]) for name in kinds}

    def values(of: Mapping[str, Any]) -> dict[Ground, Value]:
        return {
            (name, arguments): value
            for name, listed in of.items()
            for arguments, value in zip(
                itertools.product(*(objects[t] for t in parameters[name])),
                listed if isinstance(listed, list) else [listed],
                strict=True,
            )
        }

    tree = model.ast.domain
    most = getattr(model.ast.instance, "max_nondef_actions", "pos-inf")
    defaults = {name: np.ravel(value)[0].item() for name, value in model.action_fluents.items()}
    return Problem(
        domain=model.domain_name,
        instance=model.instance_name,
        objects=objects,
        kinds=kinds,
        ranges=dict(model.variable_ranges),
        parameters=parameters,
        constants=values(model.non_fluents),
        initial=values(model.state_fluents),
        defaults=defaults,
        cpfs={
            name: (tuple(parameter for parameter, _ in arguments), node)
            for name, (arguments, node) in model.cpfs.items()
        },
        reward=model.reward,
        invariants=tuple(tree.invariants),
        preconditions=tuple(tree.preconds),
        constraints=tuple(tree.constraints),
        terminations=tuple(tree.terminals),
        horizon=float(model.horizon),
        discount=float(model.discount),
        max_actions=math.inf if most == "pos-inf" else int(most),
    )
