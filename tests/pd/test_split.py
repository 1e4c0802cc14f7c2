"""Read here, answered there: on the fp32 path, bit for bit the tokens and log probabilities of one engine alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from split_world import GREEDY, Engines, Make, prompt_of

from perilune.engine.request import SamplingParams
from perilune.engine.roles import RoleConfig

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
LENGTHS = (1, 63, 64, 65, 127, 128, 300)
SAMPLED = SamplingParams(
    max_tokens=9, temperature=0.9, top_p=0.95, top_k=40, repetition_penalty=1.1, ignore_eos=True, logprobs=2
)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("early", [False, True], ids=["whole", "streamed"])
def test_case_9_split_equals_together_at_every_boundary(golden: Path, make: Make, model: str, early: bool) -> None:
    path = golden / model
    engines = Engines(
        p=make(path, "prefill", prefill_chunk=64), d=make(path, "decode"), both=make(path, prefix_cache=False)
    )
    for length in LENGTHS:
        prompt = prompt_of(length, engines.cores["p"].spec.vocab)
        for params in (GREEDY, SAMPLED):
            together = engines.alone("both", f"together {length}", prompt, params)
            split = engines.split(f"split {length}", prompt, params, early=early)
            assert split.tokens == together.tokens, (length, params)
            assert split.events[0].remote is True
    engines.idle()


def test_prefix_hits_on_either_side_change_no_bit(golden: Path, make: Make) -> None:
    """P starts from what it kept; D takes only the pages it has not, and the state always."""
    path = golden / "kimi_linear"
    engines = Engines(
        p=make(path, "prefill", prefill_chunk=64), d=make(path, "decode"), both=make(path, prefix_cache=False)
    )
    head = prompt_of(256, engines.cores["p"].spec.vocab)
    bytes_before, cached = 0, []
    for length in (0, 1, 63, 64, 65, 44):
        prompt = head + prompt_of(length, engines.cores["p"].spec.vocab, seed=9) if length else head
        split = engines.split(f"split {length}", prompt, GREEDY)
        assert split.tokens == engines.alone("both", f"together {length}", prompt, GREEDY).tokens, length
        assert split.events[0].remote is True
        received = engines.cores["d"].handover.exchange.counters.received_bytes  # type: ignore[union-attr]
        cached.append((split.events[0].cached_tokens, received - bytes_before))
        bytes_before = received
    engines.idle()
    geometry = engines.cores["d"].plan.cache
    first, again = cached[0], cached[1]
    assert first[0] == 0
    assert again[0] == 256  # of the prefill engine's own, which the decode engine reports
    assert first[1] - again[1] == 4 * geometry.page_bytes - (
        geometry.page_bytes // 64
    )  # four pages less, one token more


def test_case_9_4097_tokens_in_chunks_and_again(golden: Path, make: Make) -> None:
    path = golden / "kimi_linear"
    settings = {"max_context": 4352, "max_running": 2}
    engines = Engines(
        p=make(path, RoleConfig("prefill", transports=("tcp",), stream=True), **settings),
        d=make(path, "decode", **settings), both=make(path, prefix_cache=False, **settings),
    )  # fmt: skip
    prompt = prompt_of(4097, engines.cores["p"].spec.vocab)
    together = engines.alone("both", "together", prompt, GREEDY)
    for turn in ("cold", "warm"):
        split = engines.split(turn, prompt, GREEDY, early=True)
        assert split.tokens == together.tokens
        assert split.events[0].remote is True
    assert split.events[0].cached_tokens == 4096


def test_all_three_transports_serve_engines(golden: Path, make: Make, transport_name: str) -> None:
    path = golden / "kimi_linear"
    pd = {role: RoleConfig(role, transports=(transport_name,)) for role in ("prefill", "decode")}
    engines = Engines(p=make(path, pd["prefill"]), d=make(path, pd["decode"]), both=make(path))
    prompt = prompt_of(130, engines.cores["p"].spec.vocab)
    split = engines.split("split", prompt, GREEDY)
    assert split.tokens == engines.alone("both", "together", prompt, GREEDY).tokens
    assert split.events[0].remote is True
