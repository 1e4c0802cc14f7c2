"""InferenceX master files in. Their entries hold the search space only; flags live in shell scripts elsewhere.

Read are single-node entries with fixed lengths, in both layouts: `seq-len-configs` under the entry (until spring
2026), `scenarios.fixed-seq-len` since. The generator's rules: concurrency doubles from start to end, the end included;
expert parallelism is 1 unless given; the context is isl + osl + 256.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from perilune.errors import ConfigError, nearest
from perilune.files.yamlfile import YamlFile

_SPACE = {
    "tp", "pp", "dcp-size", "pcp-size", "ep", "dp-attn", "spec-decoding", "conc-start", "conc-end", "conc-list",
}  # fmt: skip
_RATIO = 0.8
"""Their RANDOM_RANGE_RATIO: lengths are uniform on [0.8·L, L]."""


@dataclass(frozen=True)
class Imported:
    """`document` is a sweep file as plain data; `skipped` names what it does not hold, and why."""

    document: dict[str, Any]
    skipped: tuple[str, ...]

    def text(self) -> str:
        """The sweep file."""
        return str(yaml.safe_dump(self.document, sort_keys=False, width=120, default_flow_style=None))


def import_master(source: YamlFile, keys: str = "*") -> Imported:
    """Entries whose name matches the glob `keys`. Raises ConfigError if none does, or none can be read."""
    data = source.data if isinstance(source.data, dict) else {}
    chosen = [key for key in data if fnmatch.fnmatch(key, keys)]
    if not chosen:
        raise ConfigError(f"{source.path} has no entry {keys!r}.", fix=nearest(keys, data) if data else "It is empty.")
    recipes: dict[str, Any] = {}
    sweeps: dict[str, Any] = {}
    skipped: list[str] = []
    for key in chosen:
        entry = data[key]
        scenarios = entry.get("scenarios") or {}
        if entry.get("multinode") or entry.get("disagg"):
            skipped.append(f"{key}: several nodes")
            continue
        skipped += [f"{key}: {kind}" for kind in scenarios if kind != "fixed-seq-len"]
        lengths = entry.get("seq-len-configs") or scenarios.get("fixed-seq-len") or []
        for i, item in enumerate(lengths):
            try:
                sweeps[f"{key}-{_k(item['isl'])}{_k(item['osl'])}"] = _sweep(key, entry, item)
            except KeyError as error:
                raise ConfigError(f"{source.place((key,))}: {key}: item {i + 1} lacks {error}.") from error
        if lengths:
            recipes[key] = _recipe(entry)
    if not sweeps:
        raise ConfigError(f"{source.path}: nothing that can be read.", "; ".join(skipped) + ".")
    return Imported({"version": 1, "recipes": recipes, "sweeps": sweeps}, tuple(skipped))


def _recipe(entry: Mapping[str, Any]) -> dict[str, Any]:
    framework = str(entry["framework"])
    engine = framework if framework in ("vllm", "sglang", "atom") else "other"
    flags = {"vllm": "tensor-parallel-size", "sglang": "tp-size"}.get(engine, "tensor-parallel-size")
    recipe: dict[str, Any] = {"engine": engine, "model": entry["model"], "image": entry["image"]}
    if engine == "other":
        recipe["command"] = [framework, "{model}"]
    recipe["argv"] = {flags: "{tp}"}
    rules = []
    if engine == "vllm":
        recipe["argv"] |= {"max-model-len": "{context}", "no-enable-prefix-caching": True}
        rules.append(
            {"when": "ep > 1", "argv": {"enable-expert-parallel": True}, "why": "the entry asks for expert parallelism"}
        )
    # Which flags these become is in their scripts, which read them as variables; a point without is another one.
    rules.append({"when": "dp_attn", "env": {"DP_ATTENTION": "true"}, "why": "the entry asks for it in attention"})
    rules.append({"when": "spec != 'none'", "env": {"SPEC_DECODING": "{spec}"}, "why": "the entry asks to speculate"})
    recipe["rules"] = rules
    return recipe


def _sweep(key: str, entry: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    isl, osl = item["isl"], item["osl"]
    ratio = {"ratio": _RATIO, "meaning": "inferencex"}
    return {
        "recipe": key,
        "hardware": {"name": str(entry["runner"]), "gpus": 8},
        "workload": {
            "kind": "random",
            "input": {"range_ratio": {"of": isl, **ratio}},
            "output": {"range_ratio": {"of": osl, **ratio}},
        },
        "load": {"kind": "closed", "waves": 10},
        "axes": [dict(_axes(space)) for space in item["search-space"]],
        "labels": {
            "isl": isl, "osl": osl, "context": isl + osl + 256, "precision": str(entry["precision"]),
            "framework": str(entry["framework"]), "model_prefix": str(entry["model-prefix"]),
            "dp_attn": False, "spec": "none",
        },
    }  # fmt: skip


def _axes(space: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in space:
        if name not in _SPACE:
            raise ConfigError(f"The search space has {name!r}, which is not understood.", fix=nearest(name, _SPACE))
    yield "tp", space["tp"]
    for theirs, ours in (("pp", "pp"), ("dcp-size", "dcp"), ("pcp-size", "pcp"), ("ep", "ep")):
        if theirs in space:
            yield ours, space[theirs]
    if space.get("dp-attn"):
        yield "dp_attn", True
    if space.get("spec-decoding", "none") != "none":
        yield "spec", space["spec-decoding"]
    if "conc-list" in space:
        yield "conc", list(space["conc-list"])
    else:
        yield "conc", {"ladder": [space["conc-start"], space["conc-end"]], "factor": 2}


def _k(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"-{tokens}"
