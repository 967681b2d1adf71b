"""The loop of a world model on data: that of agents on data, evaluated by what it imagines.

An evaluation on the way adds `eval/reconstruction`, `eval/generation` and, where rewards can be
told apart, `eval/reward_accuracy_inference`, `eval/reward_accuracy_imagination` and the same of
`reward_sign`; `worldmodels.open_loop` says what they are.
"""

from statewise.agents.offline.protocol import OfflineBatch
from statewise.data.samplers import SampledBatch
from statewise.data.shift import to_arrival
from statewise.training.offline import OfflineTraining
from statewise.training.open_loop_eval import OpenLoopResult


class WorldDataTraining(OfflineTraining):
    """One training of a world model on data; see `OfflineTraining`.

    `evaluate` returns an `OpenLoopResult`.
    """

    def count_rows(self, batch: OfflineBatch) -> tuple[int, int]:
        """Return how many rows of a batch are known observations, and how many there are."""
        assert isinstance(batch, SampledBatch), type(batch)
        counts = to_arrival(batch.step).counts
        return int(counts.sum()), counts.numel()

    def evaluation(self) -> dict[str, float]:
        """Return the metrics of an evaluation."""
        result: OpenLoopResult = self._evaluate()
        return result.metrics()
