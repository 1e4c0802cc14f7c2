"""What a model is: its spec, one reader per family, checkpoints on disk, quantised formats.

Never: a forward pass, a cache, a request. `spec.py`, `families/`, `config.py`, `safetensors_file.py`, `quantised.py`,
`checkpoint.py`, `estimate.py` and `hub.py` import no torch, so that `perilune plan` answers without it;
only `loader.py`, `shard.py` and `embedding.py` do.
"""
