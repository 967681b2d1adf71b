"""Worker processes, some at a time, that are stopped gently on Ctrl-C."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Protocol

from statewise.bench.process import Answer, Job, finish, start
from statewise.training.run import RunError

Tell = Callable[[Answer], None]
Failed = Callable[[Job, RunError], None]


def stop_at_failure(job: Job, error: RunError) -> None:
    """Raise the error: the jobs that are left are not run."""
    raise error


class Workers(Protocol):
    """What runs jobs, some at a time."""

    def run(self, jobs: Sequence[Job], tell: Tell, failed: Failed = stop_at_failure) -> None:
        """Run all jobs; `tell` is given each answer as it comes, `failed` each failure.

        Raises:
            RunError: as `failed` does; the others have been stopped.
            KeyboardInterrupt: Ctrl-C; the jobs have been told, and have ended.
        """
        ...


class Pool:
    """Runs jobs in processes of their own, on this machine.

    Args:
        workers: jobs at a time, at least 1.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = False

    def run(self, jobs: Sequence[Job], tell: Tell, failed: Failed = stop_at_failure) -> None:
        """Run all jobs, see `Workers`."""
        with ThreadPoolExecutor(self._workers) as executor:
            waiting = {executor.submit(self._one, job): job for job in jobs}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        job = waiting.pop(future)
                        try:
                            answer = future.result()
                        except RunError as error:
                            failed(job, error)
                        else:
                            tell(answer)
            except BaseException:
                self._stopping = True
                for future in waiting:
                    future.cancel()
                for process in self._processes:
                    if process.poll() is None:
                        process.send_signal(signal.SIGINT)
                raise

    def _one(self, job: Job) -> Answer:
        if self._stopping:
            raise KeyboardInterrupt
        process = start(job)
        self._processes.append(process)
        return finish(process, job["system"])
