"""SysAdmin and GameOfLife of the IPPC 2011: all twenty instances, against their CPFs and the simulator."""

from __future__ import annotations

import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import rddl_problems as kit
from scipy import stats

import torchloc as tl
from torchloc.environments.sysadmin import sysadmin_on
from torchloc.errors import InputError
from torchloc.interop.rddl import GroundedProblem, ground_rddl, load_rddl

SYSADMIN, LIFE = "SysAdmin_MDP_ippc2011", "GameOfLife_MDP_ippc2011"
EVERY = [(domain, i) for domain in (SYSADMIN, LIFE) for i in range(1, 11)]
SOME = [(SYSADMIN, 1), (SYSADMIN, 4), (LIFE, 1), (LIFE, 4)]


def files(domain: str, instance: int) -> tuple[Path, Path]:
    from rddlrepository import RDDLRepoManager

    problem = RDDLRepoManager().get_problem(domain)
    return Path(problem.get_domain()), Path(problem.get_instance(str(instance)))


def grounded(domain: str, instance: int) -> GroundedProblem:
    return ground_rddl(domain, instance, concurrency="lift")


def network(domain: str, instance: int) -> tuple[str, nx.DiGraph]:
    """The text of an instance, and its links read from it without the library; j -> i: j moves i."""
    written = files(domain, instance)[1].read_text(encoding="utf-8")
    graph = nx.DiGraph()
    if domain == SYSADMIN:
        (names,) = re.findall(r"computer : \{(.*?)\}", written)
        graph.add_nodes_from(names.split(","))
        graph.add_edges_from(re.findall(r"CONNECTED\((\w+),(\w+)\);", written))
    else:
        (across,), (along,) = (re.findall(rf"{k}_pos : \{{(.*?)\}}", written) for k in "xy")
        graph.add_nodes_from(f"{x},{y}" for x in across.split(",") for y in along.split(","))
        for pair in re.findall(r"NEIGHBOR\((\w+,\w+),(\w+,\w+)\);", written):
            graph.add_edge(*reversed(pair))
    return written, graph


def expected(domain: str, instance: int) -> tuple[nx.DiGraph, dict[int, np.ndarray], np.ndarray]:
    """The published CPFs by hand: P(true | *state parents, own state last, own action), and E^s."""
    written, graph = network(domain, instance)
    order = {node: j for j, node in enumerate(graph)}
    tables: dict[int, np.ndarray] = {}
    influence = np.zeros((len(order), len(order)))
    for node, j in order.items():
        degree = graph.in_degree(node)
        others = np.indices((2,) * degree).sum(axis=0)
        table = np.zeros((*(2,) * degree, 2, 2))
        if domain == SYSADMIN:
            (back,) = map(float, re.findall(r"REBOOT-PROB = ([\d.]+)", written))
            table[..., 0, 0] = back
            table[..., 1, 0] = 0.45 + 0.5 * (1 + others) / (1 + degree)
            table[..., 1] = 1.0
            influence[j, j], near = 0.95 - back, 0.5 / (1 + degree)
        else:
            (noise,) = map(float, re.findall(rf"NOISE-PROB\({node}\) = ([\d.]+)", written))
            table[..., 0, 0] = np.where(others == 3, 1 - noise, noise)
            table[..., 1, 0] = np.where((others == 2) | (others == 3), 1 - noise, noise)
            table[..., 1] = 1 - noise
            influence[j, j] = near = 1 - 2 * noise
        tables[j] = table
        for other in graph.predecessors(node):
            influence[j, order[other]] = near
    return graph, tables, influence


