"""Prints LPI beside a trainer of another library, torchrl's PPO, on the same problem.

Run by hand: `python tests/benchmarks/outside_trainer.py` (ten minutes on one core; needs `pip install torchrl`).
SysAdmin, one-way ring of n machines, a reboot costs .75. Every policy is evaluated exactly on the joint states and
certified. LPI: tables on the scope {predecessor, self} from random logits, 16 cyclic sweeps, κ = 3, τ from 1 to .02.
PPO: the same scopes through `parallel_env`, one tanh network of 32 units an agent, clipped surrogate, generalised
advantages at γ = .9 of rewards that are centred and scaled batch by batch, with

    ippo    the local rewards, a critic an agent on what it sees,
    mappo   the global reward, one critic that sees all observations.

Settings of PPO were tried on n = 4, seed 0; its policies are evaluated as trained, random as they are. LPI is given the
model, PPO samples of it.

torchrl is imported inside functions: pytest collects this file, and should not start seconds later for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.evaluation.planning import optimal_control
from torchloc.interop.pettingzoo import parallel_env
from torchloc.interop.torch_policy import policy_from_modules
from torchloc.schedules import geometric

Kind = Literal["ippo", "mappo"]
ENVS, LENGTH, EPOCHS, PARTS = 32, 32, 4, 4
DISCOUNT, RATE, WIDTH = 0.9, 5e-3, 32


def ppo(
    mdp: tl.FactoredMDP, kind: Kind, *, frames: int, seed: int
) -> list[Callable[[Tensor], Tensor]]:
    """Trains one network an agent; all agents must see and do equally much.

    Args:
        mdp: The model.
        kind: `ippo` or `mappo`.
        frames: Steps of the system, over all environments.
        seed: Of networks, environments and actions.

    Returns:
        K functions from one-hot observations to logits.
    """
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.envs.utils import ExplorationType, set_exploration_type
    from torchrl.modules import MultiAgentMLP, ProbabilisticActor
    from torchrl.objectives import ClipPPOLoss, ValueEstimators

    torch.manual_seed(seed)
    n, rewards = mdp.n_agents, "local" if kind == "ippo" else "global"
    envs = [
        parallel_env(
            mdp, rewards=rewards, observation="one_hot", horizon=None, seed=1000 * seed + index
        )
        for index in range(ENVS)
    ]
    names = envs[0].possible_agents
    (width,) = envs[0].observation_space(names[0]).shape or ()
    layers = {"depth": 1, "num_cells": WIDTH, "activation_class": nn.Tanh}
    logits = MultiAgentMLP(
        n_agent_inputs=width, n_agent_outputs=int(mdp.action_sizes[0]), n_agents=n,
        centralized=False, share_params=False, **layers,
    )  # fmt: skip
    values = MultiAgentMLP(
        n_agent_inputs=width, n_agent_outputs=1, n_agents=n, centralized=kind == "mappo",
        share_params=kind == "mappo", **layers,
    )  # fmt: skip
    actor = ProbabilisticActor(
        TensorDictModule(logits, [("agent", "observation")], [("agent", "logits")]),
        in_keys=[("agent", "logits")],
        out_keys=[("agent", "action")],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
        log_prob_key=("agent", "sample_log_prob"),
    )
    critic = TensorDictModule(values, [("agent", "observation")], [("agent", "state_value")])
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.001, critic_coeff=0.5)
    loss.set_keys(
        reward=("agent", "reward"), action=("agent", "action"), done=("agent", "done"),
        terminated=("agent", "terminated"), value=("agent", "state_value"),
        sample_log_prob=("agent", "sample_log_prob"),
    )  # fmt: skip
    loss.make_value_estimator(ValueEstimators.GAE, gamma=DISCOUNT, lmbda=0.9)
    optimiser = torch.optim.Adam(loss.parameters(), lr=RATE)

    def stacked(seen: Sequence[dict[str, np.ndarray]]) -> Tensor:
        return torch.from_numpy(np.array([[one[name] for name in names] for one in seen]))

    seen = stacked([env.reset()[0] for env in envs])
    updates = max(1, frames // (ENVS * LENGTH))
    for update in range(updates):
        steps = []
        for _ in range(LENGTH):
            step = TensorDict({("agent", "observation"): seen}, [ENVS])
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                actor(step)
            chosen = step["agent", "action"].tolist()
            results = [
                env.step(dict(zip(names, row, strict=True)))
                for env, row in zip(envs, chosen, strict=True)
            ]
            seen = stacked([result[0] for result in results])
            gained = torch.tensor([[result[1][name] for name in names] for result in results])
            ended = torch.zeros(ENVS, n, 1, dtype=torch.bool)  # the problem goes on
            step["next"] = TensorDict(
                {
                    ("agent", "observation"): seen,
                    ("agent", "reward"): gained[..., None].float(),
                    ("agent", "done"): ended,
                    ("agent", "terminated"): ended,
                },
                [ENVS],
            )
            steps.append(step)
        batch = torch.stack(steps, dim=1)
        gained = batch["next", "agent", "reward"]
        gained.sub_(gained.mean()).div_(gained.std() + 1e-6)
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - update / updates)
        for _ in range(EPOCHS):
            with torch.no_grad():
                loss.value_estimator(
                    batch, params=loss.critic_network_params,
                    target_params=loss.target_critic_network_params,
                )  # fmt: skip
            gain = batch["advantage"]
            batch["advantage"] = (gain - gain.mean()) / (gain.std() + 1e-6)
            flat = batch.reshape(-1)
            for part in torch.randperm(len(flat)).chunk(PARTS):
                found = loss(flat[part])
                total = found["loss_objective"] + found["loss_critic"] + found["loss_entropy"]
                optimiser.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimiser.step()

    def one(k: int, seen: Tensor) -> Tensor:
        return logits(seen[:, None].expand(-1, n, -1))[:, k]

    return [partial(one, k) for k in range(n)]


@dataclass(frozen=True)
class Result:
    """What one policy comes to: reward per machine, ρ of two rungs, processor seconds to train it."""

    reward: float
    coupled: float
    paper: float
    seconds: float = 0.0


def measured(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, seconds: float = 0.0) -> Result:
    """Exact reward and certified upper bounds."""
    certificate = tl.certify(mdp, policy, rungs=("coupled", "paper"))
    reward = tl.JointEvaluation(mdp, policy).average_reward / mdp.n_agents
    upper = [certificate[rung].rho.upper for rung in ("coupled", "paper")]
    return Result(float(reward), *upper, seconds)


def trained(mdp: tl.FactoredMDP, how: str, *, frames: int, seed: int) -> Result:
    """One run of `lpi`, `ippo` or `mappo`."""
    scopes = tl.neighbourhood_scopes(mdp)
    start = time.process_time()
    if how == "lpi":
        policy = tl.SoftmaxPolicy.tabular(mdp, scopes, scale=1.0, seed=seed)
        tl.Trainer(mdp, policy, schedule=partial(geometric, start=1.0, end=0.02)).run()
    else:
        kind: Kind = "ippo" if how == "ippo" else "mappo"
        policy = policy_from_modules(mdp, scopes, ppo(mdp, kind, frames=frames, seed=seed))
    return measured(mdp, policy, time.process_time() - start)


def row(name: str, results: Sequence[Result]) -> str:
    """A line of the table: means, the reward's range over seeds."""
    reward, coupled, paper, seconds = (
        [getattr(result, field) for result in results]
        for field in ("reward", "coupled", "paper", "seconds")
    )
    spread = f" ({min(reward):.4f} to {max(reward):.4f})" if len(reward) > 1 else ""
    shown = [
        f"**{np.mean(rho):.3f}**" if max(rho) < 1.0 else f"{np.mean(rho):.3f}"
        for rho in (coupled, paper)
    ]
    time_taken = f"{np.mean(seconds):.1f}" if max(seconds) else ""
    return f"| {name} | {np.mean(reward):.4f}{spread} | {time_taken} | {' | '.join(shown)} |"


def main() -> None:
    """Prints the table in Markdown; ρ is bold where every seed is certified."""
    arguments = argparse.ArgumentParser(description="LPI beside torchrl's PPO.")
    arguments.add_argument("--n", type=int, nargs="+", default=[4, 6], help="machines")
    arguments.add_argument("--frames", type=int, default=60_000, help="steps of the system for PPO")
    arguments.add_argument("--seeds", type=int, default=5)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    print("| n, policy | reward per machine | seconds of one core | ρ coupled | ρ paper |")
    print("|---|---|---|---|---|")
    for n in args.n:
        mdp = sysadmin(n)
        uniform = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        print(row(f"{n}, uniform", [measured(mdp, uniform)]), flush=True)
        for how in ("lpi", "ippo", "mappo"):
            results = [
                trained(mdp, how, frames=args.frames, seed=seed) for seed in range(args.seeds)
            ]
            print(row(f"{n}, {how}", results), flush=True)
        print(f"| {n}, joint optimum | {optimal_control(mdp).gain / n:.4f} | | | |", flush=True)


if __name__ == "__main__":
    main()
