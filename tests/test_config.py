from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, OmegaConf

from torchloc import config
from torchloc.config import Choices, Range, check, compose, compose_jobs, setting
from torchloc.config.ranges import closest, describe
from torchloc.config.schemas import SCHEMAS, Run, folder_name
from torchloc.errors import InputError

CHOICES = [(group, choice) for group, choices in config.groups().items() for choice in choices]
# A choice that needs one more value from the user.
GRAPH = Path(__file__).parent / "templates" / "own_graph.graphml"
GIVEN = {
    ("scopes", "explicit"): ["scopes.scopes=[[0,1],[1],[]]"],
    ("env", "rddl"): ["env.domain=SysAdmin_MDP_ippc2011", "env.concurrency=lift"],
    ("env", "from_graph"): [
        f"env.graph_file={GRAPH}",
        "env.laws={person:[[[[1,0]],[[0,1]]],[[[1,0]],[[0,1]]]],sceptic:[[[[1,0]]],[[[0,1]]]]}",
        "env.rewards={person:[[0,0],[1,1]],sceptic:[[0],[1]]}",
    ],
}


def composed(group: str, choice: str, *more: str) -> Any:
    return compose([f"{group}={choice}", *GIVEN.get((group, choice), []), *more])


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_keeps_its_schema(group: str, choice: str) -> None:
    cfg = composed(group, choice)
    if group in ("experiment", "launcher", "problem"):
        return
    assert OmegaConf.get_type(cfg[group]) is SCHEMAS[group][choice]


@pytest.mark.parametrize(("group", "choice"), [p for p in CHOICES if p[0] in SCHEMAS])
def test_a_file_shows_every_setting_of_its_schema(group: str, choice: str) -> None:
    shown = OmegaConf.load(config.home() / group / f"{choice}.yaml")
    fields = [field.name for field in dataclasses.fields(SCHEMAS[group][choice])]
    assert [key for key in shown if key != "defaults"] == [f for f in fields if f[0] != "_"]


def test_every_schema_has_its_file() -> None:
    named = {(group, choice) for group, schemas in SCHEMAS.items() for choice in schemas}
    assert named == {pair for pair in CHOICES if pair[0] in SCHEMAS}


@pytest.mark.parametrize(("group", "choice"), [p for p in CHOICES if p[0] in SCHEMAS])
def test_a_schema_names_the_arguments_and_defaults_of_its_target(group: str, choice: str) -> None:
    schema = SCHEMAS[group][choice]
    fields = {field.name: field for field in dataclasses.fields(schema)}
    if "_target_" not in fields:
        return
    parameters = inspect.signature(get_object(str(fields["_target_"].default))).parameters
    for name, field in fields.items():
        if name.startswith("_"):
            continue
        assert name in parameters, f"{choice}.{name} is no argument"
        default = parameters[name].default
        if default is inspect.Parameter.empty:
            continue
        # Types matter: Hydra hands the schema's type on, so 1 and 1.0 must not be confused.
        given = (
            field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        )
        assert given == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("choice", list(SCHEMAS["env"]))
def test_every_environment_builds_from_its_configuration(choice: str) -> None:
    mdp = instantiate(composed("env", choice).env)
    assert mdp.n_coordinates > 0
    for scopes in ("neighbourhood", "parents"):
        assert len(instantiate(composed("scopes", scopes).scopes)(mdp)) == mdp.n_agents


def test_explicit_scopes_are_the_lists_given() -> None:
    cfg = composed("scopes", "explicit", "env.n=3")
    assert list(instantiate(cfg.scopes)(instantiate(cfg.env))) == [(0, 1), (1,), ()]


def test_the_default_experiment_is_the_one_of_the_readme() -> None:
    cfg = compose()
    assert (cfg.env.n, cfg.env.topology, cfg.env.table, cfg.env.cost) == (8, "ring", "jair", 0.75)
    assert (cfg.scopes.hops, cfg.evaluation.kappa, cfg.trainer.iterations) == (1, 3, 16)
    assert cfg.policy._target_.endswith("SoftmaxPolicy.mlp")
    assert cfg.schedule._target_.endswith("geometric")
    assert (cfg.schedule.start, cfg.schedule.end) == (1.0, 0.02)
    improvement = cfg.improvement
    assert (improvement.order, improvement.objective) == ("cyclic", "entropy")
    assert (improvement.weighting, improvement.prox) == ("stationary", None)


