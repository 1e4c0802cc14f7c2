"""Chat messages to a prompt, by the checkpoint's own Jinja template. Only the template can write control tokens."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from perilune.errors import CheckpointError, RequestError
from perilune.text.added import named_token
from perilune.text.guard import Guard, Markers
from perilune.text.messages import Arguments, checked_messages, checked_tools, deep_sorted, require_continuable
from perilune.text.sandbox import BoundedEnvironment
from perilune.text.tokenizer import Tokenizer
from perilune.text.typescript import declarations
from perilune.text.vocabulary import read_json

_KIMI_MARK = "<|tool_calls_section_begin|>"
"""A vocabulary with this token is Kimi's: sorted tools, and an opening <think> that may go unsaid."""
_TYPESCRIPT = "tools_ts_str"
"""What templates since Kimi-K2.5's call the tools in TypeScript."""
_SWITCHES = ("thinking", "enable_thinking")
"""What Kimi's and GLM's templates call the variable that turns reasoning off."""
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_RESERVED = {"messages", "tools", "add_generation_prompt"}
_LOAD_FAILURES = (jinja2.TemplateSyntaxError, OSError, ValueError, KeyError, TypeError, RecursionError)
_RENDER_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """`ids` decode to `text`. `starts_in_reasoning`: the answer begins inside the reasoning (see OutputParser)."""

    ids: list[int]
    text: str
    starts_in_reasoning: bool = False


