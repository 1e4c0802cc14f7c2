"""Matrix products with dense and packed weights, and the packed formats themselves.

Never: a model name or a cache policy.
"""
