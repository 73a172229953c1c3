"""Problem families, one file each: every function returns a `FactoredMDP`. NumPy only, never torch.

Arguments are numbers, strings and booleans (for `sis` and `game_of_life` also lists of numbers), so a configuration
can mirror them. Binary states are 1 = on, infected or up. Actions are product actions: every agent
may act at every step. Graphs are directed, an edge i → j says that i influences j; an undirected
graph stands for both directions.
"""

from torchloc.environments.firefighting import firefighting
from torchloc.environments.from_graph import from_graph
from torchloc.environments.game_of_life import game_of_life
from torchloc.environments.hub_spoke import hub_spoke
from torchloc.environments.ising import ising
from torchloc.environments.leader_follower import leader_follower
from torchloc.environments.line_msg import line_msg
from torchloc.environments.random import random_mdp
from torchloc.environments.sis import sis, sis_on
from torchloc.environments.sleepy import sleepy
from torchloc.environments.sysadmin import sysadmin, sysadmin_hand_rule, sysadmin_on
from torchloc.environments.wireless import wireless, wireless_aloha

__all__ = [
    "firefighting",
    "from_graph",
    "game_of_life",
    "hub_spoke",
    "ising",
    "leader_follower",
    "line_msg",
    "random_mdp",
    "sis",
    "sis_on",
    "sleepy",
    "sysadmin",
    "sysadmin_hand_rule",
    "sysadmin_on",
    "wireless",
    "wireless_aloha",
]
