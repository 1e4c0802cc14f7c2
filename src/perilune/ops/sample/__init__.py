"""From logits to a token: penalties, truncation, and a counter-based draw.

Never: a model name or a cache policy.
"""
