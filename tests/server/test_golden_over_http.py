"""The golden checkpoints through HTTP: greedy ids equal, logprobs within the README's limit. They have no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import live
import pytest
import torch
from live import MODEL
from safetensors.torch import load_file

from perilune.server.smoke import Target, smoke

FOLDERS = ["kimi_linear", "kimi_linear_w4a16", "kimi_k25_mxfp4", "deepseek_v3", "glm4_moe_lite"]
NEW_TOKENS = 32
TOLERANCE = 2e-3 * 2  # of a difference of two logits, each within 2e-3


@pytest.fixture(scope="module", params=FOLDERS)
def served(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    path = golden / request.param
    server = live.start(tmp_path_factory.mktemp("golden"), "--dtype", "float32", model=path)
    with server.client() as client:
        yield client, load_file(path / "golden.safetensors")
    server.stop()


def test_greedy_ids_and_logprobs_are_the_references(served: tuple[httpx.Client, dict[str, torch.Tensor]]) -> None:
    client, reference = served
    lengths = sorted(int(name.split("_")[1].split(".")[0]) for name in reference if name.endswith(".input_ids"))
    prompts = [reference[f"prompt_{length}.input_ids"].tolist() for length in lengths]
    asked = {"model": MODEL, "prompt": prompts, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    asked |= {"logprobs": 3, "return_token_ids": True}
    answer = client.post("/v1/completions", json=asked).raise_for_status().json()
    for length, choice in zip(lengths, answer["choices"], strict=True):
        ids = reference[f"prompt_{length}.greedy_ids"].tolist()
        assert choice["token_ids"] == ids
        assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids]
    choice = answer["choices"][lengths.index(17)]
    expected = reference["prompt_17.greedy_logits"].log_softmax(-1)
    given = choice["logprobs"]
    for row, (own, top) in enumerate(zip(given["token_logprobs"], given["top_logprobs"], strict=True)):
        assert own == pytest.approx(float(expected[row].max()), abs=TOLERANCE)
        for name, value in top.items():
            assert value == pytest.approx(float(expected[row, int(name.removeprefix("token_id:"))]), abs=TOLERANCE)


def test_log_probabilities_of_the_prompt_are_the_references(
    served: tuple[httpx.Client, dict[str, torch.Tensor]],
) -> None:
    client, reference = served
    lengths = sorted(int(name.split("_")[1].split(".")[0]) for name in reference if name.endswith(".logits"))
    prompts = [reference[f"prompt_{length}.input_ids"].tolist() for length in lengths]
    asked = {"model": MODEL, "prompt": prompts, "max_tokens": 0, "prompt_logprobs": 1}
    choices = client.post("/v1/completions", json=asked).raise_for_status().json()["choices"]
    for length, ids, choice in zip(lengths, prompts, choices, strict=True):
        expected = reference[f"prompt_{length}.logits"].log_softmax(-1)
        assert len(choice["prompt_logprobs"]) == length
        for row, entry in enumerate(choice["prompt_logprobs"][1:]):
            for token in (ids[row + 1], *map(int, entry)):
                assert entry[str(token)]["logprob"] == pytest.approx(float(expected[row, token]), abs=TOLERANCE)


def test_a_checkpoint_without_a_tokenizer_says_so_where_text_is_needed(served: tuple[httpx.Client, object]) -> None:
    client, _ = served
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/completions", {"prompt": [1], "echo": True}),
        ("/v1/completions", {"prompt": [1], "guided_regex": "a"}),
        ("/v1/responses", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 400
        assert "no tokenizer" in response.json()["error"]["message"]


def test_smoke_falls_back_to_token_ids_where_there_is_no_chat(served: tuple[httpx.Client, object]) -> None:
    client, _ = served
    passed = list(smoke(Target(str(client.base_url), api_key=live.KEY)))
    assert [step.check for step in passed] == ["models", "completions", "streaming"]