def check_instance(domain: str, instance: int) -> None:
    found = grounded(domain, instance)
    mdp = found.mdp
    graph, tables, influence = expected(domain, instance)
    n = len(graph)
    order = {node: j for j, node in enumerate(graph)}
    assert (mdp.n_coordinates, mdp.n_agents, found.max_actions) == (n, n, 1)
    assert (found.horizon, found.discount) == (40.0, 1.0)
    assert f"lets 1 of its {n} action fluents" in found.notes[0] and len(found.notes) == 1
    fluent = "running({})" if domain == SYSADMIN else "alive({})"
    assert mdp.coordinate_names == tuple(fluent.format(node) for node in graph)
    for batch in mdp.kernels:
        for row, j in enumerate(batch.coordinates.tolist()):
            node = list(graph)[j]
            wanted = [*sorted(order[other] for other in graph.predecessors(node)), j]
            assert sorted(batch.states[row].tolist()) == sorted(wanted)
            assert batch.actions[row].tolist() == [j]
            axes = [batch.states[row].tolist().index(i) for i in wanted]
            law = batch.table[row % len(batch.table)][..., 1]
            # The same formula in the same numbers, in another order of its few operations.
            np.testing.assert_allclose(
                law.transpose([*axes, len(axes)]), tables[j], rtol=0, atol=2.0**-50
            )
    np.testing.assert_allclose(
        tl.state_sensitivity(mdp).toarray(), influence, rtol=0, atol=2.0**-49
    )
    written = files(domain, instance)[1].read_text(encoding="utf-8")
    lit = set(re.findall(r"(?:running|alive)\(([\w,]+)\);", written.split("init-state")[1]))
    assert mdp.initial is not None
    assert mdp.initial[:, 1].tolist() == [float(node in lit) for node in graph]


@pytest.mark.parametrize(("domain", "instance"), SOME)
def test_an_instance_has_the_tables_of_its_cpfs(domain: str, instance: int) -> None:
    check_instance(domain, instance)


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "instance"), [pair for pair in EVERY if pair not in SOME])
def test_every_other_instance_has_the_tables_of_its_cpfs(domain: str, instance: int) -> None:
    check_instance(domain, instance)


def test_entries_computed_by_hand() -> None:
    mdp = grounded(SYSADMIN, 1).mdp
    up, idle, all_on = np.ones(10, int), np.zeros(10, int), 9
    # c10 hears of c8 alone: .45 + .5·2/2 with both up, .45 + .5·1/2 with c8 down.
    assert kit.laws(mdp, up, idle)[all_on][1] == pytest.approx(0.95, abs=1e-15)
    alone = up.copy()
    alone[7] = 0
    assert kit.laws(mdp, alone, idle)[9][1] == pytest.approx(0.70, abs=1e-15)
    down = np.zeros(10, int)
    assert kit.laws(mdp, down, idle)[9][1] == 0.05
    assert kit.laws(mdp, down, up)[9].tolist() == [0.0, 1.0]
    assert kit.reward(mdp, up, up) == pytest.approx(10 * 0.25, abs=1e-14)


@pytest.mark.parametrize("instance", [1, 3])
def test_sysadmin_is_the_package_s_own(instance: int) -> None:
    mdp = grounded(SYSADMIN, instance).mdp
    written, graph = network(SYSADMIN, instance)
    (back,) = map(float, re.findall(r"REBOOT-PROB = ([\d.]+)", written))
    own = sysadmin_on(graph, table="ippc", cost=0.75, recovery=back)
    rng = np.random.default_rng(instance)
    for _ in range(40):
        state, action = kit.draw(mdp, rng)
        pairs = zip(kit.laws(mdp, state, action), kit.laws(own, state, action), strict=True)
        assert max(np.abs(a - b).max() for a, b in pairs) <= 2.0**-50
        assert abs(kit.reward(mdp, state, action) - kit.reward(own, state, action)) <= 1e-13
    one, two = tl.state_sensitivity(mdp), tl.state_sensitivity(own)
    assert abs(one - two).max() <= 2.0**-49


