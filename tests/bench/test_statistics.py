"""Intervals, verdicts and windows against known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.bench.load.record import Record
from perilune.bench.measure.bootstrap import block, bootstrap, intervals
from perilune.bench.measure.metrics import BETTER, PER_REQUEST, PER_RUN, good, summary
from perilune.bench.measure.statistics import interval, judge, mcnemar, t_quantile, wilson
from perilune.bench.measure.steady import mann_kendall, window
from perilune.bench.spec.sweep import Slo


@pytest.mark.parametrize(
    ("p", "freedom", "value"),
    [(0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.975, 8, 2.3060), (0.995, 10, 3.1693), (0.95, 30, 1.6973),
     (0.975, 1000, 1.9623)],
)  # fmt: skip
def test_quantiles_of_t_are_those_of_the_tables(p: float, freedom: int, value: float) -> None:
    assert t_quantile(p, freedom) == pytest.approx(value, abs=1e-4)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [interval(list(rng.normal(10, 1, 5))) for _ in range(1000)]
    covered = sum(i.low <= 10 <= i.high for i in found if i.low is not None and i.high is not None)
    assert 930 <= covered <= 970
    assert interval([3.0]).low is None


@pytest.mark.parametrize(("spread", "same"), [(1.0, 120), (0.5, 195)])
def test_equal_servers_are_called_different_no_oftener_than_the_level_allows(spread: float, same: int) -> None:
    """At 5 %, of 200. How many are called the same depends on the spread: what is not clear stays unknown."""
    rng = np.random.default_rng(1)
    pairs = [(list(rng.normal(100, spread, 5)), list(rng.normal(100, spread, 5))) for _ in range(200)]
    verdicts = [judge(old, new, "higher").verdict for old, new in pairs]
    assert sum(v in ("better", "worse") for v in verdicts) <= 10
    assert verdicts.count("same") >= same


@pytest.mark.parametrize(("better", "verdict"), [("higher", "better"), ("lower", "worse")])
def test_a_gain_of_five_percent_is_found_with_five_repeats(better: str, verdict: str) -> None:
    rng = np.random.default_rng(2)
    found = [judge(list(rng.normal(100, 1, 5)), list(rng.normal(105, 1, 5)), better).verdict for _ in range(200)]
    assert found.count(verdict) >= 195


def batches(rng: np.random.Generator, count: int = 40, size: int = 8) -> list[float]:
    """Requests of one batch share its speed, as a server's do: few independent values among many."""
    return [float(v) for v in np.repeat(rng.normal(10, 1, count), size) + rng.normal(0, 0.02, count * size)]


def test_an_interval_within_a_run_is_as_wide_as_its_batches_are_few() -> None:
    """Drawn one by one, 320 requests of 40 batches look like 320 values; their 95 % hold little over half the time."""
    rng = np.random.default_rng(4)
    runs = [batches(rng) for _ in range(80)]
    held = sum(low <= 10 <= high for low, high in (bootstrap(run, 0.5) for run in runs))
    mixed = [list(rng.permutation(run)) for run in runs]  # nobody sees the batches any more
    fooled = sum(low <= 10 <= high for low, high in (bootstrap(run, 0.5) for run in mixed))
    assert held >= 0.82 * 80
    assert fooled <= 0.75 * 80


def test_blocks_are_one_long_where_neighbours_have_nothing_in_common() -> None:
    rng = np.random.default_rng(5)
    alone = [list(rng.normal(10, 1, 300)) for _ in range(40)]
    assert sum(block(run) == 1 for run in alone) >= 36
    assert all(8 <= block(batches(rng)) <= 64 for _ in range(20))
    assert block([1.0] * 50) == 1
    low, high = bootstrap([1.0] * 50, 0.5)
    assert (low, high) == (1.0, 1.0)


def test_intervals_within_a_run_are_given_where_there_is_enough() -> None:
    few = intervals([request(i, i * 0.1) for i in range(19)])
    assert few == {}
    some = intervals([request(i, i * 0.1, gap=0.01 + 0.001 * (i % 7)) for i in range(60)])
    assert {"tpot_p50", "ttft_p50", "e2e_response_p50"} <= set(some)
    assert not any(name.endswith("p99") for name in some)
    assert some["tpot_p50"][0] <= 0.013 <= some["tpot_p50"][1]
    assert "e2e_p99" in intervals([request(i, i * 0.1) for i in range(1000)])


def test_looking_often_makes_a_verdict_harder_to_get() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        old, new = list(rng.normal(100, 1, 4)), list(rng.normal(101, 1, 4))
        once, often = judge(old, new, "higher"), judge(old, new, "higher", looks=10)
        assert once.low is not None
        assert often.low is not None
        assert often.low < once.low


@pytest.mark.parametrize(("old", "new"), [([1.0], [2.0, 2.0]), ([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.5], [1.0, 1.6])])
def test_too_little_is_unknown(old: list[float], new: list[float]) -> None:
    assert judge(old, new, "higher").verdict == "unknown"


