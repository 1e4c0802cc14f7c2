"""From the log of a run to numbers, intervals and verdicts, by pure functions: anything can be derived again later.

Never sends a request, and never turns what is absent into zero.
"""
