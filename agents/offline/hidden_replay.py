"""Played episodes, and a replay of their steps with the memory that the policy had at each.

Paper: Bar David et al. 2023, "Decision S4: Efficient Sequence-Based RL via State Spaces Layers"
(section 3.3). A row is

    s_t, a_{t-1}, R_t, h_t, a_t, r_t, terminated_t

with h_t the state of the core BEFORE step t. Returns to go are relabelled when an episode ends:
whatever return was asked for, R_t is what was got from t on, and R_T = 0. An episode of T steps
takes T + 1 rows, the last one holding its final observation, so that what follows a row is the
next row and h is stored once per step. The oldest rows are overwritten first.

Stored states are those of the weights that acted, and of the returns to go that they were told,
which are kept beside the relabelled ones for this. `recomputed` says what the states would be with
other weights, and `staleness` how far the two are apart.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows
from statewise.ssm.protocol import SequenceModel, State
from statewise.ssm.state import num_elements, select, take

FLOAT_BYTES = 4
GIB = 2**30
OBS, STATE = "obs.", "state."


class PlayedEpisode(NamedTuple):
    """One complete episode of T steps, on the CPU."""

    obs: dict[str, Tensor]
    """(T + 1, ...) per key; the last is the final observation."""
    action: Tensor
    """(T, A) codes of the actions taken."""
    reward: Tensor
    """(T,) float."""
    asked: Tensor
    """(T + 1,) returns to go that the policy was told, in the units of the rewards."""
    terminated: bool
    """The last action ended it by a rule of the task; False where a time limit cut it off."""
    state: State
    """(T + 1, ...) of the core, before each observation."""

    @property
    def total(self) -> float:
        """The return."""
        return float(self.reward.double().sum())


class Transitions(NamedTuple):
    """Steps and what followed each of them; the action before the following one is `action`."""

    obs: dict[str, Tensor]
    """(B, ...) per key."""
    previous: Tensor
    """(B, A) code of the action that led here, 0 at first steps."""
    rtg: Tensor
    """(B,) in the units of the rewards."""
    state: State
    """(B, ...) before `obs`."""
    action: Tensor
    """(B, A) code."""
    reward: Tensor
    """(B,)."""
    terminated: Tensor
    """(B,) bool; False where a time limit ended the episode, whose value goes on."""
    next_obs: dict[str, Tensor]
    next_rtg: Tensor
    next_state: State


def returns_to_go(reward: Tensor) -> Tensor:
    """Return (T + 1,) float32 sums of the rewards (T,) from each step on; the last is 0."""
    ahead = reward.double().flip(0).cumsum(0).flip(0)
    return torch.cat((ahead, ahead.new_zeros(1))).float()


def previous_actions(action: Tensor) -> Tensor:
    """Return (T + 1, A): the codes that led to each observation of an episode; the first is 0."""
    return torch.cat((torch.zeros_like(action[:1]), action))


def single_rows(obs: Tensor, previous: Tensor, rtg: Tensor) -> PolicyRows:
    """Return the inputs of steps whose memory is given: nothing is cleared. Axes (...)."""
    return PolicyRows(
        obs=obs,
        action=torch.zeros_like(previous),
        previous=previous,
        rtg=rtg,
        timestep=torch.zeros_like(rtg, dtype=torch.long),
        reset=torch.zeros_like(rtg, dtype=torch.bool),
    )


def core_of(policy: SequencePolicy) -> SequenceModel:
    """Return the core, which has a step mode and one token per step.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(policy.core, SequenceModel) or policy.tokens.per_step != 1:
        raise ValueError(
            "policy: expected a core with a step mode and one token per step, as Decision S4 has, "
            f"got {type(policy.core).__name__} and {type(policy.tokens).__name__}"
        )
    return policy.core


