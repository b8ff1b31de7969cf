// Drawing tokens from rows of logits, a block for each row, as SampleJob says. Exponentials and the sums of 128 of them
// are the CPU's, operation by operation (cpu/kernels/sample.inl), and so are the order of their total and of the walk
// that draws: without truncation the bits are the CPU's too. What top_k and top_p keep is found by halving the range of
// keys, integers in the order of floats, whose tokens together have the count or the share that is asked for; first
// among the likely tokens, which are few, and only if that is not there among all. A row has one processor, so what
// costs is waiting: loads are asked for some at a time, and one thread alone does nothing but add.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// ---- numbers in double ----
// e^((x - max) scale); 0 below e^-707
RWKV_DEVICE double weight_of(float x, double max, double scale) {
  const double t = (double(x) - max) * (scale * 0x1.71547652b82fep0), shift = 0x1.8p52;
  if (!(t >= -1020)) return 0;
  const double shifted = t + shift, f = t - (shifted - shift);
  double p = 0x1.61c4f0b1bf008p-20;
  p = p * f + 0x1.00d853d5560e9p-16;
  p = p * f + 0x1.430aa88495407p-13;
  p = p * f + 0x1.5d874d060bc65p-10;
  p = p * f + 0x1.3b2ab5ed6d583p-7;
  p = p * f + 0x1.c6b08dced43a5p-5;
  p = p * f + 0x1.ebfbdff8edeb6p-3;
  p = p * f + 0x1.62e42fef89d17p-1;
  p = p * f + 1.0;
  return from_double_bits(double_bits(p) + (double_bits(shifted) << 52));
}
RWKV_DEVICE double logarithm(double x) {  // of a normal number above 0, as log_of of cpu/sample.cpp
  const uint64_t root_half = 0x3fe6a09e667f3bcdu, b = double_bits(x) - root_half;
  const double m = from_double_bits((b & 0xfffffffffffffu) + root_half), s = (m - 1) / (m + 1), z = s * s;
  double sum = 0;
  for (int i = 21; i >= 3; i -= 2) sum = (sum + 1.0 / i) * z;
  return double(int64_t(b) >> 52) * 0x1.62e42fefa39efp-1 + 2 * (s + s * sum);
}
RWKV_DEVICE uint32_t key_of(float x) {  // of numbers, not of NaN; both zeros have one
  const uint32_t b = bits(x + 0.0f);
  return b >> 31 ? ~b : b | 0x80000000u;
}

// ---- of all threads of the block ----
RWKV_DEVICE int32_t least(int32_t v, SampleShared& s) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const int32_t other = shuffle_xor(v, mask);
    if (other < v) v = other;
  }
  sync();
  if (lane() == 0) s.id[warp()] = v;
  sync();
  for (int w = 0; w < int(blockDim.x) / 32; w++)
    if (s.id[w] < v) v = s.id[w];
  return v;
}
RWKV_DEVICE double sum_all(double v, SampleShared& s) {  // in one fixed tree
  for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  sync();
  if (lane() == 0) s.part[warp()] = v;
  sync();
  double total = 0;
  for (int w = 0; w < int(blockDim.x) / 32; w++) total += s.part[w];
  return total;
}

// f(x[i], i) for all of a thread's numbers.
template <class F>
RWKV_DEVICE void each(const float* x, int n, const F& f) {
  constexpr int kLoads = 8;
  const int step = int(blockDim.x);
#pragma unroll 1
  for (int from = int(threadIdx.x); from < n; from += kLoads * step) {
    float v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; j++) v[j] = from + j * step < n ? x[from + j * step] : 0.0f;
#pragma unroll
    for (int j = 0; j < kLoads; j++)
      if (from + j * step < n) f(v[j], from + j * step);
  }
}

