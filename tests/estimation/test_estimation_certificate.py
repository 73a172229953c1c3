"""Certificates that stand on sensitivities alone: the rungs, the tags, and the truth under them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import reference as ref
from twins import draw

import torchloc as tl
from torchloc.certificate import Environment, Sensitivities
from torchloc.environments import sis, sysadmin
from torchloc.errors import InputError
from torchloc.estimation import estimate_sensitivities, model_simulator

RUNGS = ("exact", "span", "tanh", "paper", "scope")


def known(mdp: tl.FactoredMDP, **options: Any) -> Sensitivities:
    """The model's own matrices, as given ones."""
    environment = Environment(mdp)
    return Sensitivities(
        state_sizes=mdp.state_sizes,
        action_sizes=mdp.action_sizes,
        state=environment.state.minimum(1.0),
        action=environment.action.minimum(1.0),
        state_tags="exact",
        action_tags="exact",
        absent="exact",
        rewards=mdp.rewards,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"objective": "entropy", "discount": 0.9}, {"dynamics": "asynchronous"}],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_exact_matrices_give_the_model_s_certificate(seed: int, options: dict[str, Any]) -> None:
    _, _, mdp, policy = draw(seed, concentration=(1.0, 3.0))
    one = tl.certify(mdp, policy, **options)
    two = tl.certify(known(mdp), policy, **options)
    assert tuple(two) == RUNGS
    for name in RUNGS:
        np.testing.assert_array_equal(two[name].matrix.toarray(), one[name].matrix.toarray())
        np.testing.assert_array_equal(two[name].tail, one[name].tail)
        np.testing.assert_array_equal(two[name].epsilon, one[name].epsilon)
        assert two[name].rho.upper == one[name].rho.upper
    assert (two.weakest, two.delta) == (one.weakest, one.delta) == ("exact", 0.0)


def test_a_certificate_on_samples_is_sound() -> None:
    """Given that no entry failed, every ρ, tail and ε is above the model's own; and here it certifies."""
    mdp = sis(6, infection=(0.05, 0.01), recovery=(0.8, 0.9), outside=0.2)
    site = np.arange(6)
    estimate = estimate_sensitivities(
        model_simulator(mdp),
        delta=0.01,
        samples=5000,
        generator=np.random.default_rng(0),
        state_parents=np.stack([(site - 1) % 6, (site + 1) % 6, site], axis=1),
        action_parents=site[:, None],
    ).with_rewards(mdp.rewards)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=0.1, seed=1)
    truth, certificate = tl.certify(mdp, policy), tl.certify(estimate, policy)
    assert (estimate.state.toarray() >= tl.state_sensitivity(mdp).toarray()).all()
    for name in RUNGS:
        one, two = truth[name], certificate[name]
        assert (two.matrix.toarray() >= one.matrix.toarray() * (1 - 1e-12)).all()
        assert two.rho.upper >= one.rho.lower
        if two.certified:
            assert (two.tail >= one.tail * (1 - 1e-9)).all()
            assert (two.epsilon >= one.epsilon * (1 - 1e-9)).all()
    assert certificate["exact"].certified and math.isfinite(certificate["exact"].epsilon.max())
    assert (certificate.weakest, certificate.delta) == ("assumed", 0.01)
    assert (
        "probability ≥ 0.99" in certificate.standing and "assumed is true" in certificate.standing
    )


