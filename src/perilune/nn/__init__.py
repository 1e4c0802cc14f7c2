"""How a model computes: layers and decoder over ops and cache views.

Never: a request, a scheduling decision, HTTP.
"""
