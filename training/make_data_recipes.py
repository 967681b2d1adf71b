"""What `statewise data make` knows by name: environments with budgets, and the analytic sets."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

from statewise.data import EpisodeDataset, toy_histories, toy_offer, toys
from statewise.training.make_data_pong import PONG, pong
from statewise.training.schema import ConfigError, nearest

Algorithm = Literal["sac", "td3"]

LEVELS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")


@dataclass(frozen=True, kw_only=True)
class MakeConfig:
    """How a policy is trained and what is recorded of it.

    Raises:
        ConfigError: a field is out of its range.
    """

    env_id: str  # one Box of numbers as observation, bounded Box actions, a time limit
    steps: int  # of training, > learning_starts
    learning_starts: int  # uniform random actions before the first gradient step, >= 1
    eval_every: int  # steps between two evaluations, each of which saves everything, >= 1
    episodes: int = 100  # of each level that is played, >= 1
    seed: int = 0  # root of all random streams, >= 0
    algorithm: Algorithm = "sac"
    eval_episodes: int = 10  # per evaluation, without exploration, >= 1
    reference_episodes: int = 100  # for ref_min and ref_max, >= 1
    hidden: tuple[int, ...] = (256, 256)  # widths of actor and critics, each >= 1
    batch_size: int = 256  # transitions per gradient step, >= 1
    learning_rate: float = 3e-4  # > 0

    def __post_init__(self) -> None:
        names = ("learning_starts", "eval_every", "episodes", "eval_episodes")
        for name in (*names, "reference_episodes", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.steps <= self.learning_starts:
            raise ConfigError(
                f"steps: expected more than the {self.learning_starts} random ones before"
                f" learning, got {self.steps}"
            )
        if self.algorithm not in get_args(Algorithm):
            allowed = " or ".join(get_args(Algorithm))
            raise ConfigError(f"algorithm: expected {allowed}, got {self.algorithm!r}")
        if self.seed < 0 or self.learning_rate <= 0 or min(self.hidden, default=1) < 1:
            raise ConfigError(
                "expected seed >= 0, learning_rate > 0 and hidden >= 1,"
                f" got {self.seed}, {self.learning_rate} and {self.hidden}"
            )


class Toy(NamedTuple):
    """An analytic data set: its levels, each made by a number of episodes and a seed."""

    env_id: str
    levels: dict[str, Callable[..., EpisodeDataset]]
    length: int | None = None
    """Length of its environment by default; None where that has none."""
    length_kwarg: str = "length"
    """What its environment calls that."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Which analytic data set is made."""

    toy: str  # key of `TOYS`
    episodes: int | None = None  # per level, >= 1; None: as many as the set has by itself
    length: int | None = None  # of its environment, >= 1; None: the default, or it has none
    seed: int = 0  # >= 0

    def __post_init__(self) -> None:
        if self.length is None:
            return
        if TOYS[self.toy].length is None:
            raise ConfigError(_no_length(self.toy, self.length))
        if self.length < 1:
            raise ConfigError(f"length: expected at least 1, got {self.length}")

    def make(self, level: str) -> EpisodeDataset:
        """Return the data set of a level."""
        build = TOYS[self.toy].levels[level]
        arguments = () if self.episodes is None else (self.episodes,)
        length = {} if self.length is None else {"length": self.length}
        return build(*arguments, **length, seed=self.seed)


TOYS: dict[str, Toy] = {
    "rtg-dial": Toy("statewise/RtgDial-v0", {"mixed": toys.rtg_dial}, length=20),
    "delayed-cue": Toy("statewise/DelayedCue-v0", {"expert": toys.delayed_cue}, length=30),
    "double-integrator": Toy(
        "statewise/DoubleIntegrator-v0",
        {
            "random": partial(toys.double_integrator, random_share=1.0),
            "medium": partial(toys.double_integrator, random_share=0.5),
            "expert": toys.double_integrator,
        },
    ),
    "delayed-offer": Toy(
        "statewise/DelayedOffer-v0",
        {
            "random": toy_offer.delayed_offer,
            "take": partial(toy_offer.delayed_offer, takes=1.0),
            "mixed": partial(toy_offer.delayed_offer, low=toy_offer.SHORTEST_OFFER),
            "take-bright": partial(toy_offer.delayed_offer, takes=1.0, amp=toy_offer.BRIGHT_OFFER),
            "mixed-bright": partial(
                toy_offer.delayed_offer,
                low=toy_offer.SHORTEST_OFFER,
                amp=toy_offer.BRIGHT_OFFER,
            ),
        },
        length=10,
        length_kwarg="delay",
    ),
    "distracting-hallway": Toy(
        "statewise/DistractingHallway-v0",
        {
            "scripted": toys.distracting_hallway,
            "mixed": partial(toys.distracting_hallway, low=toys.NARROWEST),
        },
        length=100,
        length_kwarg="width",
    ),
    "multi-doors-keys": Toy(
        "statewise/MultiDoorsKeys-v0",
        {f"scripted-{n}": partial(toys.multi_doors_keys, num_keys=n) for n in (3, 5, 7)},
        length=100,
    ),
    "dark-room-histories": Toy(
        "statewise/DarkRoom-v0",
        {
            "train": toy_histories.dark_room_histories,
            "held-out": partial(toy_histories.dark_room_histories, goals="held_out"),
            "all": partial(toy_histories.dark_room_histories, goals="all"),
        },
        length=10,
        length_kwarg="steps",
    ),
    "pong": Toy(PONG, {"scripted": pong}),
}

