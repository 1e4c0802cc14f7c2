from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from perilune.host.profiles import profile
from perilune.models.config import read_config
from perilune.plan.device import Machine, machine_of
from perilune.plan.plan import Plan, plan_model
from perilune.plan.table import render, to_json
from perilune.units import GIB

RUN = "import sys; from perilune.cli.app import main; sys.argv = ['perilune', *sys.argv[1:]]; main()"
KEYS = {
    "weights_bytes", "cache_bytes_per_token", "state_bytes_per_sequence", "cache_bytes", "total_bytes", "max_context",
    "max_concurrency", "fits", "because",
}  # fmt: skip


def text_of(plan: Plan) -> str:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(render(plan))
    return captured.get()


def make(configs: Path, memory: int, **machine: float) -> Plan:
    spec = read_config(configs / "kimi-linear-48b").spec
    return plan_model(spec, Machine(memory, **machine), context=8192, concurrency=4, weights_bytes=30 * GIB)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, "plan", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_json_has_the_promised_keys_and_survives_a_round_trip(configs: Path) -> None:
    plan = make(configs, 64 * GIB)
    data = json.loads(json.dumps(to_json(plan)))
    assert data.keys() >= KEYS
    assert data["cache_bytes"] == plan.cache_bytes
    assert data["roofline"]["state_bytes_per_token"] == 2 * 43_417_600


def test_the_verdict_comes_first_and_the_largest_part_next(configs: Path) -> None:
    lines = [line for line in text_of(make(configs, 64 * GIB)).splitlines() if line.strip()]
    assert "fits" in lines[0]
    assert "64.0 GiB" in lines[0]
    assert lines[1].startswith("weights")
    assert "does not fit" in text_of(make(configs, GIB)).splitlines()[0]


def test_rates_are_shown_only_when_the_machine_is_known(configs: Path) -> None:
    assert "tok/s" not in text_of(make(configs, 64 * GIB))
    assert text_of(make(configs, 64 * GIB, bandwidth=80e9, compute=1e12)).count("tok/s") == 3


def test_the_command_prints_json_without_importing_torch(configs: Path) -> None:
    check = "import atexit, os, sys; atexit.register(lambda: 'torch' in sys.modules and os._exit(7)); "
    result = subprocess.run(
        [sys.executable, "-c", check + RUN, "plan", str(configs / "kimi-linear-48b"), "--memory", "64GiB", "--json",
         "--context", "1000", "--concurrency", "2"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["cache_bytes"] == 2 * (16 * 516_096 + 3 * 43_417_600)
    assert (data["memory_bytes"], data["fits"]) == (64 * GIB, False)


def test_the_command_plans_for_the_memory_there_is(golden: Path) -> None:
    result = run(str(golden / "kimi_linear" / "config.json"), "--json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["memory_bytes"] > 0
    assert data["because"]["memory_bytes"]


def test_the_command_prints_a_table(golden: Path) -> None:
    result = run(str(golden / "kimi_linear"), "--memory", "2GiB", "--bandwidth", "80GB", "--compute", "1e12")
    assert result.returncode == 0, result.stderr
    assert "KimiLinearForCausalLM fits" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--memory", "lots"), "is not a size"),
        (("--dtype", "float8"), "cannot hold a cache"),
        (("--context", "999999999"), "1048576"),
    ],
)
def test_bad_settings_are_told_without_a_traceback(golden: Path, arguments: tuple[str, str], told: str) -> None:
    result = run(str(golden / "kimi_linear"), *arguments)
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = run(str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "nowhere" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_expected_rates_are_named_with_whose_they_are(configs: Path) -> None:
    spec = read_config(configs / "kimi-linear-48b").spec
    plan = plan_model(spec, machine_of(profile("strix-halo")), context=1024, concurrency=1, weights_bytes=30 * GIB)
    low, high = plan.roofline.expected_decode or (0, 0)
    assert 0 < low < high < (plan.roofline.decode_tokens_per_second or 0)
    assert "vLLM" in plan.roofline.because["expected_decode"]
    assert "decode, likely" in text_of(plan)
    unknown = plan_model(spec, machine_of(profile("h200")), context=1024, concurrency=1, weights_bytes=30 * GIB)
    assert unknown.roofline.expected_decode is None, "nobody published a rate to compute one from"


def test_two_contexts_of_a_million_tokens_fit_a_strix_halo_box_at_about_40_tokens_per_second(configs: Path) -> None:
    spec, box = read_config(configs / "kimi-linear-48b").spec, machine_of(profile("strix-halo"))
    plan = plan_model(spec, box, context=1 << 20, concurrency=2, weights_bytes=30_500_000_000)
    assert plan.fits
    assert plan.alone.read_bytes_per_token == pytest.approx(4.17e9, rel=0.01)  # 4.1 GB of weights, a state twice
    assert plan.alone.decode_tokens_per_second == pytest.approx(51, abs=1)
    low, high = plan.alone.expected_decode or (0, 0)
    step, slow, fast = plan.alone.read_bytes_per_token / 212.6e9, 0.84e-3, 0.16e-3
    assert (low, high) == pytest.approx((1 / (step + 27 * slow), 1 / (step + 27 * fast)))
    assert "One sequence decodes 24 to 42 tok/s while its context is short" in " ".join(text_of(plan).split())


@pytest.mark.parametrize(("words", "says"), [((), "does not fit"), (("--memory", "64GiB"), "64.0 GiB")])
def test_the_doctored_host_is_planned_for(configs: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """A recorded Strix Halo box with half of its memory: what fits is what one GPU process can have there."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "host"))
    try:
        from bundles import load, write_tree
    finally:
        sys.path.pop(0)
    tree = write_tree(load("reconstructed/2.7-cap31"), tmp_path / "host")
    done = run(str(configs / "kimi-linear-48b"), "--device", "host", "--sysroot", str(tree), *words)
    assert says in done.stdout
    assert ("cap31" in done.stdout) == (not words)


def test_a_gpu_is_planned_for_only_where_the_doctor_finds_one(golden: Path) -> None:
    done = run(str(golden / "kimi_linear"), "--device", "cuda")
    assert "no GPU here" in done.stderr
    here, cpu = (run(str(golden / "kimi_linear"), "--device", device, "--json") for device in ("auto", "cpu"))
    assert json.loads(here.stdout)["workspace_bytes"] == json.loads(cpu.stdout)["workspace_bytes"]


def test_splits_are_printed_and_are_json(configs: Path) -> None:
    words = (str(configs / "kimi-linear-48b"), "--device", "mi300x", "--splits", "--context", "4096")
    shown = run(*words).stdout
    assert "8 ep" in shown
    assert "…" not in shown, "both tables fit a terminal of 80 columns"
    assert "on the wire" in shown
    data = json.loads(run(*words, "--json").stdout)
    weights = {(split["tp"], split["ep"]): split["weights_bytes"] for split in data["splits"]}
    assert 0.9 < 8 * weights[8, False] / weights[1, False] < 1.1
    assert data["handovers"][0]["wire_bytes"] == 4096 * 8064 + 43_417_600