// ---- a row under work, by all threads of the block ----
struct Best {
  float x;
  int32_t id;
};
// Of what comes after `last` in the order of logits, equals by id.
RWKV_DEVICE Best best_after(const float* x, int n, const Best& last, SampleShared& s) {
  Best best = {0, -1};
  const auto join = [&](float value, int32_t id) {
    if (id >= 0 && (best.id < 0 || value > best.x || (value == best.x && id < best.id))) best = {value, id};
  };
  each(x, n, [&](float v, int i) {
    if (last.id < 0 || v < last.x || (v == last.x && i > last.id)) join(v, i);
  });
  for (int mask = 16; mask > 0; mask /= 2) join(shuffle_xor(best.x, mask), shuffle_xor(best.id, mask));
  sync();
  if (lane() == 0) s.value[warp()] = best.x, s.id[warp()] = best.id;
  sync();
  for (int w = 0; w < int(blockDim.x) / 32; w++) join(s.value[w], s.id[w]);
  return best;
}
// The first NaN or +inf, or -1.
RWKV_DEVICE int32_t first_bad(const float* x, int n, SampleShared& s) {
  int32_t first = n;
  each(x, n, [&](float v, int i) {
    if (!(v < from_bits(0x7f800000u)) && i < first) first = i;
  });
  first = least(first, s);
  return first == n ? -1 : first;
}

// What stays of a row: numbers of at least `low`, and of those equal to `last` the ones with ids up to `until`.
struct Kept {
  float low, last;
  int32_t until;
};
RWKV_DEVICE bool keeps(const Kept& k, float x, int i) {
  return x >= k.low && (x > k.last || (x == k.last && i <= k.until));
}

// Sums of every 128 weights to `sums`; returns the sum of those. In every step of the trees half of them are added.
RWKV_DEVICE double sum_weights(const float* x, int n, const Kept& kept, double max, double scale, double* sums,
                               SampleShared& s) {
  const int blocks = (n + kSampleSpan - 1) / kSampleSpan;
  for (int b = warp(); b < blocks; b += int(blockDim.x) / 32) {
    const int first = b * kSampleSpan + lane();
    float v[4];
    double w[4];
    for (int j = 0; j < 4; j++) v[j] = first + j * 32 < n ? x[first + j * 32] : 0.0f;
    for (int j = 0; j < 4; j++) {
      const int i = first + j * 32;
      w[j] = i < n && keeps(kept, v[j], i) ? weight_of(v[j], max, scale) : 0.0;
    }
    double sum = (w[0] + w[2]) + (w[1] + w[3]);
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane() == 0) sums[b] = sum;
  }
  sync();
  if (threadIdx.x < 4) {
    double part = 0;
    for (int b = int(threadIdx.x); b < blocks; b += 4) part += sums[b];
    s.part[threadIdx.x] = part;
  }
  sync();
  const double total = (s.part[0] + s.part[1]) + (s.part[2] + s.part[3]);
  sync();
  return total;
}

// The numbers of at least `low` to the list, in an order that is always the same, if it has room for all; returns how
// many they are.
RWKV_DEVICE int collect(const float* x, int n, float low, SampleShared& s) {
  int count = 0;
  each(x, n, [&](float v, int) { count += v >= low ? 1 : 0; });
  int at = count;  // of this lane and those before it
  for (int step = 1; step < 32; step *= 2) {
    const int before = shuffle(at, lane() < step ? lane() : lane() - step);
    if (lane() >= step) at += before;
  }
  sync();
  if (lane() == 31) s.id[warp()] = at;
  sync();
  at -= count;
  int all = 0;
  for (int w = 0; w < int(blockDim.x) / 32; w++) {
    if (w == warp()) at += all;
    all += s.id[w];
  }
  if (all <= kSampleList)
    each(x, n, [&](float v, int) {
      if (v >= low) s.list[at++] = v;
    });
  sync();
  return all;
}

