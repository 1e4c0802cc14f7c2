"""Which reader a request's answer gets: by the model's own parsers, those the flags name, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perilune.errors import ConfigError, nearest
from perilune.server.config import ServerConfig
from perilune.server.stream import PlainReader, Reader
from perilune.text.chat import ChatTemplate
from perilune.text.parser import OutputParser, default_parsers
from perilune.text.reasoning import REASONING_PARSERS
from perilune.text.tokenizer import Tokenizer
from perilune.text.toolcalls import TOOL_PARSERS

OFF = "none"


@dataclass(frozen=True)
class Parsers:
    """Names in TOOL_PARSERS and REASONING_PARSERS; None reads nothing out of the text."""

    tools: str | None = None
    reasoning: str | None = None

    @staticmethod
    def choose(
        config: ServerConfig, family: str, tokenizer: Tokenizer | None, template: ChatTemplate | None
    ) -> Parsers:
        """The flags', else the model's. Raises ConfigError for a name that does not exist."""
        own: tuple[str | None, str | None] = (None, None)
        if tokenizer is not None:
            own = default_parsers(family, tokenizer, template)
        return Parsers(
            _named("--tool-call-parser", config.tool_parser, own[0], TOOL_PARSERS),
            _named("--reasoning-parser", config.reasoning_parser, own[1], REASONING_PARSERS),
        )

    def readers(self, tools: Sequence[Mapping[str, Any]], starts_in_reasoning: bool) -> Callable[[], Reader]:
        """Makes the readers of one request. Without tools in it, nothing in its answer is a call."""
        tool_format = TOOL_PARSERS[self.tools] if tools and self.tools else None
        reasoning = REASONING_PARSERS[self.reasoning] if self.reasoning else None
        if tool_format is None and reasoning is None:
            return PlainReader
        functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), Mapping)]
        schemas = {str(f.get("name")): f.get("parameters") or {} for f in functions}
        return lambda: OutputParser(reasoning, tool_format, schemas, starts_in_reasoning=starts_in_reasoning)


def _named(flag: str, wanted: str | None, own: str | None, known: Mapping[str, object]) -> str | None:
    if wanted is None:
        return own
    if wanted == OFF:
        return None
    if wanted not in known:
        raise ConfigError(f"{flag} {wanted!r} does not exist.", nearest(wanted, [*known, OFF]))
    return wanted
