"""The expansion: ends included, nothing twice, filters take subsets, and the points InferenceX's generator makes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sweep_files import GOOD

from perilune.bench.plan import describe
from perilune.bench.plan.axes import product, values
from perilune.bench.plan.expand import expand
from perilune.bench.plan.inferencex import import_master
from perilune.bench.spec.load import parse_sweeps
from perilune.bench.spec.sweep import Ladder, Linear
from perilune.errors import ConfigError
from perilune.files.yamlfile import parse_yaml

ENTRY = """\
kimik2.5-fp4-mi355x-vllm:
  image: vllm/vllm-openai-rocm:v0.18.0
  model: amd/Kimi-K2.5-MXFP4
  model-prefix: kimik2.5
  runner: mi355x
  precision: fp4
  framework: vllm
  multinode: false
  %s
    - isl: 1024
      osl: 1024
      search-space:
      - { tp: 8, conc-start: 4, conc-end: 64 }
      - { tp: 4, ep: 4, conc-start: 4, conc-end: 100 }
    - isl: 8192
      osl: 1024
      search-space:
      - { tp: 8, conc-list: [1, 7, 7] }
"""


def their_ladder(start: int, end: int) -> list[int]:
    """Their generator's loop, as the facts of their format say it."""
    found, value = [], start
    while value <= end:
        found.append(value)
        if value == end:
            break
        value = min(value * 2, end)
    return found


@given(st.integers(1, 500), st.integers(0, 5000), st.floats(1.01, 10))
def test_a_ladder_climbs_from_its_start_to_its_end(start: int, more: int, factor: float) -> None:
    found = values(Ladder(ladder=[start, start + more], factor=factor))
    assert (found[0], found[-1]) == (start, start + more)
    assert found == sorted(set(found))


@given(st.integers(1, 300), st.integers(0, 1000))
def test_a_ladder_of_factor_two_is_inferencex_s(start: int, more: int) -> None:
    assert values(Ladder(ladder=[start, start + more])) == their_ladder(start, start + more)


def test_a_linear_axis_includes_its_end() -> None:
    assert values(Linear(linear=[1, 10], step=4)) == [1, 5, 9, 10]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(0, 64))
def test_points_are_distinct_and_a_filter_takes_a_subset_in_order(conc: list[int], most: int) -> None:
    text = GOOD.replace("conc: {ladder: [4, 100]}", f"conc: {conc}")
    everything = [p.fingerprint for p in expand(parse_sweeps(text.replace("where:", "# where:")))]
    some = (
        [p.fingerprint for p in expand(parse_sweeps(text.replace("tp == 4 and conc > 64", f"conc > {most}")))]
        if (min(conc) <= most)
        else []
    )
    assert len(set(everything)) == len(everything) == 2 * len(set(conc))
    assert some == [each for each in everything if each in some]


def test_linked_names_move_together_and_uneven_links_are_refused() -> None:
    assert list(product({"tp+ep": [[8, 1], [4, 4]]})) == [{"tp": 8, "ep": 1}, {"tp": 4, "ep": 4}]
    for axes in ({"tp+ep": [[8]]}, {"tp": [1], "tp+ep": [[1, 1]]}):
        with pytest.raises(ConfigError):
            list(product(axes))


def test_rules_flags_and_gpus_follow_the_point() -> None:
    points = expand(parse_sweeps(GOOD))
    assert [p.names["conc"] for p in points if p.names["tp"] == 8] == [4, 8, 16, 32, 64, 100]
    small, large = points[0], points[-1]
    assert small.server.argv[:5] == ("vllm", "serve", "amd/Kimi-K2.5-MXFP4", "--tensor-parallel-size", "4")
    assert small.server.env["VLLM_ROCM_USE_AITER_RMSNORM"] == "0"
    assert "VLLM_ROCM_USE_AITER_RMSNORM" not in large.server.env
    assert (small.server.devices, large.server.devices) == (4, 8)
    assert len({p.server.fingerprint for p in points}) == 2
    assert "accuracy below TP8" in "\n".join(describe.explain(small))
    json.dumps([describe.as_json(p) for p in points])


