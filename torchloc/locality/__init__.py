"""Training that keeps locality: rows of H = E^s + E^a Π kept under a target, by force or by price.

With weights w > 0 frozen, (H w)_j ≤ λ w_j for every coordinate j implies ρ(H) ≤ λ, is linear in Π, and
for each j involves only the agents that act on j. `project` shrinks the logits of those agents until all
rows hold, and certifies what it left. `LocalityPenalty` prices the rows, one dual a coordinate, and
`priced_laws` makes prox steps that pay; a price certifies nothing, so the two go together.

    row_loads, largest_rows, fill       rows under a weight                       `loads`
    spreads, largest_scales             Π as a function of one scale an agent     `scales`
    shrink, HOWS                        how a scale is written into a policy      `shrinking`
    linear_scales, coupled_scales       weights and scales by turns               `rows`
    project, Locality                   the hard projection, and its settings     `projection`
    LocalityPenalty, priced_laws, charge   duals, prices, the step that pays    `penalty`
"""

from torchloc.locality.loads import fill, largest_rows, row_loads
from torchloc.locality.penalty import (
    LocalityPenalty,
    charge,
    priced_laws,
    scope_prices,
)
from torchloc.locality.projection import PROJECTED, Locality, ProjectionReport, project
from torchloc.locality.scales import largest_scales, sensitivity_at, spreads
from torchloc.locality.shrinking import HOWS, How, centres, shrink

__all__ = [
    "HOWS",
    "PROJECTED",
    "How",
    "Locality",
    "LocalityPenalty",
    "ProjectionReport",
    "centres",
    "charge",
    "fill",
    "largest_rows",
    "largest_scales",
    "priced_laws",
    "project",
    "row_loads",
    "scope_prices",
    "sensitivity_at",
    "shrink",
    "spreads",
]
