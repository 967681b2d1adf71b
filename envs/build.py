"""From an id to a vector environment: the families of ids and how each is made."""

import difflib
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVector

from statewise.envs import (
    atari,
    bsuite,
    dmc,
    envpool,
    gymnax,
    memory_maze,
    minigrid,
    mujoco_log,
    popgym,
    projected,
    tasks,
)
from statewise.envs.atari_vector import AtariVector
from statewise.envs.hidden import PartlyHidden, PartlyHiddenWrapper, read_kept
from statewise.envs.jax_tasks import vector as jax_tasks
from statewise.envs.pictures import MIN_SIDE, ResizedPictures, ResizedPicturesWrapper
from statewise.envs.previous import Input, PreviousInputs, PreviousInputsWrapper
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.resumable import ResumableEnv
from statewise.envs.single import FirstOf
from statewise.envs.tasks.task import TaskVectorEnv
from statewise.envs.trial_env import TrialEnv, WholeTrials
from statewise.envs.trials import TrialConfig, Trials
from statewise.envs.vector import GymnasiumVectorEnv, autoreset_mode

Factory = Callable[..., gymnasium.Env[Any, Any]]
VectorFactory = Callable[..., GymnasiumVector[Any, Any, Any]]
Vectorization = Literal["auto", "sync", "async", "vector_entry_point", "envpool"]
Autoreset = Literal["next_step", "same_step"]