@pytest.mark.parametrize(
    "options", [{"discount": 0.7}, {"discount": 0.7, "objective": "entropy"}], ids=str
)
@pytest.mark.parametrize("seed", range(4))
def test_what_it_proves_holds_of_the_true_system(seed: int, options: dict[str, Any]) -> None:
    """δ(h − ĥ_κ), δ(h) and the error of the advantages, by enumeration of the system that was sampled.

    δ = 1e-9 makes a failure by chance as good as impossible; the discount makes even a wide bound certify.
    """
    model, policy, mdp, twin = draw(
        seed, unichain=True, concentration=(2.0, 5.0), max_joint=60, sizes=(2, 3), max_parents=1
    )
    estimate = estimate_sensitivities(
        model_simulator(mdp),
        delta=1e-9,
        samples=20_000,
        generator=np.random.default_rng(seed),
        state_parents=[kernel[0] for kernel in model.kernels],
        action_parents=[kernel[1] for kernel in model.kernels],
    ).with_rewards(mdp.rewards)
    certificate = tl.certify(estimate, twin, 2, **options)
    entropy = policy.temperature if "objective" in options else 0.0
    matrix = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    reward = ref.policy_reward(model, policy, entropy)
    exact = ref.discounted_value(matrix, reward, 0.7)
    short = ref.truncated_value(matrix, reward, 2, 0.7)
    found = 0
    for rung in certificate.values():
        found += rung.certified
        assert (ref.oscillation(model, exact) <= rung.poisson + 1e-10).all()
        assert (ref.oscillation(model, exact - short) <= rung.tail + 1e-10).all()
        gap = ref.advantage(model, ref.transition(model), short - exact, 0.0, 0.7) - ref.reward(
            model
        )
        blocks = [ref.block_values(model, policy, gap, k) for k in range(model.n_agents)]
        spans = np.array([ref.span(block).max() for block in blocks])
        assert (spans <= rung.epsilon + 1e-10).all()
    assert found


@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_the_reward_serve_in_its_place(seed: int) -> None:
    """b is what was declared, and the entropies are added to it."""
    model, policy, mdp, twin = draw(seed, concentration=(1.0, 3.0))
    bound = np.linspace(0.0, 1.0, mdp.n_coordinates)
    declared = known(mdp).with_reward_bound(bound)
    assert declared.rewards is None
    plain = tl.certify(declared, twin)["exact"].reward_oscillation
    np.testing.assert_allclose(plain, bound, rtol=1e-14)
    both = tl.certify(declared, twin, objective="entropy")["exact"].reward_oscillation
    entropies = ref.local_reward_bound(
        dataclasses.replace(model, rewards=[]), policy, policy.temperature
    )
    np.testing.assert_allclose(both, bound + entropies, rtol=1e-9, atol=1e-9)


def test_without_a_reward_rho_is_there_and_tails_say_why_not() -> None:
    mdp = sis(4, infection=(0.05, 0.01), recovery=(0.8, 0.9), outside=0.2)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    certificate = tl.certify(dataclasses.replace(known(mdp), rewards=None), policy)
    rung = certificate["exact"]
    assert rung.rho.upper == tl.certify(mdp, policy)["exact"].rho.upper
    for name in ("tail", "delta_hat", "poisson", "epsilon", "bias", "reward_oscillation"):
        with pytest.raises(InputError, match="without a reward"):
            getattr(rung, name)
    for call in (rung.kappa_for, rung.uniform_tail_at):
        with pytest.raises(InputError, match="without a reward"):
            call(1)
    with pytest.raises(InputError, match="with_rewards"):
        _ = certificate.epsilon


