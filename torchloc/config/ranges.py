"""What a setting may be: declared once, beside the field, checked on the composed configuration.

A field of a schema carries its rule in the dataclass metadata (`setting`). `check` walks a composed
configuration, finds the schema of every node and holds each value against its rule, so ranges are
checked wherever a value comes from: command line, YAML file or sweep.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchloc.errors import InputError

RULE = "rule"
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "booleans", str: "words"}


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers, closed unless said otherwise; infinities and NaN are never inside.

    Attributes:
        low: Lower end.
        high: Upper end.
        low_open: The lower end itself is not allowed.
        high_open: The upper end itself is not allowed.

    >>> 0.5 in Range(0, 1, low_open=True), 0 in Range(0, 1, low_open=True)
    (True, False)
    >>> str(Range(0, 1, low_open=True)), str(Range(1)), str(Range(0, low_open=True))
    ('in (0, 1]', '>= 1', '> 0')
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.low_open else self.low <= value
        below = value < self.high if self.high_open else value <= self.high
        # A whole number is finite, and too many digits for a float otherwise.
        return above and below and (isinstance(value, int) or math.isfinite(value))

    def __str__(self) -> str:
        low, high = (f"{x:d}" if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        if self.low == -math.inf and self.high == math.inf:
            return "that is finite"
        if self.high == math.inf:
            return f"{'>' if self.low_open else '>='} {low}"
        if self.low == -math.inf:
            return f"{'<' if self.high_open else '<='} {high}"
        return f"in {'(['[not self.low_open]}{low}, {high}{')]'[not self.high_open]}"


@dataclasses.dataclass(frozen=True)
class Choices:
    """A closed list of words.

    >>> "cyclic" in Choices(("cyclic", "jacobi")), str(Choices(("cyclic", "jacobi")))
    (True, 'one of: cyclic, jacobi')
    """

    words: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return f"one of: {', '.join(self.words)}"


@dataclasses.dataclass(frozen=True)
class NaturalOr:
    """A whole number ≥ 0 and at most `high`, or a word.

    >>> rule = NaturalOr(("auto",))
    >>> 3 in rule, "auto" in rule, -1 in rule
    (True, True, False)
    >>> str(rule)
    'a whole number >= 0, or auto'
    """

    words: tuple[str, ...]
    high: float = math.inf

    def __contains__(self, value: object) -> bool:
        if isinstance(value, int) and not isinstance(value, bool):
            return value in Range(0, self.high)
        return value in self.words

    def __str__(self) -> str:
        return f"a whole number {Range(0, self.high)}, or {' or '.join(self.words)}"


@dataclasses.dataclass(frozen=True)
class Pattern:
    r"""Words of a form.

    Attributes:
        form: What the whole word matches, as a regular expression.
        text: What the form is called.

    >>> "cuda:1" in Pattern(r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:N")
    True
    """

    form: str
    text: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.form, value) is not None

    def __str__(self) -> str:
        return self.text


Rule = Range | Choices | NaturalOr | Pattern

POSITIVE = Range(0, low_open=True)
NONNEGATIVE = Range(0)
PROBABILITY = Range(0, 1)
FINITE = Range()


def setting(default: Any, rule: Rule | None = None) -> Any:
    """A dataclass field with its rule; a list as default is copied for every instance.

    Args:
        default: The default value, or `omegaconf.MISSING` where the user must give one.
        rule: What the value, or each element of a list, must lie in; None and missing are exempt.

    Returns:
        A `dataclasses.field`.
    """
    metadata = {RULE: rule}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def describe(schema: type, name: str) -> str:
    """What field `name` of a schema accepts, in words: "a number in (0, 1], or null"."""
    hint = typing.get_type_hints(schema)[name]
    rule = {field.name: field.metadata.get(RULE) for field in dataclasses.fields(schema)}[name]
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
    null = ", or null" if len(options) < len(typing.get_args(hint)) else ""
    kind = options[0]
    if isinstance(rule, Choices | NaturalOr | Pattern):
        return f"{rule}{null}"
    if typing.get_origin(kind) is list:
        item = typing.get_args(kind)[0]
        word = f"a list of {_PLURALS.get(item, 'lists')}"
    else:
        word = _WORDS.get(kind, f"a group of settings ({getattr(kind, '__name__', kind)})")
    return f"{word}{'' if rule is None else f' {rule}'}{null}"


def closest(word: str, choices: Iterable[str]) -> str:
    """A hint for a near miss, ready to append to a message, or an empty string.

    >>> closest("sysadmn", ["ising", "sysadmin"])
    '; did you mean sysadmin?'
    >>> closest("sys", ["ising", "sysadmin"])
    '; did you mean sysadmin?'
    >>> closest("zzz", ["ising", "sysadmin"])
    ''
    """
    known = list(choices)
    begun = [choice for choice in known if word and choice.startswith(word)]
    found = begun if len(begun) == 1 else difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def unknown(dotted: str, siblings: Sequence[str]) -> str:
    """The message for a key that no schema knows, with the closest key of the same node."""
    parent, _, key = dotted.rpartition(".")
    prefix = f"{parent}." if parent else ""
    names = [name for name in siblings if not name.startswith("_") and name != key]
    hint = closest(key, names)
    if hint:
        return f"{dotted} is no setting{hint.replace('mean ', f'mean {prefix}')}"
    where = f"{parent} has" if parent else "there are"
    return f"{dotted} is no setting; {where}: {', '.join(sorted(names))}"


def check(config: DictConfig) -> None:
    """Holds every value of a composed configuration against the rule of its field.

    Args:
        config: A configuration whose nodes keep their schemas; nodes without one are not checked.

    Raises:
        InputError: A value is missing, out of its range or not among its choices, an interpolation
            does not resolve, or a key is unknown to its schema.
    """
    for node, prefix in _nodes(config, ""):
        schema = OmegaConf.get_type(node)
        if schema is None or not dataclasses.is_dataclass(schema):
            continue
        fields = {field.name: field for field in dataclasses.fields(schema)}
        removed = next((name for name in fields if name not in node.keys()), None)
        if removed is not None:
            raise InputError(f"{prefix}{removed} was taken out: it is needed, give it a value")
        for key in node:
            if key not in fields:
                raise InputError(unknown(f"{prefix}{key}", list(fields)))
            rule = fields[str(key)].metadata.get(RULE)
            for dotted, value in _values(node, str(key), prefix):
                if rule is not None and value not in rule:
                    words = rule.words if isinstance(rule, Choices | NaturalOr) else ()
                    hint = closest(str(value), words)
                    raise InputError(
                        f"{dotted} = {value!r} is not allowed: it must be "
                        f"{describe(schema, str(key))}{hint}"
                    )


def _nodes(config: DictConfig, prefix: str) -> Iterator[tuple[DictConfig, str]]:
    yield config, prefix
    for key in config:
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing()):
            yield from _nodes(child, f"{prefix}{key}.")


def _values(node: DictConfig, key: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """The leaves below one field, with their dotted names; null leaves are left out."""
    dotted = f"{prefix}{key}"
    if OmegaConf.is_missing(node, key):
        raise InputError(f"{dotted} is required: give {dotted}=…")
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        raise InputError(f"{dotted}: {str(error).splitlines()[0]}") from None
    if isinstance(value, ListConfig):
        for index, item in enumerate(value):
            if not isinstance(item, ListConfig | DictConfig):
                yield f"{dotted}[{index}]", item
    elif value is not None and not isinstance(value, DictConfig):
        yield dotted, value


__all__ = [
    "FINITE",
    "MISSING",
    "NONNEGATIVE",
    "POSITIVE",
    "PROBABILITY",
    "Choices",
    "NaturalOr",
    "Pattern",
    "Range",
    "Rule",
    "check",
    "closest",
    "describe",
    "setting",
    "unknown",
]
