"""Recipes as data: what ships is sound, what is wrong is refused with the nearest right thing."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.deploy.catalog import FOLDER, find, merge, recipe, recipes
from perilune.deploy.condition import Truth, parse_condition
from perilune.deploy.launch import Asked, resolve, variables_of
from perilune.deploy.points import CHECKS, Point, names_of, point_of
from perilune.deploy.stale import known_stale, stale_among
from perilune.deploy.version import version, within
from perilune.errors import ConfigError
from perilune.host.fixes import Reboot
from perilune.host.rule import Check, Status

ALL = recipes()
VLLM = "kimi-linear-48b-int4/strix-halo/vllm"


def check(id: str, status: Status, value: str | int | None = None) -> Check:
    return Check(id, status, "as it is", value, (), "why", (), Reboot.NONE, ())


def launch(name: str, checks: dict[str, Check] | None = None, asked: Asked | None = None, **point: int):
    found = recipe(name)
    wanted = asked or Asked()
    wanted = dataclasses.replace(wanted, checkpoint=wanted.checkpoint or found.checkpoint or "model")
    return resolve(found, point_of(found, **point), checks=checks, asked=wanted)


@pytest.mark.parametrize(
    "name",
    [
        "kimi-linear-48b-int4/strix-halo/{}", "glm-4.7-flash/strix-halo/{}", "kimi-linear-48b/mi300x/{}",
        "kimi-linear-48b/mi355x/{}", "kimi-k2.5-mxfp4/mi355x/{}", "kimi-k2.5-int4/mi300x/{}",
        "kimi-k2.5-int4/mi355x/{}", "glm-4.7-flash/mi300x/{}", "glm-4.7-flash/mi355x/{}",
    ],
)  # fmt: skip
def test_what_was_promised_ships_for_perilune_and_vllm(name: str) -> None:
    for engine in ("perilune", "vllm"):
        assert recipe(name.format(engine)).engine == engine


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_every_setting_has_a_reason_and_every_launch_is_complete(found) -> None:
    started = launch(found.name)
    assert started.argv[0]
    assert not any("{" in word and "}" in word and " " not in word and '"' not in word for word in started.argv)
    for setting in (*found.argv, *found.environment, *found.rule):
        assert len(setting.why) > 5
        assert setting.source
    assert str(started.point.port) in started.argv
    names = [used.name for used in (*started.flags, *started.variables)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_no_recipe_uses_what_it_would_refuse(found) -> None:
    names = [setting.name for setting in (*found.argv, *found.environment)]
    assert not list(stale_among(names, found, version(found.version) if found.version else None))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ('modle = "x"', "'model'"),
        ('[[argv]]\nflagg = "--x"\nwhy = "because"\nsource = "VR"', "'flag'"),
        ('[[argv]]\nflag = "--x"\nvalue = "{contxt}"\nwhy = "because"\nsource = "VR"', "'context'"),
        ('[[argv]]\nflag = "--x"\nwhy = "because"\nsource = "VRR"', "'VR'"),
        ('[[rule]]\nid = "x"\nwhen = \'ok("fw.mecc")\'\nwhy = "because"\nsource = "VR"', "'fw.mec'"),
        ('[[rule]]\nid = "x"\nwhen = "tpp == 1"\nwhy = "because"\nsource = "VR"', "'tp'"),
        ('[[rule]]\nid = "x"\nwhen = "tp << 1"\nwhy = "because"\nsource = "VR"', "comparisons"),
    ],
)
def test_an_unknown_word_names_the_nearest(tmp_path: Path, text: str, nearest: str) -> None:
    for file in FOLDER.glob("_*.toml"):
        (tmp_path / file.name).write_text(file.read_text())
    head = (FOLDER / "kimi-linear.strix-halo.vllm.toml").read_text().partition("\n[[")[0]
    (tmp_path / "mine.toml").write_text(f"{head}\n{text}\n")
    with pytest.raises(ConfigError) as raised:
        recipes(tmp_path)
    assert nearest in raised.value.fix
    assert raised.value.what.startswith("mine.toml")


def test_a_missing_and_a_mistyped_value_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('model = "m"\nhost = "cpu"\nengine = "vllm"\ntitle = 3\n')
    with pytest.raises(ConfigError, match=r"mine\.toml: "):
        recipes(tmp_path)


def test_unknown_recipes_and_models_name_what_there_is() -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        recipe("kimi-linear-48b/mi300x/vlm")
    with pytest.raises(ConfigError, match=r"kimi-k2\.5-mxfp4/mi355x/vllm"):
        find("kimi-k2.5-mxfp4", "mi300x", "vllm")
    assert find("zai-org/GLM-4.7-Flash", "mi300x", "vllm").model == "glm-4.7-flash"
    assert find("/some/file.gguf", "cpu", "llama.cpp").model == "*"


# --- three-valued conditions


@pytest.mark.parametrize(
    ("status", "truth"),
    [
        (Status.PASS, Truth.YES), (Status.INFO, Truth.YES), (Status.SKIP, Truth.YES),
        (Status.WARN, Truth.NO), (Status.FAIL, Truth.NO), (Status.UNKNOWN, Truth.UNKNOWN),
    ],
)  # fmt: skip
def test_a_verdict_of_the_doctor_is_yes_no_or_unknown(status: Status, truth: Truth) -> None:
    names = names_of(Point(1, 1), {"fw.mec": check("fw.mec", status)})
    assert parse_condition('ok("fw.mec")').ask(names).truth is truth
    assert (parse_condition('unknown("fw.mec")').ask(names).truth is Truth.YES) == (truth is Truth.UNKNOWN)


def test_a_host_nobody_looked_at_is_unknown_and_never_yes() -> None:
    for id in CHECKS:
        answer = parse_condition(f'ok("{id}")').ask(names_of(Point(1, 1), {}))
        assert answer.truth is Truth.UNKNOWN
        assert "not looked at" in answer.says


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 100))
def test_a_point_is_compared_at_its_limits(found: int, low: int, high: int) -> None:
    asked = parse_condition(f"{low} <= tp <= {high}").ask(names_of(Point(1, 1, found), {}))
    assert (asked.truth is Truth.YES) == (low <= found <= high)


def test_a_value_is_compared_and_a_missing_one_is_unknown() -> None:
    asked = parse_condition('value("mem.class") == "unified"')
    answers = [
        asked.ask(names_of(Point(1, 1), {"mem.class": check("mem.class", Status.PASS, value)})).truth
        for value in ("unified", "cap31", None)
    ]
    assert answers == [Truth.YES, Truth.NO, Truth.UNKNOWN]


@pytest.mark.parametrize(
    ("status", "flag"), [(Status.PASS, False), (Status.WARN, True), (Status.UNKNOWN, True), (None, True)]
)
def test_the_scratch_flag_is_left_out_only_where_the_firmware_is_known_to_be_good(status, flag: bool) -> None:
    checks = {} if status is None else {"fw.mec": check("fw.mec", status)}
    assert ("HSA_NO_SCRATCH_RECLAIM" in launch("kimi-linear-48b/mi300x/vllm", checks).environment) is flag


@pytest.mark.parametrize(("tp", "off"), [(4, True), (8, False)])
def test_a_variable_rests_on_the_number_of_gpus(tp: int, off: bool) -> None:
    assert ("VLLM_ROCM_USE_AITER_RMSNORM" in launch("kimi-k2.5-mxfp4/mi355x/vllm", tp=tp).environment) is off


# --- what is asked on top


def test_aiter_is_turned_off_piece_by_piece_only_if_asked() -> None:
    assert "VLLM_ROCM_USE_AITER_MLA" not in launch(VLLM).environment
    assert launch(VLLM, asked=Asked(("aiter-off",))).environment["VLLM_ROCM_USE_AITER_MLA"] == "0"
    assert any(left.name == "VLLM_ROCM_USE_AITER_MLA" and "aiter-off" in left.why for left in launch(VLLM).left)
    with pytest.raises(ConfigError, match="aiter-off"):
        launch(VLLM, asked=Asked(("aiter-of",)))


@pytest.mark.parametrize("item", known_stale(), ids=lambda item: item.name)
def test_what_is_stale_is_refused_with_reason_and_alternative(item) -> None:
    asked = Asked(flags=(item.name,)) if item.name.startswith("-") else Asked(variables={item.name: "1"})
    with pytest.raises(ConfigError) as raised:
        launch(VLLM, asked=asked)
    assert item.why in raised.value.why
    assert item.instead in raised.value.fix


def test_a_flag_is_stale_from_its_version_on() -> None:
    found = recipe(VLLM)
    for number, stale in (("0.17.9", False), ("0.18.0", True), ("0.18.0rc1", True), ("1.0", True)):
        assert bool(list(stale_among(["--swap-space=4"], found, version(number)))) is stale
    assert list(stale_among(["--swap-space"], found, None)), "an unknown version counts as new"


@pytest.mark.parametrize(("number", "fits"), [("0.17.9", False), ("0.18.0", True), ("0.12.0", False), ("0.30", True)])
def test_a_recipe_holds_for_its_versions(number: str, fits: bool) -> None:
    asked = Asked(version=number)
    if fits:
        assert launch("kimi-linear-48b/mi300x/vllm", asked=asked)
    else:
        with pytest.raises(ConfigError, match="is not for vllm"):
            launch("kimi-linear-48b/mi300x/vllm", asked=asked)


def test_own_flags_and_variables_take_the_place_of_the_recipes() -> None:
    asked = Asked(flags=("--max-model-len=77",), variables=variables_of(["VLLM_ROCM_USE_AITER=1"]))
    started = launch(VLLM, asked=asked)
    assert [word for word in started.argv if "max-model-len" in word] == ["--max-model-len=77"]
    assert started.environment["VLLM_ROCM_USE_AITER"] == "1"
    with pytest.raises(ConfigError):
        variables_of(["no equals"])


def test_a_refusing_rule_stops_and_says_why() -> None:
    with pytest.raises(ConfigError, match="one GPU"):
        launch(VLLM, tp=2).check()
    bad = {"fw.mes": check("fw.mes", Status.FAIL)}
    with pytest.raises(ConfigError, match="MES"):
        launch(VLLM, bad).check()
    unknown = {"fw.mes": check("fw.mes", Status.UNKNOWN)}
    assert launch(VLLM, unknown).check()
    assert launch(VLLM, concurrency=64).check(), "a rule that does not refuse only warns"


# --- small parts


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from(["", "v"]), st.sampled_from(["", "rc1"]))
def test_a_version_is_its_leading_numbers(parts: list[int], before: str, after: str) -> None:
    assert version(before + ".".join(map(str, parts)) + after) == tuple(parts)


def test_versions_compare_as_numbers() -> None:
    assert within(version("0.10.0"), "0.9.0", "0.11.0")
    assert not within(version("0.11.0"), "0.9.0", "0.11.0")
    assert version("b8460") > version("b933")
    with pytest.raises(ConfigError):
        version("latest")


def test_merge_replaces_by_name_and_appends_the_rest() -> None:
    below = {"argv": [{"flag": "--a", "value": "1"}, {"flag": "--b"}], "point": {"tp": 8, "context": 1}, "x": [1]}
    above = {"argv": [{"flag": "--a", "value": "2"}, {"flag": "--c"}], "point": {"tp": 4}, "x": [2]}
    merged = merge(below, above)
    assert merged["argv"] == [{"flag": "--b"}, {"flag": "--a", "value": "2"}, {"flag": "--c"}]
    assert merged["point"] == {"tp": 4, "context": 1}
    assert merged["x"] == [1, 2]


@pytest.mark.parametrize("field", ["context", "concurrency", "tp", "port"])
def test_a_point_has_no_zero(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Point(**{"context": 1, "concurrency": 1, field: 0})


def test_names_are_unique() -> None:
    names = [found.name for found in ALL]
    assert len(names) == len(set(names))
    assert all(a != b for a, b in itertools.pairwise(sorted(names)))