def test_flags_variables_and_workload_fields_are_axes() -> None:
    text = GOOD.replace(
        "tp: [4, 8]", "argv.block-size: [1, 16], env.X: [a, null], workload.input: [64, {uniform: [1, 9]}]"
    )
    points = expand(parse_sweeps(text.replace("{ladder: [4, 100]}", "4")))
    assert len(points) == 8
    assert {p.server.argv[-1] for p in points} == {"1", "16"}
    assert len({p.asked_fingerprint for p in points}) == 2


def test_labels_change_no_fingerprint_and_a_flag_does() -> None:
    old = expand(parse_sweeps(GOOD))
    labelled = expand(parse_sweeps(GOOD + "    labels: {who: me}\n"))
    assert [p.fingerprint for p in old] == [p.fingerprint for p in labelled]
    changed = describe.difference(old, expand(parse_sweeps(GOOD.replace("block-size: 16", "block-size: 1"))))
    assert (len(changed.changed), changed.added, changed.removed, changed.kept) == (len(old), (), (), ())
    assert "-16 +1" in changed.changed[0][2][0]


@pytest.mark.parametrize("layout", ["seq-len-configs:", "scenarios:\n    fixed-seq-len:"])
def test_inferencex_entries_of_both_layouts_expand_to_their_generator_s_points(layout: str) -> None:
    imported = import_master(parse_yaml(ENTRY % layout), "kimik2.5-*")
    points = expand(parse_sweeps(imported.text()))
    found = [(p.sweep.labels["isl"], p.names["tp"], p.names.get("ep", 1), p.load.conc) for p in points]  # type: ignore[union-attr]
    assert found == [
        *((1024, 8, 1, c) for c in their_ladder(4, 64)),
        *((1024, 4, 4, c) for c in their_ladder(4, 100)),
        (8192, 8, 1, 1),
        (8192, 8, 1, 7),
    ]
    assert "--max-model-len 2304" in " ".join(points[0].server.argv)
    assert "--enable-expert-parallel" in points[5].server.argv
    assert "--enable-expert-parallel" not in points[0].server.argv


TWINS = """\
dsv4-fp4-b200-vllm:
  {image: i, model: m, model-prefix: dsv4, runner: b200, precision: fp4, framework: %s, multinode: false,
   scenarios: {fixed-seq-len: [{isl: 8192, osl: 1024, search-space: [
     {tp: 8, ep: 8, conc-start: 64, conc-end: 256}, {tp: 8, ep: 8, dp-attn: true, conc-start: 128, conc-end: 512},
     {tp: 8, ep: 8, dp-attn: true, spec-decoding: mtp, conc-list: [128]}]}]}}
"""


@pytest.mark.parametrize("framework", ["vllm", "sglang", "trt"])
def test_entries_that_differ_in_attention_or_speculation_alone_are_other_points(framework: str) -> None:
    points = expand(parse_sweeps(import_master(parse_yaml(TWINS % framework)).text()))
    found = [(p.names.get("dp_attn", False), p.names.get("spec"), p.load.conc) for p in points]  # type: ignore[union-attr]
    assert found == [
        *((False, None, c) for c in their_ladder(64, 256)),
        *((True, None, c) for c in their_ladder(128, 512)),
        (True, "mtp", 128),
    ]
    assert points[-1].server.env["SPEC_DECODING"] == "mtp"


def test_what_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match="several nodes"):
        import_master(parse_yaml((ENTRY % "seq-len-configs:").replace("multinode: false", "multinode: true")))
    with pytest.raises(ConfigError, match=r"kimik2\.5-fp4"):
        import_master(parse_yaml(ENTRY % "seq-len-configs:"), "kimik2.5-fp4-mi355x-vlm")


