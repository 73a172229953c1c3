"""The language, against laws written in Python and against the library's simulator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rddl_problems as kit
from scipy import stats

import torchloc as tl
from torchloc.interop.rddl import GroundedProblem, ground_rddl

BASE = """
    W(thing) : { non-fluent, real, default = 0.5 };
    GATE : { non-fluent, bool, default = false };
    DEPTH : { non-fluent, int, default = 2 };
    x : { state-fluent, bool, default = true };
    y : { state-fluent, bool, default = false };
    on(thing) : { state-fluent, bool, default = false };
    c : { state-fluent, colour, default = @green };
    pick : { state-fluent, thing };
    u : { action-fluent, bool, default = false };
    m : { action-fluent, colour, default = @red };
    calm : { interm-fluent, bool };
    lit : { interm-fluent, int };
    first : { interm-fluent, bool };
    second : { interm-fluent, bool };
    hue : { interm-fluent, colour };
"""
CPFS = """
    x' = x;  y' = KronDelta(y);  on'(?t) = on(?t);  c' = c;  pick' = pick;
    calm = ~(exists_{?t : thing} on(?t));
    lit = sum_{?t : thing} on(?t);
    first = Bernoulli(0.3);
    second = if (first) then Bernoulli(0.9) else Bernoulli(0.1 + 0.1 * x);
    hue = Discrete(colour, @red : 0.2, @green : 0.3, @blue : 0.5);
