"""How many threads a rank computes with."""

from __future__ import annotations

import os

import torch

from perilune.host.cores import compute_threads


def set_threads(wanted: int | None, ranks: int = 1) -> tuple[int, str]:
    """Tell torch, and with it the kernels, how many threads compute on each of `ranks`; (their number, why)."""
    if wanted is None and os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), "OMP_NUM_THREADS"
    threads, why = compute_threads() if wanted is None else (wanted, "as set")
    if wanted is None and ranks > 1:
        threads, why = max(1, threads // ranks), f"{threads} ({why}), shared by {ranks} ranks"
    torch.set_num_threads(threads)
    return threads, why
