"""Steps of the real models on torch's meta device: what they hold at once is what `plan` counts, and they can be
recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from meta_model import META, Caches, Peak, decoder

from perilune.models.config import read_config
from perilune.nn.batch import Batch, Piece
from perilune.ops.gpu.arch import ARCHES
from perilune.plan.workspace import GPU_BYTES, gpu_workspace

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("model", ["kimi-linear-48b", "glm-4.7-flash", "kimi-k2.5"])
def test_a_step_holds_no_more_than_is_planned_and_not_much_less(model: str) -> None:
    """One layer of each kind, since what a layer needs is given back before the next."""
    spec = read_config(DATA / model).spec
    run, gpu = decoder(spec, ARCHES["gfx942"], layers=4)
    spec, caches = run.spec, Caches(run.spec)
    steps = {
        512: [Piece((0,) * 512, 8192, 0, [0] * 136, "prefill", exports=((64, 1),))],
        2048: [Piece((0,) * 2048, 0, 0, [0] * 32, "prefill")],
        0: [Piece((0,), 8000, slot, [0] * 126, "decode") for slot in range(64)],
    }
    for tokens, pieces in steps.items():
        with Peak() as held:
            run(Batch.build(pieces, META), caches)
        work = gpu_workspace(spec, tokens)
        sequences = 0 if tokens else 64
        planned = work.total(sequences) - work.step_bytes // 11 - GPU_BYTES - 6 * 64 * spec.vocab
        assert held.bytes <= planned, (tokens, held.bytes, planned)
        if tokens:
            assert planned <= 1.6 * held.bytes, (tokens, held.bytes, planned)
    assert gpu.launches
