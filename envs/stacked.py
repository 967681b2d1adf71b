"""Several vector environments as one, for episodes that begin alike and go on differently."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv


def _joined(rows: Sequence[Obs]) -> Obs:
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


class Stacked:
    """`VectorEnv` of the rows of several, one after the other, stepped together.

    Every one of them is reset with the SAME seed: row i of each begins the same episodes.

    Args:
        envs: at least one, all of the same spaces, closed with this one.

    Raises:
        EnvError: there is none, or their spaces differ.
    """

    def __init__(self, envs: Sequence[VectorEnv]) -> None:
        if not envs:
            raise EnvError("expected at least one vector environment, got none")
        first = envs[0]
        for other in envs[1:]:
            if (other.obs_space, other.action_space) != (first.obs_space, first.action_space):
                raise EnvError(
                    f"expected environments of the same spaces, got {first.obs_space} and "
                    f"{other.obs_space}, {first.action_space} and {other.action_space}"
                )
        self._envs = tuple(envs)
        self._ends = np.cumsum([env.num_envs for env in envs])
        self.num_envs = int(self._ends[-1])
        self.obs_space, self.action_space = first.obs_space, first.action_space
        self.resume = "exact" if all(env.resume == "exact" for env in envs) else "episode"

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start episodes; environment i of each part is seeded with seed + i."""
        return self._both([env.reset(seed) for env in self._envs])

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`."""
        parts = np.split(action, self._ends[:-1])
        arrived = [env.step(part) for env, part in zip(self._envs, parts, strict=True)]
        fields: dict[str, Any] = {
            name: np.concatenate([getattr(one, name) for one in arrived])
            for name in Arrived._fields
            if name not in ("obs", "final_obs", "cut", "trial")
        }
        final = None
        if any(one.final_obs is not None for one in arrived):
            # The rows of a part in which no episode ended are meaningless: any numbers will do.
            final = _joined(
                [one.obs if one.final_obs is None else one.final_obs for one in arrived]
            )
        return Arrived(obs=_joined([one.obs for one in arrived]), final_obs=final, **fields)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"parts": [env.state_dict() for env in self._envs]}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        pairs = zip(self._envs, state["parts"], strict=True)
        return self._both([env.load_state_dict(part) for env, part in pairs])

    def close(self) -> None:
        """Close all of them."""
        for env in self._envs:
            env.close()

    def _both(self, starts: Sequence[tuple[Obs, Bools]]) -> tuple[Obs, Bools]:
        return _joined([obs for obs, _ in starts]), np.concatenate([first for _, first in starts])
