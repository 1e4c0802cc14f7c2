"""The shipped folder is a Kimi-Linear checkpoint in the hub's layout."""

from __future__ import annotations

import json

import pytest
from builtin import shape
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open

from perilune.builtin import model_path
from perilune.models.families import kimi_linear

FOLDER = model_path()
CONFIG = json.loads((FOLDER / "config.json").read_text())


def stored() -> dict[str, tuple[str, tuple[int, ...]]]:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        return {k: (file.get_slice(k).get_dtype(), tuple(file.get_slice(k).get_shape())) for k in file.keys()}  # noqa: SIM118 - not a dict


def test_config_is_what_the_training_code_builds() -> None:
    assert shape.config() == CONFIG


def test_the_family_reader_finds_each_tensor_with_its_shape_and_nothing_else_is_stored() -> None:
    spec = kimi_linear.read(CONFIG, "KimiLinearForCausalLM")
    wanted = {tensor.stored: tuple(tensor.shape) for tensor in kimi_linear.tensors(spec)}
    assert {name: dims for name, (_, dims) in stored().items()} == wanted


def test_only_decay_parameters_are_fp32() -> None:
    wide = {name for name, (dtype, _) in stored().items() if dtype == "F32"}
    assert wide == {n for n in stored() if n.endswith(("A_log", "dt_bias"))}
    assert {dtype for dtype, _ in stored().values()} == {"F32", "BF16"}


def test_weights_stay_under_ten_megabytes() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 10_000_000


def test_layer_lists_count_from_one_and_cover_every_layer() -> None:
    lists = CONFIG["linear_attn_config"]
    assert sorted(lists["kda_layers"] + lists["full_attn_layers"]) == list(range(1, CONFIG["num_hidden_layers"] + 1))


def test_special_tokens_follow_the_base_vocabulary_and_stop_ids_are_among_them() -> None:
    tokenizer = json.loads((FOLDER / "tokenizer_config.json").read_text())
    added = {int(i): token["content"] for i, token in tokenizer["added_tokens_decoder"].items()}
    assert sorted(added) == list(range(shape.BASE_VOCAB, CONFIG["vocab_size"]))
    assert len((FOLDER / "tiktoken.model").read_text().splitlines()) == shape.BASE_VOCAB
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert [added[i] for i in generation["eos_token_id"]] == ["<|im_end|>", "[EOS]", "[EOT]"]
    assert added[CONFIG["eos_token_id"]] == "<|im_end|>"
    assert added[CONFIG["pad_token_id"]] == "[PAD]"


def test_tool_and_think_tokens_survive_skipping_special_tokens() -> None:
    tokenizer = json.loads((FOLDER / "tokenizer_config.json").read_text())
    kept = {t["content"] for t in tokenizer["added_tokens_decoder"].values() if not t["special"]}
    assert kept == set(shape.ORDINARY)


CALL = {"id": "functions.plan:0", "type": "function", "function": {"name": "plan", "arguments": '{"n":1}'}}
CALLED = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.plan:0<|tool_call_argument_begin|>"
    '{"n":1}<|tool_call_end|><|tool_calls_section_end|>'
)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "Hi"}], "<|im_user|>user<|im_middle|>Hi<|im_end|>"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "<|im_user|>user<|im_middle|>Hi<|im_end|>"),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "name": "Ida", "content": "Hi"}],
            "<|im_system|>system<|im_middle|>Be brief.<|im_end|><|im_user|>Ida<|im_middle|>Hi<|im_end|>",
        ),
        (
            [
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "functions.plan:0", "content": "ok"},
            ],
            f"<|im_assistant|>assistant<|im_middle|>{CALLED}<|im_end|>"
            "<|im_system|>tool<|im_middle|>## Return of functions.plan:0\nok<|im_end|>",
        ),
    ],
)
def test_chat_template_renders_turns_as_k2_does(messages: list[dict[str, object]], text: str) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((FOLDER / "chat_template.jinja").read_text())
    assert template.render(messages=messages) == text
    opened = template.render(messages=messages, add_generation_prompt=True)
    assert opened == text + "<|im_assistant|>assistant<|im_middle|>"


def test_chat_template_declares_tools_first() -> None:
    environment = ImmutableSandboxedEnvironment()
    # transformers gives templates a tojson that takes separators; jinja's own does not.
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **options)
    template = environment.from_string((FOLDER / "chat_template.jinja").read_text())
    text = template.render(messages=[{"role": "user", "content": "Hi"}], tools=[{"type": "function"}])
    assert text.startswith('<|im_system|>tool_declare<|im_middle|>[{"type":"function"}]<|im_end|><|im_user|>')