_MODES = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}
_OWN_KEYWORDS = {"id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _nothing_missing() -> str:
    return ""


def _registered_already() -> None:
    return


def _registered_ids() -> Collection[str]:
    return gymnasium.registry.keys()


class Family(NamedTuple):
    """A group of ids that come from one package."""

    prefix: str
    """What its ids begin with."""
    extra: str | None
    """The extra of this package that installs it; None where none is needed."""
    example: str
    """An id of the family."""
    missing: Callable[[], str]
    """Returns "" where the family can be used, else the line that installs it."""
    register: Callable[[], None]
    """Makes the ids known to gymnasium."""
    make: Factory | None = None
    """Makes one environment: make(id, **kwargs); None where gymnasium.make does."""
    vector: VectorFactory | None = None
    """Makes N environments that step together: vector(id, N, **kwargs)."""
    ids: Callable[[], Collection[str]] = _registered_ids
    """What ids there are, called after `register`."""


class Native(NamedTuple):
    """A source of environments that step together: vector(N, **kwargs)."""

    vector: VectorFactory
    single: Factory | None
    """Makes one; None where only a vector environment of one is."""


Source = EnvSpec | Factory | Native

FAMILIES: tuple[Family, ...] = (
    Family("popgym-", "popgym", "popgym-RepeatPreviousEasy-v0", popgym.missing, popgym.register),
    Family("ALE/", "atari", "ALE/Pong-v5", atari.missing, atari.register, atari.make, AtariVector),
    Family("dm_control/", "dmc", "dm_control/cartpole-balance", dmc.missing, dmc.register),
    Family(
        *("dmc:", "dmc", "dmc:walker-walk", dmc.missing, _registered_already),
        make=dmc.make,
        ids=dmc.ids,
    ),
    Family(
        *("envpool:", "envpool", "envpool:Pong-v5", envpool.missing, _registered_already),
        vector=envpool.EnvPool,
        ids=envpool.ids,
    ),
    Family(
        *("gymnax:", "jax", "gymnax:CartPole-v1", gymnax.missing, _registered_already),
        vector=gymnax.Gymnax,
        ids=gymnax.ids,
    ),
    Family(
        *("jax:", "jax", "jax:DarkRoom", jax_tasks.missing, _registered_already),
        vector=jax_tasks.JaxTasks,
        ids=jax_tasks.ids,
    ),
    Family(
        *("bsuite:", "bsuite", "bsuite:memory_len/5", bsuite.missing, _registered_already),
        make=bsuite.make,
        ids=bsuite.ids,
    ),
    Family(
        *("memory-maze:", "memory-maze", "memory-maze:9x9", memory_maze.missing),
        *(_registered_already, memory_maze.make),
        ids=memory_maze.ids,
    ),
    Family(
        *("MiniGrid-", "minigrid", "MiniGrid-MemoryS7-v0", minigrid.missing),
        *(minigrid.register, minigrid.make),
    ),
    Family(
        *("projected/", None, "projected/classic", _nothing_missing, _registered_already),
        make=projected.make,
        ids=projected.ids,
    ),
    Family("statewise/", None, "statewise/MemoryChain-v0", _nothing_missing, tasks.register),
    Family("", None, "CartPole-v1", _nothing_missing, _registered_already),
)
"""The first row whose prefix fits an id serves it; the last one fits all."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which environment, how many of it, and how they are stepped.

    Raises:
        ValueError: a field is out of range.
    """

    id: str  # as gymnasium.make takes it, or a label where a factory is given
    num_envs: int = 16  # stepped together, >= 1
    vectorization: Vectorization = "auto"  # auto: vector entry point if there is one, else sync
    autoreset: Autoreset = "next_step"  # next_step keeps final observations as rows
    inputs: tuple[Input, ...] = ()  # added to the observation, each at most once
    trial: TrialConfig = field(default_factory=TrialConfig)  # episodes that share a memory
    keep: tuple[str, ...] = ()  # what is observed, "position" or "obs[0:8]", see hidden; (): all
    picture_size: int = 0  # pixels of each side that pictures are resized to, >= 8; 0: as they are
    kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make or the factory

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id: expected the id of an environment, got ''")
        if self.num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {self.num_envs}")
        for name, allowed in (("vectorization", Vectorization), ("autoreset", Autoreset)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name}: expected one of {get_args(allowed)}, got {getattr(self, name)!r}"
                )
        unknown = set(self.inputs) - set(get_args(Input))
        if unknown or len(set(self.inputs)) < len(self.inputs):
            raise ValueError(
                f"inputs: expected each of {get_args(Input)} at most once, got {self.inputs}"
            )
        for word in self.keep:
            read_kept(word)
        if self.picture_size != 0 and self.picture_size < MIN_SIDE:
            raise ValueError(
                f"picture_size: expected 0 or at least {MIN_SIDE}, got {self.picture_size}"
            )
        if clash := _OWN_KEYWORDS & set(self.kwargs):
            raise ValueError(
                f"kwargs: expected arguments of the environment, got {sorted(clash)}, "
                "which are settings of their own"
            )


def find_family(env_id: str) -> Family:
    """Return the row of `FAMILIES` that serves the id."""
    return next(family for family in FAMILIES if env_id.startswith(family.prefix))


def _full_id(config: EnvConfig) -> str:
    """Return the id with the prefix that the vectorization stands for."""
    return (envpool.PREFIX if config.vectorization == "envpool" else "") + config.id


def steps_together(config: EnvConfig) -> bool:
    """Return whether environments of the config are only made many at once."""
    family = find_family(_full_id(config))
    return family.vector is not None and family.make is None


def _source_of(config: EnvConfig, factory: Factory | None) -> Source:
    """Return what makes the environments of a config, one and many alike."""
    return factory if factory is not None else _find_source(_full_id(config))


def _find_source(env_id: str) -> Source:
    """Return gymnasium's entry for the id, or what its family makes it with.

    Registers the family first.
    """
    family = find_family(env_id)
    if line := family.missing():
        raise EnvError(f"{family.extra} needs: {line}")
    family.register()
    if env_id not in family.ids():
        near = difflib.get_close_matches(env_id, family.ids())
        hint = f"did you mean {' or '.join(near)}?" if near else "register it first"
        raise EnvError(f"expected the id of a registered environment, got {env_id!r}: {hint}")
    make = None if family.make is None else partial(family.make, env_id)
    if family.vector is not None:
        return Native(partial(family.vector, env_id), make)
    return make or gymnasium.registry[env_id]


