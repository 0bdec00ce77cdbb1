"""How the players move, under a minimax objective with no penalty to damp them: four ways, three seeds each.

Plain Adam at a rate where alternating players train: what differs is the way they move.
"""

SHARED = {"objective.name": "minimax", "penalty.name": "none", "penalty.weight": 0.0}
MOVES = {
    "alternating": {},
    "simultaneous": {},
    "extragradient": {},
    "consensus": {"consensus.weight": 1.0},
}


def sweep():
    """The members."""
    for move, options in MOVES.items():
        for seed in range(3):
            yield SHARED | {"moves": move} | options | {"seed": seed}
