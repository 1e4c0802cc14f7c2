"""What a request remembers: its MLA latents in pages, its KDA state in a slot, and the books over both.

Geometry turns a ModelSpec into bytes; arenas are the memory; pool, prefix tree and manager are integers only.
Never: a model's name, which request goes first (that is the scheduler's), or page and slot memory sharing bytes.
"""
