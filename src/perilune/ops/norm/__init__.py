"""RMSNorm.

Never: a model name or a cache policy.
"""
