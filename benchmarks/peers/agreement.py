"""Whether two engines hold the same model: their logits on the same prompt, before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from peers.children import Child, MeasureError
from peers.workloads import random_tokens

PROMPT = 96
# Rows whose experts are the same in both differ by a few percent (int8 activations on either side); where the router's
# choice tips over, and with 256 experts it often does, a row differs by more. A wrong file differs by 1 and more.
MOST = 0.25


@dataclass(frozen=True)
class Agreement:
    """Relative distance of logits rows, the lower quartile and the median; share of rows with the same best token."""

    quartile: float
    median: float
    same_best: float

    @property
    def line(self) -> str:
        return f"logits differ by {self.quartile:.1%} (lower quartile), {self.median:.1%} (median)"


def check_agreement(ours: Child, theirs: Child, vocab: int) -> Agreement:
    """Compare the two on one random prompt. Raises MeasureError if they do not compute the same model."""
    tokens = random_tokens(0, PROMPT, vocab)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npy" for number in range(2)]
        for child, file in zip((ours, theirs), files, strict=True):
            child.ask("logits", tokens=tokens, file=str(file))
        a, b = (np.load(file).astype(np.float64) for file in files)
    return compare(a, b, f"{ours.name} and {theirs.name}")


def compare(a: np.ndarray, b: np.ndarray, who: str) -> Agreement:
    """[T, vocab] each. Raises MeasureError naming `who`."""
    distance = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    found = Agreement(
        float(np.quantile(distance, 0.25)), float(np.median(distance)), float((a.argmax(1) == b.argmax(1)).mean())
    )
    if not found.quartile < MOST:
        raise MeasureError(f"{who} do not compute the same model: {found.line}.")
    return found
