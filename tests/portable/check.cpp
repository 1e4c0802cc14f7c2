// The kernels of one instruction set without Python: forms of the same function that share little code must agree.
// For processors at hand only through an emulator; tools/portable.sh builds and runs it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/kernels.h"

namespace perilune {
namespace PERILUNE_VARIANT {
extern const Kernels kernels;
}
}  // namespace perilune
using namespace perilune;

namespace {

std::mt19937 generator(1);

bf16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
float normal() { return std::normal_distribution<float>()(generator); }
std::vector<bf16> values(size_t n, float by = 1) {
  std::vector<bf16> x(n);
  for (auto& v : x) v = narrow(by * normal());
  return x;
}
std::vector<float> floats(size_t n) {
  std::vector<float> x(n);
  for (auto& v : x) v = normal();
  return x;
}
std::vector<float> widened(const std::vector<bf16>& x) {
  std::vector<float> y;
  for (bf16 v : x) y.push_back(widen(v));
  return y;
}

bool failed = false;
void compare(const char* what, const std::vector<float>& ours, const std::vector<float>& expected, double limit) {
  double error = 0, size = 0;
  for (size_t i = 0; i < ours.size(); i++) {
    error += std::pow(double(ours[i]) - expected[i], 2);
    size += std::pow(double(expected[i]), 2);
  }
  const double relative = std::sqrt(error / size);
  const bool ok = ours.size() == expected.size() && relative <= limit;
  failed |= !ok;
  std::printf("%-28s %.1e %s\n", what, relative, ok ? "" : "WRONG");
}

Weight dense(const std::vector<bf16>& data, int64_t n, int64_t k) {
  Weight w{};
  w.format = kBf16, w.experts = 1, w.n = n, w.k = k, w.data = (const uint8_t*)data.data();
  return w;
}

void check_linear(const Kernels& k, int64_t tokens) {
  const int64_t n = 37, depth = 72;
  const auto x = values(tokens * depth), w = values(n * depth);
  std::vector<bf16> out(tokens * n);
  std::vector<float> expected(tokens * n);
  const LinearPart part{dense(w, n, depth), out.data(), n};
  k.linear({x.data(), tokens, depth, &part, 1, 2});
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t j = 0; j < n; j++)
      for (int64_t d = 0; d < depth; d++) expected[t * n + j] += widen(x[t * depth + d]) * widen(w[j * depth + d]);
  compare("linear", widened(out), expected, 0.004);
}

// Bytes in strips, with scales that differ.
void check_strips(const Kernels& k, int64_t tokens) {
  const int64_t n = 32, depth = 96, groups = depth / 32;
  const auto x = values(tokens * depth);
  auto scale = values(n * groups);
  std::vector<int8_t> codes(n * depth);
  for (auto& code : codes) code = int8_t(std::uniform_int_distribution<int>(-127, 127)(generator));
  std::vector<bf16> out(tokens * n);
  std::vector<float> expected(tokens * n);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t j = 0; j < n; j++)
      for (int64_t d = 0; d < depth; d++)
        expected[t * n + j] += widen(x[t * depth + d]) * codes[j * depth + d] * widen(scale[j * groups + d / 32]);
  k.strips({(uint8_t*)codes.data(), n, depth, 4, kEvenFirst, 2});
  k.strips({(uint8_t*)scale.data(), n, groups * 2, 2, kAsStored, 2});
  const Weight w{kInt8, 1, n, depth, (const uint8_t*)codes.data(), scale.data(), nullptr, 32, true};
  const LinearPart part{w, out.data(), n};
  k.linear({x.data(), tokens, depth, &part, 1, 2});
  compare("bytes in strips", widened(out), expected, 0.01);
}

