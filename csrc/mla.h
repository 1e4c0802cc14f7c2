// Latent attention over 64-token pages, with an online softmax over blocks of 32 keys.
//
// Decode is absorbed: one query row per head against the latents themselves. Its context is cut into spans at fixed
// positions, each with its own running softmax, which are then joined in order: long contexts use every thread and
// the result does not depend on how many there are.
// Prefill expands k = [W_UK c, k_pe], v = W_UV c one span at a time, for all heads, then attends per (head, rows).
#pragma once
#include "matmul.h"
#include "weighted.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kPage = 64;
constexpr int64_t kDecodeSpan = 8 * kPage;
constexpr int64_t kPrefillSpan = 4 * kPage;
constexpr int64_t kQueryRows = 64;
constexpr float kNone = -3.0e38f;  // below every score; not -inf, whose difference with itself is NaN

// One block of at most 32 keys joins the running softmax of m rows: scores [m, kBlock] become weights in place.
// visible[i] keys count for row i.
template <class V>
inline void join_block(float* scores, int64_t m, const int64_t* visible, float factor, const V* values, int64_t ld,
                       float* maximum, float* total, int64_t stat_ld, float* acc, int64_t acc_ld, int64_t width) {
  int64_t count = 0;
  for (int64_t i = 0; i < m; i++) {
    float* p = scores + i * kBlock;
    const int64_t keys = visible[i];
    count = keys > count ? keys : count;
    for (int64_t t = keys > 0 ? keys : 0; t < kBlock; t++) p[t] = -__builtin_inff();
    if (keys <= 0) {
      memset(p, 0, kBlock * sizeof(float));
      continue;
    }
    float& top = maximum[i * stat_ld];
    float best = top;
    for (int64_t t = 0; t < keys; t++) best = p[t] * factor > best ? p[t] * factor : best;
    if (best > top) {
      const vf kept = vexp(splat(top - best));
      total[i * stat_ld] *= kept[0];
      for (int64_t r = 0; r < width; r++) acc[i * acc_ld + r] *= kept[0];
      top = best;
    }
    vf s{};
    for (int64_t t = 0; t < kBlock; t += kLanes) {
      vf e = vexp(load(p + t) * factor - best);
      store(p + t, e);
      s += e;
    }
    total[i * stat_ld] += sum(s);
  }
  add_weighted(m, scores, kBlock, count, values, ld, acc, acc_ld, width);
}

// scores [m, kBlock] of `count` keys (rows of Elem, ld apart) for m query rows; columns behind count are copies.
inline void score_block(const Elem* const* q, int64_t m, const Elem* keys, int64_t count, int64_t ld, float* scores) {
  memset(scores, 0, size_t(m) * kBlock * sizeof(float));
  for (int64_t i = 0; i < m; i += kBand)
    for (int64_t j = 0; j < count; j += 4) {
      const Elem* rows[4];
      for (int r = 0; r < 4; r++) rows[r] = keys + at_most(j + r, count - 1) * ld;
      tiles(q + i, at_most(kBand, m - i), 0, rows, ld, scores + i * kBlock + j);
    }
}

// part: maximum [H], total [H] and latent sums [H, R] of one span of one row's context.
inline void decode_span(const MlaDecodeArgs& a, const Elem* q, int64_t ld, int64_t row, int64_t first, float* part) {
  const int64_t heads = a.heads, width = a.rank + a.rope, last = at_most(first + kDecodeSpan, a.lengths[row]);
  float *maximum = part, *total = part + heads, *acc = part + 2 * heads;
  for (int64_t h = 0; h < heads; h++) maximum[h] = kNone;
  memset(total, 0, size_t(heads * (1 + a.rank)) * sizeof(float));
  Buffer<Elem> keys(kBlock * ld);
  Buffer<float> scores(heads * kBlock);
  Buffer<const Elem*> rows(heads);
  Buffer<int64_t> visible(heads);
  for (int64_t h = 0; h < heads; h++) rows[h] = q + (row * heads + h) * ld;
  for (int64_t t0 = first; t0 < last; t0 += kBlock) {
    const int64_t count = at_most(kBlock, last - t0);
    const bf16* latents = a.pages + a.tables[row][t0 / kPage] * a.page_stride + t0 % kPage * width;
    widen_rows(latents, count, width, ld, keys);
    for (int64_t h = 0; h < heads; h++) visible[h] = count;
    score_block(rows.p, heads, keys, count, ld, scores);
    join_block(scores.p, heads, visible.p, a.scale, keys.p, ld, maximum, total, 1, acc, a.rank, a.rank);
  }
}

