"""One folder per kernel family; in each, `reference.py` is the specification in plain torch.

Never: a model, a cache policy, a request. Letters for shapes: T tokens of a packed batch, B sequences,
H heads, K key dim, V value dim, D hidden, R latent rank, C chunk (64), E experts, P pages, S slots.
"""