// The greatest key from which on the weights have the sum `target`; 0 if all of them do not. Weights are ones, or
// exponentials where `share` says so.
RWKV_DEVICE uint32_t key_where(const float* x, int n, bool share, double max, double target, SampleShared& s) {
  uint32_t key = 0, end = ~0u;  // numbers have keys below that; all tries to come add what lies from `end` on
  double above = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    double sum = 0;
    each(x, n, [&](float v, int) {
      const uint32_t own = key_of(v);
      if (own >= (key | bit) && own < end) sum += share ? weight_of(v, max, 1) : 1.0;
    });
    sum = above + sum_all(sum, s);
    if (sum >= target)
      key |= bit;
    else
      end = key | bit, above = sum;
  }
  return key;
}
RWKV_DEVICE float number_of(uint32_t key) { return from_bits(key >> 31 ? key & 0x7fffffffu : ~key); }

// The id up to which those equal to `last` have room beside the greater ones among k. They hardly ever have not, so one
// thread may look for it.
RWKV_DEVICE int32_t last_of_equals(const float* x, int n, int k, float last, SampleShared& s) {
  double greater = 0, equal = 0;
  each(x, n, [&](float v, int) { greater += v > last ? 1.0 : 0.0, equal += v == last ? 1.0 : 0.0; });
  k -= int(sum_all(greater, s));
  if (sum_all(equal, s) <= k) return n;
  if (threadIdx.x == 0) {
    int32_t until = -1;
    for (int i = 0; i < n && k > 0; i++)
      if (x[i] == last) until = i, k--;
    s.id[0] = until;
  }
  sync();
  const int32_t until = s.id[0];
  sync();
  return until;
}

RWKV_DEVICE Kept truncate(const SampleJobParams& job, const float* x, int n, float max, double total, SampleShared& s) {
  Kept kept = {-3.402823466e38f, from_bits(0xff800000u), n};
  if (job.min_p > 0.0f) {
    const double low = double(max) + logarithm(double(job.min_p));
    const float f = float(low);
    const float up = double(f) < low ? number_of(key_of(f) + 1) : f;
    if (up > kept.low) kept.low = up;
  }
  const bool by_count = job.top_k > 0 && job.top_k < n, by_share = job.top_p < 1.0f;
  const int likely = by_count || by_share ? collect(x, n, max - 8.0f, s) : 0;
  const auto search = [&](bool share, double target) {
#pragma unroll 1  // the loop is there for one copy of the code
    for (bool all = likely > kSampleList;; all = true) {
      const uint32_t key = key_where(all ? x : s.list, all ? n : likely, share, double(max), target, s);
      if (key != 0 || all) return key;
    }
  };
  if (by_count) {
    kept.last = number_of(search(false, double(job.top_k)));
    kept.until = last_of_equals(x, n, job.top_k, kept.last, s);
  }
  if (by_share) {
    const uint32_t key = search(true, double(job.top_p) * total);
    const float low = number_of(key);
    if (key != 0 && low > kept.low) kept.low = low;
  }
  return kept;
}

// Of kSampleSpan numbers, one of each of the first threads, the last that is not 0 and that a sum, which has `begin`
// and then takes one after the other, comes to before it has passed the goal; -1: there is none.
struct Step {
  int32_t at;
  double before, after;  // the sum in front of that number, and behind all
};
RWKV_DEVICE Step walk(double own, double begin, double goal, SampleShared& s) {
  const int i = int(threadIdx.x);
  sync();
  if (i < kSampleSpan) s.sum[i] = own;
  sync();
  if (i == 0) {
    double sum = begin;
#pragma unroll 8
    for (int j = 0; j < kSampleSpan; j++) {
      const double next = s.sum[j];
      s.sum[j] = sum;
      sum += next;
    }
    s.part[0] = sum;
  }
  sync();
  Step step = {-1, 0, s.part[0]};
  const int32_t last = -least(i < kSampleSpan && own != 0 && s.sum[i] <= goal ? -i : 1, s);
  if (last >= 0) step.at = last, step.before = s.sum[last];
  return step;
}

