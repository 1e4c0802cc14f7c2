"""What every HTTP front here shares: the error envelope, API keys, body limits, event streams, listening and stopping.

Never: a route, an engine, or anything about models.
"""