def _make_single(
    source: Source, kwargs: dict[str, Any], trial: TrialConfig
) -> gymnasium.Env[Any, Any]:
    """Make one environment, which counts its trials if there are any."""
    if isinstance(source, Native):
        if source.single is None:
            return FirstOf(source.vector(1, **kwargs))
        source = source.single
    if isinstance(source, EnvSpec):
        if "gymnasium.envs.mujoco" in str(source.entry_point) and find_spec("mujoco"):
            mujoco_log.tell_each_once()
        env = gymnasium.make(source, disable_env_checker=True, **kwargs)
    else:
        env = source(**kwargs)
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"expected the factory to return a gymnasium.Env, got {type(env).__name__}")
    return ResumableEnv(TrialEnv(env, trial) if trial.is_on else env)


def _make_in_worker(
    source: Source, kwargs: dict[str, Any], trial: TrialConfig
) -> gymnasium.Env[Any, Any]:
    """Make one environment in a process of its own; gymnasium also makes one in this process."""
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches the whole process group; what it means is the trainer's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _make_single(source, kwargs, trial)


@contextmanager
def _one_thread_per_worker() -> Iterator[None]:
    """Start processes that use one thread each, unless the user set a number."""
    unset = [name for name in _THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "1"))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


def _resolve(config: EnvConfig, source: Source) -> Vectorization:
    """Return the vectorization that "auto" stands for, and refuse what cannot be."""
    asked = config.vectorization
    if isinstance(source, Native) and source.single is None:
        if asked in ("sync", "async"):
            raise EnvError(
                f"expected env.vectorization auto or vector_entry_point, got {asked!r} for "
                f"{config.id!r}, whose environments step together"
            )
        return "vector_entry_point"
    if isinstance(source, Native):
        return "sync" if asked == "auto" else asked
    native = isinstance(source, EnvSpec) and source.vector_entry_point is not None
    if asked == "auto":
        whole = native and isinstance(source, EnvSpec) and not source.additional_wrappers
        # Those of others know one kind of auto-reset, and no trials.
        plain = config.autoreset == "next_step" and not config.trial.is_on
        return "vector_entry_point" if whole and (plain or config.id in tasks.TASKS) else "sync"
    if asked in ("vector_entry_point", "envpool") and not native:
        raise EnvError(
            f"expected an environment with a vector entry point, got {config.id!r}: "
            "use env.vectorization sync or async"
        )
    return asked


def _make_native(config: EnvConfig, source: Source) -> GymnasiumVector[Any, Any, Any]:
    """Make environments that step together by themselves."""
    if isinstance(source, Native):
        vec, instead = source.vector(config.num_envs, **config.kwargs), "env.autoreset next_step"
    else:
        assert isinstance(source, EnvSpec), source
        vec = gymnasium.make_vec(source, config.num_envs, "vector_entry_point", **config.kwargs)
        if isinstance(vec, TaskVectorEnv):
            vec.set_autoreset(_MODES[config.autoreset])
        instead = "env.vectorization sync"
    if config.trial.is_on and isinstance(vec, TaskVectorEnv | jax_tasks.JaxTasks):
        vec.set_trials(config.trial)
    name = autoreset_mode(vec).name
    if name.lower() != config.autoreset:
        raise EnvError(
            f"expected autoreset {config.autoreset}, got an environment with {name} for "
            f"{config.id!r}: use {instead}"
        )
    return vec


def _vectorize(config: EnvConfig, source: Source) -> GymnasiumVectorEnv:
    how = _resolve(config, source)
    if how == "vector_entry_point":
        return GymnasiumVectorEnv(_make_native(config, source))
    mode = _MODES[config.autoreset]
    make = _make_in_worker if how == "async" else _make_single
    makers = [partial(make, source, config.kwargs, config.trial)] * config.num_envs
    vec: GymnasiumVector[Any, Any, Any]
    if how == "sync":
        # copy=False: the adapter makes the one copy that is needed
        vec = SyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    else:
        with _one_thread_per_worker():  # "spawn": a forked child may inherit locked mutexes
            vec = AsyncVectorEnv(makers, copy=False, context="spawn", autoreset_mode=mode)
    return GymnasiumVectorEnv(vec, resumable=True)


