"""Rotary embedding and YaRN, with the numbers of the published configs."""

from __future__ import annotations

import math

import pytest
import torch

from perilune.models.spec import MlaSpec, RopeSpec, YarnSpec
from perilune.nn.rope import inverse_frequencies, rotation
from perilune.ops.mla.reference import rotate

K2 = RopeSpec(64, 50000.0, YarnSpec(32.0, 4096, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0))
K25 = RopeSpec(64, 50000.0, YarnSpec(64.0, 4096, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0))
GLM = RopeSpec(64, 1e6)


def mla(rope: RopeSpec | None, nope: int = 128) -> MlaSpec:
    return MlaSpec(heads=64, nope_dim=nope, rope_dim=64, v_dim=128, latent_rank=512, q_rank=1536, rope=rope)


@pytest.mark.parametrize(("rope", "low", "high"), [(K2, 19, 20), (K25, 8, 20)], ids=["K2", "K2.5"])
def test_yarn_blends_between_low_and_high(rope: RopeSpec, low: int, high: int) -> None:
    assert rope.yarn is not None
    theta = [50000.0 ** (-2 * i / 64) for i in range(32)]
    frequencies = inverse_frequencies(rope).tolist()
    for i, (plain, blended) in enumerate(zip(theta, frequencies, strict=True)):
        ramp = min(max((i - low) / (high - low), 0), 1)
        assert math.isclose(blended, plain * (1 - ramp) + plain / rope.yarn.factor * ramp, rel_tol=1e-5), i
    assert math.isclose(frequencies[low], theta[low], rel_tol=1e-6)
    assert math.isclose(frequencies[high], theta[high] / rope.yarn.factor, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (mla(K25), 0.14468),
        (mla(K2), 1.8133 * 192**-0.5),
        (mla(None), 192**-0.5),
        (mla(GLM, nope=192), 256**-0.5),
    ],
    ids=["K2.5", "K2", "Kimi-Linear", "GLM-4.7-Flash"],
)
def test_softmax_scales_of_published_models(spec: MlaSpec, scale: float) -> None:
    assert math.isclose(spec.softmax_scale, scale, rel_tol=5e-5)


def test_plain_frequencies() -> None:
    assert torch.allclose(inverse_frequencies(GLM), torch.tensor([1e6 ** (-2 * i / 64) for i in range(32)]))


def test_cos_and_sin_are_scaled_only_where_the_two_mscales_differ() -> None:
    positions = torch.tensor([0])
    for rope in (GLM, K25):
        cos, sin = rotation(rope, inverse_frequencies(rope), positions)
        assert torch.equal(cos, torch.ones(1, 32))
        assert torch.equal(sin, torch.zeros(1, 32))
    uneven = RopeSpec(64, 50000.0, YarnSpec(64.0, 4096, mscale=1.0, mscale_all_dim=0.0))
    cos, _ = rotation(uneven, inverse_frequencies(uneven), positions)
    assert torch.allclose(cos, torch.full((1, 32), 0.1 * math.log(64) + 1))


def test_pairs_are_interleaved() -> None:
    x = torch.zeros(1, 64)
    x[0, 2] = 1.0  # the first of pair 1
    cos, sin = rotation(GLM, inverse_frequencies(GLM), torch.tensor([5]))
    turned = rotate(x, cos, sin)[0]
    angle = 5 * 1e6 ** (-2 / 64)
    assert math.isclose(float(turned[2]), math.cos(angle), rel_tol=1e-4, abs_tol=1e-6)
    assert math.isclose(float(turned[3]), math.sin(angle), rel_tol=1e-4, abs_tol=1e-6)
    assert torch.count_nonzero(turned) == 2


@pytest.mark.parametrize("rope", [GLM, K25], ids=["plain", "YaRN"])
def test_scores_depend_on_the_distance_only(rope: RopeSpec) -> None:
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 64, generator=random), torch.randn(1, 64, generator=random)

    def score(at: int, distance: int) -> float:
        frequencies = inverse_frequencies(rope)
        turned_q = rotate(q, *rotation(rope, frequencies, torch.tensor([at + distance])))
        turned_k = rotate(k, *rotation(rope, frequencies, torch.tensor([at])))
        return float((turned_q * turned_k).sum())

    assert math.isclose(score(0, 7), score(1000, 7), abs_tol=5e-3)
    assert not math.isclose(score(0, 7), score(0, 8), abs_tol=5e-3)


def test_heads_share_the_rotation_of_their_token() -> None:
    x = torch.randn(3, 2, 64)
    cos, sin = rotation(GLM, inverse_frequencies(GLM), torch.tensor([1, 2, 300]))
    both = rotate(x, cos, sin)
    for head in range(2):
        assert torch.equal(both[:, head], rotate(x[:, head], cos, sin))
    assert torch.allclose(both.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
