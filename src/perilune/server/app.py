"""Puts the app together: routes, error handlers, and what every request passes first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from perilune import __version__
from perilune.engine.client import AsyncEngine
from perilune.http import errors
from perilune.http.middleware import ApiKeys, BodyLimit
from perilune.http.origins import guard, is_loopback
from perilune.http.page import is_page, page_router
from perilune.server import chat, completions, docs, live, models, openapi, pd, responses, status, tokens
from perilune.server.config import ServerConfig
from perilune.server.front import Front
from perilune.server.parsers import Parsers
from perilune.server.stamp import StampedBodies, Stamps
from perilune.text.chat import ChatTemplate

_DESCRIPTION = "OpenAI-compatible API for hybrid linear-attention language models, with vLLM's extra fields."


def create_app(engine: AsyncEngine, config: ServerConfig) -> FastAPI:
    """The app for a started engine. Raises ConfigError for a parser that does not exist, CheckpointError for a broken
    chat template.
    """
    template = ChatTemplate.load(engine.path, engine.tokenizer) if engine.tokenizer else None
    parsers = Parsers.choose(config, engine.spec.family, engine.tokenizer, template)
    names = config.served_model_names or (model_name(engine.config.model),)
    front = Front(engine=engine, config=config, names=names, template=template, parsers=parsers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await front.grammars.close()

    app = FastAPI(
        title="perilune",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.front = front
    for part in (models, chat, completions, responses, tokens, status, live, pd, docs):
        app.include_router(part.router)
    if config.page:
        app.include_router(page_router())
    errors.install(app)
    openapi.describe(app, keys=bool(config.api_keys))
    # The last added is the first to see a request: nobody without a key gets to send a large body.
    key = engine.config.pd.key() if engine.config.pd else None
    app.add_middleware(StampedBodies)
    app.add_middleware(BodyLimit, limit=config.max_body_bytes, seconds=config.body_seconds)
    app.add_middleware(ApiKeys, keys=config.api_keys, is_open=is_page if config.page else lambda _: False)
    app.add_middleware(Stamps, key=key)
    guard(app, config.allowed_origins, loopback_only=not config.api_keys and is_loopback(config.host))
    return app


def model_name(model: str) -> str:
    """A hub id as it is; of a path only the folder's name, since where it lies is nobody's business."""
    path = Path(model)
    return (path.resolve().name or model) if path.exists() else model
