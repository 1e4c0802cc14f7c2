"""Moving one request's cache from the engine that read its prompt to the engine that writes its answer.

Regions say where every byte lies, the compiler turns two of them into byte ranges, transports move those, and tickets,
leases and a validated release say whether what arrived may be used.
Never: HTTP, which request goes where or first, the meaning of a token.
"""
