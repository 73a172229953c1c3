"""`certify` from the outside: κ(ε), infinities, the mapping, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference as ref
from certified import CLEAR, GAP, ROUNDING, SETTINGS, case, encloses
from twins import twin_model

import torchloc as tl
from torchloc.certificate import Environment
from torchloc.environments import sysadmin


def ring(n: int = 3) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """Certified by coupling, by nothing else."""
    mdp = sysadmin(n)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))


# κ(ε) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(400, 412))
def test_kappa_for_is_the_smallest(seed: int) -> None:
    it = case(seed, SETTINGS[seed % len(SETTINGS)])
    for rung in it.certificate.values():
        if CLEAR < rung.contraction.upper < 1.0:
            continue  # thousands of terms
        for epsilon in (1e3, 0.1, 1e-3, 1e-8):
            kappa = rung.kappa_for(epsilon)
            if not rung.certified:
                assert kappa == (math.inf if (it.reach > 0).any() else 0)
                continue
            assert kappa >= 0 and kappa == int(kappa)
            assert (rung.epsilon_at(int(kappa)) <= epsilon).all()
            if kappa > 0:
                assert (rung.epsilon_at(int(kappa) - 1) > epsilon).any()


def test_kappa_for_of_an_uncertified_rung_is_infinite() -> None:
    certificate = tl.certify(*ring())
    assert certificate["exact"].kappa_for(1e9) == math.inf
    assert certificate["coupled"].kappa_for(1e9) == 0
    with pytest.raises(tl.InputError, match="epsilon is 0"):
        certificate["coupled"].kappa_for(0.0)
    with pytest.raises(tl.InputError, match="epsilon is nan"):
        certificate["coupled"].kappa_for(math.nan)


# Infinities -------------------------------------------------------------------------------------


def test_infinities_are_explicit_and_zero_times_infinity_is_zero() -> None:
    """Coordinate 0 copies itself; agent 0 moves it, agent 1 moves nothing, agent 2 coordinate 1."""
    stay = np.stack([np.eye(2), 0.5 * np.ones((2, 2))], axis=1)
    kernels = [((0,), (0,), stay), ((), (2,), np.eye(2))]
    model = ref.Model((2, 2), (2, 2, 2), kernels, [((0,), (), np.array([0.0, 1.0]))])
    mdp = twin_model(model)
    policy = tl.SoftmaxPolicy.tabular(mdp, [()] * 3)
    certificate = tl.certify(mdp, policy, kappa=4)
    blunt = certificate["exact"]
    assert not blunt.certified and blunt.rho.upper >= 1.0
    assert np.isinf(blunt.tail).all() and np.isinf(blunt.poisson).all()
    assert blunt.epsilon.tolist() == [np.inf, 0.0, np.inf]
    np.testing.assert_allclose(blunt.delta_hat, [5.0, 0.0], rtol=ROUNDING)
    sharp = certificate["coupled"]  # agent 0 acts half the time, so coordinate 0 forgets
    assert sharp.certified and np.isfinite(sharp.tail).all()
    assert (certificate.epsilon == sharp.epsilon).all()
    np.testing.assert_allclose(sharp.tail, [2.0**-4, 0.0], rtol=GAP, atol=GAP * 2.0**-4)


def test_discount_certifies_what_the_average_reward_cannot() -> None:
    mdp, policy = ring()
    plain = tl.certify(mdp, policy)["exact"]
    discounted = tl.certify(mdp, policy, discount=0.7)["exact"]
    assert not plain.certified and discounted.certified
    assert encloses(plain.rho, 1.3775) and encloses(discounted.rho, 1.3775)
    assert encloses(discounted.contraction, 0.7 * 1.3775)
    assert np.isfinite(discounted.epsilon).all()


def test_asynchronous_contraction_is_about_one_minus_one_minus_rho_over_n() -> None:
    mdp, policy = ring(10)
    rung = tl.certify(mdp, policy, dynamics="asynchronous")["coupled"]
    assert encloses(rung.rho, 0.68875)
    assert encloses(rung.contraction, 1 - (1 - 0.68875) / 10)
    still = np.array([1.0] + [0.0] * 9)  # nine sites never move: nothing contracts
    stuck = tl.certify(mdp, policy, dynamics="asynchronous", site_law=still)["coupled"]
    assert not stuck.certified and stuck.contraction.upper >= 1.0


def test_models_without_agents_or_rewards_are_certified() -> None:
    copy = tl.LocalKernel((0,), (), [[0.9, 0.1], [0.5, 0.5]])
    alone = tl.FactoredMDP([2], [], [copy], [tl.LocalReward((0,), (), [0.0, 1.0])])
    for rung in tl.certify(alone, tl.SoftmaxPolicy.tabular(alone, []), kappa=0).values():
        assert rung.tail[0] == pytest.approx(2 / 3, rel=GAP)
        assert rung.epsilon.shape == (0,) and rung.kappa_for(1e-9) == 0
    idle = tl.FactoredMDP([2], [2], [copy], [])
    for rung in tl.certify(idle, tl.SoftmaxPolicy.tabular(idle, [(0,)])).values():
        assert rung.reward_oscillation[0] == rung.tail[0] == rung.delta_hat[0] == 0.0
        assert rung.bias == rung.uniform_tail_at(0) == 0.0


# The mapping and bad input ----------------------------------------------------------------------


def test_certificate_is_a_mapping_of_the_rungs_asked_for() -> None:
    mdp, policy = ring()
    certificate = tl.certify(mdp, policy, 5, 0.9, rungs=("paper", "coupled"), objective="entropy")
    assert list(certificate) == ["paper", "coupled"] and len(certificate) == 2
    assert "paper" in certificate and "exact" not in certificate
    assert certificate.get("exact") is None
    assert [rung.rung for rung in certificate.values()] == ["paper", "coupled"]
    assert all(rung.kappa == 5 for rung in certificate.values())
    assert (certificate.kappa, certificate.discount) == (5, 0.9)
    assert (certificate.dynamics, certificate.objective) == ("synchronous", "entropy")
    with pytest.raises(KeyError, match="no rung 'exact'; this certificate has paper, coupled"):
        certificate["exact"]


def test_environment_is_computed_once_and_must_belong_to_the_model() -> None:
    mdp, policy = ring()
    environment = Environment(mdp)
    shared, own = tl.certify(mdp, policy, environment=environment), tl.certify(mdp, policy)
    assert shared.environment is environment and shared.floor is environment.floor
    for name, rung in own.items():
        assert (rung.matrix.toarray() == shared[name].matrix.toarray()).all()
        assert (rung.tail == shared[name].tail).all()
    with pytest.raises(tl.InputError, match="environment"):
        tl.certify(mdp, policy, environment=Environment(sysadmin(3, cost=0.1)))


def test_certificate_ignores_later_changes_of_the_policy() -> None:
    mdp, policy = ring()
    certificate = tl.certify(mdp, policy)
    expected = tl.certify(mdp, policy)["coupled"].tail
    policy.networks[0].table.data[..., 0] += 3.0
    policy.set_temperature(0.1)
    assert (certificate["coupled"].tail == expected).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1}, "kappa is -1"),
        ({"kappa": 1.5}, "kappa is 1.5"),
        ({"kappa": math.nan}, "kappa is nan"),
        ({"kappa": math.inf}, "kappa is inf"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": math.nan}, "steps is nan"),
        ({"steps": 2, "dynamics": "asynchronous"}, "for synchronous dynamics; use steps=1"),
        ({"discount": 0.0}, "discount is 0"),
        ({"discount": 1.01}, "discount is 1.01"),
        ({"discount": math.nan}, "discount is nan"),
        ({"dynamics": "both"}, "dynamics is 'both'; choose synchronous or asynchronous"),
        ({"objective": "both"}, "objective is 'both'; choose reward or entropy"),
        ({"rungs": ("exact", "sharp")}, "rungs holds 'sharp'; choose from coupled, exact"),
        ({"rungs": ()}, "rungs is empty"),
        ({"site_law": [1, 0, 0]}, "site_law is given, but dynamics is synchronous"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.5]}, r"site_law has shape \(2,\)"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.6, 0.1]}, "sum 1.2"),
        ({"dynamics": "asynchronous", "site_law": [1.5, -0.5, 0.0]}, "a law on the 3 coord"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.5, math.nan]}, "sum nan"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        tl.certify(*ring(), **options)


def test_a_policy_of_another_model_is_refused() -> None:
    mdp, _ = ring()
    _, other = ring(4)
    with pytest.raises(tl.InputError, match="names 4 agents, but the model has 3"):
        tl.certify(mdp, other)
