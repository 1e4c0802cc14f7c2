"""lm-eval's results in our words; and lm-eval itself, where it is installed, on questions from a local file."""

from __future__ import annotations

import importlib.util
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import servers

from perilune.bench.evals.harness import score_harness, scored
from perilune.bench.load.client import Goal
from perilune.bench.spec.sweep import Eval
from perilune.errors import ConfigError

SPEC = Eval(kind="lm-eval", task="sums", questions=4, floor=0.5)
INSTALLED = importlib.util.find_spec("lm_eval") is not None


def test_outcomes_are_by_question_and_by_the_filter_that_forgives_form() -> None:
    right = {0: True, 1: False, 2: True}
    samples = [
        {"doc_id": doc, "filter": name, "exact_match": float(hit and name != "strict-match"), "doc_hash": f"h{doc}"}
        for name in ("strict-match", "flexible-extract") for doc, hit in reversed(right.items())
    ]  # fmt: skip
    found = scored(SPEC, {"samples": {"sums": samples}})
    assert found["outcomes"] == [True, False, True]
    assert (found["right"], found["asked"], found["passed"]) == (2, 3, True)
    assert "flexible-extract" in found["by"]


def test_a_task_without_right_and_wrong_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no exact_match"):
        scored(SPEC, {"samples": {"sums": [{"doc_id": 0, "bleu": 3.0}]}})


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        score_harness(SPEC, Goal(url="http://x", model="m"), 1)
    assert "perilune[evals]" in caught.value.fix


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `evals`")
def test_lm_eval_asks_questions_of_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"q": f"{a} + 1?", "a": str(a + 1)}) + "\n" for a in range(4)))
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        asked = int(text.split()[0])
        said = str(asked + 1 if asked != 2 else 0)
        message = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        servers.whole(handler, 200, json.dumps({"choices": [message]}))

    spec = Eval(kind="lm-eval", task="sums", include=str(tmp_path), questions=4)
    with servers.fake(answer) as url:
        found = score_harness(spec, Goal(url=url, model="m"), 2)
    assert found["outcomes"] == [True, True, False, True]
    assert found["passed"] is None
