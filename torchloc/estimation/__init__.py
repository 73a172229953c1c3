"""Sensitivities of a system that is not known, from a simulator or from logged transitions.

The *context* of coordinate j is the tuple of values of its parents: of those that are declared, or of all
coordinates and agents. Given its context c, the next value s'_j has one law P_c, and

    E^s[j, i] = max TV(P_c, P_c') over contexts c, c' that differ in the value of i alone,

E^a[j, k] likewise. With P̂_c the empirical law of n_c independent draws, each entry is bounded by

    Ê[j, i] = max over such pairs of min{1, TV(P̂_c, P̂_c') + √((1/n_c + 1/n_c') ln(1/δ') / 2)},      (1)

a pair counting as 1 where n_c or n_c' is 0. **Theorem.** If δ' = δ/M for the M entries that are estimated,
then with probability at least 1 − δ every entry is a bound at once.

Proof. (i) TV is convex in the pair of laws, and E P̂_c = P_c, so E TV(P̂_c, P̂_c') ≥ TV(P_c, P_c') (Jensen): for
S_j > 2 the distance of empirical laws is too large in the mean, which is the safe side, so no term for the
bias is due. (ii) Replacing one of the n_c draws changes TV(P̂_c, P̂_c') by at most 1/n_c. By McDiarmid's
inequality, P(TV(P̂_c, P̂_c') ≤ E TV(P̂_c, P̂_c') − t) ≤ exp(−2t² / (1/n_c + 1/n_c')), which is δ' at the root in (1).
(iii) The maximum that defines an entry is attained at some pair that does not depend on the samples. If (1) is
a bound at that pair, the maximum over all pairs is one, too: one event an entry, not one a pair. A union over
the M entries closes the proof. ∎

Independent draws. *Generative*: the contexts and the numbers n_c are chosen without looking at what was drawn.
*Logged*: let each (j, c) own a stack of independent draws from P_c; the t-th visit of c takes the t-th element.
At each step the elements taken are fresh, whatever history chose the states and actions, so this process has the
law of the system, and the first n visits show the first n elements: independent draws, for any n fixed in
advance and any adaptive behaviour. The number of visits is random and depends on the draws, so it must not be
put for n in (1): a log that was stopped when an estimate looked small would fool the bound. So either n is given
(`samples`; contexts with fewer visits count as not visited), or n is the largest number in a fixed grid of L sizes
that the visits reach, and ln(1/δ') becomes ln(L²/δ'), a union over the sizes at both contexts. What stays forbidden
is to drop or reorder rows by their outcome.

Assumed throughout: given the whole state and action the coordinates move independently, with laws that do not
change over time, and each s'_j depends on its declared parents alone. An entry outside them is 0, tagged
`assumed`; where parents are declared, the whole is conditional on that declaration.

Sources: McDiarmid (1989); the stacks are the reward tables of bandit theory.

From a black box to a certificate, and a policy trained on the way:

    >>> import numpy as np
    >>> import torchloc as tl
    >>> from torchloc.environments import sis
    >>> hidden = sis(6, infection=(0.05, 0.01), recovery=(0.8, 0.9), outside=0.2)
    >>> simulator = model_simulator(hidden)  # or StepSimulator(your_step, state_sizes, action_sizes)
    >>> parents = {"state_parents": [[(j - 1) % 6, j, (j + 1) % 6] for j in range(6)],
    ...            "action_parents": [[j] for j in range(6)]}
    >>> plan = samples_for(0.04, 0.05, state_sizes=[2] * 6, action_sizes=[2] * 6, **parents)
    >>> estimate = estimate_sensitivities(
    ...     simulator, delta=0.05, samples=plan.samples, generator=np.random.default_rng(0), **parents)
    >>> fitted = maximum_likelihood(estimate, rewards=hidden.rewards)
    >>> model = fitted.training_model  # for a Trainer; what is certified is the estimate
    >>> policy = tl.SoftmaxPolicy.tabular(model, tl.neighbourhood_scopes(model))
    >>> certificate = tl.certify(estimate.with_rewards(hidden.rewards), policy)
    >>> certificate["exact"].certified, certificate.weakest, certificate.delta
    (True, 'assumed', 0.05)
"""

from torchloc.certificate import Sensitivities
from torchloc.estimation.bounds import SensitivityEstimate, estimate_sensitivities
from torchloc.estimation.fitted import FittedModel, maximum_likelihood, mean_rewards
from torchloc.estimation.logs import TransitionLog
from torchloc.estimation.planning import SamplePlan, samples_for
from torchloc.estimation.simulators import LocalSimulator, StepSimulator, model_simulator

__all__ = [
    "FittedModel",
    "LocalSimulator",
    "SamplePlan",
    "Sensitivities",
    "SensitivityEstimate",
    "StepSimulator",
    "TransitionLog",
    "estimate_sensitivities",
    "maximum_likelihood",
    "mean_rewards",
    "model_simulator",
    "samples_for",
]
