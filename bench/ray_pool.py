"""The same jobs over Ray: one task per job, on this machine or on a cluster that is there.

A task starts the process of its job and waits for it, as `Pool` does. If the task is lost, the
process notices that its parent is gone, saves a checkpoint and ends.
"""

import importlib
import importlib.util
import os
import signal
from collections.abc import Sequence
from typing import Any

from statewise.bench.pool import Failed, Tell, stop_at_failure
from statewise.bench.process import Answer, Job, finish, start
from statewise.training.run import RunError
from statewise.training.schema import ConfigError

LOCAL = "local"
GRACE_S = 60.0  # for the checkpoints after Ctrl-C
_STORE_BYTES = 100 * 2**20  # answers are small
# Without it Ray hides the GPUs from tasks that ask for none.
_ENV = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def check_ray() -> None:
    """Raise ConfigError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--ray: expected Ray, which is not installed: pip install 'statewise[tune]'"
        )


def run_in_process(job: Job) -> Answer:
    """Run a job in a process of its own, as a Ray task; a cancelled one saves a checkpoint.

    Raises:
        RunError: it failed.
    """
    process = start(job)
    try:
        return finish(process, job["system"])
    except RunError as error:
        raise RunError(str(error).replace("see above", "see worker-*.err in Ray's logs")) from None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()


class RayPool:
    """Runs jobs as Ray tasks of one core each; none is tried again.

    Args:
        address: "local" starts Ray on this machine; "auto" or HOST:PORT joins a cluster, whose
            machines must have the same run directories and this package.
        workers: tasks at a time on this machine, at least 1; a cluster has its own number.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._address, self._workers = address, workers

    def run(self, jobs: Sequence[Job], tell: Tell, failed: Failed = stop_at_failure) -> None:
        """Run all jobs, see `pool.Workers`; a lost worker is a failure of its job."""
        if not jobs:
            return
        ray = self._start()
        try:
            task = ray.remote(num_cpus=1, max_retries=0)(run_in_process)
            waiting = {task.remote(job): job for job in jobs}
            try:
                while waiting:
                    [ref], _ = ray.wait(list(waiting), num_returns=1)
                    _take(ray, ref, waiting.pop(ref), tell, failed)
            except BaseException:
                for ref in waiting:
                    ray.cancel(ref)
                if waiting:
                    ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_S)
                raise
        finally:
            ray.shutdown()

    def _start(self) -> Any:
        check_ray()
        for name, value in _ENV.items():
            os.environ.setdefault(name, value)
        ray = importlib.import_module("ray")
        own: dict[str, Any] = {}
        if self._address == LOCAL:
            own = {"num_cpus": self._workers, "object_store_memory": _STORE_BYTES}
            own["include_dashboard"] = False
        try:
            ray.init(self._address, logging_level="error", log_to_driver=False, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise RunError(f"--ray {self._address}: expected a Ray that runs: {first}") from error
        return ray


def _take(ray: Any, ref: Any, job: Job, tell: Tell, failed: Failed) -> None:
    """Hand on what became of a task."""
    try:
        answer: Answer = ray.get(ref)
    except RunError as error:  # Ray raises what the task raised, with its traceback in the text
        failed(job, RunError(str(getattr(error, "cause", error))))
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        what = type(error).__name__
        lost = f"{job['system']}: the Ray worker was lost ({what}): give the command again"
        failed(job, RunError(lost))
    else:
        tell(answer)
