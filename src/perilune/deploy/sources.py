"""Where recipes are known from: the doctor's sources and these. Public material as of October 2026."""

from __future__ import annotations

from perilune.host.sources import SOURCES as DOCTOR

SOURCES = {
    **DOCTOR,
    "VR": "github.com/vllm-project/recipes, recipes.vllm.ai",
    "Q30": "a public AIPerf report, vLLM and Qwen3-30B-A3B on Strix Halo, 2026-07-28",
    "KV73": "github.com/kyuz0/amd-strix-halo-vllm-toolboxes/issues/73",
    "V36216": "github.com/vllm-project/vllm, PRs 36216 and 48549",
    "V56945": "github.com/vllm-project/vllm/issues/56945",
    "V35633": "github.com/vllm-project/vllm/issues/35633",
    "V28228": "github.com/vllm-project/vllm/issues/28228",
    "V32614": "github.com/vllm-project/vllm/pull/32614",
    "V30771": "github.com/vllm-project/vllm/issues/30771",
    "AIT5229": "github.com/ROCm/aiter/issues/5229",
    "SG19324": "github.com/sgl-project/sglang/pull/19324, open",
    "L18755": "github.com/ggml-org/llama.cpp/pull/18755",
    "L14654": "github.com/ggml-org/llama.cpp/pull/14654",
    "OLLAMA": "github.com/ollama/ollama/issues/15855",
    "LLAMA": "llama.cpp, tools/server/README.md",
    "LLAMA-VOCAB": "llama.cpp, src/llama-vocab.cpp; seen with the build of llama-cpp-python 0.3.36",
    "LCP": "llama-cpp-python, documentation of its server",
    "VDOCS": "docs.vllm.ai, CLI reference of vllm serve",
    "MEMORY": "from memory; not looked up again",
}
