"""From an id to a vector environment: the families of ids and how each is made."""

import difflib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVector

from statewise.envs import atari, dmc, popgym, tasks
from statewise.envs.pictures import MIN_SIDE, ResizedPictures, ResizedPicturesWrapper
from statewise.envs.previous import Input, PreviousInputs, PreviousInputsWrapper
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.resumable import ResumableEnv
from statewise.envs.vector import GymnasiumVectorEnv, autoreset_mode

Factory = Callable[..., gymnasium.Env[Any, Any]]
Vectorization = Literal["auto", "sync", "async", "vector_entry_point"]
Autoreset = Literal["next_step", "same_step"]

_OWN_KEYWORDS = {"id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _nothing_missing() -> str:
    return ""


def _registered_already() -> None:
    return


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


FAMILIES: tuple[Family, ...] = (
    Family("popgym-", "popgym", "popgym-RepeatPreviousEasy-v0", popgym.missing, popgym.register),
    Family("ALE/", "atari", "ALE/Pong-v5", atari.missing, atari.register, atari.make),
    Family("dm_control/", "dmc", "dm_control/cartpole-balance", dmc.missing, dmc.register),
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


def _find_source(env_id: str) -> EnvSpec | Factory:
    """Return gymnasium's entry for the id, or what its family makes it with.

    Registers the family first.
    """
    family = find_family(env_id)
    if line := family.missing():
        raise EnvError(f"{family.extra} needs: {line}")
    family.register()
    spec = gymnasium.registry.get(env_id)
    if spec is None:
        near = difflib.get_close_matches(env_id, list(gymnasium.registry))
        hint = f"did you mean {' or '.join(near)}?" if near else "register it first"
        raise EnvError(f"expected the id of a registered environment, got {env_id!r}: {hint}")
    return spec if family.make is None else partial(family.make, env_id)


def _make_single(source: EnvSpec | Factory, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make one environment."""
    if isinstance(source, EnvSpec):
        env = gymnasium.make(source, disable_env_checker=True, **kwargs)
    else:
        env = source(**kwargs)
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"expected the factory to return a gymnasium.Env, got {type(env).__name__}")
    return ResumableEnv(env)


def _make_in_worker(source: EnvSpec | Factory, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make one environment in a process of its own; gymnasium also makes one in this process."""
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches the whole process group; what it means is the trainer's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _make_single(source, kwargs)


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


def _resolve(config: EnvConfig, source: EnvSpec | Factory) -> Vectorization:
    """Return the vectorization that "auto" stands for, and refuse what cannot be."""
    native = isinstance(source, EnvSpec) and source.vector_entry_point is not None
    if config.vectorization == "auto":
        whole = native and isinstance(source, EnvSpec) and not source.additional_wrappers
        return "vector_entry_point" if whole and config.autoreset == "next_step" else "sync"
    if config.vectorization == "vector_entry_point" and not native:
        raise EnvError(
            f"expected an environment with a vector entry point, got {config.id!r}: "
            "use env.vectorization sync or async"
        )
    return config.vectorization


def _vectorize(config: EnvConfig, source: EnvSpec | Factory) -> GymnasiumVectorEnv:
    how = _resolve(config, source)
    mode = AutoresetMode.NEXT_STEP if config.autoreset == "next_step" else AutoresetMode.SAME_STEP
    make = _make_in_worker if how == "async" else _make_single
    makers = [partial(make, source, config.kwargs)] * config.num_envs
    vec: GymnasiumVector[Any, Any, Any]
    if how == "sync":
        # copy=False: the adapter makes the one copy that is needed
        vec = SyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    elif how == "async":
        with _one_thread_per_worker():  # "spawn": a forked child may inherit locked mutexes
            vec = AsyncVectorEnv(makers, copy=False, context="spawn", autoreset_mode=mode)
    else:
        assert isinstance(source, EnvSpec), source
        vec = gymnasium.make_vec(source, config.num_envs, how, **config.kwargs)
        if autoreset_mode(vec) is not mode:
            raise EnvError(
                f"expected autoreset {config.autoreset}, got an environment with "
                f"{autoreset_mode(vec).name} for {config.id!r}: use env.vectorization sync"
            )
    return GymnasiumVectorEnv(vec, resumable=how != "vector_entry_point")


@contextmanager
def _one_line(config: EnvConfig) -> Iterator[None]:
    """Turn what goes wrong while an environment is made into an EnvError."""
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        reason = " ".join(str(error).split())
        raise EnvError(f"{config.id} needs a package that is missing: {reason}") from error
    except TypeError as error:
        reason = " ".join(str(error).split())
        raise EnvError(f"{config.id} cannot be made with {config.kwargs}: {reason}") from error


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
    source = factory if factory is not None else _find_source(config.id)
    with _one_line(config):
        env: VectorEnv = _vectorize(config, source)
    if config.picture_size:
        env = ResizedPictures(env, config.picture_size)
    return PreviousInputs(env, config.inputs) if config.inputs else env


def make_single(
    config: EnvConfig, factory: Factory | None = None, **kwargs: Any
) -> gymnasium.Env[Any, Any]:
    """Make one environment of a config, in the form `make_env` gives; see there.

    Args:
        config: what to make; num_envs, vectorization and autoreset have no meaning for one.
        factory: as in `make_env`.
        **kwargs: added to `config.kwargs`, for example `render_mode`.
    """
    source = factory if factory is not None else _find_source(config.id)
    with _one_line(config):
        env = _make_single(source, config.kwargs | kwargs)
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