// out [R] of one head: its spans joined in order.
inline void join_spans(const float* parts, int64_t spans, int64_t part_size, int64_t heads, int64_t h, int64_t rank,
                       float* out) {
  float best = kNone, total = 0;
  for (int64_t s = 0; s < spans; s++) best = parts[s * part_size + h] > best ? parts[s * part_size + h] : best;
  memset(out, 0, size_t(rank) * sizeof(float));
  for (int64_t s = 0; s < spans; s++) {
    const float* part = parts + s * part_size;
    const float weight = vexp(splat(part[h] - best))[0];
    total += weight * part[heads + h];
    for (int64_t r = 0; r < rank; r++) out[r] += weight * part[2 * heads + h * rank + r];
  }
  for (int64_t r = 0; r < rank; r++) out[r] /= total;
}

// q~ = [W_UK^T q_nope, q_pe] of one head for every row, as Elem rows.
template <class Rows>
inline void absorb_head(const MlaDecodeArgs& a, const Rows& kv_b, int64_t h, Elem* q, int64_t ld, Elem* w) {
  const int64_t w_ld = padded(a.rank), qk = a.nope + a.rope;
  Buffer<float> p(a.n * kBlock), acc(a.n * w_ld);
  memset(acc.p, 0, size_t(a.n * w_ld) * sizeof(float));
  for (int64_t d0 = 0; d0 < a.nope; d0 += kBlock) {
    const int64_t count = at_most(kBlock, a.nope - d0);
    for (int64_t d = 0; d < count; d++)
      for (int64_t k = 0; k < a.rank; k += 32) kv_b.run(h * (a.nope + a.v_dim) + d0 + d, k, w + d * w_ld + k);
    for (int64_t i = 0; i < a.n; i++)
      widen_to(a.q + (i * a.heads + h) * qk + d0, count, p + i * kBlock);
    add_weighted(a.n, p.p, kBlock, count, w, w_ld, acc.p, w_ld, a.rank);
  }
  for (int64_t i = 0; i < a.n; i++) {
    Elem* to = q + (i * a.heads + h) * ld;
    to_elem(acc + i * w_ld, a.rank, to);
    to_elem(a.q + (i * a.heads + h) * qk + a.nope, a.rope, to + a.rank);
    memset(to + a.rank + a.rope, 0, size_t(ld - a.rank - a.rope) * sizeof(Elem));
  }
}

// out [n, v] of one head = W_UV times its latent sums [n, ld].
template <class Rows>
inline void expand_head(const MlaDecodeArgs& a, const Rows& kv_b, int64_t h, const Elem* sums, int64_t ld, Work& work) {
  for (int64_t i0 = 0; i0 < a.n; i0 += kRows) {
    const int64_t m = at_most(kRows, a.n - i0);
    for (int64_t i = 0; i < m; i++) work.x[i] = sums + ((i0 + i) * a.heads + h) * ld;
    for (int64_t d0 = 0; d0 < a.v_dim; d0 += kBlock) {
      const int64_t nb = at_most(kBlock, a.v_dim - d0);
      block(work.x, m, kv_b, h * (a.nope + a.v_dim) + a.nope + d0, nb, work.c[0], work.scratch);
      for (int64_t i = 0; i < m; i++)
        memcpy(a.out + ((i0 + i) * a.heads + h) * a.v_dim + d0, work.c[0] + i * kBlock, size_t(nb) * sizeof(float));
    }
  }
}

inline void mla_decode(const MlaDecodeArgs& a) {
  const int64_t ld = padded(a.rank + a.rope), sum_ld = padded(a.rank), part_size = a.heads * (2 + a.rank);
  Buffer<Elem> q(a.n * a.heads * ld), sums(a.n * a.heads * sum_ld);
  Buffer<int64_t> first_span(a.n + 1);
  first_span[0] = 0;
  for (int64_t i = 0; i < a.n; i++) first_span[i + 1] = first_span[i] + (a.lengths[i] + kDecodeSpan - 1) / kDecodeSpan;
  const int64_t spans = first_span[a.n];
  Buffer<float> parts(spans * part_size);
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<Work> work(1);
    Buffer<Elem> unpacked(kBlock * padded(a.rank));
    Buffer<float> latent(a.rank);
#pragma omp for schedule(dynamic, 1)
    for (int64_t h = 0; h < a.heads; h++)
      with_rows(a.kv_b, 0, [&](auto w) { absorb_head(a, w, h, q, ld, unpacked); });
#pragma omp for schedule(dynamic, 1)
    for (int64_t span = 0; span < spans; span++) {
      int64_t row = 0;
      while (first_span[row + 1] <= span) row++;
      decode_span(a, q, ld, row, (span - first_span[row]) * kDecodeSpan, parts + span * part_size);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.n * a.heads; i++) {
      const int64_t row = i / a.heads, count = first_span[row + 1] - first_span[row];
      join_spans(parts + first_span[row] * part_size, count, part_size, a.heads, i % a.heads, a.rank, latent);
      to_elem(latent.p, a.rank, sums + i * sum_ld);
      memset(sums + i * sum_ld + a.rank, 0, size_t(sum_ld - a.rank) * sizeof(Elem));
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t h = 0; h < a.heads; h++)
      with_rows(a.kv_b, 0, [&](auto w) { expand_head(a, w, h, sums, sum_ld, *work.p); });
  }
}

