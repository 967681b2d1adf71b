"""An agent that learned from histories, and plays in trials: several episodes with one memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

from statewise.data.samplers import Sampler
from statewise.data.scores import normalized_score
from statewise.envs.build import make_env
from statewise.training.evaluate import AS_THE_RUN, EvalOptions, changed
from statewise.training.evaluate_trials import TrialsResult, evaluate_trials
from statewise.training.offline import OfflineTraining
from statewise.training.offline_config import AlgorithmDistillationRun
from statewise.training.run import RunDirectory
from statewise.training.trained_offline import TrainedOfflineAgent


class ScoredTrials(NamedTuple):
    """What an evaluation over trials gave."""

    result: TrialsResult
    score: float | None
    """Of the mean return of an episode; None without reference returns."""


class HistoryTraining(OfflineTraining):
    """The offline loop, with evaluations over trials.

    Their metrics are `eval/return_mean` and `eval/score`, those of `evaluate_trials.NUMBERS`, and
    the best return so far.

    Args:
        config: see `OfflineTraining`.
        agent: learns.
        sampler: gives windows of histories.
        run: where it is written down.
        evaluate: makes an evaluation.
    """

    def __init__(
        self,
        config: AlgorithmDistillationRun,
        agent: Any,
        sampler: Sampler,
        run: RunDirectory | None,
        evaluate: Callable[[], ScoredTrials],
    ) -> None:
        super().__init__(config, agent, sampler, run, evaluate)

    def evaluation(self) -> dict[str, float]:
        """Return the metrics of an evaluation."""
        result, score = self._evaluate()
        scored = {} if score is None else {"eval/score": score}
        return result.logged() | scored | self.noted(result.return_mean)


class TrainedHistoryAgent(TrainedOfflineAgent):
    """An agent that learned from histories; see `TrainedOfflineAgent`."""

    config: AlgorithmDistillationRun

    def evaluate(
        self, options: EvalOptions = AS_THE_RUN, **changes: Any
    ) -> tuple[TrialsResult, dict[str, Any]]:
        """Play whole trials; return what they gave, and the same for eval.json.

        Args:
            options: None in a field takes the run's own setting.
            **changes: fields of the options, laid over them: `episodes=20`.

        Raises:
            ConfigError: targets, which this agent is not told, or a change that is none.
            RunError: the run was loaded without the environment of one's own.
        """
        options = changed(options, changes)
        self._targets(options.targets)
        actions = options.actions or self.config.eval.actions
        result, score = self.play_trials(options)
        report = result.as_json()
        reference = None
        if self.reference is not None:
            reference = dict(zip(("name", "min", "max"), self.reference, strict=True))
        one = {
            "target": None,
            "score": score,
            **{name: report[name] for name in ("return_mean", "return_ci95")},
        }
        head = {
            "actions": actions,
            "data_sha256": list(self.facts.sha256),
            "reference": reference,
        }
        return result, head | one | report | {"targets": [one]}

    def play_trials(self, options: EvalOptions) -> ScoredTrials:
        """Play whole trials; see `evaluate`."""
        config = self.config.eval
        trials = options.episodes or config.episodes
        num_envs = min(options.num_envs or config.num_envs, trials)
        env = options.watched(make_env(self._env_config(num_envs), self.factory))
        try:
            result = evaluate_trials(
                self.agent,
                env,
                trials=trials,
                seed=self.eval_seed if options.seed is None else options.seed,
                explore=(options.actions or config.actions) == "sample",
                device=self.config.device,
            )
        finally:
            env.close()
        score = None
        if self.reference is not None:
            score = float(normalized_score(result.return_mean, self.reference.range))
        return ScoredTrials(result, score)

    def loop(self, source: Sampler, run: RunDirectory | None) -> HistoryTraining:
        """Return the training of a run."""
        return HistoryTraining(self.config, self.agent, source, run, self._trials_on_the_way)

    def _trials_on_the_way(self) -> ScoredTrials:
        return self.play_trials(EvalOptions())
