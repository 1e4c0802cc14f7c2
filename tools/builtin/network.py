"""The built-in model as a torch module for training, on the project's own reference ops.

Sub-modules carry the hub's names, so that `state_dict()` is the checkpoint but for the experts, which are stacked
[E, out, in] here and written one by one. Whole rows only: a batch is [B, T] of equal lengths with empty state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perilune.ops.kda.reference import chunk_kda, gate, gated_norm, normalise_qk, short_conv
from perilune.ops.linear.formats import DenseWeight
from perilune.ops.moe.reference import experts, route
from perilune.ops.norm.reference import rms_norm

Config = dict[str, Any]


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Matrix(nn.Module):
    """y = x W^T, W [outputs, inputs]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Conv(nn.Module):
    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        weight = torch.randn(width, 1, taps) * 0.1
        weight[..., -1] += 0.5
        self.weight = nn.Parameter(weight)


class Kda(nn.Module):
    """Kimi Delta Attention (formula: ops/kda/reference.py)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        linear = c["linear_attn_config"]
        self.heads, self.dim = linear["num_heads"], linear["head_dim"]
        hidden, width, taps = c["hidden_size"], self.heads * self.dim, linear["short_conv_kernel_size"]
        self.q_proj, self.k_proj, self.v_proj = (Matrix(width, hidden) for _ in range(3))
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (Conv(width, taps) for _ in range(3))
        self.A_log = nn.Parameter(torch.empty(1, 1, self.heads, 1).uniform_(1, 16).log())
        # Step sizes between 1e-3 and 1e-1, as the layer's authors start it: memory from tens to thousands of tokens.
        step = torch.empty(width).uniform_(-6.9, -2.3).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.f_a_proj, self.f_b_proj = Matrix(self.dim, hidden), Matrix(width, self.dim)
        self.g_a_proj, self.g_b_proj = Matrix(self.dim, hidden), Matrix(width, self.dim)
        self.b_proj = Matrix(self.heads, hidden)
        self.o_norm = Norm(self.dim, c["rms_norm_eps"])
        self.o_proj = Matrix(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        parts = (self.q_proj, self.k_proj, self.v_proj)
        taps = torch.cat([m.weight[:, 0] for m in (self.q_conv1d, self.k_conv1d, self.v_conv1d)])
        raw = F.linear(x, torch.cat([m.weight for m in parts]))
        mixed = short_conv(raw, taps, x.new_zeros(batch, taps.shape[0], taps.shape[1] - 1))
        q, k, v = (y.unflatten(-1, (self.heads, self.dim)).transpose(1, 2) for y in mixed.chunk(3, dim=-1))
        q, k = normalise_qk(q, k)
        f = self.f_b_proj(self.f_a_proj(x)).unflatten(-1, (self.heads, self.dim))
        g = gate(f, self.A_log.flatten(), self.dt_bias.view(self.heads, self.dim)).transpose(1, 2)
        beta = torch.sigmoid(self.b_proj(x).float()).transpose(1, 2)
        o, _ = chunk_kda(q, k, v, g, beta, x.new_zeros(batch, self.heads, self.dim, self.dim))
        logits = self.g_b_proj(self.g_a_proj(x)).unflatten(-1, (self.heads, self.dim))
        return self.o_proj(gated_norm(o.transpose(1, 2), logits, self.o_norm.weight, self.o_norm.eps).flatten(-2))


class Mla(nn.Module):
    """Multi-head latent attention without rotation, expanded over the whole row."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.rank = c["num_attention_heads"], c["kv_lora_rank"]
        self.nope, self.rope, self.v_dim = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        hidden = c["hidden_size"]
        self.q_proj = Matrix(self.heads * (self.nope + self.rope), hidden)
        self.kv_a_proj_with_mqa = Matrix(self.rank + self.rope, hidden)
        self.kv_a_layernorm = Norm(self.rank, 1e-6)
        self.kv_b_proj = Matrix(self.heads * (self.nope + self.v_dim), self.rank)
        self.o_proj = Matrix(hidden, self.heads * self.v_dim)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        latent, shared = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_nope, v = expanded.split([self.nope, self.v_dim], dim=-1)
        k = torch.cat([k_nope, shared[:, None].expand(-1, self.heads, -1, -1)], dim=-1)
        # The fused kernel wants values as wide as keys.
        v = F.pad(v, (0, k.shape[-1] - self.v_dim))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : self.v_dim]
        return self.o_proj(o.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Matrix(width, hidden), Matrix(width, hidden)
        self.down_proj = Matrix(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, count: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, hidden) * hidden**-0.5)
        self.e_score_correction_bias = nn.Parameter(torch.zeros(count), requires_grad=False)


class Moe(nn.Module):
    """Routed experts plus a shared one. The load is balanced by the router's bias alone (`balance`)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        hidden, width, self.count = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"]
        self.top_k, self.scaling = c["num_experts_per_token"], c["routed_scaling_factor"]
        self.gate = Router(self.count, hidden)
        self.w1 = nn.Parameter(torch.randn(self.count, width, hidden) * hidden**-0.5)
        self.w3 = nn.Parameter(torch.randn(self.count, width, hidden) * hidden**-0.5)
        self.w2 = nn.Parameter(torch.randn(self.count, hidden, width) * width**-0.5)
        self.shared_experts = Mlp(hidden, width * c["num_shared_experts"])
        self.load = torch.zeros(self.count)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        bias = self.gate.e_score_correction_bias
        ids, weights = route(flat, self.gate.weight, bias, top_k=self.top_k, scaling=self.scaling)
        if self.training:
            self.load += torch.bincount(ids.flatten(), minlength=self.count)
        stacks = (DenseWeight(w) for w in (self.w1, self.w3, self.w2))
        return experts(flat, ids, weights, *stacks).view_as(x) + self.shared_experts(x)

    @torch.no_grad()
    def balance(self, rate: float) -> float:
        """Raise the bias of idle experts, lower that of busy ones; returns the busiest expert's share of fair."""
        worst = (self.load.max() / self.load.mean()).item()
        self.gate.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()
        return worst


class Layer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        is_kda = index + 1 in c["linear_attn_config"]["kda_layers"]
        self.self_attn: nn.Module = Kda(c) if is_kda else Mla(c)
        if index < c["first_k_dense_replace"]:
            self.mlp = Mlp(hidden, c["intermediate_size"])
        else:
            self.block_sparse_moe = Moe(c)
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, eps), Norm(hidden, eps)
        self.is_dense = index < c["first_k_dense_replace"]

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h))
        x = self.post_attention_layernorm(h)
        out: Tensor = h + (self.mlp(x) if self.is_dense else self.block_sparse_moe(x))
        return out


class Embedding(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) * 0.5)


class Decoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])


class Network(nn.Module):
    """tokens [B, T] -> hidden [B, T, D] after the last norm; `logits` turns rows of it into [.., vocab]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.model = Decoder(c)
        self.lm_head = Matrix(c["vocab_size"], c["hidden_size"])
        with torch.no_grad():
            self.lm_head.weight.mul_(0.1)
            for layer in self.model.layers:  # a residual stream that starts as the embedding alone
                layer.self_attn.o_proj.weight.mul_(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = F.embedding(tokens, self.model.embed_tokens.weight)
        for layer in self.model.layers:
            h = layer(h)
        out: Tensor = self.model.norm(h)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def moe_layers(self) -> list[Moe]:
        return [layer.block_sparse_moe for layer in self.model.layers if not layer.is_dense]
