"""The training loop: set the temperature, improve block by block, certify, report.

    for every iteration:
        τ ← schedule                                 logits held, or the policy held
        π ← one sweep of KL-prox block updates        each with its guarantee beside its realised gain
        certify π on every rung                       ρ, tails, ε
        tell the callbacks

(Paper, Algorithm 1, with the recomputation that Corollary 15 asks for.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from torchloc.annealing import certified_radius, reading
from torchloc.certificate import Certificate, Environment, certify
from torchloc.checkpoint import Checkpoint, Snapshot
from torchloc.engine import Evaluation, Values, build_engine
from torchloc.engine.numbers import Rarest, check_numbers, underflow
from torchloc.errors import BudgetError, InputError, SolveError
from torchloc.evaluation.planning import (
    LocalOptimum,
    Optimum,
    best_deterministic_local,
    optimal_control,
)
from torchloc.evaluation.radius import ball_sizes
from torchloc.improvement import BlockRecord, Charge, Gains, Improvement
from torchloc.locality import Locality, LocalityPenalty, charge
from torchloc.mdp import FactoredMDP
from torchloc.mdp.dynamics import Dynamics
from torchloc.measures import measure
from torchloc.policy import SoftmaxPolicy
from torchloc.policy.temperatures import check_temperature
from torchloc.schedules import Adaptive, Certified

Schedule = Callable[[float], float] | Adaptive
"""Progress in [0, 1] → τ > 0, or a schedule that reads the run."""
REFERENCE_PAIRS = 2**20
"""Joint state-action pairs up to which a run plans the optimum for comparison."""


@dataclass(frozen=True, eq=False)
class TrainState:
    """A run between two iterations; every iteration makes a new one, when it is whole.

    Attributes:
        policy: The live policy; where a sweep was broken off, only `snapshot` is whole.
        values: What it earns: a `JointEvaluation`, or a simulation's `SimulatedValues`.
        certificate: Its certificate; None before the first iteration.
        iteration: Iterations done.
        records: The ledger of the last sweep, a record a block; empty but for `cyclic` sweeps of
            models that are enumerated.
        gains: What the last sweep moved, agent by agent; None before the first.
        temperature: τ that the schedule gave for the last iteration.
        metrics: Tag → value of the last iteration: everything that is logged.
        snapshot: What a checkpoint of the last whole iteration holds.
        optimum, local_optimum: The two optima of a small model; None where planning does not fit,
            or finds none (an optimum that depends on the start).
        missing: Why a reference that fits was not found, a sentence each.
    """

    policy: SoftmaxPolicy
    values: Values
    snapshot: Snapshot
    certificate: Certificate | None = None
    iteration: int = 0
    records: list[BlockRecord] = field(default_factory=list)
    gains: Gains | None = None
    temperature: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)
    optimum: Optimum | None = None
    local_optimum: LocalOptimum | None = None
    missing: tuple[str, ...] = ()


class Callback:
    """Hooks of a run. Override what is needed; the trainer needs no change."""

    def on_run_start(self, trainer: Trainer, state: TrainState) -> None:
        """Before the first iteration."""

    def on_iteration_start(self, trainer: Trainer, state: TrainState) -> None:
        """Before an iteration; `state` is that after the previous one."""

    def on_iteration_end(self, trainer: Trainer, state: TrainState) -> None:
        """After an iteration; `state.metrics` holds what it measured."""

    def on_run_end(self, trainer: Trainer, state: TrainState, error: BaseException | None) -> None:
        """After the last iteration, or after the exception that ended the run (Ctrl-C included)."""


class Trainer:
    """Localized policy improvement with a certificate an iteration.

    Args:
        mdp: The model.
        policy: The initial policy; trained in place.
        schedule: Progress in [0, 1] → τ, or an adaptive schedule (`schedules.Certified`, `Tradeoff`).
        improvement: How blocks are updated.
        evaluation: How policies are evaluated.
        iterations: Sweeps over all agents.
        hold: What stays when τ moves: `logits` (the policy changes) or `policy` (logits are
            rescaled).
        dynamics: `synchronous`, or `asynchronous`: one coordinate, uniformly drawn, moves per step (paper,
            B.6); on the joint engine.
        locality: Keeps a rung under a target: the policy is projected at the start and after every
            sweep, before it is certified, and with a `price` the steps of a sweep pay for what the
            projections met; None leaves it free.
        callbacks: Told what happens, in this order.
        seed: Of the random states on which Lipschitz constants are observed.
        resume: A checkpoint of this run, whose policy `policy` is: the run goes on after its iteration.

    Raises:
        InputError: A setting is out of range, or model, policy and scopes do not fit.
        BudgetError: The model is too large for the engine asked for.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> from torchloc.schedules import constant
        >>> mdp = sysadmin(n=3)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        >>> trainer = tl.Trainer(mdp, policy, schedule=lambda t: constant(t, value=0.1), iterations=4)
        >>> state = trainer.run()
        >>> state.certificate["coupled"].certified, round(state.metrics["reward/per_agent"], 2)
        (True, 0.89)
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy,
        *,
        schedule: Schedule,
        improvement: Improvement | None = None,
        evaluation: Evaluation | None = None,
        iterations: int = 16,
        hold: Literal["logits", "policy"] = "logits",
        dynamics: Dynamics = "synchronous",
        locality: Locality | None = None,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        resume: Checkpoint | None = None,
    ) -> None:
        if iterations < 1:
            raise InputError(f"iterations is {iterations}; it must be ≥ 1")
        if hold not in ("logits", "policy"):
            raise InputError(f"hold is {hold!r}; choose logits or policy")
        if isinstance(schedule, Certified) and hold == "policy":
            raise InputError(
                "hold is 'policy', so τ changes no law and the schedule `certified` has nothing to choose "
                "by; use hold=logits"
            )
        if not mdp.n_agents:
            raise InputError("the model has no agents, so there is no policy to train")
        self.mdp = mdp
        self.schedule = schedule
        self.improvement = improvement or Improvement()
        self.evaluation = evaluation or Evaluation()
        self.iterations = iterations
        self.hold = hold
        self.locality = locality
        self.callbacks = tuple(callbacks)
        self.environment = Environment(mdp)
        self.penalty: LocalityPenalty | None = None
        if locality is not None and locality.price is not None:
            self.penalty = LocalityPenalty(
                mdp.n_coordinates, target=locality.target, step=locality.price
            )
        self._weights = np.ones(mdp.n_coordinates)
        self.generator = torch.Generator().manual_seed(seed)
        first = first_temperature(schedule)
        for tau in (first, last_temperature(schedule)):
            check_temperature(tau)
        if resume is None:
            policy.set_temperature(first, hold=hold)
        self.dynamics: Dynamics = dynamics
        self.engine = build_engine(
            mdp, policy, self.improvement, self.evaluation, self.generator, dynamics
        )
        self._largest_kappa, self._work = self.engine.kappa, {}
        start = self.engine.evaluate(policy)
        if resume is None and locality is not None:
            start, _ = self._kept_local(start, policy, locality)
        state = TrainState(policy, start, Snapshot(0, {}, {}), temperature=first)
        if resume is not None:
            state = self._restored(state, resume)
        self.state = replace(state, snapshot=self._snapshot(state))

    def run(self) -> TrainState:
        """Trains to the last iteration and returns the state; callbacks see every iteration.

        Raises:
            InputError: What can only be seen when the first iteration begins.
            SolveError: A solve failed, a guarantee was above the gain it bounds, or numbers left their range;
                with the iteration, the agent where there is one, and the last whole iteration.
        """
        error: BaseException | None = None
        try:
            self._plan_references()
            self._tell("on_run_start")
            while self.state.iteration < self.iterations:
                self._tell("on_iteration_start")
                try:
                    self._iterate()
                except (SolveError, InputError) as broken:
                    if isinstance(broken, InputError) and not self.state.iteration:
                        raise
                    raise SolveError(self._told(broken)) from broken
                self._tell("on_iteration_end")
        except BaseException as caught:
            error = caught
            raise
        finally:
            # Every callback hears of the end, also where one before it fails there.
            with ExitStack() as ends:
                for callback in reversed(self.callbacks):
                    ends.callback(callback.on_run_end, self, self.state, error)
        return self.state

    def _told(self, broken: Exception) -> str:
        """What ended an iteration, in one sentence or two."""
        done = self.state.iteration
        parts = [f"iteration {done + 1}: {broken}"]
        with suppress(SolveError):  # such a policy is what `broken` tells of
            check_numbers(self.state.policy)
            parts.append(Rarest.of(self.state.policy).told())
        whole = f"iteration {done} was the last whole one" if done else "no iteration was whole"
        return "; ".join(part for part in (*parts, whole) if part)

    def _iterate(self) -> None:
        state, policy = self.state, self.state.policy
        clock = Stopwatch()

        temperature = self.temperature(state.iteration)
        check_temperature(temperature)
        policy.set_temperature(temperature, hold=self.hold)
        check_numbers(policy)
        cooled = self.engine.cooled(state.values, policy)
        self.engine.look(self._radius(state), policy)
        clock.lap("temperature")

        values, records, gains = self._swept(cooled, policy)
        effects = self.engine.effects(state.values, cooled, values)
        if self.locality is not None:
            values, paid = self._kept_local(values, policy, self.locality)
            effects |= paid
        clock.lap("improvement")

        done = replace(
            state,
            values=values,
            records=records,
            gains=gains,
            temperature=temperature,
            certificate=self.certify(policy),
        )
        metrics = measure(self, done)
        clock.lap("certificate")

        metrics |= effects | underflow(policy) | clock.laps
        done = replace(done, metrics=metrics, iteration=state.iteration + 1)
        # One assignment: an interrupt finds all of an iteration, or nothing of it.
        self.state = replace(done, snapshot=self._snapshot(done))

    def _swept(
        self, cooled: Values, policy: SoftmaxPolicy
    ) -> tuple[Values, list[BlockRecord], Gains]:
        """One sweep, and a policy whose numbers mean something."""
        charge = self._charge(policy)
        try:
            swept = self.engine.sweep(cooled, policy, self._epsilon, charge)
        except Exception:
            # They come first: what is computed of them fails in words of its own.
            check_numbers(policy)
            raise
        check_numbers(policy)
        return swept

    def _snapshot(self, state: TrainState) -> Snapshot:
        """All that the run needs to go on from here."""
        progress = {
            "temperature": torch.tensor(state.temperature, dtype=torch.float64),
            "kappa": torch.tensor(self.engine.kappa),
            "weights": torch.from_numpy(self._weights),
        }
        if state.gains is not None:
            progress["gains"] = torch.stack([state.gains.prox_gain, state.gains.total_variation])
        if self.penalty is not None:
            progress["duals"] = torch.from_numpy(self.penalty.duals)
        return Snapshot.take(state.iteration, state.policy, self.generator, progress)

    def _restored(self, state: TrainState, saved: Checkpoint) -> TrainState:
        """The state of a run that goes on."""
        try:
            progress = saved.progress
            self._weights = progress["weights"].numpy()
            if self.penalty is not None:
                self.penalty.duals = progress["duals"].numpy()
            self.engine.look(int(progress["kappa"]), state.policy)
            temperature = float(progress["temperature"])
        except KeyError as error:
            raise InputError(
                f"the checkpoint of iteration {saved.iteration} lacks {error.args[0]!r}, so that no run can go "
                f"on from it; it was written by an earlier version, or with other settings. Its policy is whole"
            ) from error
        # Last: evaluating the policy may have drawn numbers.
        self.generator.set_state(saved.generator.get_state())
        gains = Gains(*progress["gains"]) if "gains" in progress else None
        return replace(state, iteration=saved.iteration, gains=gains, temperature=temperature)

    def _kept_local(
        self, values: Values, policy: SoftmaxPolicy, locality: Locality
    ) -> tuple[Values, dict[str, float]]:
        """Projects the policy; its values after it, and what that took (`effect/locality`: of the reward rate)."""
        report = locality.keep(self.environment, policy, marginals=values.marginals)
        kept = self.engine.evaluate(policy) if report.changed else values
        numbers = {
            "locality/rho_before": report.before,
            "locality/agents_changed": float(report.changed),
            "locality/smallest_scale": float(report.scales.min(initial=1.0)),
            "effect/locality": kept.reward_rate - values.reward_rate,
        }
        self._weights = report.weights
        if self.penalty is not None:
            self.penalty.ascend(report.wished)
            numbers["locality/duals"] = float(self.penalty.duals.sum())
        return kept, numbers

    def _charge(self, policy: SoftmaxPolicy) -> Charge | None:
        """What a step pays for locality, under the weights of the last projection."""
        if self.penalty is None:
            return None
        prices = self.penalty.prices(self.environment.action, self._weights)
        return charge(policy, prices, self._weights)

    def temperature(self, iteration: int) -> float:
        """τ of an iteration, from 0; of an adaptive schedule, of the one that comes now."""
        if not isinstance(self.schedule, Adaptive):
            return self.schedule(iteration / max(self.iterations - 1, 1))
        if self.state.gains is None:
            return first_temperature(self.schedule)
        state, gains = self.state, self.state.gains
        certificate = state.certificate or self.certify(state.policy)
        return self.schedule.next(
            reading(
                self.environment,
                state.policy,
                previous=state.temperature,
                epsilon=certificate.epsilon,
                gains=gains,
                averaged=self.dynamics == "asynchronous",
            )
        )

    def _radius(self, state: TrainState) -> int:
        """κ of the sweep that comes: all that is allowed until one has moved something."""
        if self.evaluation.kappa != "certified" or state.gains is None:
            return self._largest_kappa
        rung = self.certify(state.policy, rungs=("coupled",))["coupled"]
        share = self.evaluation.kappa_share
        return certified_radius(rung, state.gains, share=share, at_most=self._largest_kappa)

    def certify(self, policy: SoftmaxPolicy, **options: object) -> Certificate:
        """The certificate of a policy under this run's settings."""
        return certify(
            self.mdp,
            policy,
            self.engine.kappa,
            self.evaluation.discount,
            self.dynamics,
            objective=self.improvement.objective,
            environment=self.environment,
            **options,  # type: ignore[arg-type]
        )

    def ball_work(self) -> int:
        """Coordinates that the agents hear of in one sweep at the present κ, summed over agents."""
        kappa = self.engine.kappa
        if kappa not in self._work:
            self._work[kappa] = int(ball_sizes(self.mdp, self.state.policy, kappa).sum())
        return self._work[kappa]

    def _epsilon(self, policy: SoftmaxPolicy) -> torch.Tensor:
        """(K,) ε_k of the sharpest rung."""
        return torch.from_numpy(self.certify(policy, rungs=("coupled",)).epsilon)

    def _plan_references(self) -> None:
        """Plans the two optima where the model is small enough to do it at once."""
        discount = self.evaluation.discount
        if self.mdp.n_states * self.mdp.n_joint_actions > REFERENCE_PAIRS:
            return
        # A policy can have an average reward where the best one depends on the start: the run goes
        # on without that reference, and its closing table says why.
        try:
            optimum = optimal_control(self.mdp, discount=discount, dynamics=self.dynamics)
            self.state = replace(self.state, optimum=optimum)
        except SolveError as error:
            self._miss("no joint optimum", error)
        if discount < 1.0:
            return
        try:
            best = best_deterministic_local(
                self.mdp, self.state.policy.scopes, dynamics=self.dynamics
            )
            self.state = replace(self.state, local_optimum=best)
        except BudgetError:
            return  # too many policies to enumerate, as on all but the smallest scopes
        except SolveError as error:
            self._miss("no deterministic optimum on these scopes", error)

    def _miss(self, what: str, error: SolveError) -> None:
        self.state = replace(self.state, missing=(*self.state.missing, f"{what}: {error}"))

    def _tell(self, hook: str) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, self.state)


def first_temperature(schedule: Schedule) -> float:
    """The temperature that a run begins with."""
    return schedule.start if isinstance(schedule, Adaptive) else schedule(0.0)


def last_temperature(schedule: Schedule) -> float:
    """The temperature that a run ends with, or the lowest that it may reach."""
    return schedule.end if isinstance(schedule, Adaptive) else schedule(1.0)


class Stopwatch:
    """Seconds per part of an iteration."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Books the time since the last lap under `seconds/part`."""
        now = time.perf_counter()
        self.laps[f"seconds/{part}"] = now - self._last
        self._last = now