def check_simulator(
    domain: str, instance: int, *, contexts: int, steps: int, **options: str
) -> None:
    """χ² of the next values at fixed contexts, and rewards; one test a context, 1e-6 in all.

    Given state and action the next values are independent, so the squared standardised counts add up
    to χ² with one degree a coordinate that is not deterministic.
    """
    mdp = ground_rddl(domain, instance, concurrency="lift", **options).mdp
    assert set(mdp.state_sizes.tolist()) == {2}
    simulated = kit.Simulated(*files(domain, instance), seed=instance)
    rng = np.random.default_rng(1000 + instance)
    for _ in range(contexts):
        state, action = kit.draw(mdp, rng)
        on = np.array([law[1] for law in kit.laws(mdp, state, action)])
        counts = np.zeros(mdp.n_coordinates)
        for _ in range(steps):
            after, _ = simulated.step(state, action)
            counts += after
        sure = (on == 0) | (on == 1)
        assert (counts[sure] == steps * on[sure]).all()
        spread = steps * on[~sure] * (1 - on[~sure])
        statistic = ((counts[~sure] - steps * on[~sure]) ** 2 / spread).sum()
        assert sure.all() or stats.chi2.sf(statistic, (~sure).sum()) > 1e-6 / contexts
    for _ in range(20):
        state, action = kit.draw(mdp, rng)
        found = kit.reward(mdp, state, action)
        # A sum in two orders, of at most four numbers a fluent.
        count = 4 * (mdp.n_coordinates + mdp.n_agents)
        largest = max(1.0, *(np.abs(batch.table).max() for batch in mdp.rewards))
        bound = count**2 * largest * 2.0**-52
        assert abs(found - simulated.step(state, action)[1]) <= bound


@pytest.mark.parametrize(("domain", "instance"), [(SYSADMIN, 1), (LIFE, 1)])
def test_the_simulator_agrees(domain: str, instance: int) -> None:
    check_simulator(domain, instance, contexts=2, steps=300)


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "instance"), EVERY)
def test_the_simulator_agrees_on_every_instance(domain: str, instance: int) -> None:
    check_simulator(domain, instance, contexts=6, steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "domain",
    [
        "AcademicAdvising_MDP_ippc2014",
        "CooperativeRecon_MDP_ippc2011",
        "CrossingTraffic_MDP_ippc2014",
        "Elevators_MDP_ippc2014",
        "Navigation_MDP_ippc2011",
        "SkillTeaching_MDP_ippc2014",
        "Tamarisk_MDP_ippc2014",
        "Traffic_MDP_ippc2014",
        "Wildfire_MDP_ippc2014",
    ],
)
def test_the_simulator_agrees_on_other_domains(domain: str) -> None:
    check_simulator(domain, 1, contexts=6, steps=300, preconditions="lift")


@pytest.mark.parametrize(("domain", "instance"), [(SYSADMIN, 1), (LIFE, 1)])
def test_the_ladder_meets_the_sensitivities_by_hand(domain: str, instance: int) -> None:
    mdp = grounded(domain, instance).mdp
    scopes = tl.neighbourhood_scopes(mdp, hops=1)
    policy = tl.SoftmaxPolicy.tabular(mdp, scopes, temperature=1.0)
    certificate = tl.certify(mdp, policy, kappa=1)
    *_, influence = expected(domain, instance)
    radius = np.abs(np.linalg.eigvals(influence)).max()
    # The uniform policy adds nothing: Π = 0 on every rung but `scope`.
    assert certificate["exact"].rho.lower - 1e-9 <= radius <= certificate["exact"].rho.upper + 1e-9
    # It acts half the time, and then its coordinate forgets the past: the coupled matrix is E^s / 2.
    assert certificate["coupled"].rho.upper == pytest.approx(radius / 2, abs=1e-6)
    if domain == SYSADMIN:
        assert certificate["coupled"].rho.upper < 1 < certificate["exact"].rho.lower


def test_the_cap_is_refused_unless_lifted(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"lets 1 of its 10 .* concurrency=lift drops the cap"):
        load_rddl(SYSADMIN, 1)
    mdp = load_rddl(SYSADMIN, 1, concurrency="lift")
    assert mdp.n_agents == 10
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "all 10 agents may act at once" in caplog.text


def test_machines_of_equal_degree_share_a_table() -> None:
    mdp = grounded(SYSADMIN, 4).mdp
    assert all(len(batch.table) == 1 for batch in mdp.kernels)