@contextmanager
def _one_line(config: EnvConfig) -> Iterator[None]:
    """Turn what goes wrong while an environment is made into an EnvError."""
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        reason = " ".join(str(error).split())
        raise EnvError(f"{config.id} needs a package that is missing: {reason}") from error
    except EnvError:
        raise
    except Exception as error:
        # What an environment raises about arguments it does not like can be anything.
        if not config.kwargs and not isinstance(error, TypeError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EnvError(f"{config.id} cannot be made with {config.kwargs}: {reason}") from error


def _check_trial(config: EnvConfig, source: Source) -> None:
    known = source.max_episode_steps if isinstance(source, EnvSpec) else None
    limit = config.kwargs.get("max_episode_steps", known)  # gymnasium.make takes it
    if isinstance(limit, int) and 0 < config.trial.steps < limit:
        raise EnvError(
            f"expected trials at least as long as an episode, {limit} steps of {config.id}, got "
            f"env.trial.steps {config.trial.steps}: raise it, or set env.trial.episodes"
        )


def make_env(config: EnvConfig, factory: Factory | None = None) -> VectorEnv:
    """Make the environments of a config.

    Under "async" every environment lives in a process of its own; a script that uses it needs
    the usual `if __name__ == "__main__":`.

    Args:
        config: what to make.
        factory: the user's own environment, called with `config.kwargs` once per environment;
            `config.id` is then only a label.

    Raises:
        EnvError: unknown id, a package is missing, or settings the environment cannot meet.
        UnsupportedSpaceError: a space without an encoder or a policy head.
    """
    source = _source_of(config, factory)
    _check_trial(config, source)
    with _one_line(config):
        env: VectorEnv = _vectorize(config, source)
    if config.keep:
        env = PartlyHidden(env, config.keep)
    if config.picture_size:
        env = ResizedPictures(env, config.picture_size)
    if config.trial.is_on:
        env = Trials(env, config.trial)
    return PreviousInputs(env, config.inputs) if config.inputs else env


def make_single(
    config: EnvConfig, factory: Factory | None = None, **kwargs: Any
) -> gymnasium.Env[Any, Any]:
    """Make one environment of a config, in the form `make_env` gives; see there.

    Args:
        config: what to make; num_envs has no meaning for one, vectorization only where it is
            envpool, whose environment it then is, and autoreset between the episodes of a trial.
        factory: as in `make_env`.
        **kwargs: added to `config.kwargs`, for example `render_mode`.
    """
    source = _source_of(config, factory)
    with _one_line(config):
        env = _make_single(source, config.kwargs | kwargs, TrialConfig())
    return wrap_like(config, env)


def wrap_like(config: EnvConfig, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Give a single environment the form of `make_single(config)`.

    One of its episodes is a whole trial, where there are trials and the memory lives for one.
    """
    if config.trial.is_on:
        env = TrialEnv(env, config.trial)
        if config.trial.memory == "trial":
            env = WholeTrials(env, config.autoreset)
    if config.keep:
        env = PartlyHiddenWrapper(env, config.keep)
    return wrap_single(env, config.inputs, config.picture_size)


def wrap_single(
    env: gymnasium.Env[Any, Any], inputs: tuple[Input, ...] = (), picture_size: int = 0
) -> gymnasium.Env[Any, Any]:
    """Give a single environment the observations and actions of `make_env`.

    Also without inputs the observations become the flat dict an agent was trained on.
    """
    if picture_size:
        env = ResizedPicturesWrapper(env, picture_size)
    return PreviousInputsWrapper(env, inputs)
