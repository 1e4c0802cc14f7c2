"""What was asked for on an H200, before any of it ran on one."""

from __future__ import annotations

KDA_PREFILL_TOKENS = 8192
KDA_PREFILL_TIMES_FLA = 1.3
KDA_DECODE = (64, 0.80)  # sequences; share of the read bandwidth
MLA_DECODE = ((32, 32_768), 0.70)
MOE_DECODE = ("int4-32", 0.65)  # every number of rows that is few
DECODE_OF_WEIGHTS = 0.45  # one sequence: of what reading the weights alone would allow
DECODE_AT_DEPTH = (131_072, 0.90)  # of depth 0
DECODE_TOGETHER = (32, 12.0)  # sequences; times one alone
