"""transformers' side of the comparison takes the slice's shapes and answers the same commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import engines

pytest.importorskip("transformers")


def test_it_runs_the_slices_shapes_in_bf16(tiny_slice: Path) -> None:
    from peers.transformers_child import Transformers

    engine = Transformers(str(tiny_slice), threads=1)
    assert engine.prefill(70, depth=0, seed=1) > 0
    assert engine.decode(3, depth=0, sequences=2, seed=1) > 0
    assert engine.logits([1, 2, 3]).shape == (3, 256)
    assert "bf16" in engine.about
    with pytest.raises(ValueError, match="empty cache"):
        engine.prefill(70, depth=64, seed=1)


def test_what_does_not_fit_is_left_out_with_the_numbers(tiny_slice: Path) -> None:
    reason = engines.transformers(tiny_slice, threads=1, needed=16 << 30, available=8 << 30)
    assert isinstance(reason, str)
    assert "16.0 GiB, of which 8.0 GiB are available" in reason
    assert isinstance(engines.transformers(tiny_slice, 1, needed=1, available=2), engines.Setup)
