"""Multi-head latent attention over paged latents: expanded for prefill, absorbed for decode.

Never: a model name or a cache policy.
"""
