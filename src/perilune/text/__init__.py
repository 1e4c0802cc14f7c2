"""Text in and out of a model: tokenizers, stop strings, chat templates, reasoning and tool-call parsers.

Never: runs code that a checkpoint ships, lets user text become a control token, or knows the engine, tensors or HTTP.
"""
