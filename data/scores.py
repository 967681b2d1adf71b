"""Reference returns and normalised scores.

    score = 100 * (R - R_min) / (R_max - R_min)

of a return R, never clipped; R_min is the return of a random policy, R_max that of an expert or a
human. The D4RL constants are those of its release and belong to its own environments (mujoco-py,
version 2): on another version a score says on which.
"""

import difflib
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from statewise.data.episode import DatasetInfo
from statewise.data.errors import NoReferenceScore

Range = tuple[float, float]

_LOCOMOTION = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_ADROIT = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
}
_BULLET = {
    "bullet-halfcheetah": (-1275.766996, 2381.6725),
    "bullet-hopper": (20.058972, 1441.8059623430963),
    "bullet-ant": (373.705955, 2650.495),
    "bullet-walker2d": (16.523877, 1623.6476303317536),
}
_SINGLE = {
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "minigrid-fourrooms-v0": (0.01442, 2.89685),
    "minigrid-fourrooms-random-v0": (0.01442, 2.89685),
    "flow-ring": (-165.22, 24.42),
    "flow-merge": (118.67993, 330.03179),
    "carla-lane-v0": (-0.8503839912088142, 1023.5784385429523),
    "carla-town-v0": (-114.81579500772153, 2440.1772022247314),
    "bullet-maze2d-open-v0": (8.75, 64.15),
    "bullet-maze2d-umaze-v0": (32.46, 153.99),
    "bullet-maze2d-medium-v0": (14.87, 238.05),
    "bullet-maze2d-large-v0": (1.82, 285.92),
}
_KINDS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
_ANTMAZES = (
    "umaze",
    "umaze-diverse",
    "medium-play",
    "medium-diverse",
    "large-play",
    "large-diverse",
)


def _names(tasks: Sequence[str], kinds: Sequence[str], versions: Sequence[str]) -> list[str]:
    return ["-".join(parts) for parts in itertools.product(tasks, kinds, versions)]


def _table() -> dict[str, Range]:
    table: dict[str, Range] = dict(_SINGLE)
    for task, values in _LOCOMOTION.items():
        table |= dict.fromkeys(_names([task], _KINDS, ["v0", "v1", "v2"]), values)
    for task, values in _ADROIT.items():
        kinds = ("human", "cloned", "expert")
        table |= dict.fromkeys(_names([task], kinds, ["v0", "v1"]), values)
    for task, values in _BULLET.items():
        table |= dict.fromkeys(_names([task], _KINDS, ["v0"]), values)
    table |= dict.fromkeys(_names(["antmaze"], _ANTMAZES, ["v0", "v2"]), (0.0, 1.0))
    kitchens = ("complete", "partial", "mixed")
    return table | dict.fromkeys(_names(["kitchen"], kinds=kitchens, versions=["v0"]), (0.0, 4.0))


REFERENCE_SCORES = _table()
"""(min, max) by the name of a D4RL data set."""

ATARI_HUMAN = {
    "alien": (227.8, 7127.7),
    "assault": (222.4, 742.0),
    "asteroids": (719.1, 47388.7),
    "bank_heist": (14.2, 753.1),
    "beam_rider": (363.9, 16926.5),
    "bowling": (23.1, 160.7),
    "breakout": (1.7, 30.5),
    "chopper_command": (811.0, 7387.8),
    "defender": (2874.5, 18688.9),
    "double_dunk": (-18.6, -16.4),
    "fishing_derby": (-91.7, -38.7),
    "frostbite": (65.2, 4334.7),
    "gravitar": (173.0, 3351.4),
    "ice_hockey": (-11.2, 0.9),
    "kangaroo": (52.0, 3035.0),
    "kung_fu_master": (258.5, 22736.3),
    "ms_pacman": (307.3, 6951.6),
    "phoenix": (761.4, 7242.6),
    "pong": (-20.7, 14.6),
    "qbert": (163.9, 13455.0),
    "road_runner": (11.5, 7845.0),
    "seaquest": (68.4, 42054.7),
    "solaris": (1236.3, 12326.7),
    "star_gunner": (664.0, 10250.0),
    "tennis": (-23.8, -8.3),
    "tutankham": (11.4, 167.6),
    "venture": (0.0, 1187.5),
    "wizard_of_wor": (563.5, 4756.5),
    "zaxxon": (32.5, 9173.3),
}
"""(random, human) returns by game, as in DeepMind's dqn_zoo."""

ATARI_GAMER = {
    "breakout": (2.0, 30.0),
    "qbert": (164.0, 13455.0),
    "pong": (-21.0, 15.0),
    "seaquest": (68.0, 42055.0),
}
"""(random, gamer) returns by game, as rounded by the Decision Transformer paper."""


def reference_scores(task: str) -> Range:
    """Return (min, max) of a D4RL data set, "hopper-medium-v2".

    Raises:
        NoReferenceScore: it is not in the table.
    """
    return _look_up(task, REFERENCE_SCORES, "a data set of D4RL")


def atari_scores(game: str, *, table: str = "human") -> Range:
    """Return (random, human) returns of an Atari game, "breakout".

    Args:
        game: in small letters with underscores.
        table: "human" (dqn_zoo) or "gamer" (Decision Transformer; four games).

    Raises:
        NoReferenceScore: the game or the table is not known.
    """
    tables = {"human": ATARI_HUMAN, "gamer": ATARI_GAMER}
    if table not in tables:
        problem = f"expected one of {', '.join(tables)}, got {table!r}"
        raise NoReferenceScore(problem, key="table")
    return _look_up(game, tables[table], f"a game of the {table} table")


def _look_up(name: str, table: dict[str, Range], what: str) -> Range:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "give (min, max) yourself"
        raise NoReferenceScore(f"expected {what}, got {name!r}", hint=hint)
    return table[name]


def info_scores(info: DatasetInfo) -> Range:
    """Return (min, max) that a data set was stored with.

    Raises:
        NoReferenceScore: it has none.
    """
    if info.ref_min is None or info.ref_max is None:
        raise NoReferenceScore(
            "expected ref_min and ref_max, got none",
            file=info.source or None,
            hint="measure the return of a random policy and of an expert, or report raw returns",
        )
    return info.ref_min, info.ref_max


def normalized_score(returns: ArrayLike, reference: str | Range) -> NDArray[np.float64]:
    """Return scores in percent, of the shape of `returns`.

    Args:
        returns: undiscounted sums of rewards.
        reference: name of a D4RL data set, or (min, max).

    Raises:
        NoReferenceScore: the name is not known, or max is not above min.
    """
    low, high = reference_scores(reference) if isinstance(reference, str) else reference
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        raise NoReferenceScore(f"expected finite min < max, got {low} and {high}", key="reference")
    # Divided first, so that `high` scores 100 without rounding.
    return np.asarray(100 * ((np.asarray(returns, np.float64) - low) / (high - low)))