"""
TYPES = "thing : object; colour : { @red, @green, @blue };"
Law = Callable[[bool, bool, tuple[bool, bool], int, int, bool, int], float]
# Probability of `true` given x, y, (on(a), on(b)), c, pick, u, m; W(a) = .25, W(b) = .5.
EXPRESSIONS: list[tuple[str, Law]] = [
    ("x ^ ~y", lambda x, y, on, c, p, u, m: x and not y),
    ("x & y | u", lambda x, y, on, c, p, u, m: (x and y) or u),
    ("x => y", lambda x, y, on, c, p, u, m: not x or y),
    ("[x <=> y] ^ true", lambda x, y, on, c, p, u, m: x == y),
    ("x ~= u", lambda x, y, on, c, p, u, m: x != u),
    ("GATE ^ x", lambda x, y, on, c, p, u, m: False),
    (
        "Bernoulli(0.2 + 0.3 * x - 0.1 * y / 2)",
        lambda x, y, on, c, p, u, m: 0.2 + 0.3 * x - 0.05 * y,
    ),
    ("x | Bernoulli(0.5)", lambda x, y, on, c, p, u, m: 1.0 if x else 0.5),
    ("Bernoulli(0.5) ^ ~Bernoulli(0.5)", lambda x, y, on, c, p, u, m: 0.25),
    ("Bernoulli(0.3) <=> Bernoulli(0.6)", lambda x, y, on, c, p, u, m: 0.3 * 0.6 + 0.7 * 0.4),
    ("Bernoulli(0.5 * Bernoulli(0.5))", lambda x, y, on, c, p, u, m: 0.25),
    (
        "if (Bernoulli(0.5)) then x else Bernoulli(0.25)",
        lambda x, y, on, c, p, u, m: 0.5 * x + 0.125,
    ),
    (
        "exists_{?t : thing} [on(?t) ^ Bernoulli(W(?t))]",
        lambda x, y, on, c, p, u, m: 1 - (1 - 0.25 * on[0]) * (1 - 0.5 * on[1]),
    ),
    ("forall_{?t : thing} [on(?t) | ?t ~= pick]", lambda x, y, on, c, p, u, m: on[p]),
    ("Bernoulli(prod_{?t : thing} W(?t))", lambda x, y, on, c, p, u, m: 0.125),
    (
        "Bernoulli(avg_{?t : thing} [W(?t) * on(?t)])",
        lambda x, y, on, c, p, u, m: (0.25 * on[0] + 0.5 * on[1]) / 2,
    ),
    (
        "Bernoulli(max_{?t : thing} [W(?t) * on(?t)])",
        lambda x, y, on, c, p, u, m: max(0.25 * on[0], 0.5 * on[1]),
    ),
    (
        "Bernoulli(min_{?t : thing} [W(?t) * on(?t)])",
        lambda x, y, on, c, p, u, m: min(0.25 * on[0], 0.5 * on[1]),
    ),
    (
        "Bernoulli(min[0.4, exp[-1.0 * lit]])",
        lambda x, y, on, c, p, u, m: min(0.4, math.exp(-sum(on))),
    ),
    ("Bernoulli(abs[-0.25] + sqrt[0.25] * u)", lambda x, y, on, c, p, u, m: 0.25 + 0.5 * u),
    ("mod[lit + DEPTH, 2] == 1", lambda x, y, on, c, p, u, m: sum(on) % 2 == 1),
    ("div[lit, 2] + floor[0.5 + 0.5 * x] >= 1", lambda x, y, on, c, p, u, m: sum(on) // 2 + x >= 1),
    ("pow[2, lit] > 3", lambda x, y, on, c, p, u, m: 2 ** sum(on) > 3),
    ("c == @green | m == @blue", lambda x, y, on, c, p, u, m: c == 1 or m == 2),
    ("c ~= m", lambda x, y, on, c, p, u, m: c != m),
    (
        "switch (c) { case @red : Bernoulli(0.125), default : x }",
        lambda x, y, on, c, p, u, m: 0.125 if c == 0 else x,
    ),
    (
        "switch (m) { case @red : x, case @green : y, case @blue : u }",
        lambda x, y, on, c, p, u, m: (x, y, u)[m],
    ),
    (
        "Discrete(colour, @red : 0.25, @green : 0.5 * x, @blue : 0.75 - 0.5 * x) == @blue",
        lambda x, y, on, c, p, u, m: 0.75 - 0.5 * x,
    ),
    (
        "UnnormDiscrete(colour, @red : 1 + x, @green : 1, @blue : 2) == @red",
        lambda x, y, on, c, p, u, m: (1 + x) / (4 + x),
    ),
    ("on(pick)", lambda x, y, on, c, p, u, m: on[p]),
    (
        "exists_{?t : thing} [?t == pick ^ W(?t) < 0.3] ^ calm",
        lambda x, y, on, c, p, u, m: p == 0 and not any(on),
    ),
    ("hue == c", lambda x, y, on, c, p, u, m: (0.2, 0.3, 0.5)[c]),
    ("first <=> second", lambda x, y, on, c, p, u, m: 0.3 * 0.9 + 0.7 * (0.9 - 0.1 * x)),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    # `first`, `second` and `hue` move one coordinate each.
    names = [f"f{i}" for i in range(len(EXPRESSIONS))]
    return kit.write(
        tmp_path_factory.mktemp("language"),
        BASE + "".join(f"{f} : {{ state-fluent, bool, default = false }};\n" for f in names),
        CPFS + "".join(f"{f}' = {e};\n" for f, (e, _) in zip(names, EXPRESSIONS, strict=True)),
        "0",
        types=TYPES,
        objects="thing : { a, b };",
        constants="W(a) = 0.25;",
        initial="on(a); pick = @b;",
    )


@pytest.fixture(scope="module")
def language(paths: tuple[Path, Path]) -> GroundedProblem:
    return ground_rddl(*paths)


def test_every_expression_has_its_law(language: GroundedProblem) -> None:
    mdp = language.mdp
    names = mdp.coordinate_names
    assert names is not None and mdp.agent_names == ("u", "m")
    where = {name: i for i, name in enumerate(names)}
    bits = (0, 1)
    for x, y, a, b, c, p, u, m in itertools.product(
        bits, bits, bits, bits, range(3), bits, bits, range(3)
    ):
        state = np.zeros(mdp.n_coordinates, int)
        for name, value in (("x", x), ("y", y), ("on(a)", a), ("on(b)", b), ("c", c), ("pick", p)):
            state[where[name]] = value
        found = kit.laws(mdp, state, np.array([u, m]))
        for i, (expression, law) in enumerate(EXPRESSIONS):
            wanted = float(law(bool(x), bool(y), (bool(a), bool(b)), c, p, bool(u), m))
            # A handful of operations on numbers of at most 4.
            assert found[where[f"f{i}"]][1] == pytest.approx(wanted, abs=2.0**-48), expression


def test_the_simulator_agrees_on_every_expression(
    language: GroundedProblem, paths: tuple[Path, Path]
) -> None:
    # One step from each of many states: (Σ x − p)² / Σ p(1 − p) is χ² with one degree; 1e-6 over all.
    mdp = language.mdp
    simulated = kit.Simulated(*paths, seed=1)
    rng = np.random.default_rng(2)
    n = len(EXPRESSIONS)
    excess, spread = np.zeros(n), np.zeros(n)
    for _ in range(150):
        state, action = kit.draw(mdp, rng)
        after = simulated.step(state, action)[0][-n:]
        on = np.array([law[1] for law in kit.laws(mdp, state, action)[-n:]])
        sure = (on == 0) | (on == 1)
        assert (after[sure] == on[sure]).all()
        excess += after - on
        spread += on * (1 - on)
    live = spread > 0
    assert stats.chi2.sf(excess[live] ** 2 / spread[live], 1).min() > 1e-6 / n


def test_parents_are_what_a_law_depends_on(language: GroundedProblem) -> None:
    mdp = language.mdp
    names = mdp.coordinate_names
    assert names is not None
    read = kit.parents(mdp)
    shown = {
        EXPRESSIONS[i][0]: (
            {names[s] for s in read[names.index(f"f{i}")][0]},
            len(read[names.index(f"f{i}")][1]),
        )
        for i in range(len(EXPRESSIONS))
    }
    assert shown["GATE ^ x"] == (set(), 0)
    assert shown["x & y | u"] == ({"x", "y"}, 1)
    assert shown["x | Bernoulli(0.5)"] == ({"x"}, 0)
    assert shown["first <=> second"] == ({"x"}, 0)
    assert shown["on(pick)"] == ({"on(a)", "on(b)", "pick"}, 0)


def test_what_the_model_carries(language: GroundedProblem) -> None:
    assert (language.domain, language.instance) == ("small", "one")
    assert (language.horizon, language.discount, language.notes) == (12.0, 0.9, ())
    mdp = language.mdp
    assert mdp.initial is not None
    first = dict(zip(mdp.coordinate_names or (), mdp.initial.argmax(axis=1).tolist(), strict=True))
    assert (first["x"], first["on(a)"], first["on(b)"], first["c"], first["pick"]) == (
        1,
        1,
        0,
        1,
        1,
    )
    assert language.action_values == ((False, True), ("red", "green", "blue"))
    assert language.default_actions == (0, 0)
    assert language.state_values[0] == (False, True)
    assert language.state_values[4] == ("red", "green", "blue")


STATES = (
    "t : { state-fluent, bool, default = false }; v : { action-fluent, bool, default = false };"
)

MANY = STATES + "z(thing) : { state-fluent, bool, default = false };"


def small(
    folder: Path, pvariables: str, cpfs: str, reward: str = "0", **blocks: str
) -> tl.FactoredMDP:
    return ground_rddl(*kit.write(folder, pvariables, cpfs, reward, **blocks)).mdp


def test_a_draw_read_twice_is_one_draw(tmp_path: Path) -> None:
    mdp = small(
        tmp_path,
        STATES + "g : { interm-fluent, bool };",
        "g = Bernoulli(0.5); t' = g ^ ~g;",
    )
    assert kit.laws(mdp, np.zeros(1, int), np.zeros(1, int))[0].tolist() == [1.0, 0.0]


def test_a_branch_that_is_not_taken_may_be_no_law(tmp_path: Path) -> None:
    mdp = small(
        tmp_path,
        MANY + "g : { interm-fluent, bool }; k : { interm-fluent, int };",
        "k = sum_{?o : thing} z(?o); z'(?o) = z(?o);"
        "g = if (k > 0) then Bernoulli(1 / k) else false;"
        "t' = if (k > 0) then g else [v ^ Bernoulli(0.5)];",
        "if (k > 0) then 3 * Bernoulli(1 / k) else v",
        types="thing : object;",
        objects="thing : { a, b };",
    )
    for state, action, chance, reward in (
        ([0, 0, 0], 1, 0.5, 1.0),
        ([0, 1, 0], 0, 1.0, 3.0),
        ([0, 1, 1], 0, 0.5, 1.5),
    ):
        assert kit.laws(mdp, np.array(state), np.array([action]))[0][1] == chance
        assert kit.reward(mdp, np.array(state), np.array([action])) == reward


def test_a_shared_draw_met_before_its_coordinate(tmp_path: Path) -> None:
    found = ground_rddl(
        *kit.write(
            tmp_path,
            STATES + "s : { state-fluent, bool, default = true }; g : { interm-fluent, bool };",
            "g = Bernoulli(if (s) then 0.25 else 0.5); t' = g ^ v; s' = s;",
            "g",
            domain="state-invariants { g | ~g; };",
        )
    )
    assert kit.laws(found.mdp, np.array([0, 1]), np.array([1]))[0].tolist() == [0.75, 0.25]
    assert kit.reward(found.mdp, np.array([0, 0]), np.array([1])) == 0.5
    assert found.notes == (
        "the reward is random given state and action; the model has its expectation",
    )


def test_whole_numbers_have_the_values_within_reach(tmp_path: Path) -> None:
    found = ground_rddl(
        *kit.write(
            tmp_path,
            STATES
            + "k : { state-fluent, int, default = 1 }; s : { state-fluent, int, default = 0 };",
            "t' = k >= 3; k' = if (v) then min[k + 2, 4] else max[k - 1, 0];"
            "s' = if (Bernoulli(0.5)) then s else 7 - s;",
            "k * s",
        )
    )
    assert found.state_values == ((False, True), (0, 1, 2, 3, 4), (0, 7))
    laws = kit.laws(found.mdp, np.array([0, 3, 1]), np.array([1]))
    assert [law.tolist() for law in laws] == [[0, 1], [0, 0, 0, 0, 1], [0.5, 0.5]]
    assert kit.reward(found.mdp, np.array([0, 3, 1]), np.array([1])) == 21.0


def test_bounds_make_whole_numbers_finite(tmp_path: Path) -> None:
    found = ground_rddl(
        *kit.write(
            tmp_path,
            "k : { state-fluent, int, default = 2 }; j : { action-fluent, int, default = 1 };"
            "TOP : { non-fluent, int, default = 3 };",
            "k' = max[0, min[k + j - 1, TOP]];",
            "-k - pow[j, 2]",
            domain="action-preconditions { j >= 0; j < TOP; }; state-invariants { k >= 0 ^ k <= TOP; };",
        )
    )
    assert (found.state_values, found.action_values) == (((0, 1, 2, 3),), ((0, 1, 2),))
    assert found.notes == ()
    assert found.default_actions == (1,)
    assert kit.laws(found.mdp, np.array([3]), np.array([2]))[0].tolist() == [0, 0, 0, 1]
    assert kit.reward(found.mdp, np.array([3]), np.array([2])) == -7.0


def test_rewards_fall_apart_into_local_terms(tmp_path: Path) -> None:
    mdp = small(
        tmp_path,
        "on(thing) : { state-fluent, bool, default = false }; g : { interm-fluent, bool };"
        "alarm : { state-fluent, bool, default = false }; v : { action-fluent, bool, default = false };",
        "on'(?t) = Bernoulli(0.25 + 0.5 * v); g = Bernoulli(0.5); alarm' = alarm;",
        "0.5 * (sum_{?t : thing} [2 * on(?t) - v]) / 2"
        "+ (if (alarm) then (sum_{?t : thing} on(?t)) else -1.0 * v)"
        "+ 8 * (sum_{?t : thing} on'(?t)) + 4 * (g ^ alarm) + 3",
        types="thing : object;",
        objects="thing : { a, b, d };",
    )
    terms = {
        (tuple(batch.states[row].tolist()), tuple(batch.actions[row].tolist()))
        for batch in mdp.rewards
        for row in range(len(batch))
    }
    assert terms == {((0, 3), ()), ((1, 3), ()), ((2, 3), ()), ((3,), (0,))}
    for a, b, d, alarm, v in itertools.product((0, 1), repeat=5):
        on = a + b + d
        wanted = 0.25 * (2 * on - 3 * v) + (on if alarm else -v)
        wanted += 8 * 3 * (0.25 + 0.5 * v) + 2 * alarm + 3
        found = kit.reward(mdp, np.array([a, b, d, alarm]), np.array([v]))
        assert found == pytest.approx(wanted, abs=1e-12)


PLANT = """
    WEAR(site) : { non-fluent, real, default = 0.2 };
    status(site) : { state-fluent, condition, default = @idle };
    alarm : { state-fluent, bool, default = false };
    go(site) : { action-fluent, bool, default = false };
    load(site) : { interm-fluent, bool };
    worry : { interm-fluent, int };
