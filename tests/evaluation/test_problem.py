"""Passes in chunks of any size, and selections that read what they need."""

from __future__ import annotations

import pytest
from evaluation.against import assert_same, check, drawn, evaluation, ring, ring_policy, variants

from torchloc.evaluation import problem
from torchloc.evaluation.local import LocalEvaluation


@pytest.mark.parametrize("chunk", [1, 300])
@pytest.mark.parametrize("tables", [3, None])
def test_chunks_of_any_size(
    chunk: int, tables: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mdp = ring(9, tables=tables)
    policy = ring_policy(mdp, equal=tables is not None, odd=0)
    local = evaluation(mdp, policy, (1, "entropy", 1.0))
    whole = variants(local, policy)
    monkeypatch.setitem(problem._CHUNK, "cpu", chunk)
    assert_same(local, policy, whole)


@pytest.mark.parametrize("seed", range(0, 16, 4))
def test_chunks_of_one_site_on_random_models(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(problem._CHUNK, "cpu", 1)
    check(*drawn(seed), [(2, "entropy", 0.7)], seed)


def test_one_agent_reads_its_ball_only() -> None:
    mdp = ring(60)
    local = LocalEvaluation(mdp, ring_policy(mdp), 2)
    balls = [reached.ball for reached in local.select([30]).balls]
    assert sum(map(len, balls)) == 5
    assert sum(len(reached.ball) for reached in local.select().balls) == 60
    assert local.select([]).balls == ()
