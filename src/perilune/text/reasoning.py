"""How models mark their reasoning. Data only: `text/parser.py` does the work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningFormat:
    """Reasoning stands between `begin` and `end`, before the answer.

    `begin` counts only before any other text, and may be missing where the prompt already opened the reasoning.
    """

    begin: str = "<think>"
    end: str = "</think>"


REASONING_PARSERS = {"kimi_k2": ReasoningFormat(), "glm45": ReasoningFormat()}
"""By the names vLLM uses. Both use one pair of markers; Kimi's may also end at a tool call (see KimiFormat)."""
