"""Requests and when to send them, the HTTP and event-stream client, and the processes that drive it.

Never judges: it writes down what was sent and what came when, and leaves numbers to `measure/`.
"""
