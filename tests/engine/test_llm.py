"""The Python API as its documentation shows it, on a golden checkpoint without tokenizer and on the built-in model."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_data import MODELS, Golden

from perilune import LLM, SamplingParams
from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.messages import TokenEvent
from perilune.engine.request import Completion, Grammar
from perilune.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    ModelNotFoundError,
    PeriluneError,
    RequestError,
)
from perilune.models.checkpoint import Checkpoint

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
QUESTION = "What is a page?"


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, "temperature": 0, "ignore_eos": True} | fields)


@pytest.fixture(scope="module")
def reference(golden: Path) -> Golden:
    return Golden.load(golden / "kimi_linear")


@pytest.fixture(scope="module")
def ids_only(reference: Golden) -> Iterator[LLM]:
    """A checkpoint without tokenizer files."""
    with LLM(str(reference.path), dtype="float32", max_context=256, max_running=4) as model:
        yield model


@pytest.fixture(scope="module")
def builtin() -> Iterator[LLM]:
    with LLM("builtin", dtype="float32", max_context=512, max_running=4) as model:
        yield model


@pytest.fixture(autouse=True)
def _nothing_left_in_use(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"ids_only", "builtin"} & set(request.fixturenames):
        stats = request.getfixturevalue(name).stats()
        assert [stats[key] for key in ("pages_used", "slots_used", "cache_bytes_used", "running", "waiting")] == [0] * 5


def tokens_of(answers: list[Completion]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


# --- prompts -----------------------------------------------------------------------------------------------------


def test_one_list_of_ids_many_lists_and_any_kind_of_integer(ids_only: LLM, reference: Golden) -> None:
    ids = reference.prompt(17)
    expected = reference.get(17, "greedy_ids").tolist()[:8]
    for prompts in (list(ids), [list(ids)], [ids], np.array(ids), torch.tensor(ids), [torch.tensor(ids)]):
        [answer] = ids_only.generate(prompts, GREEDY)
        assert answer.token_ids == expected
        assert (answer.prompt_tokens, answer.cached_tokens, answer.finish_reason) == (17, 0, "length")
        assert (answer.text, answer.logprobs, answer.stop_reason) == ("", None, None)


def test_text_and_ids_side_by_side_in_order(builtin: LLM) -> None:
    tokenizer = builtin._core.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(QUESTION)
    text, same, other = builtin.generate([QUESTION, ids, "Hello"], GREEDY)
    assert text.token_ids == same.token_ids
    assert text.text == same.text == tokenizer.decode(text.token_ids)
    assert text.prompt_tokens == len(ids)
    assert other.prompt_tokens == len(tokenizer.encode("Hello"))
    assert builtin.generate(QUESTION, GREEDY) == [text]


def test_no_prompts_give_no_answers(ids_only: LLM) -> None:
    assert ids_only.generate([], GREEDY) == []


def test_more_prompts_than_can_run_or_wait(golden: Path) -> None:
    with LLM(str(golden / "kimi_linear"), dtype="float32", max_context=128, max_running=2, max_waiting=2) as llm:
        prompts = [[n + 1, n + 2, n + 3] for n in range(9)]
        together = tokens_of(llm.generate(prompts, greedy(max_tokens=3)))
        assert together == [tokens_of(llm.generate(prompt, greedy(max_tokens=3)))[0] for prompt in prompts]


def test_params_per_prompt(ids_only: LLM) -> None:
    short, long = ids_only.generate([[1, 2], [1, 2]], [greedy(max_tokens=2), greedy(max_tokens=5)])
    assert (len(short.token_ids), len(long.token_ids)) == (2, 5)
    assert long.token_ids[:2] == short.token_ids
    with pytest.raises(RequestError, match="2 prompts but 1"):
        ids_only.generate([[1], [2]], [greedy()])


# --- sampling ----------------------------------------------------------------------------------------------------


def test_a_seed_repeats_and_each_index_has_its_own_stream(ids_only: LLM) -> None:
    params = SamplingParams(n=3, seed=11, temperature=2.0, max_tokens=8, ignore_eos=True)
    first = tokens_of(ids_only.generate([[5, 6, 7]], params))
    assert len(first) == 3
    assert len({tuple(answer) for answer in first}) == 3
    assert tokens_of(ids_only.generate([[9], [5, 6, 7]], params))[3:] == first
    one = SamplingParams(seed=11, temperature=2.0, max_tokens=8, ignore_eos=True)
    assert tokens_of(ids_only.generate([[5, 6, 7]], one)) == first[:1]


def test_without_a_seed_answers_differ(ids_only: LLM) -> None:
    params = SamplingParams(temperature=5.0, max_tokens=8, ignore_eos=True)
    assert len({tuple(a.token_ids) for a in ids_only.generate([[5, 6, 7]] * 4, params)}) > 1


def test_n_answers_stand_side_by_side_in_the_order_of_the_prompts(ids_only: LLM) -> None:
    answers = ids_only.generate([[1], [2, 3]], SamplingParams(n=2, max_tokens=2, seed=0, ignore_eos=True))
    assert [answer.prompt_tokens for answer in answers] == [1, 1, 2, 2]


def test_logprobs_are_those_of_the_models_own_logits(ids_only: LLM, reference: Golden) -> None:
    ids = reference.prompt(17)
    [answer] = ids_only.generate([ids], SamplingParams(max_tokens=3, logprobs=4, seed=2, temperature=0.3, top_k=2))
    assert answer.logprobs is not None
    for place, token in enumerate(answer.logprobs):
        row = ids_only.logits([*ids, *answer.token_ids[:place]])[-1].log_softmax(-1)
        assert token.token_id == answer.token_ids[place]
        assert abs(token.logprob - float(row[token.token_id])) < 2e-3
        assert [candidate for candidate, _ in token.top] == row.topk(4).indices.tolist()


def test_a_stop_token_of_the_request_ends_the_answer_and_is_named(ids_only: LLM, reference: Golden) -> None:
    expected = reference.get(17, "greedy_ids").tolist()
    stop = expected[3]
    first = expected.index(stop)
    [answer] = ids_only.generate([reference.prompt(17)], greedy(stop_token_ids=(stop,)))
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.token_ids == expected[: first + 1]


def test_the_models_own_stop_ids_end_the_answer_unless_ignored(ids_only: LLM) -> None:
    stop = next(iter(ids_only._core.stop_ids))
    favour = {stop: 100.0}
    [ends] = ids_only.generate([[1, 2]], greedy(ignore_eos=False, logit_bias=favour))
    assert (ends.token_ids, ends.finish_reason, ends.stop_reason) == ([stop], "stop", None)
    [goes_on] = ids_only.generate([[1, 2]], greedy(logit_bias=favour))
    assert (goes_on.token_ids, goes_on.finish_reason) == ([stop] * 8, "length")
    [later] = ids_only.generate([[1, 2]], greedy(ignore_eos=False, logit_bias=favour, min_tokens=3))
    assert len(later.token_ids) == 4
    assert later.token_ids.index(stop) == 3


def test_a_stop_string_is_cut_off_or_kept(builtin: LLM) -> None:
    [whole] = builtin.generate(QUESTION, greedy(max_tokens=24))
    stop = whole.text[5:8]
    assert len(stop) == 3
    end = whole.text.index(stop)
    [cut] = builtin.generate(QUESTION, greedy(max_tokens=24, stop=stop))
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (whole.text[:end], "stop", stop)
    assert len(cut.token_ids) < 24
    [kept] = builtin.generate(QUESTION, greedy(max_tokens=24, stop=stop, include_stop_str_in_output=True))
    assert kept.text == whole.text[: end + 3]


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 3.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}]
)
def test_penalties_change_a_repetitive_answer(ids_only: LLM, penalty: dict[str, float]) -> None:
    """Bias makes token 7 the best everywhere by less than the penalty takes away."""
    prompt = [7, 7, 7]
    logits = ids_only.logits(prompt)[-1]
    lift = {7: float(logits.max() - logits[7]) + 1.0}
    [plain] = ids_only.generate([prompt], greedy(logit_bias=lift))
    [penalised] = ids_only.generate([prompt], greedy(logit_bias=lift, **penalty))
    assert plain.token_ids[0] == 7
    assert plain.token_ids != penalised.token_ids


def test_a_bias_of_minus_a_hundred_forbids(ids_only: LLM, reference: Golden) -> None:
    [plain] = ids_only.generate([reference.prompt(17)], GREEDY)
    [without] = ids_only.generate([reference.prompt(17)], greedy(logit_bias=dict.fromkeys(plain.token_ids, -100.0)))
    assert not set(plain.token_ids) & set(without.token_ids)


def test_max_tokens_none_fills_the_context(golden: Path) -> None:
    with LLM(str(golden / "kimi_linear"), dtype="float32", max_context=70, max_running=1) as llm:
        [answer] = llm.generate([[1] * 60], greedy(max_tokens=None))
        assert (len(answer.token_ids), answer.finish_reason) == (10, "length")


# --- constrained output ------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["kda", "mla"]}, "layer": {"type": "integer", "minimum": 0, "maximum": 60}},
    "required": ["kind", "layer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_under_a_json_schema_parses(builtin: LLM, temperature: float) -> None:
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=250, grammar=grammar)
    [answer] = builtin.generate("Give me a layer.", params)
    value = json.loads(answer.text)
    assert value["kind"] in ("kda", "mla")
    assert 0 <= value["layer"] <= 60
    assert answer.finish_reason == "stop"


def test_a_regex_and_an_ebnf_grammar(builtin: LLM) -> None:
    regex = r"[a-f]{3}-[0-9]{2}"
    params = [
        SamplingParams(temperature=1.0, seed=3, max_tokens=50, grammar=Grammar("regex", regex)),
        SamplingParams(temperature=1.0, seed=3, max_tokens=50, grammar=Grammar("ebnf", 'root ::= "yes" | "no"')),
    ]
    matched, chosen = builtin.generate(["Key:", "Is it?"], params)
    assert re.fullmatch(regex, matched.text)
    assert chosen.text in ("yes", "no")


def test_a_grammar_that_is_none_fails_its_request_with_the_reason(builtin: LLM) -> None:
    for grammar in (Grammar("json_schema", "{not json"), Grammar("regex", "(("), Grammar("ebnf", "root ::= missing")):
        with pytest.raises(RequestError, match="does not compile") as caught:
            builtin.generate("x", SamplingParams(grammar=grammar))
        assert caught.value.param == "grammar"


def test_a_grammar_needs_a_tokenizer(ids_only: LLM) -> None:
    with pytest.raises(RequestError, match="tokenizer"):
        ids_only.generate([[1]], SamplingParams(grammar=Grammar("json_object")))


def test_a_json_object_is_an_object_whatever_is_in_it(builtin: LLM) -> None:
    """A bias on the closing brace ends the object soon."""
    tokenizer = builtin._core.tokenizer
    assert tokenizer is not None
    [brace] = tokenizer.encode("}")
    params = SamplingParams(temperature=0, max_tokens=250, grammar=Grammar("json_object"), logit_bias={brace: 100.0})
    [answer] = builtin.generate("An object:", params)
    assert isinstance(json.loads(answer.text), dict)


# --- errors ------------------------------------------------------------------------------------------------------


def test_prompts_that_cannot_be(ids_only: LLM) -> None:
    vocab = ids_only._core.spec.vocab
    for prompt in ([[]], [[vocab]], [[-1]], [[1.5]], [["a"]], [None], [[1, 2], 3]):
        with pytest.raises(RequestError):
            ids_only.generate(prompt, GREEDY)
    with pytest.raises(RequestError, match="tokenizer"):
        ids_only.generate("text", GREEDY)
    with pytest.raises(ContextLengthError, match="256"):
        ids_only.generate([[1] * 256], GREEDY)
    with pytest.raises(RequestError):
        ids_only.logits([])


def test_one_bad_prompt_stops_the_call_before_anything_runs(ids_only: LLM) -> None:
    before = ids_only.stats()["steps_total"]
    with pytest.raises(RequestError):
        ids_only.generate([[1, 2], [10**6]], GREEDY)
    assert ids_only.stats()["steps_total"] == before


def test_unknown_settings_and_missing_models(golden: Path) -> None:
    with pytest.raises(ConfigError, match="max_context"):
        LLM(str(golden / "kimi_linear"), max_contex=5)
    with pytest.raises(ModelNotFoundError):
        LLM("/no/such/folder")
    with pytest.raises(ConfigError, match="max_context"):
        LLM(str(golden / "deepseek_v3"), max_context=10**6)


@pytest.mark.parametrize("damage", ["empty folder", "cut shard", "missing shard", "no config"])
def test_a_broken_folder_is_a_checkpoint_error_that_names_a_file(damage: str, golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if damage == "empty folder":
        folder.mkdir()
    else:
        shutil.copytree(golden / "kimi_linear", folder)
    shard = folder / "model-00002-of-00002.safetensors"
    if damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "missing shard":
        shard.unlink()
    elif damage == "no config":
        (folder / "config.json").unlink()
    with pytest.raises((CheckpointError, ModelNotFoundError), match=r"model-00002|config\.json"):
        LLM(str(folder))


def test_a_cache_that_cannot_be_had_is_a_config_error_and_not_a_crash(golden: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        LLM(str(golden / "kimi_linear"), max_context=1048576, max_running=10**9)


def test_a_closed_llm_says_so(golden: Path) -> None:
    llm = LLM(str(golden / "kimi_linear"), max_context=128)
    llm.close()
    llm.close()
    for call in (lambda: llm.generate([[1]], GREEDY), lambda: llm.logits([1]), llm.stats):
        with pytest.raises(PeriluneError, match="closed"):
            call()


# --- memory and failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_allocated_cache_is_the_planned_one_to_the_byte(name: str, dtype: str, golden: Path) -> None:
    settings = {"dtype": dtype, "max_context": 200, "max_running": 3}
    path = golden / name
    planned = plan_engine(EngineConfig(str(path), **settings), Checkpoint.open(path).spec).cache
    with LLM(str(path), **settings) as llm:
        stats = llm.stats()
        arenas = llm._core.runner.arenas
        held = sum(t.untyped_storage().nbytes() for t in (arenas.page_arena.tensor, arenas.slot_arena.buffer))
        assert stats["cache_bytes_planned"] == stats["cache_bytes_allocated"] == planned.total_bytes == held
        assert (stats["dtype"], stats["pages_total"], stats["slots_total"]) == (dtype, planned.pages, planned.slots)
        [answer] = llm.generate([[1, 2, 3]], greedy(max_tokens=2))
        assert len(answer.token_ids) == 2


def test_stats_count_what_was_done(ids_only: LLM) -> None:
    before = ids_only.stats()
    ids_only.generate([[1] * 10, [2] * 20], greedy(max_tokens=3))
    after = ids_only.stats()
    gained = {
        key: after[key] - before[key] for key in ("prompt_tokens_total", "generation_tokens_total", "steps_total")
    }
    assert gained == {"prompt_tokens_total": 30, "generation_tokens_total": 6, "steps_total": 3}
    assert {"max_context", "cache_bytes_used", "preemptions_total", "load_seconds"} <= after.keys()


def test_a_step_that_fails_ends_its_call_and_the_next_one_works(
    ids_only: LLM, reference: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> torch.Tensor:
        monkeypatch.undo()
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(ids_only._core.runner, "run", fail)
    with pytest.raises(PeriluneError, match="a kernel failed"):
        ids_only.generate([[1, 2], [3, 4]], GREEDY)
    [answer] = ids_only.generate([reference.prompt(17)], GREEDY)
    assert answer.token_ids == reference.get(17, "greedy_ids").tolist()[:8]


def test_an_interrupted_call_gives_everything_back(
    ids_only: LLM, reference: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = ids_only._core.step, []

    def interrupt() -> list[TokenEvent]:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run()

    monkeypatch.setattr(ids_only._core, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ids_only.generate([[n, n] for n in range(1, 8)], GREEDY)
    monkeypatch.undo()
    stats = ids_only.stats()
    assert (stats["pages_used"], stats["slots_used"], stats["running"], stats["waiting"]) == (0, 0, 0, 0)
    [answer] = ids_only.generate([reference.prompt(17)], GREEDY)
    assert answer.token_ids == reference.get(17, "greedy_ids").tolist()[:8]


def test_calls_from_several_threads_take_turns(ids_only: LLM, reference: Golden) -> None:
    found: dict[int, list[int]] = {}

    def work(length: int) -> None:
        found[length] = ids_only.generate([reference.prompt(length)], GREEDY)[0].token_ids

    threads = [threading.Thread(target=work, args=(length,)) for length in (1, 3, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {length: reference.get(length, "greedy_ids").tolist()[:8] for length in (1, 3, 17)}
