"""The folder of a deployment: what compose, systemd, Kubernetes and people need, from one launch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from perilune.deploy.explain import command
from perilune.deploy.hosts import Examined
from perilune.deploy.launch import Launch
from perilune.errors import ConfigError
from perilune.host.distro import NAMES, Family
from perilune.host.rule import INSTINCT, Check, Status

TEMPLATES = Path(__file__).parent / "templates"
TORCH = "2.13.0"
_HEALTH = {
    # These images have curl or Python, not always both; each probe uses what its engine cannot be without.
    "perilune": "curl -fsS http://127.0.0.1:{port}{ready} >/dev/null",
    "llama.cpp": "curl -fsS http://127.0.0.1:{port}{ready} >/dev/null",
}
_PYTHON_HEALTH = (
    "python3 -c \"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}{ready}', timeout=4)\""
)


@dataclass(frozen=True)
class Step:
    """What the doctor still wants, with the fixes as text."""

    id: str
    status: str
    says: str
    why: str
    steps: tuple[str, ...]
    reboot: str


def deployment(launch: Launch, examined: Examined, plan: str) -> dict[str, str]:
    """The text of each file by name. `plan` is what the planner says, in a sentence or more."""
    recipe = launch.recipe
    builds = recipe.engine == "perilune" or bool(recipe.package)
    kubernetes = recipe.host in INSTINCT
    words: dict[str, Any] = {
        "launch": launch,
        "name": recipe.served_name.replace(".", "-"),
        "image": f"localhost/{recipe.served_name}-{recipe.engine}:latest" if builds else recipe.image,
        "builds": builds,
        "health": _HEALTH.get(recipe.engine, _PYTHON_HEALTH).format(port=launch.point.port, ready=recipe.ready),
        "torch": TORCH,
        "command": command(launch),
        "host_says": examined.says,
        "examined": examined.report is not None,
        "todo": todo(examined),
        "plan": plan,
        "patch": (TEMPLATES / "patch_tokenizer.py.j2").read_text(),
        "kubernetes": kubernetes,
    }
    names = {"compose.yaml": "compose.yaml", f"{words['name']}.container": "quadlet.container", "smoke.sh": "smoke.sh"}
    names |= {"README.md": "README.md"}
    names |= {"Dockerfile": "Dockerfile"} if builds else {}
    names |= {"groups.sh": "groups.sh"} if recipe.devices else {}
    names |= {"kubernetes.yaml": "kubernetes.yaml"} if kubernetes else {}
    environment = _environment()
    files = {file: environment.get_template(f"{name}.j2").render(words) for file, name in names.items()}
    if recipe.patch_tokenizer:
        files["patch_tokenizer.py"] = words["patch"]
    return files


def todo(examined: Examined) -> list[Step]:
    """Failures and warnings of the doctor, worst first, with fixes for the host's distribution or for all."""
    checks = examined.report.checks if examined.report else ()
    return [_step(check, examined.family) for check in checks if check.status in (Status.FAIL, Status.WARN)]


def _step(check: Check, family: Family | None) -> Step:
    if family is not None:
        texts = [fix.text(family) for fix in check.fixes]
    else:
        texts = [f"{NAMES[each]}: {fix.text(each)}" for fix in check.fixes for each in Family]
    return Step(check.id, str(check.status), check.says, check.why, tuple(texts), str(check.reboot))


def write(files: Mapping[str, str], out: Path, *, force: bool = False) -> list[Path]:
    """Writes the files; scripts are executable. Raises ConfigError if one is there and differs."""
    changed = [out / name for name, text in files.items() if _differs(out / name, text)]
    if changed and not force:
        raise ConfigError(
            f"{changed[0]} is there and is different.", "It may have been edited.", "Choose another --out, or --force."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (out / name).chmod(0o755)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written.", f"{error}.", "Choose another --out.") from error
    return [out / name for name in files]


def _differs(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") != text
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - none of these is HTML
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": quoted, "compose": compose, "kube": kube, "unit": unit, "word": word}
    return environment


def quoted(text: str) -> str:
    """A YAML string: JSON's are."""
    return json.dumps(text, ensure_ascii=False)


def compose(text: str) -> str:
    """A YAML string in which compose replaces nothing."""
    return quoted(text.replace("$", "$$"))


def kube(text: str) -> str:
    """A YAML string in which Kubernetes replaces no $(NAME)."""
    return quoted(text.replace("$(", "$$("))


def unit(text: str) -> str:
    """Text in a systemd unit: % begins a specifier there."""
    return text.replace("%", "%%")


def word(text: str) -> str:
    """One word of a systemd command line."""
    escaped = unit(text).replace("\\", "\\\\").replace("$", "$$")
    return f'"{escaped.replace(chr(34), chr(92) + chr(34))}"' if set(text) & set(" \"'\\;{}") else escaped
