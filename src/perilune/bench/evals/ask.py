"""Asks a question set over chat, as many at a time as the point has requests open, and scores it."""

from __future__ import annotations

from typing import Any

import msgspec

from perilune.bench.evals.harness import score_harness
from perilune.bench.evals.sets import questions, right
from perilune.bench.load.client import Goal
from perilune.bench.load.record import Ask
from perilune.bench.load.workers import send
from perilune.bench.measure.statistics import wilson
from perilune.bench.plan.point import fingerprint
from perilune.bench.spec.sweep import Eval


def score(spec: Eval, goal: Goal, places: int) -> dict[str, Any]:
    """Share of right answers with Wilson's interval, each question's outcome, and `passed`.

    `passed` is None without a floor: no baseline is no pass.
    """
    if spec.kind == "lm-eval":
        return score_harness(spec, goal, places)
    asked = questions(spec)
    goal = msgspec.structs.replace(goal, endpoint="chat", body={"temperature": 0.0}, keep_text=True)
    driven = send(goal, [Ask(i, q.text, spec.max_tokens) for i, q in enumerate(asked)], places=places)
    said = {record.id: record.text or "" for record in driven.records if record.ok}
    outcomes = [i in said and right(spec.kind, q.answer, said[i]) for i, q in enumerate(asked)]
    hits = sum(outcomes)
    low, high = wilson(hits, len(asked))
    return {
        "kind": spec.kind,
        "set": fingerprint([spec.model_dump(exclude={"floor"}), [[q.text, q.answer] for q in asked]]),
        "asked": len(asked),
        "unanswered": len(asked) - len(said),
        "right": hits,
        "share": hits / len(asked),
        "low": low,
        "high": high,
        "outcomes": outcomes,
        "floor": spec.floor,
        "passed": None if spec.floor is None else hits / len(asked) >= spec.floor,
    }
