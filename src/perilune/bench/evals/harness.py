"""Tasks of EleutherAI's lm-eval, such as gsm8k, asked over chat; an extra, pinned: an upgrade once moved a score to 0.

Its tasks fetch their questions from the hub; a folder of task files of one's own (`include`) needs no network.
"""

from __future__ import annotations

from typing import Any

from perilune.bench.load.client import Goal
from perilune.bench.measure.statistics import wilson
from perilune.bench.plan.point import fingerprint
from perilune.bench.spec.sweep import Eval
from perilune.errors import ConfigError

VERSION = "0.4.13"
_METRICS = ("exact_match", "acc", "acc_norm")
_FILTERS = ("flexible-extract", "strict-match", "none")
"""Of a task that scores an answer in several ways, the first of these it has."""


def score_harness(spec: Eval, goal: Goal, places: int) -> dict[str, Any]:
    """As `ask.score`, with each question's outcome. Raises ConfigError without lm-eval, or with another version."""
    evaluate, tasks = _lm_eval()
    assert spec.task is not None
    address = goal.url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    model_args = {
        "model": goal.model, "base_url": address, "num_concurrent": places, "tokenized_requests": False,
        "timeout": int(goal.timeout), "max_retries": 1, "header": goal.headers or None,
    }  # fmt: skip
    try:
        found = evaluate(
            model="local-chat-completions", model_args={k: v for k, v in model_args.items() if v is not None},
            tasks=[spec.task], num_fewshot=spec.fewshot, limit=spec.questions, apply_chat_template=True,
            task_manager=tasks(include_path=spec.include), bootstrap_iters=0,
            gen_kwargs={"temperature": 0, "max_gen_toks": spec.max_tokens},
        )  # fmt: skip
    except Exception as error:  # its errors have no common base
        raise ConfigError(f"lm-eval could not run {spec.task}.", f"{type(error).__name__}: {error}.") from error
    return scored(spec, found)


def scored(spec: Eval, found: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's result in our words. Raises ConfigError for a task without a score of right and wrong."""
    samples = found["samples"][spec.task]
    filters = {str(sample.get("filter", "none")) for sample in samples}
    chosen = next((name for name in _FILTERS if name in filters), min(filters, default="none"))
    rows = sorted((s for s in samples if str(s.get("filter", "none")) == chosen), key=lambda s: int(s["doc_id"]))
    metric = next((name for name in _METRICS if rows and name in rows[0]), None)
    if metric is None:
        raise ConfigError(f"{spec.task} has no {', '.join(_METRICS)}.", "A paired test needs right and wrong answers.")
    outcomes = [float(row[metric]) >= 0.5 for row in rows]
    hits, asked = sum(outcomes), len(outcomes)
    low, high = wilson(hits, asked)
    hashes = [row.get("doc_hash", row["doc_id"]) for row in rows]
    return {
        "kind": spec.task,
        "set": fingerprint([spec.model_dump(exclude={"floor"}), VERSION, hashes]),
        "asked": asked,
        "unanswered": 0,
        "right": hits,
        "share": hits / asked,
        "low": low,
        "high": high,
        "outcomes": outcomes,
        "floor": spec.floor,
        "passed": None if spec.floor is None else hits / asked >= spec.floor,
        "by": f"lm-eval {VERSION}, {metric}, {chosen}",
    }


def _lm_eval() -> tuple[Any, Any]:
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "lm-eval is not installed.", f"{error}.", f"pip install 'perilune[evals]', or 'lm-eval[api]=={VERSION}'."
        ) from error
    if lm_eval.__version__ != VERSION:
        raise ConfigError(
            f"lm-eval {lm_eval.__version__} is installed.", "Scores of two versions do not compare.",
            f"pip install 'lm-eval[api]=={VERSION}'.",
        )  # fmt: skip
    return lm_eval.simple_evaluate, TaskManager
