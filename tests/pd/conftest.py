"""The fixtures of pd_world.py, where pytest looks for them."""

from pd_world import closing, engines, transport_name

__all__ = ["closing", "engines", "transport_name"]
