"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from perilune.server.front import Front, FrontDep
from perilune.server.openapi import PLAIN_ERRORS, errors

router = APIRouter(tags=["models"])


class Model(BaseModel):
    """`root` is what the server was started with; `max_model_len` counts prompt and answer together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


@router.get("/v1/models", responses=PLAIN_ERRORS)
async def models(front: FrontDep) -> ModelList:
    """Every name requests may use."""
    return ModelList(object="list", data=[_model(front, name) for name in front.names])


@router.get("/v1/models/{model_id:path}", responses=errors(401, 404))
async def model(model_id: str, front: FrontDep) -> Model:
    """One of them."""
    return _model(front, front.model(model_id))


def _model(front: Front, name: str) -> Model:
    return Model(
        id=name,
        object="model",
        created=front.created,
        owned_by="perilune",
        root=front.names[0],
        parent=None,
        max_model_len=front.context,
    )
