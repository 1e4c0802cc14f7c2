"""A client's request as the router sees it: what it may read, and what it takes out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perilune.errors import RequestError
from perilune.router.prefixes import BLOCK_BYTES, BLOCK_TOKENS, chain_of_ids, chain_of_text

MOVABLE = ("/v1/chat/completions", "/v1/completions")

_PRIVATE = ("kv_transfer_params", "ticket", "transfer_id", "disagg_transfer_id")
_NESTED = ("vllm_xargs", "extra_body", "extra_args")


@dataclass(frozen=True)
class Ask:
    """`body` without what only routers say; `stripped` names what was taken out. `chain` and `ids` describe the prompt;
    `stay` is why it cannot be handed over, or empty.
    """

    path: str
    body: dict[str, Any]
    model: str | None
    stream: bool
    chain: tuple[bytes, ...]
    ids: tuple[int, ...] | None
    length: int
    stay: str
    stripped: tuple[str, ...] = ()
    authorization: str | None = None
    request_id: str = ""

    def tokens(self, bytes_per_token: float) -> int:
        """About how many tokens the prompt has."""
        return self.length if self.ids is not None else max(1, round(self.length / bytes_per_token))


def read_ask(path: str, body: object, authorization: str | None = None, request_id: str = "") -> Ask:
    """Raises RequestError for a body that is no object, or a model that is no string."""
    if not isinstance(body, dict):
        raise RequestError("The body must be a JSON object.")
    clean, stripped = _strip(body)
    model = clean.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestError("model must be a string.", param="model")
    ids = _ids(clean.get("prompt"))
    text = b"" if ids is not None else _text(clean)
    return Ask(
        path=path,
        body=clean,
        model=model,
        stream=clean.get("stream") is True,
        chain=chain_of_text(text) if ids is None else chain_of_ids(ids),
        ids=ids,
        length=len(text) if ids is None else len(ids),
        stay=_stay(path, clean),
        stripped=stripped,
        authorization=authorization,
        request_id=request_id,
    )


def encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def public(answer: bytes) -> bytes:
    """An engine's whole answer, without what was meant for the router."""
    if b'"kv_transfer_params"' not in answer:
        return answer
    said = json.loads(answer)
    said.pop("kv_transfer_params", None)
    return encode(said)


def _private(name: str) -> bool:
    return name in _PRIVATE or name.startswith("bootstrap_")


def _strip(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A copy without tickets and addresses, also where vLLM would merge them from."""
    taken = [name for name in body if _private(name)]
    clean = {name: value for name, value in body.items() if not _private(name)}
    for name in _NESTED:
        inner = clean.get(name)
        if isinstance(inner, dict) and any(map(_private, inner)):
            taken += [f"{name}.{key}" for key in inner if _private(key)]
            clean[name] = {key: value for key, value in inner.items() if not _private(key)}
    return clean, tuple(taken)


def _ids(prompt: object) -> tuple[int, ...] | None:
    if isinstance(prompt, list) and prompt and all(type(each) is int and abs(each) < 2**63 for each in prompt):
        return tuple(prompt)
    return None


def _text(body: Mapping[str, Any]) -> bytes:
    """What decides the prompt, in the order chat templates put it: tools, then the conversation."""
    parts: list[Any] = [body.get(key) for key in ("prompt", "tools", "instructions")]
    for key in ("messages", "input"):
        value = body.get(key)
        parts += value if isinstance(value, list) else [value]
    said = [part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts if part]
    return "\n".join(said).encode(errors="surrogatepass")


def _stay(path: str, body: Mapping[str, Any]) -> str:
    """Why a request stays whole, in a word; the same list as docs/pd.md has."""
    if path not in MOVABLE:
        return "endpoint"
    prompt = body.get("prompt")
    if isinstance(prompt, list) and not (prompt and type(prompt[0]) is int):
        return "prompts"
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        return "n"
    if body.get("prompt_logprobs") is not None or (body.get("echo") and body.get("logprobs") is not None):
        return "prompt_logprobs"
    return "max_tokens" if 0 in (body.get("max_tokens"), body.get("max_completion_tokens")) else ""


def cached_tokens(ask: Ask, blocks: int, bytes_per_token: float) -> int:
    """About how many tokens `blocks` blocks of the prompt are."""
    return blocks * BLOCK_TOKENS if ask.ids is not None else round(blocks * BLOCK_BYTES / bytes_per_token)


def reported_tokens(ask: Ask, digests: Sequence[tuple[int, str]], digest: Any) -> int:
    """The longest prefix among `digests` (tokens, hex digest) that `ask` begins with; exact, and only for token ids."""
    if ask.ids is None:
        return 0
    fits = [n for n, text in digests if n <= len(ask.ids) and digest(ask.ids[:n]).hex() == text]
    return max(fits, default=0)
