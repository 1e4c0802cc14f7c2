"""Engines of different degrees of tensor parallelism: rank processes on either side, bytes resharded on the way.

The oracle is one engine of the decode side's degree into which the prefill side's cache is put by other means, after
which it goes on by itself: what a hand-over says must be that, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from split_world import GREEDY, Engines, Make, prompt_of

from perilune.cache.arena import CacheArenas
from perilune.cache.geometry import CacheGeometry, pages_for
from perilune.engine.core import EngineCore
from perilune.engine.handover import FirstToken
from perilune.engine.messages import TokenEvent
from perilune.engine.request import Borrow
from perilune.engine.roles import RoleConfig


def whole_state(core: EngineCore, slot: int) -> dict[str, torch.Tensor]:
    """One slot's states and windows with all heads, whatever ranks they lie on."""
    shares = torch.frombuffer(bytearray(core.runner.kept.read("state", slot)), dtype=torch.uint8).chunk(core.config.tp)
    arenas = []
    for share in shares:
        one = CacheArenas(CacheGeometry.of(core.spec, core.plan.dtype, core.config.tp), core.plan.cache)
        one.slot_arena.buffer[0] = share
        arenas.append(one)
    layers = [block.layer for block in CacheGeometry.of(core.spec, core.plan.dtype).states]
    states = {f"state {layer}": torch.cat([one.state(layer)[0] for one in arenas], 0) for layer in layers}
    return states | {f"conv {layer}": torch.cat([one.conv(layer)[0] for one in arenas], 1) for layer in layers}


def resharded(whole: dict[str, torch.Tensor], core: EngineCore) -> bytearray:
    """One slot as `core` keeps it, from states and windows with all heads; not by the transfer's own arithmetic."""
    geometry, rows = CacheGeometry.of(core.spec, core.plan.dtype, core.config.tp), []
    for rank in range(core.config.tp):
        one = CacheArenas(geometry, core.plan.cache)
        for block in geometry.states:
            heads = slice(rank * block.state_shape[0], (rank + 1) * block.state_shape[0])
            one.state(block.layer)[0] = whole[f"state {block.layer}"][heads]
            one.conv(block.layer)[0] = whole[f"conv {block.layer}"][:, heads]
        rows.append(one.slot_arena.buffer[0])
    return bytearray(torch.cat(rows).numpy())


def go_on_from(core: EngineCore, name: str, whole: dict[str, torch.Tensor], pages: list[bytearray]) -> None:
    """Puts another engine's cache in the place of the one that `name` has computed here."""
    core.runner.kept.write("state", core.cache.slot(name), resharded(whole, core))
    for page, payload in zip(core.cache.pages(name), pages, strict=False):
        core.runner.kept.write("page", page, payload)


@pytest.mark.parametrize(("p_tp", "d_tp"), [(2, 1), (1, 2), (2, 2)])
def test_case_12_degrees_may_differ_between_real_engines(
    golden: Path, make: Make, monkeypatch: pytest.MonkeyPatch, p_tp: int, d_tp: int
) -> None:
    path, role = golden / "kimi_linear", {"prefill_chunk": 64, "prefix_cache": False}
    pd = {name: RoleConfig(name, transports=("tcp",), stream=name == "prefill") for name in ("prefill", "decode")}
    engines = Engines(
        p=make(path, pd["prefill"], tp=p_tp, **role), d=make(path, pd["decode"], tp=d_tp, **role),
        both=make(path, tp=d_tp, **role),
    )  # fmt: skip
    p, d = engines.cores["p"], engines.cores["d"]
    arrived: dict[str, torch.Tensor] = {}
    resume = d._lending._resume

    def look(answer: Any, first: FirstToken) -> TokenEvent:
        arrived.update(whole_state(d, d.cache.slot(answer.sequence.id)))
        return resume(answer, first)

    monkeypatch.setattr(d._lending, "_resume", look)
    for length, early in ((1, False), (65, False), (200, True)):
        prompt, name = prompt_of(length, p.spec.vocab), f"{length}"
        ticket = engines.ticket(name, prompt, GREEDY, early=early)
        engines.until(lambda name=name: not p.scheduler.running, "p")
        sealed = whole_state(p, p.cache.slot(f"{name}/1"))
        pages = [p.runner.kept.read("page", page) for page in p.cache.pages(f"{name}/1")[: pages_for(length)]]
        engines.add("d", name, prompt, GREEDY, handover=Borrow(ticket))
        split = engines.finish(name)
        assert [part for part in sealed if not torch.equal(sealed[part], arrived[part])] == [], length
        together = engines.alone("both", f"together {name}", prompt, GREEDY)
        assert split.events[0].remote is True
        assert [token.token_id for token in split.tokens] == [token.token_id for token in together.tokens]
        if p_tp == d_tp:
            assert split.tokens == together.tokens
        engines.add("both", f"oracle {name}", prompt, GREEDY)
        engines.until(lambda name=name: bool(engines.answers[f"oracle {name}"].tokens), "both")
        go_on_from(engines.cores["both"], f"oracle {name}", sealed, pages)
        assert split.tokens[1:] == engines.finish(f"oracle {name}").tokens[1:], "log probabilities, to the bit"
    engines.idle()
