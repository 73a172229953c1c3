"""Which runs share a curve: problems apart, seeds together, labels of what differs."""

from __future__ import annotations

from typing import Any

from study.synthetic import config, in_memory, rewards

from torchloc.study import Run
from torchloc.study.groups import Comparison, compare, settings
from torchloc.study.summary import PER_AGENT

SERIES = rewards([0.1, 0.2, 0.3])


def made(*asked: dict[str, Any], **options: Any) -> list[Run]:
    return [in_memory(config(**one), SERIES, name=str(i), **options) for i, one in enumerate(asked)]


def sorted_out(runs: list[Run]) -> Comparison:
    return compare(runs, PER_AGENT)


def labels(comparison: Comparison) -> list[tuple[str, list[str]]]:
    return [(panel.label, [group.label for group in panel.groups]) for panel in comparison.panels]


def test_seeds_and_housekeeping_make_no_other_group() -> None:
    runs = made(
        {"seed": 1, "changes": {"name": "x", "threads": 4}},
        {"seed": 0, "changes": {"logging.tensorboard": 7, "checkpoint.every": 3}},
    )
    found = sorted_out(runs)
    assert labels(found) == [("sysadmin", ["all runs"])] and not found.factors
    assert [run.config["seed"] for run in found.panels[0].groups[0].runs] == [0, 1]


def test_a_choice_stands_for_the_settings_that_follow_from_it() -> None:
    found = sorted_out(made({"schedule": "geometric"}, {"schedule": "constant"}))
    assert found.factors == {"schedule": ("geometric", "constant")}
    assert labels(found) == [("sysadmin", ["geometric", "constant"])]


def test_a_setting_that_varies_within_a_choice_is_named_beside_it() -> None:
    found = sorted_out(
        made(
            {"schedule": "geometric", "changes": {"schedule.end": 0.1}},
            {"schedule": "geometric"},
            {"schedule": "constant"},
        )
    )
    assert list(found.factors) == ["schedule", "schedule.end"]
    assert labels(found)[0][1] == [
        "schedule=geometric, schedule.end=0.1",
        "schedule=geometric, schedule.end=0.02",
        "schedule=constant",
    ]


def test_without_choices_the_target_names_the_node() -> None:
    found = sorted_out(made({"schedule": "geometric"}, {"schedule": "linear"}, chosen={}))
    assert labels(found)[0][1] == ["geometric", "linear"]


def test_choices_of_the_same_settings_make_one_group() -> None:
    first, second = made({"seed": 0}, {"seed": 1})
    second.choices["schedule"] = "my_geometric"
    assert labels(sorted_out([first, second])) == [("sysadmin", ["all runs"])]
    # Nor do names decide where they contradict the settings.
    (third,) = made({"seed": 2, "changes": {"schedule.end": 0.5}})
    found = sorted_out([first, second, third])
    assert found.factors == {"schedule.end": ("0.02", "0.5")}
    assert labels(found)[0][1] == ["schedule.end=0.02", "schedule.end=0.5"]


def test_a_group_that_only_some_have_is_a_choice_too() -> None:
    keep = {"_target_": "torchloc.locality.Locality", "target": 0.9}
    free, kept = made({}, {"changes": {"locality": keep}})
    kept.choices["locality"] = "keep"
    found = sorted_out([free, kept])
    assert found.factors == {"locality": ("null", "keep")}
    # A single factor's null would be no name.
    assert labels(found)[0][1] == ["locality=null", "keep"]


def test_problems_are_never_mixed() -> None:
    found = sorted_out(
        made(
            {"env": "ising", "changes": {"env.beta": 0.2}},
            {"env": "ising", "changes": {"env.beta": 0.6}},
            {"changes": {"scopes.hops": 2}},
            {"changes": {"evaluation.discount": 0.9}},
            {"changes": {"improvement.objective": "reward"}},
            {"changes": {"dynamics": "asynchronous"}},
        )
    )
    assert [len(panel.groups) for panel in found.panels] == [1] * 6
    assert len({panel.label for panel in found.panels}) == 6 and not found.factors
    assert found.panels[0].label.startswith("ising env.beta=0.2")
    assert "dynamics=asynchronous" in found.panels[5].label


def test_what_differs_between_problems_only_is_no_factor() -> None:
    """Two problems, each with its own κ: the methods are the two schedules of both."""
    found = sorted_out(
        made(
            *(
                {"env": env, "schedule": schedule, "changes": {"evaluation.kappa": kappa}}
                for env, kappa in (("ising", 1), ("sis", 5))
                for schedule in ("linear", "cosine")
            )
        )
    )
    assert labels(found) == [("ising", ["linear", "cosine"]), ("sis", ["linear", "cosine"])]
    assert [panel.fixed for panel in found.panels] == [
        {"evaluation.kappa": "1"}, {"evaluation.kappa": "5"}
    ]  # fmt: skip
    assert list(found.methods.values()) == ["linear", "cosine"]
    assert found.common["policy._target_"] == "torchloc.policy.SoftmaxPolicy.tabular"
    assert "evaluation.kappa" not in found.common


def test_a_repeated_run_is_left_out_for_the_latest() -> None:
    old = in_memory(config(), SERIES, name="old", started=1.0)
    new = in_memory(config(), SERIES, name="new", started=2.0)
    found = sorted_out([new, old])
    assert [run.name for run in found.panels[0].runs] == ["new"]
    assert found.left_out == ((old, "same settings and seed as new"),)


def test_a_run_without_the_metric_is_left_out_with_the_reason() -> None:
    lacking = in_memory(config(seed=1), {"reward/average": [1, 2, 3]})
    short = in_memory(config(seed=2), {**SERIES, PER_AGENT: [0.1]})
    broken = in_memory(config(seed=3), {**SERIES, PER_AGENT: [0.1, float("nan"), 0.2]})
    found = sorted_out([lacking, short, broken])
    assert not found.panels and [reason for _, reason in found.left_out] == [
        f"it logged no {PER_AGENT}",
        f"its {PER_AGENT} ends at iteration 1 of 3",
        f"its {PER_AGENT} is not always finite",
    ]


def test_settings_are_flat_text_and_null_is_missing() -> None:
    assert settings({"a": {"b": [1, None], "c": {}, "_partial_": True}, "d": "x", "e": None}) == {
        "a.b": "[1, null]",
        "a.c": "{}",
        "d": "x",
    }
