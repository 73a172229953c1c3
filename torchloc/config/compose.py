"""Composing a configuration outside a Hydra application: one sentence for every mistake."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from torchloc.config import ranges, schemas
from torchloc.errors import InputError

CONFIG_NAME = "config"
DEEPEST = 64
"""Levels of a configuration of a run at most; what reads it recurses."""
EXTRAS = {"joblib": "sweep", "submitit_local": "cluster", "submitit_slurm": "cluster"}
"""Launchers that are installed apart, and with which extra."""


def home() -> Path:
    """The folder of the YAML files: inside the package in a wheel, beside it in a checkout.

    Raises:
        InputError: Neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise InputError(f"conf/{CONFIG_NAME}.yaml is not beside {package}: install torchloc again")


def compose(
    overrides: Sequence[str] = (),
    *,
    config_name: str = CONFIG_NAME,
    config_path: str | Path | None = None,
    config_dir: str | Path | None = None,
) -> DictConfig:
    """One checked configuration.

    Args:
        overrides: As on the command line, for instance `["env.n=6", "policy=tabular"]`.
        config_name: The primary configuration.
        config_path: The folder of the primary configuration; None means the one of the package.
        config_dir: One more folder to search for groups and files.

    Returns:
        The composed configuration, every value within its declared range.

    Raises:
        InputError: One sentence that names the setting, the value and what is allowed.
    """
    (config,) = compose_jobs(
        overrides,
        config_name=config_name,
        config_path=config_path,
        config_dir=config_dir,
    )
    return config


def compose_jobs(
    overrides: Sequence[str] = (),
    *,
    sweep: bool = False,
    config_name: str = CONFIG_NAME,
    config_path: str | Path | None = None,
    config_dir: str | Path | None = None,
) -> list[DictConfig]:
    """The checked configurations of all jobs of a run or, with `sweep`, of a sweep over choices.

    The arguments and errors are those of `compose`. Sweeps that only their sweeper can expand (say,
    over intervals) give no job here; their jobs are checked when they start.
    """
    nameless = next((text for text in overrides if re.match(r"[+~]*(=|$)", text)), None)
    if nameless is not None:
        raise InputError(_unreadable(nameless))
    with _searching(config_path, config_dir) as loader:
        jobs = _jobs(overrides, config_name, loader) if sweep else [list(overrides)]
        configs = [hydra.compose(config_name, job) for job in jobs]
    for config in configs:
        ranges.check(config)
        _check_name(config)
    return configs


def restored(text: str, changes: Sequence[str] = ()) -> DictConfig:
    """A checked configuration from the YAML text of a run, which may come from anywhere.

    Nothing but what this package configures is built from it: a group with a `_target_` of somebody else is
    refused. So is what a run never writes: aliases, which a few lines expand to more settings than a memory
    holds, and interpolations, which could do the same and read the environment.

    Args:
        text: As a checkpoint holds it.
        changes: `setting=value` each.

    Raises:
        InputError: It is no configuration, a value is out of range, or a group is not of this package.
    """
    try:
        _refuse_expansion(text)
        plain = OmegaConf.create(text)
        if not isinstance(plain, DictConfig):
            raise InputError("the configuration is no mapping of settings")
        for group, choices in schemas.SCHEMAS.items():
            node = plain.get(group)
            if node is None:
                continue
            target = node.get("_target_") if isinstance(node, DictConfig) else None
            found = [schema for schema in choices.values() if schema._target_ == target]
            if not found:
                raise InputError(
                    f"{group} is built by {target}, which is not of torchloc: go on from your own code, with "
                    f"Trainer(…, resume=checkpoint.load(…))"
                )
            plain[group] = OmegaConf.merge(OmegaConf.structured(found[0]), node)
        config = OmegaConf.merge(OmegaConf.structured(schemas.Run), plain)
        for change in changes:
            key, given, value = change.partition("=")
            if not given or not key:
                raise InputError(_unreadable(change))
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError:
                raise InputError(_unreadable(change)) from None
            OmegaConf.update(config, key, parsed)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(explain(error)) from None
    ranges.check(cast(DictConfig, config))
    _check_name(cast(DictConfig, config))
    return cast(DictConfig, config)


def groups(
    *, config_path: str | Path | None = None, config_dir: str | Path | None = None
) -> dict[str, list[str]]:
    """The groups of the search path and their choices; those of schemas and of Hydra left out."""
    with _searching(config_path, config_dir) as loader:
        names = [name for name in loader.list_groups("") if name not in ("hydra", "schema")]
        return {name: loader.get_group_options(name) for name in names}


@contextlib.contextmanager
def _searching(config_path: str | Path | None, config_dir: str | Path | None) -> Iterator[Any]:
    """Hydra's loader over the search path; what it refuses inside comes out as `InputError`."""
    schemas.register()
    folder = Path(config_path) if config_path is not None else home()
    if not folder.is_dir():
        raise InputError(
            f"--config-path {folder} is no folder; --config-dir DIR adds a folder of yours to those of torchloc"
        )
    try:
        with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            loader: Any = GlobalHydra.instance().config_loader()
            if config_dir is not None:
                if not str(config_dir) or not Path(config_dir).is_dir():
                    raise InputError(f"--config-dir {str(config_dir) or repr('')} is no folder")
                path = loader.get_search_path()
                anchor = SearchPathQuery(provider="schema")
                path.prepend("command-line", f"file://{Path(config_dir).resolve()}", anchor)
                loader.repository.initialize_sources(path)
            yield loader
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(explain(error)) from None
    except RecursionError:
        raise InputError(
            "the configuration files name each other in their defaults lists without an end"
        ) from None
    except UnicodeDecodeError:
        folders = [folder, *([] if config_dir is None else [Path(config_dir)])]
        raise InputError(f"{_not_text(folders)} is no UTF-8 text; save it as UTF-8") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        # Hydra's own refusals of a command line, such as a null group choice, are bare ValueErrors.
        raise InputError(_one_line(str(error))) from None


