"""What the Triton kernels of every family share: architectures, tile sizes, launching, compiling ahead of time.

Never: a formula (those are in `ops/*/kernels.py`), a measurement at run time, work at import.
"""
