"""Request to tokens: scheduler, runner, sampler, core loop, the engine process and its client.

Never: a model's name, a probe of the host, HTTP.
"""
