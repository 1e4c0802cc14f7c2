"""The sampling fields that chat and completion requests share, and their way into SamplingParams."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, field_validator

from perilune.engine.request import Grammar, SamplingParams
from perilune.errors import RequestError
from perilune.server.body import INT32_MAX, Count, LooseBody, StrictBody, TokenId, unsupported

MAX_STOPS = 64

_PLAIN = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "include_stop_str_in_output", "skip_special_tokens",
)  # fmt: skip


Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)]


class StructuredOutputs(StrictBody):
    """vLLM's `structured_outputs`: exactly one way to constrain the answer."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    grammar: str | None = None
    choice: Choices | None = None
    json_object: bool | None = None


class StreamOptions(LooseBody):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(StrictBody):
    """OpenAI's sampling fields and vLLM's extra ones. A field left out or null takes SamplingParams' default."""

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None  # the router's; read only with its stamp
    # Accepted because OpenAI's clients send them; nothing here acts on them.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    spaces_between_special_tokens: bool | None = None

    @field_validator("logit_bias", mode="after")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and int(key[:11]) <= INT32_MAX):
                raise unsupported(f"logit_bias keys are token ids, not {key[:40]!r}.")
        return value

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        grammar: Grammar | None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """These fields as SamplingParams. Raises RequestError for a value out of range."""
        given = {name: value for name in _PLAIN if (value := getattr(self, name)) is not None}
        if isinstance(given.get("stop"), list):
            given["stop"] = tuple(given["stop"])
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        params: SamplingParams = SamplingParams(
            **given,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=bias,
            grammar=grammar,
        )
        return params

    def grammars(self) -> list[Grammar]:
        """Every constraint vLLM's fields ask for, in no particular order."""
        extra = self.structured_outputs or StructuredOutputs()
        schemas = [schema for schema in (self.guided_json, extra.json_) if schema is not None]
        regexes = [regex for regex in (self.guided_regex, extra.regex) if regex is not None]
        rules = [rule for rule in (self.guided_grammar, extra.grammar) if rule is not None]
        rules += [_one_of(choices) for choices in (self.guided_choice, extra.choice) if choices is not None]
        return [
            *(Grammar("json_schema", text_of(schema)) for schema in schemas),
            *(Grammar("regex", regex) for regex in regexes),
            *(Grammar("ebnf", rule) for rule in rules),
            *([Grammar("json_object")] if extra.json_object else []),
        ]


def _one_of(choices: list[str]) -> str:
    """EBNF whose strings are quoted as in JSON."""
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def text_of(schema: dict[str, Any] | str) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def streamless(prompt_logprobs: int | None, stream: bool | None) -> int | None:
    """`prompt_logprobs` as they came. Raises RequestError for a stream, whose events have no place for them."""
    if stream and prompt_logprobs is not None:
        raise RequestError(
            "prompt_logprobs do not come in a stream.",
            "No event has a place for them.",
            "Leave stream out, or send echo with logprobs to /v1/completions.",
            param="prompt_logprobs",
        )
    return prompt_logprobs


def only_one(grammars: list[Grammar]) -> Grammar | None:
    """The one constraint asked for. Raises RequestError if there are several."""
    if len(grammars) > 1:
        kinds = ", ".join(grammar.kind for grammar in grammars)
        raise RequestError(
            "More than one constraint on the output.", f"Found: {kinds}.", "Keep one of them.", param="response_format"
        )
    return grammars[0] if grammars else None