def explain(error: Exception) -> str:
    """One sentence for an error that Hydra or OmegaConf raised over a configuration."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group and error.options:
            if group == "hydra/launcher" and choice in EXTRAS:
                extra = EXTRAS[choice]
                return f"launcher={choice} needs an extra: pip install 'torchloc[{extra}]'"
            hint = ranges.closest(choice, error.options)
            return f"{group}={choice} is no choice{hint or ';'} choices: {', '.join(error.options)}"
        hint = "" if group else ranges.closest(choice, [CONFIG_NAME])
        return f"there is no configuration {error.missing_cfg_file} on the search path{hint}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    absent = re.match(r"(In '[^']+': )Could not override '([^']+)'", str(error))
    if absent:
        hint = ranges.closest(absent[2], [*schemas.SCHEMAS, "experiment", "launcher", "problem"])
        return f"{absent[1]}{absent[2]} is no group that can be chosen{hint}"
    again = re.match(r"Multiple values for (\S+)\.", str(error))
    if again:
        return f"{again[1]} is chosen already: write {again[1]}=CHOICE, without +"
    merging = re.match(r"In 'schema/(\w+)/", str(error))
    if merging and "is not a subclass of" in str(error):
        return f"{merging[1]} takes one choice, and several are given that cannot be merged"
    if str(error).startswith("Ambiguous value"):
        override = str(error).splitlines()[0].partition(" argument ")[2]
        return f"{override} names several values: add -m for one run each, or write [..] for a list"
    origin = error.__cause__ or error.__context__
    nested = isinstance(origin, OmegaConfBaseException) and origin.full_key
    merged = re.match(r"Error merging override (.+)", str(error))
    if merged and not nested and "is not a ListConfig" in str(origin):
        return f"{merged[1]} has the wrong form: write [[0,1],[2]] for a list of lists"
    source = origin if nested else error
    if isinstance(source, OmegaConfBaseException) and source.full_key:
        place = f"{str(error).partition(':')[0]}: " if str(error).startswith("In '") else ""
        return place + _explain_key(source)
    return _one_line(str(error))


def _explain_key(error: OmegaConfBaseException) -> str:
    node: Any = error.parent_node
    known = isinstance(node, DictConfig)
    schema = OmegaConf.get_type(node) if known else None
    names = schemas.field_names(schema)
    if isinstance(error, ConfigKeyError | AttributeError) and known:
        siblings = names or [str(key) for key in node if key != "hydra"]
        return ranges.unknown(str(error.full_key), siblings)
    if isinstance(error, ValidationError) and error.key in names and schema is not None:
        rule = ranges.describe(schema, str(error.key))
        return f"{error.full_key} = {error.value!r} has the wrong type: it must be {rule}"
    return f"{error.full_key}: {str(error).splitlines()[0]}"


def _refuse_expansion(text: str) -> None:
    """Refuses YAML text that could take far more memory or time than its length."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise InputError("the configuration holds YAML aliases, which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise InputError(f"the configuration is nested more than {DEEPEST} deep")
    if "${" in text:
        raise InputError("the configuration holds ${…}, which no run writes")


def _check_name(config: DictConfig) -> None:
    """Refuses a name that would put the folder of a run outside `runs`."""
    name = config.get("name")
    if isinstance(name, str) and name not in schemas.NAME:
        raise InputError(f"name = {name!r} is not allowed: it must be {schemas.NAME}")


def _unreadable(override: str | None) -> str:
    return (
        f"cannot read {override or ''!r}: write setting=value without spaces around =, every bracket and "
        f"quotation mark closed"
    )


def _not_text(folders: Sequence[Path]) -> str:
    """The first YAML file below some folders that is no UTF-8 text."""
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                return str(path)
            except OSError:
                continue
    return "a configuration file"


def _jobs(overrides: Sequence[str], config_name: str, loader: Any) -> list[list[str]]:
    """The overrides of every job, with what the configuration itself sweeps over (`hydra.sweeper.params`)."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides(list(overrides))
    first = [
        text
        for override, text in zip(parsed, overrides, strict=True)
        if not override.is_sweep_override()
    ]
    hydra_config = hydra.compose(config_name, first, return_hydra_config=True).hydra
    params = OmegaConf.to_container(hydra_config.sweeper.get("params") or OmegaConf.create())
    swept = [f"{key}={value}" for key, value in dict(params).items()]  # type: ignore[call-overload]
    options: dict[str, list[str]] = {}
    for override, text in zip(
        parser.parse_overrides([*swept, *overrides]), [*swept, *overrides], strict=True
    ):
        key = override.get_key_element()
        if not override.is_sweep_override():
            options[key] = [text]
        elif override.is_discrete_sweep():
            options[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            return []
    return [list(job) for job in itertools.product(*options.values())]


def _one_line(text: str) -> str:
    return " ".join(re.split(r"Config search path|\n *full_key:|\.?\s+value: ", text)[0].split())
