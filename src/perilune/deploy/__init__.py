"""How a model is launched on a host with an engine: recipes as data, the files of a deployment, an engine as a child.

Never: probing (host/ does), arithmetic of its own (plan/ does), a flag whose reason is not written beside it.
"""
