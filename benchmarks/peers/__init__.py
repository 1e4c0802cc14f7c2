"""perilune beside other engines: one slice of a real model, one list of workloads, one child process per engine.

    slices, gguf_file      the same random weights as a checkpoint and as a GGUF file
    environment            the peer's own virtual environment
    workloads, targets     what is measured, and what it should reach
    children, protocol     processes that measure, and the lines they speak
    *_child                one engine each, behind the same few commands
    session, table         turns between engines; medians, ratios, limits

Never: imported by `perilune`. Nothing here knows a kernel.
"""
