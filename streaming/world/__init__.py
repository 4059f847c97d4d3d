"""The synthetic world: seeded users, items and behaviour, for demos, tests and evaluation.

Its ground truth never leaves this package; no other room may import it (a test holds that).
"""

from streaming.world.parameters import WorldParameters
from streaming.world.world import Reaction, UserClone, UserProfile, World

__all__ = ["Reaction", "UserClone", "UserProfile", "World", "WorldParameters"]
