"""The front of many engines: one OpenAI API that picks engines, hands requests over between them and passes streams on.

Never: tensors, torch, tokenizers, or an address that a client named. It speaks HTTP to engines it was told of.
"""
