"""What `statewise doctor` tells: versions, devices, kernel backends, and what is missing."""

import os
import platform
import re
from importlib import metadata

import gymnasium
import numpy
import torch
from rich import box
from rich.table import Table
from rich.text import Text

import statewise
from statewise.kernels import dispatch, extension


def doctor_tables() -> list[Table]:
    """Return one table per subject; building the cpu kernels may take half a minute."""
    return [
        _table("versions", _versions()),
        _table("devices", _devices()),
        _table("kernels", _kernels()),
        _table("extras", _extras()),
    ]


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: brackets of an extra are no markup
    return table


def _versions() -> list[tuple[str, str]]:
    return [
        ("statewise", statewise.__version__),
        ("python", platform.python_version()),
        ("torch", str(torch.__version__)),
        ("numpy", numpy.__version__),
        ("gymnasium", gymnasium.__version__),
    ]


def _devices() -> list[tuple[str, str]]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        cuda = ", ".join(f"cuda:{number} {name}" for number, name in enumerate(names))
    elif torch.version.cuda is None:
        cuda = "not available: this build of torch is for the CPU only"
    else:
        cuda = "not available: torch finds no device or driver"
    return [
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads by default"),
        ("cuda", cuda),
    ]


def _kernels() -> list[tuple[str, str]]:
    rows = []
    for line in dispatch.explain():
        name, _, text = line.partition(": ")
        rows.append((name, text))
    found = extension.compiler()
    rows.append(("compiler", found or "none found: install g++ or clang++"))
    rows.append(("cache", str(extension.cache_folder("linear_scan").parent)))
    return rows


def _extras() -> list[tuple[str, str]]:
    """Return, for each extra of the installed package, "installed" or the line that gets it."""
    try:
        requirements = metadata.requires("statewise") or []
    except metadata.PackageNotFoundError:
        return [("statewise", "not installed as a package: pip install -e .")]
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra is None or name is None or name.group() == "statewise":
            continue
        absent = missing.setdefault(extra.group(1), [])
        if not is_installed(name.group()):
            absent.append(name.group())
    return [
        (
            extra,
            f"{', '.join(absent)} missing: pip install 'statewise[{extra}]'"
            if absent
            else "installed",
        )
        for extra, absent in missing.items()
    ]


def is_installed(distribution: str) -> bool:
    """Tell whether a distribution is installed, without importing it."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
