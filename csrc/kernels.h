// What crosses from Python to a kernel: plain structs of pointers and sizes, and one table of functions per
// instruction set. Everything here was checked at the boundary (module.cpp); kernels trust it.
//
// Letters as in the Python docstrings: T tokens, H heads, K key dim, V value dim, D hidden, R latent rank, E experts.
#pragma once
#include <cstdint>

namespace perilune {

using bf16 = uint16_t;  // the upper half of an fp32

enum Format : int { kBf16 = 0, kInt4 = 1, kMxfp4 = 2, kFp8 = 3, kInt8 = 4 };

// One matrix [n, k], or a stack of `experts` of them, laid out as ops/linear/formats.py says, or in strips as tiled.py does.
struct Weight {
  int format;
  int64_t experts, n, k;
  const uint8_t* data;
  const void* scale;    // int4, int8: bf16 [n, k/group]; mxfp4: e8m0 [n, k/32]; fp8: fp32 [n/128, k/128]
  const int8_t* zero;   // int4: [n, k/group], or null
  int64_t group;        // int4 and int8 only, a multiple of 32
  bool tiled;           // then n is a multiple of 16 and k of 32
};

// One matrix and where its product goes: row t at out + t * ld.
struct LinearPart {
  Weight w;
  bf16* out;
  int64_t ld;
};

// out [t, n] bf16 = x [t, k] bf16 times w transposed, for several w of k inputs.
struct LinearArgs {
  const bf16* x;
  int64_t tokens, k;
  const LinearPart* parts;
  int64_t count;
  int threads;
};

// out [t, d] fp32 = sum over slots of weight * down(SiLU(gate x) * up x), experts in ascending order.
// Slots are (token, choice) pairs sorted by expert: `slot_token` and `slot_weight` [slots], expert e owning
// slots first[e] .. first[e + 1].
struct ExpertsArgs {
  const bf16* x;
  int64_t tokens;
  const int64_t* first;
  const int64_t* slot_token;
  const float* slot_weight;
  Weight gate, up, down;
  float* out;
  int threads;
};

// One token of each of n sequences through everything between the projections and o_proj.
struct KdaDecodeArgs {
  const bf16* raw;       // [T, 3, H, K] projections of q, k, v
  const bf16* f;         // [T, H, K] forget gate input
  const bf16* b;         // [T, H] beta logits
  const bf16* out_gate;  // [T, H, V]
  const bf16* conv_w;    // [3, H, K, taps]
  const float* a_log;    // [H]
  const float* dt_bias;  // [H, K]
  const bf16* norm;      // [V]
  float eps;
  const int64_t* rows;   // [n] row of each sequence in the [T, ...] tensors
  const int64_t* slots;  // [n]
  int64_t n, heads, dim, taps;
  float* state;          // slot s at state + s * state_stride: [H, K, V]
  int64_t state_stride;
  bf16* conv;            // slot s at conv + s * conv_stride: [3, H, K, taps - 1], oldest first
  int64_t conv_stride;
  bf16* out;             // [T, H, V], gated and normed
  int threads;
};

// One sequence's new tokens through the same, chunked; the token tensors begin at its first. After export_after[i]
// tokens (a multiple of 64) state and window are copied to slot export_to[i].
struct KdaPrefillArgs {
  const bf16* raw;       // [T, 3, H, K]
  const bf16* f;         // [T, H, K]
  const bf16* b;         // [T, H]
  const bf16* out_gate;  // [T, H, V]
  const bf16* conv_w;
  const float* a_log;
  const float* dt_bias;
  const bf16* norm;
  float eps;
  int64_t tokens, heads, dim, taps, slot;
  float* state;
  int64_t state_stride;
  bf16* conv;
  int64_t conv_stride;
  const int64_t* export_after;
  const int64_t* export_to;
  int64_t exports;
  bf16* out;     // [T, H, V]
  int threads;
};

// Normed latents and rotated keys of [T] tokens into their pages; the rope part of q is rotated where it lies.
struct MlaStoreArgs {
  bf16* q;         // [T, H, nope + rope]
  const bf16* kv;  // [T, R + rope]
  const bf16* norm;
  float eps;
  const float *cosine, *sine;  // [T, rope / 2], or null: nothing is rotated
  int64_t tokens, heads, nope, rope, rank;
  bf16* pages;  // page p at pages + p * page_stride: [64, R + rope]
  int64_t page_stride;
  const int64_t *page_ids, *offsets;  // [T]
  int threads;
};

// Absorbed attention of n rows, each over the first lengths[i] tokens of its own pages.
struct MlaDecodeArgs {
  const bf16* q;  // [n, H, nope + rope]
  int64_t n, heads, nope, rope, v_dim, rank;
  const bf16* pages;             // page p at pages + p * page_stride: [64, R + rope]
  int64_t page_stride;
  const int64_t* const* tables;  // [n] page ids of each row
  const int64_t* lengths;        // [n], at least 1
  Weight kv_b;                   // [H * (nope + v), R]
  float scale;
  float* out;  // [n, H, v]
  int threads;
};

// Causal attention of one sequence's new tokens, expanded: see mla_prefill.h.
struct MlaPrefillArgs {
  const bf16* q;  // [T, H, nope + rope] at positions start ..
  int64_t tokens, start, heads, nope, rope, v_dim, rank;
  const bf16* pages;
  int64_t page_stride;
  const int64_t* table;
  Weight kv_b;  // [H * (nope + v), R]
  float scale;
  float* out;  // [T, H, v]
  int threads;
};

struct RmsNormArgs {
  const bf16* x;
  const bf16* weight;
  int64_t rows, dim;
  float eps;
  bf16* out;
  int threads;
};

// Expert ids and weights [t, top_k] of x [t, dim]; groups as in ops/moe/reference.py.
struct RouteArgs {
  const bf16* x;
  int64_t tokens, dim;
  const void* router;  // [experts, dim], fp32 if wide, else bf16
  bool wide;
  const float* bias;  // [experts]
  int64_t experts, groups, top_groups, top_k;
  bool renormalise;
  float scaling;
  int64_t* ids;
  float* weights;
  int threads;
};

// How the bytes of a row change before its words become part of a strip.
enum Swap : int { kAsStored = 0, kPairs = 1, kEvenFirst = 2 };

// `rows` rows, a multiple of 16, to strips in place: units of 1, 2 or 4 bytes side by side.
struct StripsArgs {
  uint8_t* data;
  int64_t rows, row_bytes;
  int unit;
  int swap;
  int threads;
};

struct Kernels {
  const char* name;
  void (*linear)(const LinearArgs&);
  void (*experts)(const ExpertsArgs&);
  void (*kda_prefill)(const KdaPrefillArgs&);
  void (*kda_decode)(const KdaDecodeArgs&);
  void (*mla_store)(const MlaStoreArgs&);
  void (*mla_decode)(const MlaDecodeArgs&);
  void (*mla_prefill)(const MlaPrefillArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*route)(const RouteArgs&);
  void (*strips)(const StripsArgs&);
};

// The fastest table this processor can run, or null with the reason in *why.
const Kernels* choose_kernels(const char** why);
// The table of that name if it is in this build and the processor can run it, else null.
const Kernels* find_kernels(const char* name);
int kernel_names(const char** names);  // fills up to 4 names the processor can run, returns how many

}  // namespace perilune
