"""perilune beside other engines: one slice of a real model, one list of workloads, one child process per engine.

    slices                 random weights as a checkpoint
    q4_0, gguf_plan,       the same bits as a GGUF file
      gguf_file
    environment, engines   the peer's own virtual environment; what runs where
    workloads, targets     what is measured, and what it should reach
    children, protocol     processes that measure, and the lines they speak
    *_child                one engine each, behind the same few commands
    agreement              do both hold the same model?
    session, table,        turns between engines; medians and ratios; what the machine allows
      floors

Never: imported by `perilune`. Nothing here knows a kernel.
"""
