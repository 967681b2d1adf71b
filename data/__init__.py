"""Experience: the stored step, the one function that shifts it, and data sets of episodes."""

from statewise.data.d4rl import read_d4rl, write_d4rl
from statewise.data.dataset import EpisodeDataset, Statistics
from statewise.data.episode import ArraySpec, DatasetInfo, Episode, EpisodeSource
from statewise.data.errors import DatasetError, DatasetWarning
from statewise.data.flat import ReadConfig
from statewise.data.history_sampler import HistoryConfig, HistorySampler
from statewise.data.inspect import dataset_table
from statewise.data.load import load_dataset
from statewise.data.memory import MemorySource
from statewise.data.npz import read_npz, write_npz
from statewise.data.rows import returns_to_go
from statewise.data.samplers import (
    SampledBatch,
    StreamConfig,
    StreamSampler,
    TrajectoryConfig,
    TrajectorySampler,
    TransitionBatch,
    TransitionConfig,
    TransitionSampler,
    WindowConfig,
    WindowSampler,
)
from statewise.data.scores import atari_scores, info_scores, normalized_score, reference_scores
from statewise.data.shift import Arrival, to_arrival
from statewise.data.step import Batch, Step
from statewise.data.transforms import (
    concatenate,
    delayed_reward,
    keep_best,
    mask_observations,
    noisy_actions,
    scale_rewards,
)

__all__ = [
    "ArraySpec",
    "Arrival",
    "Batch",
    "DatasetError",
    "DatasetInfo",
    "DatasetWarning",
    "Episode",
    "EpisodeDataset",
    "EpisodeSource",
    "HistoryConfig",
    "HistorySampler",
    "MemorySource",
    "ReadConfig",
    "SampledBatch",
    "Statistics",
    "Step",
    "StreamConfig",
    "StreamSampler",
    "TrajectoryConfig",
    "TrajectorySampler",
    "TransitionBatch",
    "TransitionConfig",
    "TransitionSampler",
    "WindowConfig",
    "WindowSampler",
    "atari_scores",
    "concatenate",
    "dataset_table",
    "delayed_reward",
    "info_scores",
    "keep_best",
    "load_dataset",
    "mask_observations",
    "noisy_actions",
    "normalized_score",
    "read_d4rl",
    "read_npz",
    "reference_scores",
    "returns_to_go",
    "scale_rewards",
    "to_arrival",
    "write_d4rl",
    "write_npz",
]
