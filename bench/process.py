"""Jobs in processes of their own: one system each, so that no two thread pools meet."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from statewise.training.run import RunError

POLL_S = 1.0

Job = dict[str, Any]
Answer = dict[str, Any]


def start(job: Job, **env: str) -> subprocess.Popen[str]:
    """Start `python -m statewise.bench.worker` with a job.

    Args:
        job: what `worker.run_job` takes, with `threads`; must fit into JSON.
        **env: added to the environment of the process.
    """
    threads = {"OMP_NUM_THREADS": str(job["threads"]), "MKL_NUM_THREADS": str(job["threads"])}
    return subprocess.Popen(
        [sys.executable, "-m", "statewise.bench.worker", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | threads | env,
        # Ctrl-C reaches the parent alone, which decides what its workers are told.
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], name: str) -> Answer:
    """Wait for a worker and return its answer.

    Raises:
        RunError: it failed; its own words are on stderr.
    """
    out = None
    while out is None:  # Ray's way to cancel a task does not end a wait, and is seen after it
        with suppress(subprocess.TimeoutExpired):
            out, _ = process.communicate(timeout=POLL_S)
    lines = out.splitlines()
    if process.returncode != 0 or not lines:
        raise RunError(f"{name}: the worker ended with status {process.returncode}, see above")
    answer: Answer = json.loads(lines[-1])
    if "error" in answer:
        raise RunError(f"{name}: {answer['error']}")
    return answer


def launch(job: Job, **env: str) -> Answer:
    """Run a job in a process of its own, ended if this one is interrupted.

    Raises:
        RunError: it failed.
    """
    process = start(job, **env)
    try:
        return finish(process, f"{job['kind']} {job.get('system', '')}".strip())
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
