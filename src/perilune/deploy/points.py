"""The point that is asked for, where nothing is asked the recipe's own."""

from __future__ import annotations

from perilune.deploy.condition import Point
from perilune.deploy.recipe import Recipe


def point_of(
    recipe: Recipe,
    *,
    context: int | None = None,
    concurrency: int | None = None,
    tp: int | None = None,
    port: int = 8000,
) -> Point:
    """None takes the recipe's default."""
    own = recipe.point
    return Point(
        own.context if context is None else context,
        own.concurrency if concurrency is None else concurrency,
        own.tp if tp is None else tp,
        port,
    )