// Keys [H, span, ld] and values [H, span, v] of the tokens first .. last, all heads.
template <class Rows>
inline void expand_span(const MlaPrefillArgs& a, const Rows& kv_b, int64_t first, int64_t last, Elem* latents,
                        int64_t latent_ld, Elem* keys, int64_t ld, Elem* values) {
  const int64_t width = a.rank + a.rope, count = last - first, each = a.nope + a.v_dim;
  for (int64_t t = 0; t < count; t++) {
    const bf16* from = a.pages + a.table[(first + t) / kPage] * a.page_stride + (first + t) % kPage * width;
    to_elem(from, a.rank, latents + t * latent_ld);
    memset(latents + t * latent_ld + a.rank, 0, size_t(latent_ld - a.rank) * sizeof(Elem));
    for (int64_t h = 0; h < a.heads; h++) {
      Elem* key = keys + (h * kPrefillSpan + t) * ld + a.nope;
      to_elem(from + a.rank, a.rope, key);
      memset(key + a.rope, 0, size_t(ld - a.nope - a.rope) * sizeof(Elem));
    }
  }
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<Work> work(1);
    for (int64_t t = 0; t < count; t++) work.p->x[t] = latents + t * latent_ld;
#pragma omp for schedule(dynamic, 1)
    for (int64_t n0 = 0; n0 < kv_b.n(); n0 += kBlock) {
      const int64_t nb = at_most(kBlock, kv_b.n() - n0);
      block(work.p->x, count, kv_b.rows, n0, nb, work.p->c[0], work.p->scratch);
      for (int64_t j = 0; j < nb; j++) {
        const int64_t h = (n0 + j) / each, d = (n0 + j) % each;
        Elem* to = d < a.nope ? keys + h * kPrefillSpan * ld + d : values + h * kPrefillSpan * a.v_dim + d - a.nope;
        const int64_t step = d < a.nope ? ld : a.v_dim;
        for (int64_t t = 0; t < count; t++) to_elem(work.p->c[0] + t * kBlock + j, 1, to + t * step);
      }
    }
  }
}

template <class Rows>
struct Sized {
  Rows rows;
  int64_t outputs;
  int64_t n() const { return outputs; }
};

inline void mla_prefill(const MlaPrefillArgs& a) {
  const int64_t heads = a.heads, qk = a.nope + a.rope, ld = padded(qk), latent_ld = padded(a.rank);
  const int64_t end = a.start + a.tokens, blocks = (a.tokens + kQueryRows - 1) / kQueryRows;
  Buffer<Elem> q(a.tokens * heads * ld), latents(kPrefillSpan * latent_ld);
  Buffer<Elem> keys(heads * kPrefillSpan * ld), values(heads * kPrefillSpan * a.v_dim);
  Buffer<float> maximum(a.tokens * heads), total(a.tokens * heads);
  widen_rows(a.q, a.tokens * heads, qk, ld, q);
  for (int64_t i = 0; i < a.tokens * heads; i++) maximum[i] = kNone;
  memset(total.p, 0, size_t(a.tokens * heads) * sizeof(float));
  memset(a.out, 0, size_t(a.tokens * heads * a.v_dim) * sizeof(float));
  for (int64_t first = 0; first < end; first += kPrefillSpan) {
    const int64_t last = at_most(first + kPrefillSpan, end);
    with_rows(a.kv_b, 0, [&](auto rows) {
      expand_span(a, Sized<decltype(rows)>{rows, a.kv_b.n}, first, last, latents, latent_ld, keys, ld, values);
    });
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < heads * blocks; item++) {
      const int64_t h = item % heads, t0 = item / heads * kQueryRows, m = at_most(kQueryRows, a.tokens - t0);
      float scores[kQueryRows * kBlock];
      const Elem* rows[kQueryRows];
      int64_t visible[kQueryRows];
      for (int64_t i = 0; i < m; i++) rows[i] = q + ((t0 + i) * heads + h) * ld;
      for (int64_t k0 = first; k0 < at_most(last, a.start + t0 + m); k0 += kBlock) {
        const int64_t count = at_most(kBlock, last - k0);
        const int64_t from = h * kPrefillSpan + k0 - first;
        score_block(rows, m, keys + from * ld, count, ld, scores);
        for (int64_t i = 0; i < m; i++) visible[i] = at_most(count, a.start + t0 + i + 1 - k0);
        const int64_t at = t0 * heads + h;
        join_block(scores, m, visible, a.scale, values + from * a.v_dim, a.v_dim, maximum + at, total + at, heads,
                   a.out + at * a.v_dim, heads * a.v_dim, a.v_dim);
      }
    }
  }
#pragma omp parallel for num_threads(a.threads)
  for (int64_t i = 0; i < a.tokens * heads; i++)
    for (int64_t r = 0; r < a.v_dim; r++) a.out[i * a.v_dim + r] /= total[i];
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
