"""A batched network read as a chain of affine maps and activations, and how far its floats stray.

A forward hook sees modules, not what is computed between them: a functional activation, a residual sum
or an overwritten input leaves no trace. So a network is only read if it is a `torch.nn.Sequential` (or a
`LayeredNetwork`) all the way down, of module types whose forward pass is known: `OneHot`, affine layers,
activations, `Bounded`, and modules that do nothing. Types are compared exactly: a subclass may compute
anything. In-place activations are read like others, since in a chain nobody else reads what they
overwrite. Then the chain is *replayed*: what was read must give, in float64, the module's own output on
random observations within the error bound below, or it is refused.

**What the floats compute.** The chain holds exact numbers; ẑ, the output of the module in its own dtype
with unit roundoff v, differs from the chain's z by at most an error E, propagated layer by layer:

    e_ℓ ≤ |W_ℓ|ᵀ ε_{ℓ−1} + γ_n(v) (|W_ℓ|ᵀ (|h_{ℓ−1}| + ε_{ℓ−1}) + |b_ℓ|),      ε_ℓ ≤ Lip(σ) e_ℓ + evaluation.

A bound on z carries over to ẑ with 2 Σ_a |c_a| E_a more for a combination c of the logits.

Axis letters: G agents, N rows of a batch, n units, m coordinates, S values, A actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchloc.errors import InputError
from torchloc.lipschitz.activations import EVALUATION, STEEPEST, Kind, apply
from torchloc.lipschitz.rounding import UNIT, gamma
from torchloc.policy import AgentGroup
from torchloc.policy.networks import (
    BatchedLinear,
    Bounded,
    EmbeddedLinear,
    LayeredNetwork,
    OneHot,
    SharedLinear,
)
from torchloc.shapes import Float

REPLAYED = 16
"""Random observations of each agent on which a chain is compared with its module."""


@dataclass(frozen=True, eq=False)
class Affine:
    """x ↦ x W + b in float64, exact by definition.

    Attributes:
        weight: (G, in, out).
        bias: (G, 1, out).
        weight_mass, bias_mass: Same shapes: the absolute values of what the module adds up for an
            entry, at least |W| and |b|; more where a layer of the module is several sums.
        roundings: Of the module on the way from inputs to outputs, on top of `in`.
    """

    weight: Tensor
    bias: Tensor
    weight_mass: Tensor
    bias_mass: Tensor
    roundings: int

    def select(self, agents: Tensor) -> Affine:
        """The maps of some agents."""
        return Affine(
            self.weight[agents],
            self.bias[agents],
            self.weight_mass[agents],
            self.bias_mass[agents],
            self.roundings,
        )


@dataclass(frozen=True, eq=False)
class Chain:
    """x ↦ one-hot, affine, activation, …, affine.

    Attributes:
        sizes: m sizes of the coordinates.
        affine: D + 1 maps.
        kinds: D activations.
        ceiling: (G,) the module's logits are within ±ceiling by construction; ∞ if not.
        unit: v, unit roundoff of the module's dtype.
        largest: Its largest number.
    """

    sizes: tuple[int, ...]
    affine: tuple[Affine, ...]
    kinds: tuple[Kind, ...]
    ceiling: Tensor
    unit: float
    largest: float

    def select(self, agents: Tensor) -> Chain:
        """The chains of some agents."""
        affine = tuple(layer.select(agents) for layer in self.affine)
        return Chain(self.sizes, affine, self.kinds, self.ceiling[agents], self.unit, self.largest)

    def __call__(self, observations: Tensor) -> Tensor:
        """(G, N, m) int64 → (G, N, A) float64."""
        hot = [nn.functional.one_hot(observations[..., i], s) for i, s in enumerate(self.sizes)]
        x = torch.cat(hot, dim=-1).double() if hot else observations.double()
        for layer, kind in zip(self.affine, (*self.kinds, "identity"), strict=True):
            x = apply(kind, x @ layer.weight + layer.bias)
        return x


def read_chains(
    network: nn.Module, group: AgentGroup, rows: Tensor, size: int, name: str
) -> Iterator[tuple[Tensor, Chain]]:
    """The chains of some agents of a group, replayed, `size` agents at a time.

    Args:
        network: Of the group.
        group: Its agents.
        rows: Rows of the group to read.
        size: Agents at a time.
        name: What to call the network in errors.

    Yields:
        (rows, chain).

    Raises:
        InputError: A module that cannot be read, in a place where it cannot stand, with numbers that
            are not finite, of a dtype other than float32 and float64; or the replay differs.
    """
    modules = list(_flat(network, name))
    sample = None
    for part in rows.split(size):
        chain = _assembled(modules, group, part, name)
        sample = sample or _sampled(network, group)
        _replay(chain, part, sample, name)
        yield part, chain


def _sampled(network: nn.Module, group: AgentGroup) -> tuple[Tensor, Tensor]:
    """Random observations (N, m) and the module's logits there, (G, N, A) float64."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(size, (REPLAYED,), generator=generator) for size in group.sizes]
    seen = torch.stack(drawn, dim=-1) if drawn else torch.zeros(REPLAYED, 0, dtype=torch.int64)
    with torch.no_grad():
        return seen, network(seen.expand(len(group), -1, -1)).double()


