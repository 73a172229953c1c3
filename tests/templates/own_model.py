"""A model of one's own in Python: a rumour in a ring of people, who may be told it for a price."""

import torchloc as tl


def own_model(
    n: int = 5, told: float = 0.9, spread: float = 0.3, fade: float = 0.2
) -> tl.FactoredMDP:
    """State 1 knows the rumour; action 1 tells it."""

    def next_law(state, action):  # (own, left, right), (own action,) -> law of the own next state
        heard = 1 - (1 - told * action[0]) * (1 - spread) ** (state[1] + state[2])
        knows = 1 - fade * (1 - heard) if state[0] else heard
        return [1 - knows, knows]

    sizes = [2] * n, [2] * n  # of the states, of the actions
    kernels = [
        tl.LocalKernel.from_function([j, (j - 1) % n, (j + 1) % n], [j], next_law, sizes)
        for j in range(n)
    ]
    rewards = [tl.LocalReward([j], [j], [[0.0, -0.2], [1.0, 0.8]]) for j in range(n)]
    return tl.FactoredMDP(*sizes, kernels, rewards)


if __name__ == "__main__":
    own_model().save("own_model.npz")  # torchloc-certify --model own_model.npz