"""
PLANT_CPFS = """
    load(?s) = Bernoulli(0.3 + 0.4 * go(?s));
    worry = sum_{?s : site} (status(?s) == @broken);
    status'(?s) = switch (status(?s)) {
        case @idle : if (load(?s)) then @busy else @idle,
        case @busy : Discrete(condition, @idle : 0.5 - WEAR(?s), @busy : 0.5, @broken : WEAR(?s)),
        case @broken : if (go(?s) ^ ~load(?s)) then @idle else @broken };
    alarm' = if (worry >= 2) then KronDelta(true) else Bernoulli(0.1 + 0.3 * worry);
"""


def plant(folder: Path) -> tuple[Path, Path]:
    return kit.write(
        folder,
        PLANT,
        PLANT_CPFS,
        "(sum_{?s : site} [2 * (status(?s) == @busy) - 0.5 * go(?s)]) - worry * alarm",
        types="site : object; condition : { @idle, @busy, @broken };",
        objects="site : { a, b };",
        constants="WEAR(b) = 0.3;",
        initial="status(b) = @busy;",
    )


def test_intermediate_fluents_by_hand(tmp_path: Path) -> None:
    mdp = ground_rddl(*plant(tmp_path)).mdp
    idle, busy, broken = 0, 1, 2

    def law(a: int, b: int, alarm: int, go: tuple[int, int]) -> list[np.ndarray]:
        return kit.laws(mdp, np.array([a, b, alarm]), np.array(go))

    here = law(idle, busy, 0, (0, 1))
    assert here[0] == pytest.approx([0.7, 0.3, 0.0], abs=1e-15)
    assert here[1] == pytest.approx([0.2, 0.5, 0.3], abs=1e-15)
    assert here[2] == pytest.approx([0.9, 0.1], abs=1e-15)
    here = law(broken, broken, 1, (1, 0))
    assert here[0] == pytest.approx([0.3, 0.0, 0.7], abs=1e-15)
    assert here[1].tolist() == [0, 0, 1]
    assert here[2].tolist() == [0, 1]
    assert kit.parents(mdp) == {0: ({0}, {0}), 1: ({1}, {1}), 2: ({0, 1}, set())}


def test_the_simulator_agrees_on_joint_next_states(tmp_path: Path) -> None:
    # χ² over the joint cells, so that independence is tested too; 1e-6 over the three contexts.
    paths = plant(tmp_path)
    mdp = ground_rddl(*paths).mdp
    simulated = kit.Simulated(*paths, seed=3)
    rng = np.random.default_rng(4)
    steps, contexts = 200, 3
    for _ in range(contexts):
        state, action = kit.draw(mdp, rng)
        chances = np.einsum("i,j,k->ijk", *kit.laws(mdp, state, action))
        counts = np.zeros_like(chances)
        for _ in range(steps):
            after, reward = simulated.step(state, action)
            counts[tuple(after.astype(int))] += 1
            assert reward == pytest.approx(kit.reward(mdp, state, action), abs=1e-14)
        assert (counts[chances == 0] == 0).all()
        live = chances > 0
        statistic = ((counts - steps * chances)[live] ** 2 / (steps * chances[live])).sum()
        assert stats.chi2.sf(statistic, live.sum() - 1) > 1e-6 / contexts