_MUJOCO: dict[str, Any] = {
    "steps": 1_000_000,
    "learning_starts": 10_000,
    "eval_every": 5_000,
    "episodes": 1000,
}
RECIPES: dict[str, MakeConfig] = {
    # The score rises from 20 to 60 within 300 steps: evaluated often, so that there is a medium.
    # The learning rate is that of RL Baselines3 Zoo: most of the replay is then of a good policy.
    "pendulum": MakeConfig(
        env_id="Pendulum-v1",
        steps=10_000,
        learning_starts=1000,
        eval_every=100,
        learning_rate=1e-3,
    ),
    "hopper": MakeConfig(env_id="Hopper-v5", **_MUJOCO),
    "halfcheetah": MakeConfig(env_id="HalfCheetah-v5", **_MUJOCO),
    "walker2d": MakeConfig(env_id="Walker2d-v5", **_MUJOCO),
}

# Of an environment without a budget of its own.
_WARM_UP_SHARE, _MOST_WARM_UP, _EVALUATIONS = 10, 10_000, 40


def short_name(name: str) -> str:
    """Return the name of an environment's folder: "pendulum", "reacher-v5"."""
    ids = {config.env_id: key for key, config in RECIPES.items()}
    ids |= {toy.env_id: key for key, toy in TOYS.items()}
    return ids.get(name, name.replace(":", "/").rpartition("/")[2].lower())


def folder_name(name: str, config: MakeConfig | ToyConfig) -> str:
    """Return the name of a recipe's folder, "delayed-cue-100" where the length is not its own."""
    if isinstance(config, ToyConfig) and config.length is not None:
        return f"{short_name(name)}-{config.length}"
    return short_name(name)


def find_recipe(
    name: str,
    *,
    steps: int | None = None,
    algorithm: Algorithm | None = None,
    episodes: int | None = None,
    length: int | None = None,
    seed: int = 0,
) -> MakeConfig | ToyConfig:
    """Return the settings for a short name or the id of an environment.

    Args:
        name: key of `RECIPES` or `TOYS`, or an id of gymnasium.
        steps: of training; None is the budget of the name.
        algorithm: None is "sac".
        episodes: of each level; None is the number of the name.
        length: of an analytic set and its environment; None is the default of both.
        seed: root of all random streams.

    Raises:
        ConfigError: an id without `steps`, or a setting that has no effect.
    """
    key = short_name(name)
    if key in TOYS:
        given = {"--steps": steps, "--algorithm": algorithm}
        for option, value in given.items():
            if value is not None:
                raise ConfigError(
                    f"data make: expected no {option} for {key}, got {value}: nothing is trained"
                )
        length = None if length == TOYS[key].length else length
        return ToyConfig(toy=key, episodes=episodes, length=length, seed=seed)
    if length is not None:
        raise ConfigError(_no_length(key, length))
    changes: dict[str, Any] = {"steps": steps, "algorithm": algorithm, "episodes": episodes}
    changes = {field: value for field, value in changes.items() if value is not None}
    if key in RECIPES:
        return replace(RECIPES[key], **changes, seed=seed)
    if steps is None:
        hint = nearest(name, [*RECIPES, *TOYS]) or ": pass --steps N"
        problem = f"expected --steps for {name}, which has no budget of its own, got none"
        raise ConfigError(f"data make: {problem}{hint}")
    return MakeConfig(
        env_id=name,
        learning_starts=min(_MOST_WARM_UP, max(1, steps // _WARM_UP_SHARE)),
        eval_every=max(1, steps // _EVALUATIONS),
        seed=seed,
        **changes,
    )


def level_names(config: MakeConfig | ToyConfig) -> tuple[str, ...]:
    """Return the levels that can be made."""
    return LEVELS if isinstance(config, MakeConfig) else tuple(TOYS[config.toy].levels)


def check_levels(config: MakeConfig | ToyConfig, levels: tuple[str, ...]) -> None:
    """Raise ConfigError unless all of these levels can be made."""
    known = level_names(config)
    for level in levels:
        if level not in known:
            problem = f"expected levels among {', '.join(known)}, got {level!r}"
            raise ConfigError(f"data make: {problem}{nearest(level, known)}")


def settings_of(config: MakeConfig | ToyConfig) -> dict[str, Any]:
    """Return the fields as JSON has them, `length` only if there is one."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
        if (key, value) != ("length", None)  # so that the hash of a set stays what it was
    }


def _no_length(key: str, length: int) -> str:
    *having, last = (name for name, toy in TOYS.items() if toy.length is not None)
    names = f"{', '.join(having)} and {last}"
    return f"data make: expected no --length for {key}, got {length}: {names} have one"
