"""Files that people write: YAML with the line of every key, and models that name the nearest valid one.

Never: what any of them means; that is the business of the room that reads it.
"""
