"""Worker processes, some at a time, that are stopped gently on Ctrl-C."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from statewise.bench.process import Answer, Job, finish, start


class Pool:
    """Runs jobs in processes of their own.

    Args:
        workers: jobs at a time, at least 1.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = False

    def run(self, jobs: Sequence[Job], tell: Callable[[Answer], None]) -> None:
        """Run all jobs; `tell` is given each answer as it comes.

        Raises:
            RunError: one has failed; the others have been stopped.
            KeyboardInterrupt: Ctrl-C; the jobs have been told, and have ended.
        """
        with ThreadPoolExecutor(self._workers) as executor:
            waiting = {executor.submit(self._one, job) for job in jobs}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        tell(future.result())
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
