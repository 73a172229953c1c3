"""Count batches over parents of any size: sensitivities, rungs, certificates, files and refusals.

Against the definition by enumeration (`reference`), with the same models written out as the package's own
tables where the definition would take long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
from counting_models import Wide, random_wide
from twins import twin_model, twin_policy

import torchloc as tl
from torchloc.colouring import conflict_graph
from torchloc.mdp import CountBatch, CountRewardBatch
from torchloc.sensitivity import action_sup

KINDS: list[dict[str, Any]] = [
    {},
    {"modes": True},
    {"counted_actions": False},
    {"private": True},
    {"private": True, "modes": True},
    {"n": 4, "k": 4, "sizes": (1, 2, 2, 3), "modes": True},
]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))]
# Sums of at most a hundred products of probabilities.
ATOL = 1e-13

every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "plain")
seeds = pytest.mark.parametrize("seed", SEEDS)


def drawn(seed: int, kind: dict[str, Any]) -> tuple[Wide, ref.Policy, tl.FactoredMDP]:
    rng = np.random.default_rng(seed)
    wide = random_wide(rng, **kind)
    policy = ref.random_policy(rng, wide.plain, scale=(0.3, 3.0), max_scope=2)
    return wide, policy, twin_model(wide.plain)


def near(found: Any, wanted: Any, what: str = "") -> None:
    found, wanted = (x.toarray() if hasattr(x, "toarray") else x for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ATOL, err_msg=what)


@every
@seeds
class TestAgainstTheDefinition:
    def test_written_out(self, seed: int, kind: dict[str, Any]) -> None:
        wide, _, _ = drawn(seed, kind)
        written = wide.counted.tabulated()
        for batch in written.kernels:
            for row, j in enumerate(batch.coordinates.tolist()):
                states, actions, table = wide.plain.kernels[j]
                assert tuple(batch.states[row]) == states
                assert tuple(batch.actions[row]) == actions
                # The same numbers at other places; rows that miss 1 are divided by their sum.
                near(batch.table[row if len(batch.table) > 1 else 0], table)
        twin = ref.Model(wide.plain.state_sizes, wide.plain.action_sizes, [], [])
        for batch in written.rewards:
            for row in range(len(batch)):
                table = batch.table[row if len(batch.table) > 1 else 0]
                twin.rewards.append((tuple(batch.states[row]), tuple(batch.actions[row]), table))
        near(ref.reward(twin), ref.reward(wide.plain))

    def test_sensitivities(self, seed: int, kind: dict[str, Any]) -> None:
        wide, _, tables = drawn(seed, kind)
        near(tl.state_sensitivity(wide.counted), ref.state_sensitivity(wide.plain))
        near(tl.action_sensitivity(wide.counted), ref.action_sensitivity(wide.plain))
        if wide.plain.n_agents == wide.plain.n_coordinates:
            near(action_sup(wide.counted), action_sup(tables))

    def test_every_rung(
        self, seed: int, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Written out, and where nothing may be: then rows of `exact` may stand in for `coupled`."""
        wide, plain, tables = drawn(seed, kind)
        policy = twin_policy(wide.counted, plain)
        wanted = {rung: tl.influence(tables, policy, rung) for rung in ref.RUNGS}
        for rung in ref.RUNGS:
            near(tl.influence(wide.counted, policy, rung), wanted[rung], rung)
        monkeypatch.setattr("torchloc.sensitivity.COUNT_ENTRIES", 0)
        found = tl.influence(wide.counted, policy, "coupled").toarray()
        assert (found >= wanted["coupled"].toarray() - ATOL).all()
        assert (found <= wanted["exact"].toarray() + ATOL).all()
        if kind.get("private"):
            near(found, wanted["coupled"])

    @pytest.mark.parametrize("entries", [0, 2**14])
    def test_certificates_bound_the_truth(
        self, seed: int, kind: dict[str, Any], entries: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchloc.sensitivity.COUNT_ENTRIES", entries)
        monkeypatch.setattr("torchloc.certificate.ladder.COUNT_ENTRIES", entries)
        wide, plain, tables = drawn(seed, kind)
        policy = twin_policy(wide.counted, plain)
        found = tl.certify(wide.counted, policy, rungs=("coupled", "span"))
        oscillation = ref.local_reward_bound(wide.plain, plain)
        for rung, certificate in found.items():
            # As computed the truth itself is off by the rounding of its sums, also where it is 0.
            truth = tl.influence(tables, policy, rung).toarray()
            truth[truth < 1e-15] = 0.0
            assert (certificate.matrix.toarray() >= truth - 1e-15).all()
            assert (certificate.reward_oscillation >= oscillation - 1e-14).all()
            assert certificate.rho.upper >= ref.spectral_radius(truth) - 1e-12
            if entries:
                np.testing.assert_allclose(certificate.reward_oscillation, oscillation, atol=1e-10)

    def test_who_may_move_together(self, seed: int, kind: dict[str, Any]) -> None:
        wide, plain, tables = drawn(seed, kind)
        for kappa in (0, 2):
            mine, other = (
                conflict_graph(mdp, plain.scopes, kappa, objective="entropy")
                for mdp in (wide.counted, tables)
            )
            assert (mine != other).nnz == 0

    def test_a_saved_model_comes_back(
        self, seed: int, kind: dict[str, Any], tmp_path: Path
    ) -> None:
        mdp = drawn(seed, kind)[0].counted
        mdp.save(tmp_path / "m.npz")
        again = tl.FactoredMDP.load(tmp_path / "m.npz")
        pairs = [*zip(mdp.kernels, again.kernels, strict=True)]
        for mine, other in (*pairs, *zip(mdp.rewards, again.rewards, strict=True)):
            assert isinstance(mine, CountBatch | CountRewardBatch)
            assert type(mine) is type(other)
            assert mine.counters.sizes == other.counters.sizes
            for field in ("states", "actions", "state_weights", "action_weights"):
                assert np.array_equal(getattr(mine.counters, field), getattr(other.counters, field))
            assert np.array_equal(mine.table, other.table)
        for mine, other in pairs:
            for field in ("table", "rates"):
                have, want = (getattr(x.modes, field, None) for x in (mine, other))
                assert np.array_equal(have, want)


def test_an_old_file_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    """A model without counters is a file of format 1, whatever this version could write."""
    old = {
        "torchloc_model": 1, "state_sizes": [2, 3], "action_sizes": [2], "counts": [2, 1],
        "kernel_0_coordinates": [0], "kernel_0_states": [[1]], "kernel_0_actions": [[0]],
        "kernel_0_table": np.full((1, 3, 2, 2), 0.5),
        "kernel_1_coordinates": [1], "kernel_1_states": [[]], "kernel_1_actions": [[]],
        "kernel_1_table": [[0.2, 0.3, 0.5]],
        "reward_0_states": [[0]], "reward_0_actions": [[]], "reward_0_table": [[0.0, 1.0]],
    }  # fmt: skip
    np.savez(tmp_path / "old.npz", **{name: np.array(value) for name, value in old.items()})
    mdp = tl.FactoredMDP.load(tmp_path / "old.npz")
    assert mdp.state_edges()[0].tolist() == [0]
    mdp.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as arrays:
        assert int(arrays["torchloc_model"]) == 1
        assert not any("counted" in name for name in arrays.files)


@pytest.mark.parametrize("field", ["weights", "sizes"])
def test_a_file_without_an_array_is_damaged(field: str, tmp_path: Path) -> None:
    drawn(0, {})[0].counted.save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as arrays:
        kept = {n: arrays[n] for n in arrays.files if n != f"kernel_0_counted_state_{field}"}
    np.savez(tmp_path / "m.npz", **kept)
    with pytest.raises(tl.InputError, match="is damaged"):
        tl.FactoredMDP.load(tmp_path / "m.npz")


class TestModes:
    def test_no_mode_is_constant(self) -> None:
        """2·½^c q₁ − 0^c q₂ is 2 q₁ − q₂ at 0 and q₁ at 1; a mode of zeros with rate 1 is added."""
        first, second = np.array([0.7, 0.3]), np.array([0.6, 0.4])
        table = np.stack([2 * first - second, first])
        kernel = tl.CountKernel(
            (), (), (0,), table, modes=(np.stack([2 * first, -second]), [0.5, 0.0])
        )
        modes = kernel.batch.modes
        assert modes is not None
        assert modes.rates.tolist() == [[1.0], [0.5], [0.0]]
        assert not modes.table[:, 0].any()

    def test_of_a_kernel_that_counts_nothing(self) -> None:
        kernel = tl.CountKernel((), (), (), [0.3, 0.7], modes=([[0.3, 0.7]], np.ones((1, 0))))
        assert kernel.batch.modes is not None

    @pytest.mark.parametrize("weights", [[0, 3], [[0, 1], [0, 2]]])
    def test_one_level_counts_nothing(self, weights: Any) -> None:
        """0^0 = 1: whatever the weights, a counter of one level stays at 0."""
        kernel = tl.CountKernel(
            (), (), (0, 1), [[0.4, 0.6]], weights=weights,
            modes=([[0.1, 0.1], [0.3, 0.5]], [1.0, 0.0]),
        )  # fmt: skip
        mdp = tl.FactoredMDP(
            [2, 2], [2], [kernel, tl.LocalKernel((), (0,), [[0.5, 0.5], [0.1, 0.9]])],
            [tl.LocalReward((0, 1), (), np.arange(4.0).reshape(2, 2))],
        )  # fmt: skip
        policy = tl.SoftmaxPolicy.tabular(mdp, [(0, 1)])
        found, wanted = (tl.local_logits(m, policy, 1)[0] for m in (mdp, mdp.tabulated()))
        near(found.numpy(), wanted.numpy())


def batch(**changes: Any) -> CountBatch:
    """Two sites of two counted parents, or what a change makes of them."""
    fields: dict[str, Any] = {
        "coordinates": [0, 1], "states": [[0], [1]], "actions": [[], []],
        "counted_states": [[2, 3], [3, 2]], "counted_actions": [[], []],
        "table": np.full((1, 2, 3, 2), 0.5), **changes,
    }  # fmt: skip
    parts = ("coordinates", "states", "actions", "counted_states", "counted_actions", "table")
    given = [fields.pop(part) for part in parts]
    return CountBatch(*given, **fields)


def term(**changes: Any) -> CountRewardBatch:
    fields: dict[str, Any] = {
        "states": [[0], [1]], "actions": [[], []], "counted_states": [[2, 3], [3, 2]],
        "counted_actions": [[], []], "table": np.zeros((1, 2, 3)), **changes,
    }  # fmt: skip
    return CountRewardBatch(**fields)


def noisy(**changes: Any) -> tl.CountKernel:
    fields: dict[str, Any] = {"reached": [0, 1], "spared": [1, 0], "inhibition": 0.5, **changes}
    return tl.CountKernel.noisy_or((), (), (1, 2), **fields)


def model(kernels: CountBatch) -> tl.FactoredMDP:
    rest = [tl.LocalKernel((), (), [0.5, 0.5])] * (4 - len(kernels))
    return tl.FactoredMDP([2] * 4, [3], [kernels, *rest], [])


MODES = np.stack([np.full((1, 2, 2), 0.5), np.zeros((1, 2, 2))], axis=2)
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: batch(state_weights=[[0, 1], [0, 1, 2]]), "state_weights must be a rectangular array"),
    (lambda: batch(state_weights=[0, 1.5]), r"state_weights: entry \(1,\) is 1.5"),
    (lambda: batch(state_weights=[0, None]), r"state_weights: entry \(1,\) is nan"),
    (lambda: batch(state_weights=[]), r"state_weights has shape \(0,\)"),
    (lambda: batch(state_weights=1), r"state_weights has shape \(\)"),
    (lambda: batch(state_weights=[0, 2**60]), "that is no index or size"),
    (lambda: batch(state_weights=np.zeros((3, 1, 2, 2), int)), r"or \(2, 1, 2, X\)"),
    (lambda: batch(state_sizes=3), "state_sizes must have 1 axes"),
    (lambda: batch(state_sizes=[2.5, 2]), r"state_sizes: entry \(0,\) is 2.5"),
    (lambda: batch(state_sizes="ab"), "state_sizes must have 1 axes"),
    (lambda: batch(state_sizes=[2, 3]), "give 2 numbers from 1 to 2"),
    (lambda: model(batch(state_sizes=[2, 1])), "which has size 2, with 1 weights"),
    (lambda: model(batch(counted_actions=[[0], [0]])), "agent 0, which has size 3, with 2 weights"),
    (lambda: model(batch(counted_actions=[[0], [7]])), "reads agent 7"),
    (lambda: model(batch(counted_states=[[2, 9], [3, 2]])), "reads coordinate 9"),
    (lambda: batch(counted_states=[[2, 0], [3, 2]]), "coordinate 0 stands twice"),
    (lambda: batch(counted_states=[[2, 3]]), "counted states has 1 rows"),
    (lambda: batch(table=np.full((1, 2, 2), 0.5)), "has no axis for a count"),
    (lambda: batch(table=np.full((3, 2, 3, 2), 0.5)), r"it must be \(1 or 2, "),
    (lambda: batch(modes=3), "modes must be a pair"),
    (lambda: batch(modes=(MODES,)), "modes must be a pair"),
    (lambda: batch(modes=(MODES, [1.0, np.nan])), "give 1 numbers between 0 and 1"),
    (lambda: batch(modes=(MODES, [[1.0, 1.0], [0.5, 0.5]])), "give 1 numbers between 0 and 1"),
    (lambda: batch(modes=(MODES[..., :1], [1.0, 0.5])), "the mode table has shape"),
    (lambda: batch(modes=(MODES * np.nan, [1.0, 0.5])), "the modes differ from the table by nan"),
    (lambda: term(states=3), "states must have 2 axes"),
    (lambda: term(states=[[0], [1, 2]]), "states must be a rectangular array"),
    (lambda: term(counted_states=None), "counted states must have 2 axes"),
    (lambda: term(states=[], counted_states=[], actions=[], counted_actions=[]), "has no terms"),
    (lambda: tl.CountKernel((0,), (), (1,), np.full((2, 2, 2), 0.5), modes=(MODES,)), "be a pair"),
    (lambda: tl.CountKernel((), (), (1,), np.full((2, 2), 0.6)), "^kernel: row"),
    (lambda: noisy(weights=[[0, 1], [0, 1, 2]]), "weights must be a rectangular array"),
    (lambda: noisy(weights=1), r"weights has shape \(\)"),
    (lambda: noisy(weights=np.zeros((3, 2), int)), r"weights has shape \(3, 2\)"),
    (lambda: noisy(weights=[0, -1]), "counters only grow"),
    (lambda: noisy(weights=[0, 2**40]), "use smaller weights"),
    (lambda: noisy(inhibition=np.nan), "it must be probabilities"),
    (lambda: noisy(reached=[[0, 1]]), "reached has 2 axes"),
    (lambda: noisy(reached=1.0), "reached has 0 axes"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_in_one_sentence(number: int) -> None:
    build, words = REFUSED[number]
    with pytest.raises(tl.InputError, match=words):
        build()
