"""config.json and generation_config.json of a model folder, read as JSON. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perilune.errors import CheckpointError
from perilune.models.families import read_spec
from perilune.models.spec import ModelSpec

CONFIG = "config.json"
GENERATION = "generation_config.json"
_MAX_JSON = 500_000_000


@dataclass(frozen=True)
class ConfigFiles:
    """A model's config as stored, and the spec it stands for."""

    config: dict[str, Any]
    spec: ModelSpec


def read_config(path: Path) -> ConfigFiles:
    """Read a model folder's config files, or one config.json given by its own path.

    Raises CheckpointError when a file is missing or broken, and what `read_spec` raises.
    """
    file = path if path.is_file() else path / CONFIG
    config = read_json(file)
    beside = file.with_name(GENERATION)
    generation = read_json(beside) if beside.is_file() else None
    return ConfigFiles(config, read_spec(config, generation))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path} is too large to be a JSON file.", "", "Check that this is the right file.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing.", "A model folder needs it.", "Point to the folder that holds the checkpoint."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read.", str(error), "Check the path and its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON.", f"{error}.", "Download or correct the file.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.", "", "Download or correct the file.")
    return value


def quantisation(config: dict[str, Any]) -> dict[str, Any]:
    """The quantization_config, wherever the exporting tool put it; empty if there is none.

    Kimi-K2.5 nests it in text_config, Quark puts it at the top and sometimes nests its own `quant_config` inside.
    """
    nested = config.get("text_config")
    for holder in (config, nested if isinstance(nested, dict) else {}):
        found = holder.get("quantization_config")
        if isinstance(found, dict):
            inner = found.get("quant_config")
            return {**found, **inner} if isinstance(inner, dict) else found
    return {}


def int4_groups(quantised: dict[str, Any]) -> int | None:
    """The int4 group size of a compressed-tensors config, if it names exactly one."""
    groups = quantised.get("config_groups")
    if not isinstance(groups, dict):
        return None
    weights = [g["weights"] for g in groups.values() if isinstance(g, dict) and isinstance(g.get("weights"), dict)]
    sizes = {w.get("group_size") for w in weights if w.get("num_bits") == 4 and w.get("type") == "int"}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if type(size) is int and size > 0 else None
