"""The run directory: where a run keeps its settings, its history and its results.

config.yaml      the resolved settings
manifest.json    versions, seed, revision, command, device, what resume restores
metrics.jsonl    one object per write, see `training.log`
tb/              the same for TensorBoard
checkpoints/     one folder per checkpoint, see `training.checkpoint`
videos/ plots/   made when first needed
eval.json        the last evaluation
"""

import fcntl
import json
import math
import os
import platform
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("statewise", "torch", "numpy", "gymnasium")
RESUME = {
    "exact": "resume restores everything: weights, optimiser, counters, random streams and the"
    " environments in the middle of their episodes",
    "episode": "resume restores weights, optimiser, counters and random streams; the environments"
    " cannot be restored and start new episodes",
}
OWN_ENV = "environment_of_ones_own"
"""In the manifest, with the spaces: a callable made the environments; see `training.own_env`."""
_LOCK = ".lock"


class RunError(ValueError):
    """A folder cannot be used as a run directory, or what it holds cannot be read."""


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that its name always holds the whole old or the whole new content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def finite(value: Any) -> Any:
    """Return `value` with NaN and infinities replaced by None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; NaN and infinities become null.

    Raises:
        TypeError: JSON cannot hold a part of `value`.
    """
    text = json.dumps(finite(value), indent=2, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def source_revision() -> str | None:
    """Return the git revision of this package's source, "-dirty" if it was changed.

    None where the source is not a git work tree, or git does not know these files: a package
    installed inside somebody else's repository has no revision.
    """
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    if tracked.returncode or described.returncode:
        return None
    return described.stdout.strip()


def build_manifest(command: Sequence[str], seed: int, device: str, resume: str) -> dict[str, Any]:
    """Describe how a run was started.

    Args:
        command: the words of the command line.
        seed: the root seed.
        device: where the agent lives, for example "cpu" or "cuda:0".
        resume: what the environments can do, "exact" or "episode".

    Raises:
        RunError: `resume` is neither.
    """
    if resume not in RESUME:
        raise RunError(f"resume: expected one of {', '.join(RESUME)}, got {resume!r}")
    return {
        "command": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "device": device,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "git_revision": source_revision(),
        "resume": RESUME[resume],
    }


def note_resume(run: "RunDirectory", command: Sequence[str], step: int) -> None:
    """Add to the manifest that the run goes on from a step."""
    manifest = run.read_manifest()
    entry = {
        "command": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
    }
    write_json(run.manifest_path, manifest | {"resumed": [*manifest.get("resumed", []), entry]})


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold the lock of a run; the system releases it when the process dies."""
    # "a": opening must not empty the file, it may name the process that holds the lock.
    with (path / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{path} is in use by process {file.read().strip() or 'unknown'}:"
                " wait until it ends, stop it, or pass another --run"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run. Folders inside it are made by whoever first writes into them."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved settings, YAML."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """What `build_manifest` returned."""
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def finetune_path(self) -> Path:
        """The settings of a fine-tuning, YAML; other runs have none."""
        return self.path / "finetune.yaml"

    @property
    def eval_path(self) -> Path:
        """The last evaluation."""
        return self.path / "eval.json"

    @property
    def tb_dir(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tb"

    @property
    def checkpoints_dir(self) -> Path:
        """One folder per checkpoint, named after its step."""
        return self.path / "checkpoints"

    @property
    def videos_dir(self) -> Path:
        """Recorded episodes."""
        return self.path / "videos"

    @property
    def plots_dir(self) -> Path:
        """Figures of this run."""
        return self.path / "plots"

    @classmethod
    def create(cls, path: Path, config_text: str, manifest: dict[str, Any]) -> "RunDirectory":
        """Start a run in a new or empty folder.

        Raises:
            RunError: the folder holds something, is no folder, or cannot be written.
        """
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            # Two processes that start at the same time must not both find the folder empty.
            with _locked(run.path):
                run._refuse_content()
                write_atomic(run.config_path, config_text.encode())
                write_json(run.manifest_path, manifest)
        except OSError as error:
            raise RunError(
                f"the run directory {run.path} cannot be made ({error.strerror}):"
                " pass another --run"
            ) from error
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return the run in an existing folder.

        Raises:
            RunError: it is not a run; the message names what is missing.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise RunError(f"{run.path} is not a run directory: there is no such folder")
        needed = (run.config_path, run.manifest_path)
        missing = [entry.name for entry in needed if not entry.is_file()]
        if missing:
            raise RunError(f"{run.path} is not a run directory: {' and '.join(missing)} missing")
        return run

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            RunError: it is not a JSON object.
        """
        return read_json(self.manifest_path)

    def read_preset(self) -> str:
        """Return what stood after `statewise train` in the command, "" if nothing did."""
        command = self.read_manifest().get("command", [])
        return str(command[2]) if len(command) > 2 else ""

    def is_finetuning(self) -> bool:
        """Return whether an agent is fine-tuned in it."""
        return self.finetune_path.is_file()

    def has_own_env(self) -> bool:
        """Return whether a callable made its environments; False where there is no run yet."""
        return self.manifest_path.is_file() and bool(self.read_manifest().get(OWN_ENV))

    @contextmanager
    def lock(self) -> Generator[None, None, None]:
        """Keep other processes from training in this run; released when the process dies.

        Raises:
            RunError: another process, or this one a second time, is training in it.
        """
        with _locked(self.path):
            yield

    def _refuse_content(self) -> None:
        found = sorted(entry.name for entry in self.path.iterdir() if entry.name != _LOCK)
        if self.config_path.name in found or self.manifest_path.name in found:
            raise RunError(f"{self.path} already holds a run: pass --resume or another --run")
        if found:
            raise RunError(
                f"{self.path}: expected a new or empty folder, it holds {found[0]}:"
                " pass another --run"
            )
