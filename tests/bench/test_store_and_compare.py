"""What is kept, what is never kept, and what two sets of results may say about each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perilune.bench.compare import compare
from perilune.bench.evals.sets import questions, right
from perilune.bench.load.record import Record
from perilune.bench.report.chart import Mark
from perilune.bench.report.figures import pareto
from perilune.bench.scrape import HANDED_OVER, parse
from perilune.bench.spec.sweep import Eval
from perilune.bench.store import Store, without_secrets
from perilune.errors import ConfigError


def entry(fingerprint: str = "f", repeat: int = 0, speed: float = 100.0, **more: Any) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint, "asked": "a", "sweep": "s", "names": {"conc": 4}, "repeat": repeat, "gpus": 0,
        "verdict": {"status": "valid", "reasons": [], "notes": []}, "metrics": {"output_per_s": speed},
        "evals": [], **more,
    }  # fmt: skip


def runs(*speeds: float, **more: Any) -> list[dict[str, Any]]:
    return [entry(repeat=i, speed=speed, **more) for i, speed in enumerate(speeds)]


def test_the_index_survives_a_torn_line_and_keeps_the_latest_of_each_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "r")
    store.append(entry(), [Record(id=1, intended=0.5)])
    with (tmp_path / "r" / "runs.jsonl").open("ab") as file:
        file.write(b'{"fingerprint": "torn')
    store.append(entry(speed=7.0), [Record(id=2, intended=0.5)])
    store.append(entry("g", verdict={"status": "failed", "reasons": ["x"], "notes": []}), [])
    assert [e["metrics"]["output_per_s"] for e in store.entries()] == [7.0, 100.0]
    assert store.done() == {("f", 0)}
    assert store.records(store.entries()[0]) == [Record(id=2, intended=0.5)]
    assert len((tmp_path / "r" / "runs.jsonl").read_bytes().splitlines()) == 3


def test_a_point_takes_the_median_of_its_runs_and_a_failed_run_says_nothing_of_that(tmp_path: Path) -> None:
    store = Store(tmp_path / "r")
    failed = {"status": "failed", "reasons": ["x"], "notes": []}
    for number, seconds in enumerate((9.0, 4.0, 5.0)):
        store.append(entry(repeat=number, seconds=seconds), [])
    store.append(entry(repeat=3, seconds=0.1, verdict=failed), [])
    store.append(entry("g"), [])
    assert store.seconds() == {"f": 5.0}


def test_a_disk_that_takes_nothing_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match="Runs written so far are safe"):
        Store(tmp_path / "r").append(entry(), [])


def test_secrets_never_reach_the_disk() -> None:
    hidden = without_secrets(
        {"argv": ["x", "--api-key", "hunter2", "--hf-token=hunter2", "--max-num-batched-tokens", "8192"],
         "env": {"HF_TOKEN": "hunter2", "OMP_NUM_THREADS": "1"}}
    )  # fmt: skip
    assert "hunter2" not in str(hidden)
    assert "8192" in hidden["argv"]
    assert hidden["env"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("new", "verdict", "code"),
    [((100.1, 99.9, 100.0, 100.2), "same", 0), ((106, 105.5, 106.2, 106), "better", 0),
     ((94, 94.5, 93.8, 94), "worse", 1), ((80, 120, 100, 130), "unknown", 3), ((100,), "unknown", 3)],
)  # fmt: skip
def test_verdicts_and_exit_codes(new: tuple[float, ...], verdict: str, code: int) -> None:
    found = compare(runs(100, 100.2, 99.8, 100.1), runs(*new), ["output_per_s"])
    assert ([row.judged.verdict for row in found.rows], found.exit_code) == ([verdict], code)


def sweep(rng: np.random.Generator, spread: float, speed: float = 100.0) -> list[dict[str, Any]]:
    """Five repeats of three points with two numbers each; the last point has the `speed`."""
    return [
        entry(f"p{point}", repeat, names={"conc": point}, metrics={
            "output_per_s": float(rng.normal(speed if point == 2 else 100.0, spread)),
            "tpot_p50": float(rng.normal(10.0, spread / 10)),
        })
        for point in range(3) for repeat in range(5)
    ]  # fmt: skip


def test_equal_sweeps_are_called_worse_in_anything_no_oftener_than_the_level_allows() -> None:
    """At 5 % for all their numbers together, of 200 whole comparisons."""
    rng = np.random.default_rng(6)
    codes = [compare(sweep(rng, 3.0), sweep(rng, 3.0), ["output_per_s", "tpot_p50"]).exit_code for _ in range(200)]
    assert codes.count(1) <= 10


@pytest.mark.parametrize(("speed", "verdict"), [(105.0, "better"), (95.0, "worse")])
def test_five_percent_in_one_point_of_a_sweep_are_found_with_five_repeats(speed: float, verdict: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(30):
        found = compare(sweep(rng, 0.8), sweep(rng, 0.8, speed), ["output_per_s", "tpot_p50"])
        assert [row.label for row in found.rows if row.judged.verdict == verdict] == ["conc=2"]
        assert found.exit_code == (1 if verdict == "worse" else found.exit_code)


def test_only_equal_questions_are_compared() -> None:
    with pytest.raises(ConfigError, match="no point in common"):
        compare(runs(1, 2), runs(1, 2, asked="b"))
    with pytest.raises(ConfigError, match="two servers"):
        compare([*runs(1, 2), entry("g")], runs(1, 2))
    with pytest.raises(ConfigError, match="no metric"):
        compare(runs(1, 2), runs(1, 2), ["speed"])


def test_accuracy_is_compared_question_by_question() -> None:
    def scored(outcomes: list[bool]) -> list[dict[str, Any]]:
        share = sum(outcomes) / len(outcomes)
        return runs(100, evals=[{"set": "q", "kind": "arithmetic", "outcomes": outcomes, "share": share, "asked": 20}])

    good, bad = scored([True] * 20), scored([False] * 8 + [True] * 12)
    assert compare(good, bad, []).rows[0].judged.verdict == "worse"
    assert compare(bad, good, []).rows[0].judged.verdict == "better"
    assert compare(good, good, []).rows[0].judged.verdict == "same"


@pytest.mark.parametrize(
    ("kind", "answer", "said", "is_right"),
    [("arithmetic", "42", "12+30=42\n#### 42", True), ("arithmetic", "42", "#### 24", False),
     ("arithmetic", "1200", "It is 1,200.", True), ("file", "x\n#### 5", "so 5", True),
     ("file", "Paris", " Paris\n", True),
     ("file", "Paris", "London", False), ("retrieval", "0815", "The code is 0815.", True),
     ("retrieval", "0815", "10815", False), ("arithmetic", "42", "", False)],
)  # fmt: skip
def test_answers_are_matched_exactly(kind: str, answer: str, said: str, is_right: bool) -> None:
    assert right(kind, answer, said) is is_right


def test_question_sets_are_reproducible_and_files_are_checked(tmp_path: Path) -> None:
    for kind in ("arithmetic", "retrieval"):
        spec = Eval(kind=kind, questions=30, length=100)  # type: ignore[arg-type]
        assert questions(spec) == questions(spec)
        assert all(question.answer for question in questions(spec))
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "?"}\n')
    with pytest.raises(ConfigError, match=r"q\.jsonl:2"):
        questions(Eval(kind="file", path=str(path)))


def test_the_front_has_no_point_another_beats() -> None:
    marks = [Mark(x, y, "") for x, y in [(1, 9), (2, 8), (2, 5), (3, 8), (4, 1)]]
    assert [(m.x, m.y) for m in pareto(marks)] == [(1, 9), (3, 8), (4, 1)]


def test_counters_are_summed_over_their_labels() -> None:
    routed = 'perilune_route_requests_total{decode="d",prefill="%s",path="/"} %d\n'
    found = parse(routed % ("p", 3) + routed % ("", 2))
    assert (found["perilune_route_requests_total"], found[HANDED_OVER]) == (5, 3)
    assert parse('# HELP a b\na{x="1"} 2\na{x="2"} 3.5\nb 1e3\nc NaN\n') == {"a": 5.5, "b": 1000.0}