// Chunked over 70 tokens, and token by token.
void check_kda(const Kernels& k) {
  const int64_t tokens = 70, heads = 3, dim = 32, taps = 4, width = heads * dim;
  const auto raw = values(tokens * 3 * width), f = values(tokens * width), b = values(tokens * heads);
  const auto gate = values(tokens * width), conv_w = values(3 * width * taps), norm = values(dim);
  const auto a_log = floats(heads), dt_bias = floats(width);
  std::vector<float> states[2] = {std::vector<float>(width * dim), std::vector<float>(width * dim)};
  std::vector<bf16> windows[2] = {std::vector<bf16>(3 * width * (taps - 1)), std::vector<bf16>(3 * width * (taps - 1))};
  std::vector<bf16> outs[2] = {std::vector<bf16>(tokens * width), std::vector<bf16>(tokens * width)};
  k.kda_prefill({raw.data(), f.data(), b.data(), gate.data(), conv_w.data(), a_log.data(), dt_bias.data(), norm.data(),
                 1e-5f, tokens, heads, dim, taps, 0, states[0].data(), 0, windows[0].data(), 0, nullptr, nullptr, 0,
                 outs[0].data(), 2});
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t row = t, slot = 0;
    k.kda_decode({raw.data(), f.data(), b.data(), gate.data(), conv_w.data(), a_log.data(), dt_bias.data(), norm.data(),
                  1e-5f, &row, &slot, 1, heads, dim, taps, states[1].data(), 0, windows[1].data(), 0, outs[1].data(),
                  2});
  }
  compare("KDA, chunked and recurrent", widened(outs[0]), widened(outs[1]), 0.004);
  compare("KDA state", states[0], states[1], 1e-4);
  compare("KDA window", widened(windows[0]), widened(windows[1]), 0);
}

// Expanded over 70 tokens, and each absorbed.
void check_mla(const Kernels& k) {
  const int64_t tokens = 70, heads = 3, nope = 24, rope = 8, v_dim = 20, rank = 40, width = rank + rope;
  const auto q = values(tokens * heads * (nope + rope)), pages = values(2 * 64 * width);
  const auto kv_b = values(heads * (nope + v_dim) * rank, 0.2f);
  const Weight w = dense(kv_b, heads * (nope + v_dim), rank);
  const int64_t table[] = {1, 0};
  std::vector<const int64_t*> tables(tokens, table);
  std::vector<int64_t> lengths(tokens);
  for (int64_t t = 0; t < tokens; t++) lengths[t] = t + 1;
  std::vector<float> expanded(tokens * heads * v_dim), absorbed(tokens * heads * v_dim);
  k.mla_prefill({q.data(), tokens, 0, heads, nope, rope, v_dim, rank, pages.data(), 64 * width, table, w, 0.2f,
                 expanded.data(), 2});
  k.mla_decode({q.data(), tokens, heads, nope, rope, v_dim, rank, pages.data(), 64 * width, tables.data(),
                lengths.data(), w, 0.2f, absorbed.data(), 2});
  compare("MLA, expanded and absorbed", expanded, absorbed, 0.01);
}

void check_norm_and_router(const Kernels& k) {
  const int64_t tokens = 5, dim = 45, experts = 12;
  const auto x = values(tokens * dim), weight = values(dim), router = values(experts * dim, 0.2f);
  std::vector<bf16> out(tokens * dim);
  std::vector<float> normed(tokens * dim), bias(experts, 0.0f), best(tokens), expected(tokens), weights(tokens);
  std::vector<int64_t> ids(tokens);
  k.rms_norm({x.data(), weight.data(), tokens, dim, 1e-5f, out.data(), 2});
  k.route({x.data(), tokens, dim, router.data(), false, bias.data(), experts, 1, 1, 1, false, 1.0f, ids.data(),
           weights.data(), 2});
  for (int64_t t = 0; t < tokens; t++) {
    double squares = 0;
    for (int64_t d = 0; d < dim; d++) squares += std::pow(widen(x[t * dim + d]), 2);
    for (int64_t d = 0; d < dim; d++)
      normed[t * dim + d] = float(widen(x[t * dim + d]) / std::sqrt(squares / dim + 1e-5) * widen(weight[d]));
    for (int64_t e = 0; e < experts; e++) {
      double logit = 0;
      for (int64_t d = 0; d < dim; d++) logit += widen(x[t * dim + d]) * widen(router[e * dim + d]);
      expected[t] = std::fmax(expected[t], float(1 / (1 + std::exp(-logit))));
    }
  }
  compare("RMSNorm", widened(out), normed, 0.004);
  compare("router", weights, expected, 1e-5);
}

}  // namespace

int main() {
  const Kernels& k = PERILUNE_VARIANT::kernels;
  std::printf("%s\n", k.name);
  check_linear(k, 1);
  check_linear(k, 19);
  check_strips(k, 1);
  check_strips(k, 19);
  check_kda(k);
  check_mla(k);
  check_norm_and_router(k);
  return failed;
}
