"""Everything at once: small pools, clients that leave, processes that stop and die, links that are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import Soak, questions
from split_world import SECRET, Engines, Make

from perilune.pd.keys import KEY_VARIABLE


@pytest.mark.parametrize(
    ("requests", "faults"),
    [
        (200, 9),
        pytest.param(2000, 60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(10000, 300, marks=[pytest.mark.slow, pytest.mark.timeout(9000)]),
    ],
)
async def test_case_30_every_answer_is_right_or_an_error_and_nothing_leaks(
    golden: Path, make: Make, monkeypatch: pytest.MonkeyPatch, requests: int, faults: int
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    path = golden / "kimi_linear"
    one = make(path, prefix_cache=False, max_context=256)
    plan, asked = one.plan.cache, questions(Engines(both=one))
    pools = (12 * plan.page_bytes + 5 * plan.slot_bytes, 9 * plan.page_bytes + 5 * plan.slot_bytes)
    soak = Soak(path, pools, asked, seed=requests)
    await soak.run(requests, faults)
    print(dict(soak.outcomes))
    assert soak.wrong == []
    assert soak.outcomes["remote"] > requests // 3
    assert soak.outcomes["answered"] > requests // 2
