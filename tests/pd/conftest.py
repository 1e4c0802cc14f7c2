"""The fixtures of pd_world.py and split_world.py, where pytest looks for them."""

from pd_world import closing, engines, transport_name
from split_world import make

__all__ = ["closing", "engines", "make", "transport_name"]