// Walks the row until the weights pass that share of their sum: in spans first, then one by one.
RWKV_DEVICE int32_t draw(const SampleJobParams& job, const float* x, int n, const Kept& kept, float max, double total,
                         const double* sums, SampleShared& s) {
  const double goal = job.uniform * total;
  const int own = int(threadIdx.x), blocks = (n + kSampleSpan - 1) / kSampleSpan;
  int block = 0;
  double before = 0, after = 0;
  for (int from = 0; from < blocks; from += kSampleSpan) {
    const bool has = own < kSampleSpan && from + own < blocks;
    const Step step = walk(has ? sums[from + own] : 0.0, after, goal, s);
    if (step.at >= 0) block = from + step.at, before = step.before;
    after = step.after;
  }
  const int i = block * kSampleSpan + own;
  const bool has = own < kSampleSpan && i < n && keeps(kept, x[i], i);
  const Step step = walk(has ? weight_of(x[i], double(max), job.scale) : 0.0, before, goal, s);
  return step.at < 0 ? 0 : block * kSampleSpan + step.at;
}

RWKV_KERNEL void RWKV_BOUNDS(1024) sample(PARAMS(SampleParams, p)) {
  SHARED(SampleShared, s);
  const SampleJobParams& job = p.jobs[blockIdx.x];
  SampleResult& result = p.results[blockIdx.x];
  const int n = p.vocabulary;
  auto* sums = reinterpret_cast<double*>(static_cast<unsigned char*>(p.scratch) + blockIdx.x * sample_scratch_bytes(n));
  const auto end = [&](SampleCode code, int32_t where) {
    if (threadIdx.x == 0) result = {0, 0.0f, code, where};
  };

  const float* x = job.logits;
  if (const int32_t bad = first_bad(x, n, s); bad >= 0) return end(SampleCode::not_finite, bad);
  const Best top = best_after(x, n, {0, -1}, s);
  if (top.x == from_bits(0xff800000u)) return end(SampleCode::all_infinite, 0);
  const Kept all = {from_bits(0xff800000u), from_bits(0xff800000u), n};
  const double total = sum_weights(x, n, all, double(top.x), 1, sums, s), log_total = logarithm(total);
  const auto logprob = [&](int32_t id) { return float(double(job.logits[id]) - double(top.x) - log_total); };
  Best last = top;
  for (int i = 0; i < job.tops; i++) {
    if (threadIdx.x == 0) job.top[i] = {last.id, logprob(last.id)};
    if (i + 1 < job.tops) last = best_after(x, n, last, s);
  }

  if (job.given >= 0) {
    if (threadIdx.x == 0) result = {job.given, logprob(job.given), SampleCode::drawn, 0};
    return;
  }

  Best best = top;
  if (job.biases > 0) {
    float* const biased = job.biased;
    each(x, n, [&](float v, int i) { biased[i] = v; });
    sync();
    for (int i = int(threadIdx.x); i < job.biases; i += int(blockDim.x))
      biased[job.bias[i].token] += job.bias[i].number;
    sync();
    x = biased;
    if (const int32_t bad = first_bad(x, n, s); bad >= 0) return end(SampleCode::not_finite_biased, bad);
    best = best_after(x, n, {0, -1}, s);
    if (best.x == from_bits(0xff800000u)) return end(SampleCode::all_banned, 0);
  }
  int32_t id = best.id;
  if (job.scale > 0 && job.top_p > 0.0f && job.top_k != 1) {
    double share = total;
    if (job.biases > 0 && job.top_p < 1.0f) share = sum_weights(x, n, all, double(best.x), 1, sums, s);
    const Kept kept = truncate(job, x, n, best.x, share, s);
    const double kept_total = sum_weights(x, n, kept, double(best.x), job.scale, sums, s);
    id = draw(job, x, n, kept, best.x, kept_total, sums, s);
  }
  if (threadIdx.x == 0) result = {id, logprob(id), SampleCode::drawn, 0};
}

}  // namespace rwkv::cuda
