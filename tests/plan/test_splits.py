"""Ranks and roles: what each holds, what each sends, and what a handover moves; against published figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from perilune.errors import ConfigError
from perilune.models.config import read_config
from perilune.plan.device import Machine
from perilune.plan.plan import Plan, plan_model
from perilune.plan.splits import LINKS, handovers, render, sent_per_token, splits, to_json
from perilune.units import GIB, MIB

KIMI_LINEAR = read_config(Path(__file__).parents[1] / "data" / "kimi-linear-48b").spec
GLM = read_config(Path(__file__).parents[1] / "data" / "glm-4.7-flash").spec


@pytest.mark.parametrize(
    ("tokens", "mib", "thunderbolt"), [(4096, 72.9, 0.068), (32_768, 293.4, 0.275), (1_048_576, 8105, 7.589)]
)
def test_a_handover_moves_what_was_published_for_it(tokens: int, mib: float, thunderbolt: float) -> None:
    one = handovers(KIMI_LINEAR, "bfloat16", tokens)[0]
    assert one.wire_bytes / MIB == pytest.approx(mib, rel=1e-3)
    assert one.seconds(dict(LINKS)["Thunderbolt networking"]) == pytest.approx(thunderbolt, rel=0.01)


def test_each_decode_rank_reads_all_latents_and_its_own_share_of_the_state() -> None:
    one, *more = handovers(KIMI_LINEAR, "bfloat16", 4096)
    assert [hand.decode_tp for hand in more] == [2, 4, 8]
    for hand in more:
        assert hand.latent_bytes == hand.decode_tp * one.latent_bytes
        assert hand.state_bytes == one.state_bytes == 43_417_600
    assert handovers(GLM, "bfloat16", 64)[0].state_bytes == 0


def test_a_rank_sends_two_sums_a_layer_and_its_logits() -> None:
    assert sent_per_token(KIMI_LINEAR, "bfloat16", 1) == 0
    assert sent_per_token(KIMI_LINEAR, "bfloat16", 2) == 2 * 27 * 2304 * 2 + 163_840 // 2 * 4
    ring = [sent_per_token(KIMI_LINEAR, "bfloat16", tp) - 163_840 // tp * 4 for tp in (2, 4, 8)]
    assert ring == sorted(ring)
    assert ring[-1] < 2 * 2 * 27 * 2304 * 2, "a ring never sends twice the sums"


def test_every_degree_is_planned_and_what_cannot_be_is_named() -> None:
    whole = plan_model(KIMI_LINEAR, Machine(64 * GIB), context=8192, concurrency=1, weights_bytes=30 * GIB)

    def plan_of(tp: int, ep: bool) -> Plan:
        if tp == 8:
            raise ConfigError("8 ranks cannot share it.", "", "")
        return dataclasses.replace(whole, weights_bytes=whole.weights_bytes // tp)

    found, refused = splits(KIMI_LINEAR, plan_of)
    assert [(split.tp, split.ep) for split in found] == [(1, False), (2, False), (2, True), (4, False), (4, True)]
    assert [line.partition(":")[0] for line in refused] == ["8 ranks", "8 ranks with whole experts"]
    handed = handovers(KIMI_LINEAR, "bfloat16", 8192)
    data = to_json(found, handed)
    assert data["splits"][1]["weights_bytes"] == 15 * GIB
    assert data["handovers"][0]["wire_bytes"] == 8192 * 8064 + 43_417_600
    assert render(found, refused, handed)
