"""What crosses between processes comes back as it went, errors included."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune import errors
from perilune.engine.config import EngineConfig
from perilune.engine.messages import (
    Abort,
    AskStats,
    Fatal,
    FromEngine,
    Ready,
    Shutdown,
    Stats,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
    WireError,
)
from perilune.engine.request import Grammar, PromptLogprobs, SamplingParams, TokenLogprobs

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PeriluneError)]

FIELDS = {
    "n": st.integers(1, 128),
    "max_tokens": st.none() | st.integers(0, 10**6),
    "min_tokens": st.integers(0, 100),
    "temperature": st.floats(0, 100),
    "top_p": st.floats(1e-6, 1),
    "top_k": st.integers(-1, 10**6),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.01, 10),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "seed": st.none() | st.integers(-(2**63), 2**64 - 1),
    "stop": st.lists(st.text(min_size=1), max_size=3).map(tuple),
    "stop_token_ids": st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    "ignore_eos": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "logprobs": st.none() | st.integers(0, 20),
    "prompt_logprobs": st.none() | st.integers(0, 20),
    "logit_bias": st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100)),
    "grammar": st.none()
    | st.builds(Grammar, st.sampled_from(["json_schema", "regex", "ebnf", "json_object"]), st.text()),
}
params = st.builds(SamplingParams, **FIELDS)
ids = st.lists(st.integers(0, 2**31), max_size=50).map(tuple)


def through(message: Any, kind: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind)


def test_the_strategy_covers_every_parameter() -> None:
    assert FIELDS.keys() == SamplingParams.__dataclass_fields__.keys()


@given(prompt=ids, params=params, seed=st.integers(-(2**63), 2**64 - 1), stream=st.integers(0, 127))
def test_a_submission(prompt: tuple[int, ...], params: SamplingParams, seed: int, stream: int) -> None:
    message = Submit("a/0", prompt, params, seed, stream)
    back = through(message, ToEngine)
    assert back == message
    assert type(back.params) is SamplingParams
    assert hash(back.prompt) == hash(prompt)


@pytest.mark.parametrize("message", [Abort("x"), AskStats(), Shutdown()], ids=lambda m: type(m).__name__)
def test_other_messages_to_the_engine(message: Any) -> None:
    assert through(message, ToEngine) == message


@pytest.mark.parametrize(
    "message",
    [
        Ready(("one", "two")),
        Tokens((TokenEvent("a", TokenLogprobs(3, -0.25, ((3, -0.25), (4, -1.5))), "stop", 3, True, 64),)),
        Tokens((TokenEvent("a", finish_reason="error", error=WireError("RequestError", "w", param="n")),)),
        Tokens(
            (TokenEvent("a", finish_reason="length", prompt_logprobs=(None, PromptLogprobs(5, -2.5, ((1, -0.5),), 3))),)
        ),
        Stats({"pages": 3, "seconds": 0.5, "dtype": "float32"}),
        Fatal(WireError("CheckpointError", "what", "why", "fix")),
    ],
    ids=lambda m: type(m).__name__,
)
def test_messages_from_the_engine(message: Any) -> None:
    assert through(message, FromEngine) == message


def test_values_the_server_would_refuse_are_refused_by_the_engine_too() -> None:
    """Decoding runs the same checks: a message cannot smuggle in what SamplingParams would not take."""
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(Submit("a", (1,), SamplingParams(), 0)))
    raw["params"]["top_p"] = 7.0
    with pytest.raises((msgspec.ValidationError, errors.RequestError), match="top_p"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=ToEngine)


def test_a_config_reaches_the_worker_whole() -> None:
    config = EngineConfig("m", dtype="float32", max_context=128, cache_bytes=10**12, threads=2)
    assert through(config, EngineConfig) == config


@pytest.mark.parametrize("kind", ERRORS, ids=lambda k: k.__name__)
def test_every_error_comes_back_as_itself(kind: type[errors.PeriluneError]) -> None:
    error = kind("What.", "Why.", "Fix.", param="prompt")
    for back in (through(WireError.of(error), WireError).error(), pickle.loads(pickle.dumps(error))):
        assert type(back) is kind
        assert (back.what, back.why, back.fix, back.param) == ("What.", "Why.", "Fix.", "prompt")
        assert str(back) == "What. Why. Fix."
        assert (back.http_status, back.code) == (kind.http_status, kind.code)


def test_any_other_exception_becomes_a_plain_one_that_keeps_its_text() -> None:
    back = through(WireError.of(ZeroDivisionError("by zero")), WireError).error()
    assert type(back) is errors.PeriluneError
    assert "ZeroDivisionError: by zero" in back.why
    assert back.http_status == 500


@pytest.mark.parametrize("kind", ["Iterable", "nearest", "NoSuchError", "__name__"])
def test_a_name_that_is_no_error_class_is_never_called(kind: str) -> None:
    assert type(WireError(kind, "w").error()) is errors.PeriluneError