class ChatTemplate:
    """One or more named templates of a checkpoint: `default`, and `tool_use` where there is one for tools."""

    def __init__(
        self, sources: Mapping[str, str], tokenizer: Tokenizer, tokens: Mapping[str, str] | None = None
    ) -> None:
        """`tokens` are bos_token and the like. Raises jinja2.TemplateSyntaxError."""
        self.sources = dict(sources)
        self._tokenizer, self._tokens = tokenizer, dict(tokens or {})
        self._markers = Markers(tokenizer.special_ids)
        self._environment = _environment()
        self._templates = {name: self._environment.bounded_template(text) for name, text in sources.items()}

    @classmethod
    def load(cls, path: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """From chat_template.jinja, else tokenizer_config.json, in the folder `path`; None if neither has one.

        Raises CheckpointError naming the broken file.
        """
        config_path, jinja_path = path / "tokenizer_config.json", path / "chat_template.jinja"
        config = read_json(config_path) if config_path.exists() else {}
        found = jinja_path if jinja_path.exists() else config_path
        try:
            sources = {"default": jinja_path.read_text("utf-8")} if found == jinja_path else _named(config)
            tokens = {name: text for name in _TOKEN_NAMES if (text := named_token(config, name)) is not None}
            return cls(sources, tokenizer, tokens) if sources else None
        except (jinja2.TemplateSyntaxError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"The chat template in {found} cannot be read.", f"{error}.", "Fix the file."
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt for `messages`. `extra` are further template variables, such as `enable_thinking`.

        With `continue_final_message` it ends where the text of the last message ends, and no turn is opened.
        Raises RequestError with `param` set: bad messages, tools or extra; a template that rejects them.
        """
        if taken := _RESERVED & set(extra or {}):
            raise RequestError(f"{min(taken)!r} cannot be a template variable.", param="chat_template_kwargs")
        guard = Guard(self._markers)
        checked = checked_messages(messages, splits_thinking="</think>" in self._tokenizer.special_ids)
        hidden = [_hidden_message(message, guard) for message in checked]
        if continue_final_message:
            require_continuable(checked[-1], f"messages[{len(checked) - 1}]")
            hidden[-1]["content"] = guard.with_end(hidden[-1]["content"])
            add_generation_prompt = False
        checked_list = checked_tools(tools)
        if _KIMI_MARK in self._tokenizer.special_ids:
            checked_list = deep_sorted(checked_list)
        variables = {
            **self._tokens,
            **self._typescript(checked_list, guard),
            **guard.hide(dict(extra or {})),
            "messages": hidden,
            "tools": guard.hide(checked_list),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run("tool_use" if checked_list and "tool_use" in self._templates else "default", variables, guard)
        if continue_final_message:
            text = _cut(text, guard)
        opens = add_generation_prompt and not any((extra or {}).get(switch) is False for switch in _SWITCHES)
        inside = self._starts_in_reasoning(text.rstrip(), opens)
        return Prompt(self._encode(text, guard), guard.reveal(text), inside)

    def _typescript(self, tools: Sequence[Mapping[str, Any]] | None, guard: Guard) -> dict[str, str]:
        """Kimi-K2.5's tool declarations, for templates that print them; without them, these print JSON."""
        text = declarations(deep_sorted(tools)) if tools and self.writes(_TYPESCRIPT) else None
        return {} if text is None else {_TYPESCRIPT: guard.hide_text(text)}

    def writes(self, marker: str) -> bool:
        """Whether any of the templates mentions `marker`."""
        return any(marker in source for source in self.sources.values())

    def _run(self, name: str, variables: dict[str, Any], guard: Guard) -> str:
        template = self._templates.get(name) or next(iter(self._templates.values()))
        try:
            return self._environment.render(template, variables, guard.chars)
        except _RENDER_FAILURES as error:
            what = "The model's chat template cannot render these messages."
            why = guard.reveal(str(error) or type(error).__name__)
            raise RequestError(what, f"{why}.", param="messages") from error

    def _starts_in_reasoning(self, text: str, may_open: bool) -> bool:
        """An open <think> at the end; or nothing, for Kimi models that think: they open it, or leave that unsaid."""
        if text.endswith("<think>"):
            return True
        unsaid = may_open and not text.endswith("</think>")
        return unsaid and _KIMI_MARK in self._tokenizer.special_ids and self.writes("<think>")

    def _encode(self, text: str, guard: Guard) -> list[int]:
        ids: list[int] = []
        start = 0
        for marker in self._markers.pattern.finditer(text):
            ids.extend(self._tokenizer.encode(guard.reveal(text[start : marker.start()])))
            ids.append(self._tokenizer.special_ids[marker.group()])
            start = marker.end()
        return ids + self._tokenizer.encode(guard.reveal(text[start:]))


def _cut(text: str, guard: Guard) -> str:
    before = guard.up_to_end(text)
    if before is None:
        raise RequestError(
            "The final message cannot be continued.",
            "The model's chat template leaves its text out or changes it.",
            "Leave continue_final_message out.",
            param="continue_final_message",
        )
    return before


def _hidden_message(message: Mapping[str, Any], guard: Guard) -> dict[str, Any]:
    """Roles are a closed list, and templates build tokens from them, so they stay."""
    plain = {key: value for key, value in message.items() if key not in ("role", "tool_calls")}
    hidden = _hidden_fields(plain, guard)
    if "tool_calls" in message:
        hidden["tool_calls"] = [_hidden_call(call, guard) for call in message["tool_calls"]]
    return {"role": message["role"], **hidden}


def _hidden_fields(fields: Mapping[str, Any], guard: Guard) -> dict[str, Any]:
    return {
        guard.hide_key(key): guard.hide_text(value) if isinstance(value, str) else guard.hide(value)
        for key, value in fields.items()
    }


def _hidden_call(call: Mapping[str, Any], guard: Guard) -> dict[str, Any]:
    function = _hidden_fields(call["function"], guard)
    arguments = call["function"]["arguments"]
    if isinstance(arguments, Arguments):
        function["arguments"] = Arguments(guard.hide(dict(arguments)), guard.hide(arguments._json_text))
    rest = {key: value for key, value in call.items() if key not in ("function", "type")}
    return {**_hidden_fields(rest, guard), "type": "function", "function": function}


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template` is a string, or a list of {"name", "template"}."""
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    return {str(entry["name"]): str(entry["template"]) for entry in value}


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment()
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, unlike Jinja's own filter, which escapes for HTML."""
    if isinstance(value, Arguments):
        return value._json_text
    indent = min(indent, 16) if indent else indent
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