def test_what_needs_kernels_is_refused() -> None:
    mdp = sysadmin(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    given = known(mdp)
    for options in ({"rungs": ("coupled",)}, {"steps": 2}, {"steps": "auto"}):
        with pytest.raises(InputError, match="the coupled rungs average the kernels"):
            tl.certify(given, policy, **options)
    with pytest.raises(InputError, match="the coupled rungs average the kernels"):
        _ = tl.certify(given, policy).environment.mdp
    with pytest.raises(InputError, match="made for 4 coordinates, but the model has 5"):
        tl.certify(known(sysadmin(5)), policy)
    with pytest.raises(InputError, match="another model"):
        tl.certify(given, policy, environment=Environment(known(mdp)))


def test_the_diagnosis_works_without_a_model() -> None:
    from torchloc.certificate.diagnosis import certifying_temperatures, diagnose

    mdp = sysadmin(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0, seed=0)
    found = diagnose(tl.certify(known(mdp), policy), policy, "exact")
    expected = diagnose(tl.certify(mdp, policy), policy, "exact")
    assert found.cycle_rate == expected.cycle_rate and found.levers == expected.levers
    one, two = (certifying_temperatures(Environment(it), policy) for it in (known(mdp), mdp))
    assert [it.rung for it in one] == ["exact", "span", "paper"] and one == two[1:]


def test_known_rows_take_the_place_of_estimated_ones() -> None:
    mdp = sysadmin(4)
    estimate = estimate_sensitivities(
        model_simulator(mdp), delta=0.1, samples=20, generator=np.random.default_rng(0)
    )
    mixed = estimate.with_known(mdp, [2, 0])
    exact = {
        "state": tl.state_sensitivity(mdp).toarray(),
        "action": tl.action_sensitivity(mdp).toarray(),
    }
    for name, truth in exact.items():
        found, before = getattr(mixed, name).toarray(), getattr(estimate, name).toarray()
        np.testing.assert_allclose(found[[0, 2]], truth[[0, 2]], rtol=1e-14)
        assert (found[[0, 2]] >= truth[[0, 2]]).all()
        assert (found[[1, 3]] == before[[1, 3]]).all()
    # Rows 0 and 2 hold two machines and one action each, the others all of them.
    assert mixed.counts == {"exact": 2 * 3, "ucb": 2 * 8, "assumed": 0} and mixed.weakest == "ucb"
    assert mixed.samples == estimate.samples
    assert known(mdp).with_known(mdp, []).counts == known(mdp).counts
    with pytest.raises(InputError, match="coordinates names 4"):
        estimate.with_known(mdp, [4])
    with pytest.raises(InputError, match="state_sizes of the model"):
        estimate.with_known(sysadmin(5), [0])


def test_tags_are_inherited_from_the_weakest() -> None:
    plain = {
        "state_sizes": [2, 2],
        "action_sizes": [2],
        "state": [[0.5, 0.5], [0.5, 0.5]],
        "action": [[0.5], [0.5]],
        "action_tags": "exact",
    }
    full = Sensitivities(**plain, state_tags=[0, 1, 0, 0], absent="assumed", delta=0.1)
    assert full.weakest == "ucb" and full.counts == {"exact": 5, "ucb": 1, "assumed": 0}
    assert Sensitivities(**plain, state_tags="exact", absent="assumed").weakest == "exact"
    sparse = {**plain, "state": [[0.5, 0.0], [0.5, 0.5]]}
    assert Sensitivities(**sparse, state_tags="exact", absent="assumed").weakest == "assumed"
    assert "probability" not in Sensitivities(**plain, state_tags="exact", absent="exact").standing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state_sizes": []}, "state_sizes is empty"),
        ({"action_sizes": [0]}, "action_sizes: entry 0 is 0"),
        ({"state": [[0.5]]}, r"state has shape \(1, 1\); it must be \(2, 2\)"),
        ({"state": [[0.5, 1.5], [0, 0]]}, r"state: entry \(0, 1\) is 1.5"),
        ({"state": [[0.5, math.nan], [0, 0]]}, r"state: entry \(0, 1\) is nan"),
        ({"state_tags": "sure"}, "state_tags is 'sure'"),
        ({"state_tags": [0, 0]}, r"state_tags has shape \(2,\), but state has 1 stored"),
        ({"action_tags": [7]}, "action_tags must hold"),
        ({"absent": "ucb"}, "absent is 'ucb'"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"state_tags": "ucb"}, "delta is 0, but 1 entries are ucb"),
        ({"reward_bound": [1.0]}, r"reward_bound has shape \(1,\)"),
        ({"reward_bound": [1.0, -1.0]}, "reward_bound of coordinate 1 is -1.0"),
        ({"rewards": [tl.LocalReward((2,), (), [0, 1])]}, "reads coordinate 2"),
        ({"rewards": [tl.LocalReward((0,), (), [0, 1, 2])]}, "coordinate 0 has size 3"),
        ({"rewards": [], "reward_bound": [0, 0]}, "both given"),
    ],
)
def test_matrices_that_do_not_fit_are_told(change: dict[str, Any], words: str) -> None:
    plain = {
        "state_sizes": [2, 2],
        "action_sizes": [2],
        "state": [[0.0, 0.5], [0.0, 0.0]],
        "action": [[0.0], [0.3]],
        "state_tags": "exact",
        "action_tags": "exact",
        "absent": "exact",
    }
    with pytest.raises(InputError, match=words):
        Sensitivities(**{**plain, **change})
