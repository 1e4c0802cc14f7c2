"""What a sweep file may say, and what is said about one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perilune.bench.plan.expand import expand
from perilune.bench.spec.facts import doctor_facts, parse_facts
from perilune.bench.spec.load import load_sweeps, parse_sweeps, schema
from perilune.deploy.condition import UNKNOWN, parse_condition
from perilune.errors import ConfigError
from perilune.files.yamlfile import parse_yaml
from perilune.host.firmware import parse_mec
from perilune.host.sysroot import Recorded

SWEEPS = Path(__file__).parents[2] / "sweeps"
GOOD = """\
version: 1
recipes:
  k25:
    engine: vllm
    model: amd/Kimi-K2.5-MXFP4
    argv: {tensor-parallel-size: "{tp}", block-size: 16}
    env: {VLLM_ROCM_USE_AITER: 1}
    rules:
    - {when: tp < 8, env: {VLLM_ROCM_USE_AITER_RMSNORM: 0}, why: accuracy below TP8}
    - {when: ep > 1, argv: {enable-expert-parallel: true}, why: experts are spread}
    - {when: unknown(mec_fw) or mec_fw < 177, env: {HSA_NO_SCRATCH_RECLAIM: 1}, why: old MEC firmware}
sweeps:
  main:
    recipe: k25
    hardware: {name: mi355x, gpus: 8, facts: {mec_fw: null}}
    workload: {kind: random, input: 8192, output: {uniform: [819, 1024]}}
    load: {kind: closed}
    axes: {tp: [4, 8], conc: {ladder: [4, 100]}}
    where: not (tp == 4 and conc > 64)
"""


@pytest.mark.parametrize(
    ("right", "wrong", "line", "says"),
    [
        ("engine:", "enigne:", 4, "'engine'"),
        ("kind: closed", "kind: clsoed", 17, "'closed'"),
        ("recipe: k25", "recipe: k24", 14, "'k25'"),
        ("uniform: [", "unform: [", 16, "a length is a number of tokens"),
        ("[819, 1024]", "[1024, 819]", 16, "[low, high]"),
        ("gpus: 8", "gpus: eight", 15, "integer"),
        ("tp < 8", "tp.x < 8", 9, "'tp.x' is not allowed"),
        ("where: not (", "where: open(", 19, "is not allowed"),
        ("tp: [4, 8]", "tpp: [4, 8]", 13, "'tp'"),
        ("tp < 8", "tpp < 8", 13, "'tp'"),
        ("version: 1", "version: 1\nversion: 1", 2, "twice"),
        ("engine: vllm", "engine: vlm", 4, "'vllm'"),
        ("model: amd", "# model: amd", 3, "'model' is missing"),
        ("recipes:", "recipes: [", 4, "not YAML"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_what_was_meant(right: str, wrong: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(parse_sweeps(GOOD.replace(right, wrong, 1), "f.yaml"))
    assert f"f.yaml:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_words_that_yaml_once_took_for_booleans_stay_words() -> None:
    assert parse_yaml("{a: on, b: no, c: true, d: 12:30, e: 010}").data == {
        "a": "on", "b": "no", "c": True, "d": "12:30", "e": 10,
    }  # fmt: skip


def test_an_alias_that_contains_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="contains itself"):
        parse_yaml("a: &x [*x]")


@pytest.mark.parametrize(
    ("printed", "version", "set_"),
    [
        ("176", 176, True), ("177", 177, False), ("0200", 200, False), ("08", 8, True), ("N/A", None, True),
        ("unknown", None, True), ("v177", None, True), ("177b", None, True), ("", None, True),
    ],
)  # fmt: skip
def test_the_firmware_rule_holds_whenever_the_firmware_is_old_or_not_known(
    printed: str, version: int | None, set_: bool, tmp_path: Path
) -> None:
    """Each row of the table of what a shell script made of such texts, on a recorded MI300X."""
    assert parse_mec(printed) == version
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties"
    node.parent.mkdir(parents=True)
    said = f"fw_version {printed}\nsimd_count 1216\ngfx_target_version 90402\nvendor_id 4098\ndevice_id 29857\n"
    node.write_text(said)
    facts = doctor_facts(Recorded(tmp_path))
    assert facts.get("mec_fw") == version
    for rule in ("unknown(mec_fw) or mec_fw < 177", 'unknown("fw.mec") or not ok("fw.mec")'):
        points = expand(parse_sweeps(GOOD.replace("unknown(mec_fw) or mec_fw < 177", rule)), facts=facts)
        assert all(("HSA_NO_SCRATCH_RECLAIM" in point.server.env) == set_ for point in points)


def test_a_rule_that_rests_on_something_unknown_has_to_say_so() -> None:
    with pytest.raises(ConfigError, match=r"cannot be decided.*mec_fw"):
        expand(parse_sweeps(GOOD.replace("unknown(mec_fw) or ", "")))
    assert parse_facts(["mec_fw=176", "os=linux", "gone="]) == {"mec_fw": 176, "os": "linux", "gone": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [("a and b", UNKNOWN), ("a and c", False), ("a or d", True), ("not a", UNKNOWN), ("a < 3", UNKNOWN),
     ("unknown(a)", True), ("d and not c", True), ("1 < n <= 4", True), ("n in [2, 3]", False), ("n % 2 == 0", True)],
)  # fmt: skip
def test_conditions_know_a_third_truth_value(text: str, value: object) -> None:
    names = {"a": UNKNOWN, "b": True, "c": False, "d": True, "n": 4}
    found = parse_condition(text).value(names)
    assert found is value if value is UNKNOWN else found == value


@pytest.mark.parametrize("text", ["__import__('os')", "a.b", "a[0]", "lambda: 1", "f'{a}'", "a if b else c", "x := 1"])
def test_conditions_compute_and_reach_nothing(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_condition(text)


def test_the_schema_names_every_field_of_a_file() -> None:
    text = json.dumps(schema())
    assert all(f'"{word}"' in text for word in ("recipes", "sweeps", "range_ratio", "burstiness", "ladder", "floor"))


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_expands(path: Path) -> None:
    assert expand(load_sweeps(path))