def staleness(stored: State, fresh: State) -> dict[str, float]:
    """Return sum |stored - fresh| / sum |fresh| per block, keys "0", "1", ... of a stack."""
    gap: dict[str, float] = {}
    size: dict[str, float] = {}
    for key, value in fresh.items():
        block = key.partition(".")[0]
        gap[block] = gap.get(block, 0.0) + float((stored[key] - value).abs().sum())
        size[block] = size.get(block, 0.0) + float(value.abs().sum())
    return {block: gap[block] / max(size[block], 1e-30) for block in gap}


class HiddenReplay:
    """A ring of rows with hidden states, in float32 on the CPU.

    Args:
        capacity: rows >= 2; an episode takes one more than it has steps.
        obs: one observation per key, for shapes and dtypes.
        width: of the action codes.
        state: one state of the core, (1, ...) per key.
        budget_gib: > 0, what the rows may take.

    Raises:
        ValueError: they would take more.
    """

    def __init__(
        self, capacity: int, obs: dict[str, Tensor], width: int, state: State, budget_gib: float
    ) -> None:
        self.capacity = capacity
        self._shapes = {key: (value.shape[1:], torch.float32) for key, value in state.items()}
        per_row = {f"{OBS}{key}": (x.shape, x.dtype) for key, x in obs.items()}
        per_row |= {f"{STATE}{key}": value for key, value in self._shapes.items()}
        for name, shape, dtype in (
            ("previous", (width,), torch.float32),
            ("action", (width,), torch.float32),
            ("rtg", (), torch.float32),
            ("asked", (), torch.float32),
            ("reward", (), torch.float32),
            ("terminated", (), torch.bool),
            ("has_next", (), torch.bool),
        ):
            per_row[name] = torch.Size(shape), dtype
        size = capacity * sum(shape.numel() * dtype.itemsize for shape, dtype in per_row.values())
        if size > budget_gib * GIB:
            raise ValueError(
                f"replay: expected at most {budget_gib:g} GiB, got {size / GIB:.2f} GiB for "
                f"{capacity} rows with {num_elements(state) * FLOAT_BYTES / 1000:.1f} kB of memory "
                "each: lower replay_size, raise replay_gib, or train a smaller core"
            )
        self._columns = {
            name: torch.zeros((capacity, *shape), dtype=dtype)
            for name, (shape, dtype) in per_row.items()
        }
        self._written = 0  # rows, ever: row n is at n % capacity
        self._episodes: deque[tuple[int, int]] = deque()  # first row and past the last, ever

    def __len__(self) -> int:
        return min(self._written, self.capacity)

    @property
    def num_transitions(self) -> int:
        """How many rows `sample` chooses from."""
        return int(self._columns["has_next"].sum())

    @property
    def num_episodes(self) -> int:
        """How many episodes have rows left."""
        return len(self._episodes)

    def add(self, episode: PlayedEpisode) -> None:
        """Write an episode, with its returns to go as they turned out.

        Raises:
            ValueError: it has more rows than the replay.
        """
        rows = len(episode.action) + 1
        if rows > self.capacity:
            raise ValueError(
                f"replay: expected episodes of at most {self.capacity - 1} steps, got {rows - 1}: "
                "raise replay_size"
            )
        place = torch.arange(self._written, self._written + rows) % self.capacity
        pad = (0, 1)
        last = torch.arange(rows) == rows - 2
        values = {f"{OBS}{key}": x for key, x in episode.obs.items()}
        values |= {f"{STATE}{key}": x for key, x in episode.state.items()}
        values |= {
            "previous": previous_actions(episode.action),
            "action": torch.cat((episode.action, torch.zeros_like(episode.action[:1]))),
            "rtg": returns_to_go(episode.reward),
            "asked": episode.asked,
            "reward": torch.nn.functional.pad(episode.reward, pad),
            "terminated": last & episode.terminated,
            "has_next": torch.arange(rows) < rows - 1,
        }
        for name, column in self._columns.items():
            column[place] = values[name].to(column.dtype)
        self._episodes.append((self._written, self._written + rows))
        self._written += rows
        oldest = self._written - len(self)
        while self._episodes[0][1] <= oldest:
            self._episodes.popleft()

    def sample(self, batch_size: int, generator: torch.Generator) -> Transitions:
        """Return rows drawn evenly, with replacement, from those that have a next one."""
        choices = self._columns["has_next"].nonzero().squeeze(-1)
        pick = torch.randint(len(choices), (batch_size,), generator=generator)
        now = choices[pick]
        after = (now + 1) % self.capacity
        column = self._columns
        rows, following = (select(take(column, index), OBS) for index in (now, after))
        return Transitions(
            obs=rows,
            previous=column["previous"][now],
            rtg=column["rtg"][now],
            state=self.states(now),
            action=column["action"][now],
            reward=column["reward"][now],
            terminated=column["terminated"][now],
            next_obs=following,
            next_rtg=column["rtg"][after],
            next_state=self.states(after),
        )

    def states(self, index: Tensor) -> State:
        """Return the stored states of rows (n,)."""
        return {key: self._columns[f"{STATE}{key}"][index] for key in self._shapes}

    def put_states(self, index: Tensor, state: State) -> None:
        """Replace the stored states of rows (n,)."""
        for key, value in state.items():
            self._columns[f"{STATE}{key}"][index] = value

    def rows_of(self, number: int) -> Tensor:
        """Return the rows (n,) in which an episode is left, counted from the oldest, in order."""
        first, past = self._episodes[number]
        return torch.arange(max(first, self._written - len(self)), past) % self.capacity

    @torch.no_grad()
    def recomputed(self, policy: SequencePolicy, episodes: Sequence[Tensor]) -> list[State]:
        """Return what the states of episodes are with these weights, step by step.

        They begin with the stored state of the first row: what was before it may be overwritten.

        Args:
            policy: the core and what is before it.
            episodes: rows (n,) of each, from `rows_of`; at least one.

        Returns:
            (n, ...) per key for each episode.
        """
        device = policy.head.linear.weight.device
        rows = pad_sequence(list(episodes), batch_first=True)
        tokens = self._tokens(policy, rows, device)
        core = core_of(policy)
        cache = core.prepare_step()
        state = {key: value.to(device) for key, value in self.states(rows[:, 0]).items()}
        seen = [state]
        for t in range(rows.shape[1] - 1):
            _, state = core.step(tokens[:, t], state, cache=cache)
            seen.append(state)
        return [
            {key: torch.stack([one[key][k].cpu() for one in seen[: len(own)]]) for key in state}
            for k, own in enumerate(episodes)
        ]

    def _tokens(self, policy: SequencePolicy, rows: Tensor, device: torch.device) -> Tensor:
        """Return the tokens (E, T, D) that rows (E, T) gave when they were played."""
        column = self._columns
        obs = select(take(column, rows), OBS)
        vector = policy.inputs({key: value.to(device) for key, value in obs.items()})
        previous, asked = column["previous"][rows].to(device), column["asked"][rows].to(device)
        tokens, _ = policy.tokens(single_rows(vector, previous, asked))
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that are filled and where they are."""
        return {
            "columns": {name: x[: len(self)].clone() for name, x in self._columns.items()},
            "written": self._written,
            "episodes": [list(bounds) for bounds in self._episodes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: its rows are not those of this replay.
        """
        own = {name: x.shape[1:] for name, x in self._columns.items()}
        given = {name: x.shape[1:] for name, x in state["columns"].items()}
        rows = len(state["columns"]["has_next"])
        if own != given or rows != min(state["written"], self.capacity):
            raise ValueError(
                f"replay: expected {self.capacity} rows of {own}, got {rows} of {given}: resume "
                "with the settings of the run"
            )
        for name, column in self._columns.items():
            column.zero_()
            column[:rows] = state["columns"][name]
        self._written = int(state["written"])
        self._episodes = deque((int(a), int(b)) for a, b in state["episodes"])
