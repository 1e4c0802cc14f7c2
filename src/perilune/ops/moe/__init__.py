"""Sigmoid router and the mixture of expert SwiGLUs.

Never: a model name or a cache policy.
"""
