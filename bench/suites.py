"""Suites of tasks that others publish results on: which tasks, what a score is, whose budget.

Sources: Morad et al. 2023, "POPGym"; Osband et al. 2020, "Behaviour Suite for Reinforcement
Learning" (its release 0.3.6 for the sweeps and their rules); Kaiser et al. 2020, "Model-Based
Reinforcement Learning for Atari" (100k steps; random and human scores as in DreamerV3's release);
Tassa et al. 2018, "DeepMind Control Suite" (tasks and budget as in DreamerV3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from statewise.bench.bsuite_rules import EXPERIMENTS, Experiment, experiment_of
from statewise.bench.process import Answer
from statewise.training.schema import ConfigError, nearest

POPGYM = (
    *("Autoencode", "Battleship", "Concentration", "CountRecall", "HigherLower", "MineSweeper"),
    *("MultiarmedBandit", "NoisyPositionOnlyCartPole", "NoisyPositionOnlyPendulum"),
    *("PositionOnlyCartPole", "PositionOnlyPendulum", "RepeatFirst", "RepeatPrevious"),
    "VelocityOnlyCartpole",
)
LABYRINTHS = ("LabyrinthEscape", "LabyrinthExplore")
LEVELS = ("Easy", "Medium", "Hard")

ATARI = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Hero": (1027.0, 30826.4),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "RoadRunner": (11.5, 7845.0),
    "Seaquest": (68.4, 42054.7),
    "UpNDown": (533.4, 11693.2),
}
"""Returns of a random player and of a human, the scores 0 and 1."""

PROPRIO = (
    *("acrobot-swingup", "ball_in_cup-catch", "cartpole-balance", "cartpole-balance_sparse"),
    *("cartpole-swingup", "cartpole-swingup_sparse", "cheetah-run", "finger-spin"),
    *("finger-turn_easy", "finger-turn_hard", "hopper-hop", "hopper-stand", "pendulum-swingup"),
    *("reacher-easy", "reacher-hard", "walker-run", "walker-stand", "walker-walk"),
)
QUADRUPED = ("quadruped-run", "quadruped-walk")

Kwargs = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is run under a name, and how it is scored."""

    name: str  # of the command, the runs' folder and the files
    title: str  # of figures
    groups: Mapping[str, tuple[str, ...]]  # ids by a word that stands for them
    default: tuple[str, ...]  # the words whose tasks are run if none are named
    seeds: int  # that a report should have, at least 1
    steps: int  # environment steps per run of the published results, 0 where they count episodes
    score: Callable[[str, Answer], float | None]  # (id, row of a run); None: too short for one
    scale: str  # what the scores 0 and 1 are
    best: str = ""  # what the mean best return of an update is called, "" if nobody reports it
    profile_end: float = 1.0  # last threshold of the performance profile, > 0
    kwargs: Mapping[str, Kwargs] = field(default_factory=dict)  # by prefix, of its environments
    experiments: Mapping[str, Experiment] = field(default_factory=dict)  # with rules of their own

    @property
    def tasks(self) -> tuple[str, ...]:
        """All ids."""
        return tuple(dict.fromkeys(task for group in self.groups.values() for task in group))

    def chosen(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return the ids that words stand for, in their order; without words the default.

        Raises:
            ConfigError: a word that is no group and no id of this suite.
        """
        found: dict[str, None] = {}
        for word in words or self.default:
            if word not in self.groups and word not in self.tasks:
                known = [*self.groups, *self.tasks]
                raise ConfigError(
                    f"--tasks: expected ids of {self.name}, or {', '.join(self.groups)}, got "
                    f"{word!r}{nearest(word, known)}"
                )
            found |= dict.fromkeys(self.groups.get(word, (word,)))
        return tuple(found)

    def kwargs_of(self, task: str) -> Kwargs:
        """Return what its environments are made with."""
        return next((one for prefix, one in self.kwargs.items() if task.startswith(prefix)), {})


def _popgym(names: tuple[str, ...], levels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"popgym-{name}{level}-v0" for level in levels for name in names)


def _score_popgym(task: str, row: Answer) -> float:
    return float(row["return"] + 1) / 2


def _score_atari(task: str, row: Answer) -> float:
    low, high = ATARI[task.removeprefix("ALE/").removeprefix("envpool:").removesuffix("-v5")]
    return float((row["return"] - low) / (high - low))


def _score_dmc(task: str, row: Answer) -> float:
    return float(row["return"]) / 1000


def _score_bsuite(task: str, row: Answer) -> float | None:
    if row["run_return"] is None:
        return None
    return EXPERIMENTS[experiment_of(task)].score([row["run_return"]])


def _of_envpool(task: str) -> str:
    """Return envpool's id of a task of the control suite."""
    return f"envpool:{''.join(word.capitalize() for word in task.replace('-', '_').split('_'))}-v1"


SUITES = {
    "popgym": Suite(
        name="popgym",
        title="POPGym",
        groups={
            **{level.lower(): _popgym(POPGYM, (level,)) for level in LEVELS},
            "labyrinth": _popgym(LABYRINTHS, LEVELS),
        },
        # Labyrinths can be solved without a memory, and need a package that Python 3.12 lacks.
        default=("easy", "medium", "hard"),
        seeds=3,
        steps=15_000_000,
        score=_score_popgym,
        scale="score (return + 1) / 2",
        best="MMER",
    ),
    "bsuite": Suite(
        name="bsuite",
        title="bsuite",
        groups={
            name: tuple(f"bsuite:{name}/{number}" for number in range(one.settings))
            for name, one in EXPERIMENTS.items()
        },
        default=tuple(EXPERIMENTS),
        seeds=1,
        steps=0,
        score=_score_bsuite,
        scale="score by bsuite's rules",
        experiments=EXPERIMENTS,
    ),
    "atari100k": Suite(
        name="atari100k",
        title="Atari 100k",
        groups={
            "ale": tuple(f"ALE/{game}-v5" for game in ATARI),
            "envpool": tuple(f"envpool:{game}-v5" for game in ATARI),
        },
        default=("ale",),
        seeds=5,
        steps=100_000,
        score=_score_atari,
        scale="human-normalised score",
        profile_end=8.0,
        # As in DreamerV3: no sticky actions, the game's own actions, 64 x 64 in colour.
        kwargs={
            "ALE/": {
                "repeat_action_probability": 0.0,
                "full_action_space": False,
                "grayscale_obs": False,
            },
            "envpool:": {
                "stack_num": 1,
                "gray_scale": False,
                "img_height": 64,
                "img_width": 64,
                "use_fire_reset": False,
            },
        },
    ),
    "dmc": Suite(
        name="dmc",
        title="DeepMind Control",
        groups={
            "proprio": tuple(f"dm_control/{task}" for task in PROPRIO),
            "quadruped": tuple(f"dm_control/{task}" for task in QUADRUPED),
            "envpool": tuple(map(_of_envpool, PROPRIO)),
        },
        default=("proprio",),
        seeds=5,
        steps=500_000,
        score=_score_dmc,
        scale="score return / 1000",
    ),
}