DEPLOYED = """\
recipes:
  r: {deploy: kimi-linear-48b/mi300x/vllm, context: "{context}", concurrency: "{conc}", argv: {block-size: 64}}
sweeps:
  s:
    recipe: r
    hardware: {name: mi300x, gpus: 8}
    workload: {kind: random, input: 64, output: 8}
    load: {kind: closed}
    axes: {tp: [4, 8], conc: 16}
    labels: {context: 4096}
"""


def test_a_recipe_of_deploy_is_launched_with_its_own_command_and_reasons() -> None:
    """The words that `perilune recipe show` prints, less the port, and what the sweep adds."""
    four, eight = expand(parse_sweeps(DEPLOYED))
    assert four.server.argv[:3] == ("vllm", "serve", "moonshotai/Kimi-Linear-48B-A3B-Instruct")
    words = " ".join(four.server.argv)
    assert all(word in words for word in ("--max-model-len 4096", "--max-num-seqs 16", "--tensor-parallel-size 4"))
    assert "--port" not in words
    assert words.endswith("--block-size 64")
    assert four.server.env["HSA_NO_SCRATCH_RECLAIM"] == "1", "nobody looked at the firmware, so it counts as old"
    assert any("fw.mec" in fired.when or "tp" in fired.when for fired in four.server.fired)
    assert (four.server.devices, eight.server.devices) == (4, 8)


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("mi300x/vllm,", "mi300x/vlm,", "kimi-linear-48b/mi300x/vllm"),
        ("block-size: 64", "swap-space: 4", "removed"),
        ("tp: [4, 8]", "tp: 16", "eight"),
        ("block-size: 64}}", "block-size: 64}, engine: vllm}", "the recipe's to say"),
    ],
)
def test_what_a_recipe_of_deploy_refuses_a_sweep_cannot_ask_for(right: str, wrong: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(parse_sweeps(DEPLOYED.replace(right, wrong)))
    assert says in str(caught.value)


SPLIT = """\
recipes:
  pair:
    model: builtin
    argv: {max-running: 4, tp: "{tp}"}
    env: {A: 1}
    split: {prefill: {count: 2, tp: 2, argv: {prefill-chunk: 256}}, decode: {env: {A: 2}}, router: {remote-from: 0}}
sweeps:
  s:
    recipe: pair
    hardware: {name: box, gpus: 8}
    workload: {kind: random, input: 64, output: 8}
    load: {kind: closed}
    axes: {tp: 4}
"""


def test_a_split_server_is_its_engines_by_role_and_a_router_before_them() -> None:
    (point,) = expand(parse_sweeps(SPLIT))
    server = point.server
    assert server.argv == ("perilune", "route", "--remote-from", "0")
    assert [(part.role, part.gpus, part.env["A"]) for part in server.parts] == [
        ("prefill", 2, "1"), ("prefill", 2, "1"), ("decode", 4, "2"),
    ]  # fmt: skip
    first, last = " ".join(server.parts[0].argv), " ".join(server.parts[-1].argv)
    assert first == "perilune serve builtin --role prefill --max-running 4 --tp 2 --prefill-chunk 256"
    assert last == "perilune serve builtin --role decode --max-running 4 --tp 4"
    assert (server.devices, server.held("prefill"), server.held("decode")) == (8, 4, 4)
    assert "prefill  A=1 perilune serve" in "\n".join(describe.explain(point))
    other = expand(parse_sweeps(SPLIT.replace("count: 2", "count: 1")))[0]
    assert other.server.fingerprint != server.fingerprint
    json.dumps(describe.as_json(point))


def test_only_perilune_is_split() -> None:
    with pytest.raises(ConfigError, match="no other engine"):
        parse_sweeps(SPLIT.replace("model: builtin", "model: builtin\n    engine: vllm"))