def test_line_kappa_sweeps_kappa_alone() -> None:
    jobs = compose_jobs(["experiment=line_kappa", "evaluation.kappa=range(0,9)"], sweep=True)
    assert [job.evaluation.kappa for job in jobs] == list(range(9))
    for job in jobs:
        assert job.name == "line_kappa"
        env = job.env
        assert (env.n, env.relay, env.cost, env.reward) == (8, 0.5, 0.01, "sink")
        assert job.scopes._target_.endswith("parent_scopes")
        assert job.policy._target_.endswith("tabular")
        assert job.improvement.objective == "entropy"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.n=a", "env.n = 'a' has the wrong type: it must be a whole number >= "),
        ("env.n=2.5", "env.n = 2.5 has the wrong type"),
        ("env.n=true", "env.n = True has the wrong type"),
        ("env.n=null", "env.n = None has the wrong type"),
        ("env.cost=x", "env.cost = 'x' has the wrong type: it must be a number that is finite"),
        ("env.cost=nan", "env.cost = nan is not allowed: it must be a number that is finite"),
        ("policy.hidden=3", "policy.hidden = 3 has the wrong type: it must be a list of whole"),
        ("policy.hidden=[8,0]", "policy.hidden[1] = 0 is not allowed: it must be a list of whole"),
        ("policy.hidden=[8,x]", "policy.hidden[1]: Value 'x' of type 'str' could not be converted"),
        ("trainer=3", "trainer = 3 has the wrong type: it must be a group of settings"),
        ("logging.progress=maybe", "logging.progress = 'maybe' has the wrong type: it must be"),
        ("env.m=3", "env.m is no setting; env has: cost, "),
        ("env.coste=3", "env.coste is no setting; did you mean env.cost?"),
        ("+env.coste=3", "env.coste is no setting; did you mean env.cost?"),
        ("+zzz=1", "zzz is no setting; there are: checkpoint, dynamics, env, "),
        ("envv=ising", "envv is no setting; did you mean env?"),
        ("hydra.zzz=1", "hydra.zzz is no setting; hydra has: "),
        ("trainer.iterations=0", "trainer.iterations = 0 is not allowed: it must be a whole"),
        ("schedule.end=0", "schedule.end = 0.0 is not allowed: it must be a number > 0"),
        ("schedule.end=inf", "schedule.end = inf is not allowed: it must be a number > 0"),
        ("evaluation.discount=1.5", "discount = 1.5 is not allowed: it must be a number in (0, 1]"),
        ("improvement.prox=-1", "prox = -1.0 is not allowed: it must be a number >= 0, or null"),
        ("seed=-1", "seed = -1 is not allowed: it must be a whole number"),
        ("improvement.order=cylic", "one of: cyclic, chromatic, jacobi; did you mean cyclic?"),
        ("improvement.order=zzz", "improvement.order = 'zzz' is not allowed: it must be one of:"),
        ("env=sysadmn", "env=sysadmn is no choice; did you mean sysadmin? choices: "),
        ("experiment=zzz", "experiment=zzz is no choice; choices: "),
        ("env=null", "Config group override must be a string or a list"),
        ("~env", "env is required: give env=…"),
        ("~logging", "logging was taken out: it is needed"),
        ("scopes=explicit", "scopes.scopes is required: give scopes.scopes=…"),
        ("env.n=${nothing}", "env.n: Interpolation key 'nothing' not found"),
        ("env.n=[1", "cannot read 'env.n=[1': "),
        ("env.n=1,2", "'env.n=1,2' names several values: add -m for one run each"),
    ],
)
def test_a_mistake_gives_one_sentence_that_names_it(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        compose([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_job_of_a_sweep_is_checked() -> None:
    jobs = compose_jobs(["env.n=3,4", "seed=range(0,3)", "name=x"], sweep=True)
    assert [(job.env.n, job.seed) for job in jobs] == [(n, s) for n in (3, 4) for s in range(3)]
    with pytest.raises(InputError, match="seed = -1 is not allowed"):
        compose_jobs(["seed=0,-1"], sweep=True)
    with pytest.raises(InputError, match="improvement=cyclik is no choice; did you mean cyclic"):
        compose_jobs(["improvement=cyclic,cyclik"], sweep=True)


def test_a_sweep_that_its_sweeper_must_expand_is_left_to_it() -> None:
    assert compose_jobs(["schedule.end=interval(0.01,0.1)"], sweep=True) == []


def test_a_folder_of_the_user_adds_choices(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.mkdir()
    (env / "mine.yaml").write_text("defaults: [/schema/env/sysadmin@_here_]\nn: 5\n")
    (env / "bare.yaml").write_text("_target_: fractions.Fraction\nnumerator: 3\n")
    (env / "wrong.yaml").write_text("defaults: [/schema/env/sysadmin@_here_]\nm: 5\n")
    (env / "broken.yaml").write_text("n: [1\n")
    assert {"mine", "bare", "sysadmin"} <= set(config.groups(config_dir=tmp_path)["env"])
    assert compose(["env=mine"], config_dir=tmp_path).env.n == 5
    assert instantiate(compose(["env=bare"], config_dir=tmp_path).env) == 3
    with pytest.raises(InputError, match=r"env\.n = 0 is not allowed"):
        compose(["env=mine", "env.n=0"], config_dir=tmp_path)
    with pytest.raises(InputError, match="m is no setting"):
        compose(["env=wrong"], config_dir=tmp_path)
    with pytest.raises(InputError, match=r"broken\.yaml"):
        compose(["env=broken"], config_dir=tmp_path)
    with pytest.raises(InputError, match="nowhere is no folder"):
        compose(config_dir=tmp_path / "nowhere")
    with pytest.raises(InputError, match="no configuration nothing"):
        compose(config_name="nothing")


def test_help_for_groups_leaves_out_schemas() -> None:
    assert set(config.groups()) == {*SCHEMAS, "experiment", "launcher", "problem"}


def test_ranges() -> None:
    closed, opened = Range(0, 1), Range(0, 1, low_open=True, high_open=True)
    assert 0 in closed and 1 in closed and 0 not in opened and 1 not in opened
    assert 0.5 in opened and 2 not in closed and math.nan not in Range()
    assert math.inf not in Range() and -math.inf not in Range() and math.inf not in Range(0)
    assert str(closed) == "in [0, 1]" and str(opened) == "in (0, 1)"
    assert str(Range(high=3)) == "<= 3" and str(Range(high=3, high_open=True)) == "< 3"
    assert str(Range(low=3)) == ">= 3" and str(Range(low=3, low_open=True)) == "> 3"


@dataclasses.dataclass
class Sample:
    number: float | None = setting(0.5, Range(0, 1))
    words: list[str] = setting(["a"], Choices(("a", "b")))
    required: int = setting(MISSING, Range(1))
    nested: list[list[int]] = dataclasses.field(default_factory=list)


def test_check_walks_leaves_and_lets_null_pass() -> None:
    cfg = OmegaConf.structured(Sample(required=1))
    cfg.number = None
    check(cfg)
    cfg.words = ["a", "c"]
    with pytest.raises(InputError, match=r"words\[1\] = 'c' is not allowed"):
        check(cfg)
    with pytest.raises(InputError, match="required is required"):
        check(OmegaConf.structured(Sample))
    assert Sample().words is not Sample().words


def test_descriptions() -> None:
    assert describe(Sample, "number") == "a number in [0, 1], or null"
    assert describe(Sample, "words") == "one of: a, b"
    assert describe(Sample, "required") == "a whole number >= 1"
    assert describe(Sample, "nested") == "a list of lists"
    assert describe(Run, "trainer") == "a group of settings (Trainer)"
    assert describe(Run, "name") == "a word"


def test_near_misses() -> None:
    assert closest("isng", ["ising", "sis"]) == "; did you mean ising?"
    assert closest("qqqq", ["ising", "sis"]) == ""


def test_folder_names_are_single_and_short() -> None:
    assert folder_name("env.graph=/a/b,seed=1") == "env.graph=_a_b,seed=1"
    assert len(folder_name("x" * 1000)) == 120