def _flat(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the leaves of nested Sequentials, without those that do nothing."""
    if type(module) in (nn.Sequential, LayeredNetwork):
        for name, child in module.named_children():
            yield from _flat(child, f"{path}.{name}")
    elif type(module) is nn.Dropout:
        if module.training and module.p > 0:
            raise InputError(
                f"{path} is a Dropout in training mode, whose logits are random; call eval() on the "
                f"policy, or take the layer out"
            )
    elif type(module) is not nn.Identity:
        yield path, module


def _assembled(
    modules: list[tuple[str, nn.Module]], group: AgentGroup, rows: Tensor, name: str
) -> Chain:
    if not modules or type(modules[0][1]) is not OneHot:
        found = type(modules[0][1]).__name__ if modules else "nothing"
        where = modules[0][0] if modules else name
        raise InputError(
            f"{where} is {found}, but a network whose Lipschitz bound is to be certified starts with "
            f"OneHot; {_MEND}"
        )
    if modules[0][1].sizes != group.sizes:
        raise InputError(
            f"{modules[0][0]} encodes coordinates of sizes {modules[0][1].sizes}, but the scope has "
            f"{group.sizes}; build it from the group's sizes"
        )
    affine: list[Affine] = []
    kinds: list[Kind] = []
    ceiling = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    dtypes: set[torch.dtype] = set()
    for path, module in modules[1:]:
        if torch.isfinite(ceiling).any():
            raise InputError(f"{path} follows Bounded, which must be the last layer; {_MEND}")
        linear = _affine(module, rows, dtypes)
        if linear is not None:
            _check_finite(linear, group, rows, path)
            if len(affine) > len(kinds):
                kinds.append("identity")
            affine.append(linear)
            continue
        if len(affine) != len(kinds) + 1:
            raise InputError(
                f"{path} ({type(module).__name__}) does not follow an affine layer; {_MEND}"
            )
        if type(module) is Bounded:
            centre, scale = _bounded(module, rows, affine[-1].bias.shape[-1])
            affine[-1] = _merged(affine[-1], centre)
            kinds.append("tanh")
            affine.append(scale)
            ceiling = module.limit[rows, 0, 0].detach().double()
        else:
            kinds.append(_kind(module, path))
    if len(affine) == len(kinds):
        if not affine:
            raise InputError(f"{name} has no affine layer; {_MEND}")
        affine.append(_diagonal(torch.ones_like(affine[-1].bias)))
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise InputError(
            f"{name} has parameters of {sorted(map(str, dtypes))}; rounding is bounded for one dtype, "
            f"torch.float32 or torch.float64: convert the policy"
        )
    if dtypes == {torch.float32} and torch.get_float32_matmul_precision() != "highest":
        raise InputError(
            f"{name} is float32 and torch.get_float32_matmul_precision() is "
            f"{torch.get_float32_matmul_precision()!r}, which leaves rounding unbounded here; set it "
            f"to 'highest'"
        )
    info = torch.finfo(dtypes.pop())
    return Chain(group.sizes, tuple(affine), tuple(kinds), ceiling, info.eps / 2.0, info.max)


def _kind(module: nn.Module, path: str) -> Kind:
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.Tanh:
        return "tanh"
    if type(module) is nn.GELU:
        if module.approximate != "none":
            raise InputError(
                f"{path} is a GELU with approximate={module.approximate!r}, for which no bound is "
                f"known here; use approximate='none'"
            )
        return "gelu"
    raise InputError(f"{path} is {type(module).__name__}, which cannot be read; {_MEND}")


_MEND = (
    "certified bounds read nn.Sequential of OneHot, then BatchedLinear, SharedLinear, EmbeddedLinear or "
    "nn.Linear with nn.ReLU, nn.Tanh or nn.GELU between them, Bounded last, nn.Identity and (in eval "
    "mode) nn.Dropout anywhere: use these, or give the agent a scope small enough to enumerate"
)


def _affine(module: nn.Module, rows: Tensor, dtypes: set[torch.dtype]) -> Affine | None:
    """An affine layer's maps of some agents; None if it is no affine layer."""
    if type(module) is BatchedLinear:
        weight, bias = module.weight[rows].detach(), module.bias[rows].detach()
        mass, roundings = bias.double().abs(), 0
    elif type(module) is nn.Linear:
        weight = module.weight.detach().T.expand(len(rows), -1, -1)
        bias = weight.new_zeros(1) if module.bias is None else module.bias.detach()
        bias = bias.expand(len(rows), 1, weight.shape[-1])
        mass, roundings = bias.double().abs(), 0
    elif type(module) is SharedLinear:
        scale = _scale(module, rows)
        weight = module.shared_weight.detach().double() * scale
        bias = module.shared_bias.detach().double() * scale
        mass, roundings = bias.abs(), 2
    elif type(module) is EmbeddedLinear:
        scale = _scale(module, rows)
        shared, n = module.shared_weight.detach().double(), module.n_inputs
        own = module.embedding[rows].detach().double().unsqueeze(1)
        weight = shared[:n] * scale
        bias = (own @ shared[n:] + module.shared_bias.detach().double()) * scale
        mass = own.abs() @ shared[n:].abs() + module.shared_bias.detach().double().abs()
        mass = mass * scale.abs()
        roundings = own.shape[-1] + 4
    else:
        return None
    dtypes.update(value.dtype for value in module.parameters())
    weight, bias = weight.double(), bias.double()
    return Affine(weight, bias, weight.abs(), mass, roundings)


def _scale(module: SharedLinear | EmbeddedLinear, rows: Tensor) -> Tensor:
    """(G, 1, 1) float64 factors of some agents."""
    if module.scale is None:
        return torch.ones(len(rows), 1, 1, dtype=torch.float64)
    return module.scale[rows].detach().double()


def _bounded(module: Bounded, rows: Tensor, n_actions: int) -> tuple[Tensor, Affine]:
    """(A, A) centring over actions divided by the unit, and the (diagonal) map after the tanh."""
    limit = module.limit[rows].detach().double()
    eye = torch.eye(n_actions, dtype=torch.float64)
    return (eye - 1.0 / n_actions) / module.unit, _diagonal(limit.expand(-1, 1, n_actions))


def _merged(layer: Affine, centre: Tensor) -> Affine:
    """The layer followed by the linear map `centre`; what is lost in the product is in the mass."""
    n_actions = len(centre)
    size = (torch.eye(n_actions, dtype=centre.dtype) + 1.0 / n_actions) * centre.abs().amax() * 2.0
    return Affine(
        layer.weight @ centre,
        layer.bias @ centre,
        layer.weight_mass @ size,
        layer.bias_mass @ size,
        layer.roundings + n_actions + 4,
    )


def _diagonal(scale: Tensor) -> Affine:
    """x ↦ x · scale, (G, 1, A)."""
    weight = torch.diag_embed(scale[:, 0])
    none = torch.zeros_like(scale)
    return Affine(weight, none, weight.abs(), none, 0)


def _check_finite(layer: Affine, group: AgentGroup, rows: Tensor, path: str) -> None:
    sound = torch.isfinite(layer.weight).all(dim=(1, 2)) & torch.isfinite(layer.bias).all(
        dim=(1, 2)
    )
    if not bool(sound.all()):
        agent = int(group.agents[int(rows[int((~sound).int().argmax())])])
        raise InputError(f"{path} of agent {agent} holds NaN or ∞; no bound exists, train it anew")


def forward_error(
    chain: Chain, sizes: tuple[Tensor, ...], unit: float
) -> tuple[Float[Tensor, "G A"], Float[Tensor, "G A"]]:
    """(E, size): how far logits computed with roundoff `unit` are from the chain's, and their size.

    Args:
        chain: The chain.
        sizes: D tensors (G, n): bounds on |h_ℓ|, the values after each activation.
        unit: v.

    Returns:
        E (G, A), ∞ where the computation could overflow, and bounds on the computed |z_a| (G, A).
    """
    tiny = 2.0**-120 if unit > UNIT else 2.0**-1000  # products that underflow
    error = mass = torch.empty(0)
    fits = torch.ones(len(chain.ceiling), 1, dtype=torch.bool)
    for index, layer in enumerate(chain.affine):
        if index == 0:
            terms, mass = len(chain.sizes), largest_inputs(chain, layer.weight_mass).sum(dim=1)
            carried = torch.zeros_like(mass)
        else:
            terms, before = layer.weight.shape[1], sizes[index - 1]
            carried = (error[:, None] @ layer.weight_mass)[:, 0]
            mass = (before[:, None] @ layer.weight_mass)[:, 0] + carried
        mass = mass + layer.bias_mass[:, 0]
        slack = gamma(terms + layer.roundings + 4, unit)
        error = carried * (1.0 + slack) + slack * mass + tiny
        fits &= (mass + error < 0.25 * chain.largest).all(dim=1, keepdim=True)
        if index < len(chain.kinds):
            kind = chain.kinds[index]
            own = EVALUATION[kind] * unit * (mass + error)
            error = STEEPEST[kind] * error + (own.clamp(max=4.0 * unit) if kind == "tanh" else own)
    return torch.where(fits, error * (1.0 + 2.0**-20), torch.inf), mass + error


def largest_inputs(chain: Chain, weight: Float[Tensor, "G inputs n"]) -> Float[Tensor, "G m n"]:
    """max over the values of each coordinate of the first layer's weights."""
    parts = [part.amax(dim=1) for part in weight.split(chain.sizes, dim=1)]
    return torch.stack(parts, dim=1) if parts else weight[:, :0]


def _replay(chain: Chain, rows: Tensor, sample: tuple[Tensor, Tensor], name: str) -> None:
    seen, logits = sample
    mine = chain(seen.expand(len(rows), -1, -1))
    theirs = logits[rows]
    sizes = reach(chain)
    allowed = forward_error(chain, sizes, chain.unit)[0] + forward_error(chain, sizes, UNIT)[0]
    apart = (theirs - mine).abs().amax(dim=1) if theirs.shape == mine.shape else allowed + 1.0
    if not bool(((apart <= allowed) | torch.isinf(allowed)).all()):  # ∞: floats may overflow
        raise InputError(
            f"{name} does not compute what its layers say: on random observations its logits differ "
            f"by up to {float(apart.max()):.3g} from those of the layers read one by one; a hook or "
            f"other code changes them, so only enumeration is sound: give a smaller scope"
        )


def reach(chain: Chain) -> tuple[Tensor, ...]:
    """D tensors (G, n): |h_ℓ| at most, over all observations, from absolute sums alone."""
    result = []
    size = torch.empty(0)
    for index, kind in enumerate(chain.kinds):
        layer = chain.affine[index]
        if index == 0:
            size = layer.bias_mass[:, 0] + largest_inputs(chain, layer.weight_mass).sum(dim=1)
        else:
            size = (size[:, None] @ layer.weight_mass)[:, 0] + layer.bias_mass[:, 0]
        size = size * STEEPEST[kind] * (1.0 + gamma(layer.weight.shape[1] + len(chain.sizes)))
        size = size.clamp(max=1.0) if kind == "tanh" else size
        result.append(size)
    return tuple(result)
