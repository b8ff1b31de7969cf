// Drawing tokens from rows of logits, a block for each row, as SampleJob says. Exponentials and the sums of 128 of them
// are the CPU's, operation by operation (cpu/kernels/sample.inl), and so are the order of their total and of the walk
// that draws: without truncation the bits are the CPU's too. What top_k and top_p keep is found by halving the range of
// keys, integers in the order of floats, whose tokens together have the count or the share that is asked for.
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
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x))
    if (last.id < 0 || x[i] < last.x || (x[i] == last.x && i > last.id)) join(x[i], i);
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
  for (int i = int(threadIdx.x); i < n && first == n; i += int(blockDim.x))
    if (!(x[i] < from_bits(0x7f800000u))) first = i;
  for (int mask = 16; mask > 0; mask /= 2) {
    const int32_t other = shuffle_xor(first, mask);
    if (other < first) first = other;
  }
  sync();
  if (lane() == 0) s.id[warp()] = first;
  sync();
  for (int w = 0; w < int(blockDim.x) / 32; w++)
    if (s.id[w] < first) first = s.id[w];
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
    double w[4];
    for (int j = 0; j < 4; j++) {
      const int i = b * kSampleSpan + j * 32 + lane();
      w[j] = i < n && keeps(kept, x[i], i) ? weight_of(x[i], max, scale) : 0.0;
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

// The greatest key from which on the weights have the sum `target`; 0 if all of them do not. Weights are ones, or
// exponentials where `share` says so; each try adds them in one fixed tree.
RWKV_DEVICE uint32_t key_where(const float* x, int n, bool share, double max, double target, SampleShared& s) {
  uint32_t key = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    double sum = 0;
#pragma unroll 1  // 1024 threads have few registers
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x))
      if (key_of(x[i]) >= (key | bit)) sum += share ? weight_of(x[i], max, 1) : 1.0;
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    sync();
    if (lane() == 0) s.part[warp()] = sum;
    sync();
    double total = 0;
    for (int w = 0; w < int(blockDim.x) / 32; w++) total += s.part[w];
    if (total >= target) key |= bit;
  }
  return key;
}
RWKV_DEVICE float number_of(uint32_t key) { return from_bits(key >> 31 ? key & 0x7fffffffu : ~key); }

// The id up to which those equal to `last` have room beside the greater ones among k; by one thread, which all wait
// for.
RWKV_DEVICE int32_t last_of_equals(const float* x, int n, int k, float last, SampleShared& s) {
  double greater = 0;
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) greater += x[i] > last ? 1.0 : 0.0;
  for (int mask = 16; mask > 0; mask /= 2) greater += shuffle_xor(greater, mask);
  sync();
  if (lane() == 0) s.part[warp()] = greater;
  sync();
  if (threadIdx.x == 0) {
    for (int w = 0; w < int(blockDim.x) / 32; w++) k -= int(s.part[w]);
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
  if (job.top_k > 0 && job.top_k < n) {
    kept.last = number_of(key_where(x, n, false, 0, double(job.top_k), s));
    kept.until = last_of_equals(x, n, job.top_k, kept.last, s);
  }
  if (job.top_p < 1.0f) {
    const uint32_t key = key_where(x, n, true, double(max), double(job.top_p) * total, s);
    const float low = number_of(key);
    if (key != 0 && low > kept.low) kept.low = low;
  }
  return kept;
}

// Walks the row until the weights pass that share of their sum: in spans first, then one by one; by one thread.
RWKV_DEVICE int32_t draw(const SampleJobParams& job, const float* x, int n, const Kept& kept, float max, double total,
                         const double* sums, SampleShared& s) {
  if (threadIdx.x == 0) {
    const double goal = job.uniform * total;
    double sum = 0, after = 0;
    int block = 0, drawn = 0;
    for (int b = 0; b < (n + kSampleSpan - 1) / kSampleSpan && after <= goal; b++) {
      if (sums[b] == 0) continue;
      block = b, sum = after, after += sums[b];
    }
    for (int i = block * kSampleSpan; i < n && i < (block + 1) * kSampleSpan && sum <= goal; i++) {
      const double w = keeps(kept, x[i], i) ? weight_of(x[i], double(max), job.scale) : 0.0;
      if (w == 0) continue;
      sum += w, drawn = i;
    }
    s.id[0] = drawn;
  }
  sync();
  return s.id[0];
}

RWKV_KERNEL void RWKV_BOUNDS(1024) sample(PARAMS(SampleParams, p)) {
  SHARED(SampleShared, s);
  const SampleJobParams& job = p.jobs[blockIdx.x];
  SampleResult& result = p.results[blockIdx.x];
  const int n = p.vocabulary;
  auto* sums = reinterpret_cast<double*>(static_cast<unsigned char*>(p.scratch) + blockIdx.x * sample_scratch_bytes(n));
  auto* biased = reinterpret_cast<float*>(sums + (n + kSampleSpan - 1) / kSampleSpan);
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
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) biased[i] = x[i];
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
