"""What the tests of the tiers share: five models, one way of asking, and prompts of any length."""

from __future__ import annotations

import torch

from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit
from perilune.engine.request import SamplingParams, TokenLogprobs

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
PARAMS = SamplingParams(max_tokens=4, temperature=0.8, ignore_eos=True, logprobs=4)


def ask(core: EngineCore, tokens: tuple[int, ...], salt: bytes = b"") -> tuple[list[TokenLogprobs], int]:
    """(the answer, how many tokens of the prompt were cached); the books are proved after every step."""
    core.add(Submit("one", tokens, PARAMS, seed=7, salt=salt))
    answer, cached = [], 0
    while core.busy:
        for event in core.step():
            assert event.token is not None
            answer.append(event.token)
            cached = event.cached_tokens
        core.check()
    return answer, cached


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 200, (length,), generator=generator).tolist())