def test_paired_questions_and_shares() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(5, 5) == 1.0
    low, high = wilson(90, 100)
    assert (low, high) == (pytest.approx(0.8256, abs=1e-3), pytest.approx(0.9448, abs=1e-3))


def request(
    i: int, at: float = 0.0, sent: float | None = None, tokens: int = 5, gap: float = 0.01, **more: object
) -> Record:
    sent = at if sent is None else sent
    arrivals = [sent + 0.1 + k * gap for k in range(tokens)]
    return Record(
        id=i, intended=at, sent=sent, first_byte=sent + 0.1, first_token=arrivals[0], first_answer=arrivals[0],
        end=arrivals[-1], arrivals=arrivals, input_tokens=10, output_tokens=tokens, finish="length", **more,
    )  # fmt: skip


def test_each_metric_is_its_definition() -> None:
    found = summary([request(0), request(1, 1.0, sent=1.5)], Slo(ttft_ms=200, tpot_ms=11), devices=4)
    assert found["ttft_p50"] == pytest.approx(0.1)
    assert found["ttft_response_p99"] == pytest.approx(0.595, abs=1e-3)
    assert found["tpot_mean"] == found["itl_mean"] == pytest.approx(0.01)
    duration = 1.5 + 0.14
    assert found["output_per_s"] == pytest.approx(10 / duration)
    assert found["total_per_s_gpu"] == pytest.approx(30 / duration / 4)
    assert found["interactivity"] == pytest.approx(100)
    assert found["goodput"] == pytest.approx(1 / duration)
    assert "hit_rate" not in found
    assert {name for name in found if name not in BETTER} == {"duration"}


def test_what_is_absent_is_not_zero() -> None:
    one = summary([request(0, tokens=1)], Slo(), gpus=False)
    assert not any(name.startswith(("tpot", "itl", "interactivity")) for name in one)
    uncounted = request(0)
    uncounted.output_tokens = None
    assert "output_per_s" not in summary([uncounted], Slo())
    assert summary([], Slo()) == {}
    assert set(summary([request(0, error="cut")], Slo())) == {"failed"}


def test_an_answer_in_one_piece_shows_no_time_between_its_tokens() -> None:
    held = request(0, tokens=5, gap=0.0)
    assert not any(name.startswith("tpot") for name in summary([held], Slo(), gpus=False))
    assert "interactivity" not in summary([held], Slo(), gpus=False)
    assert good(held, Slo(tpot_ms=1))
    assert not good(held, Slo(e2e_ms=1))


def test_one_token_keeps_a_limit_on_the_time_between_tokens_and_a_failure_keeps_none() -> None:
    assert good(request(0, tokens=1), Slo(tpot_ms=1))
    assert not good(request(0), Slo(tpot_ms=9))
    assert not good(request(0, error="cut"), Slo())
    assert not good(request(0, 0.0, sent=5.0), Slo(ttft_ms=1000))


def test_names_and_definitions_are_said_once() -> None:
    names = [metric.name for metric in (*PER_REQUEST, *PER_RUN)]
    assert len(set(names)) == len(names)
    assert all(metric.definition for metric in (*PER_REQUEST, *PER_RUN))


def test_the_window_leaves_out_filling_and_draining() -> None:
    records = [request(i, i * 0.05, tokens=91) for i in range(100)]  # each takes 1 s: twenty open at once
    found = window(records)
    assert found is not None
    assert 0.6 <= found.start <= 1.0
    assert 4.9 <= found.end <= 5.3
    assert found.steady


def test_a_server_that_slows_down_is_not_steady() -> None:
    found = window([request(i, i * 1.0, gap=0.01 * (1 + i / 20)) for i in range(100)])
    assert found is not None
    assert not found.steady


def test_neighbours_that_are_alike_are_seldom_a_trend() -> None:
    """Speeds of 20 batches of 8: steady over the run, equal within a batch. Uncorrected, half of such runs drift."""
    rng = np.random.default_rng(3)
    runs = [np.repeat(rng.normal(1, 0.05, 20), 8) + rng.normal(0, 0.001, 160) for _ in range(40)]
    assert sum(mann_kendall(run.tolist()) < 0.01 for run in runs) <= 8
    drifting = [run + np.linspace(0, 0.3, 160) for run in runs]
    assert sum(mann_kendall(run.tolist()) < 0.01 for run in drifting) > 35


def test_a_drift_too_small_to_matter_is_no_reason() -> None:
    found = window([request(i, i * 1.0, gap=0.01 * (1 + i / 1000)) for i in range(100)])
    assert found is not None
    assert found.trend is not None
    assert found.trend < 0.01
    assert found.drift == pytest.approx(0.028, rel=0.2)
    assert found.steady


@given(st.lists(st.floats(0, 1), min_size=3, max_size=40))
def test_the_trend_test_is_a_probability_and_knows_no_direction(values: list[float]) -> None:
    p = mann_kendall(values)
    assert 0 <= p <= 1
    assert p == pytest.approx(mann_kendall(values[::-1]))
