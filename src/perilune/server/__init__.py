"""The OpenAI-compatible HTTP front of one engine: routes, streaming, metrics, start and stop.

Never: tensors, torch, scheduling, or any network access of its own. It speaks to the engine through
`perilune.engine.client` alone and fetches no address a client sends.
"""
