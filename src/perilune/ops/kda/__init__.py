"""Kimi Delta Attention: gate, short convolution, chunked and recurrent delta rule, gated norm.

Never: a model name or a cache policy.
"""
