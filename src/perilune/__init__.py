"""perilune: serve hybrid linear-attention language models at long context.

The two names below are the Python API. They are imported on first use, so that `perilune plan`
and `perilune doctor` start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perilune.engine.llm import LLM
    from perilune.engine.request import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from perilune.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from perilune.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'perilune' has no attribute {name!r}")
