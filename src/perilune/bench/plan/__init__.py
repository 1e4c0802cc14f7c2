"""One pure expansion of a sweep file into points, what they look like, and how two plans differ.

Never reads a clock, a network or a GPU: the same file gives the same points everywhere.
"""
