"""What every HTTP front here shares: the error envelope, API keys, body limits, event streams, the
page, listening and stopping.

Never: a route of its own but the page's, an engine, or anything about models.
"""
