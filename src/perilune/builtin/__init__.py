"""The built-in model: a small trained Kimi-Linear checkpoint in the hub's layout, shipped with the package.

Holds data and the path to it; never loads it. How it was made: `docs/builtin-model.md`.
"""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The checkpoint folder: config.json, weights, tokenizer and chat template."""
    return Path(__file__).with_name("model")
