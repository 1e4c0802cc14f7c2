"""The layout of docs/architecture.md holds: rooms import downward only, and the front answers without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "perilune"
# below all others: errors and units, so that whoever can fail says so in one way
FLOORS = {
    "cli": 7, "server": 6, "router": 6, "bench": 6, "engine": 5, "deploy": 5, "nn": 4, "pd": 4, "plan": 4, "cache": 3,
    "models": 2, "text": 1, "host": 1, "http": 1, "files": 1, "ops": 0, "builtin": 0, "units": -1, "errors": -1,
}  # fmt: skip
TORCH_FREE = (
    "perilune.host.memory", "perilune.host.doctor", "perilune.plan.folder", "perilune.models.spec",
    "perilune.models.families",
    "perilune.models.checkpoint", "perilune.cache.geometry", "perilune.cache.manager", "perilune.engine.scheduler",
    "perilune.engine.client", "perilune.engine.request", "perilune.server.app", "perilune.router.run",
    "perilune.cli.plan", "perilune.cli.doctor", "perilune.cli.recipe", "perilune.cli.deploy", "perilune.deploy.serving",
    "perilune.cli.bench", "perilune.pd.exchange", "perilune.pd.probe",
)  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Every perilune module a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("perilune."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("perilune."))


def room(module: str) -> str:
    return module.split(".")[1]


def files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE)


def test_every_room_has_a_floor() -> None:
    assert {path.relative_to(SOURCE).parts[0] for path in files()} <= set(FLOORS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_from_floors_below_its_own(path: Path) -> None:
    here = path.relative_to(SOURCE).parts[0]
    for module in imports(path):
        there = room(module)
        assert there == here or FLOORS[there] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {module}"


def test_every_folder_says_what_it_is_for_and_what_it_never_does() -> None:
    for folder in {path.parent for path in files()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert text, folder
        if folder.parent == SOURCE:
            assert "ever" in text, f"{folder.name} does not say what it never does"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
