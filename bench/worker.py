"""The process of one job: `python -m statewise.bench.worker JSON`; the answer is a line of JSON.

Not for users: `statewise bench`, `reproduce` and `suite` start it.
"""

import json
import os
import signal
import sys
import threading
import time
from importlib import import_module

import torch

from statewise.bench.process import Answer, Job
from statewise.training.process import keep_freed_memory

# Imported when asked for: the process of one system should hold nothing of the others.
JOBS = {
    "scan": "statewise.bench.scan_systems",
    "ppo": "statewise.bench.ppo_systems",
    "update": "statewise.bench.update_systems",
    "layers": "statewise.bench.layers_systems",
    "offline": "statewise.bench.offline_systems",
    "worldmodel": "statewise.bench.worldmodel_systems",
    "envs": "statewise.bench.envs_systems",
    "rollout": "statewise.bench.rollout_systems",
    "arm": "statewise.bench.arm",
    "data": "statewise.bench.data_job",
    "diagnose": "statewise.bench.diagnose_train",
    "suite": "statewise.bench.suite_run",
}
PEERS = ("jax", "jaxlib", "mambapy", "sb3_contrib", "stable_baselines3", "transformers")
INSTALL = "pip install 'statewise[bench]'"


def run_job(job: Job) -> Answer:
    """Run a job in this process.

    Returns:
        Its answer; {"error": text} for what a user can cause, {"missing": text} where a peer
        is not installed, with the line that installs it.
    """
    import_module("torch._dynamo")  # torch's optimisers load it when made: two seconds, untimed
    run = import_module(JOBS[job["kind"]]).run_job
    try:
        answer: Answer = run(job)
    except _user_errors() as error:
        return {"error": str(error)}
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in PEERS:
            raise
        return {"missing": f"{error.name} is not installed: {INSTALL}"}
    return answer


def _user_errors() -> tuple[type[Exception], ...]:
    from statewise.agents.recurrent_ppo import NonFiniteLossError
    from statewise.data.errors import DatasetError
    from statewise.envs.protocol import EnvError
    from statewise.kernels.dispatch import BackendError
    from statewise.training.checkpoint import CheckpointError
    from statewise.training.run import RunError
    from statewise.training.schema import ConfigError

    return (
        *(ConfigError, DatasetError, EnvError, CheckpointError, BackendError, RunError),
        NonFiniteLossError,
    )


def _watch_parent(parent: int) -> None:
    """Stop, as after Ctrl-C, when the parent has died: nobody would take the answer."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)


def _hear_interrupts() -> None:
    """Let SIGINT mean to stop, whoever started this: Ray's processes block it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def main(argv: list[str]) -> int:
    """Take a job from the command line, keep to its threads, and write the answer."""
    job = json.loads(argv[0])
    threads = int(job["threads"])
    if job.get("pin"):
        # XLA has no other limit on its threads; every system gets the same.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    keep_freed_memory()  # as in training; every system gets the same
    _hear_interrupts()
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        answer = run_job(job)
    except KeyboardInterrupt:
        return 130
    try:
        sys.stdout.write("\n" + json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody takes it any more; what was done stands in the run directory
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
