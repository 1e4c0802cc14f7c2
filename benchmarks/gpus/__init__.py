"""The GPU's kernels and a whole model on them, beside what the device allows and beside fla-core.

    clock, limits     time on the device; what it can read and multiply at best
    sizes, weights    shapes of a real model, or of one that an interpreter can afford; random weights on the device
    kernels, fla      each kernel and its floor; fla-core's kernels for the same work
    whole             a model of random weights behind the engine's own loop
    rows, targets     the table, its JSON, and what was asked for

Never: imported by `perilune`; weights on disk.
"""
