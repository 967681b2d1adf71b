"""The list of deliberate faults names tests that there are; `scripts/mutation_check.py` runs it."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "scripts" / "mutations").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_text_that_a_mutation_replaces_stands_there_once(file: Path) -> None:
    for entry in yaml.safe_load(file.read_text()):
        assert (ROOT / entry["file"]).read_text().count(entry["old"]) == 1, entry["name"]
        assert entry["old"] != entry["new"], entry["name"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_test_that_a_mutation_names_exists(
    file: Path, request: pytest.FixtureRequest
) -> None:
    """Files that this run does not collect are not looked into; xdist puts @group behind names."""
    collected = {item.nodeid.partition("@")[0] for item in request.session.items}
    known = {part for name in collected for part in (name, name.partition("[")[0])}
    files = {name.partition("::")[0] for name in collected}
    named = {test for entry in yaml.safe_load(file.read_text()) for test in entry["tests"]}
    assert named
    assert all((ROOT / name.partition("::")[0]).is_file() for name in named)
    missing = {name for name in named if name.partition("::")[0] in files} - known - files
    assert not missing
