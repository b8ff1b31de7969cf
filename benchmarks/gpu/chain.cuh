// The matrices of 24 layers, one token: r, k and v of one vector, their sum, output, ffn.key, ffn.value, each waiting
// for what comes before. As seven kernels a layer, and as one kernel whose blocks let a ring of weights run ahead while
// they wait for each other.
#pragma once
#include "instructions.cuh"
#include "probes.h"

constexpr int kWidth = 2048, kWide = 4 * kWidth, kLayers = 24;
constexpr size_t kLayerHalves = size_t(12) * kWidth * kWidth;

__device__ __forceinline__ float multiply(const uint4& w, const uint4& x, float sum) {
  const auto* a = reinterpret_cast<const __half2*>(&w);
  const auto* b = reinterpret_cast<const __half2*>(&x);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 p = __half22float2(a[i]), q = __half22float2(b[i]);
    sum = fmaf(p.y, q.y, fmaf(p.x, q.x, sum));
  }
  return sum;
}
__device__ __forceinline__ float sum_warp(float v) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}
// Of weights from -1 to 1, so that vectors keep their length.
__device__ __forceinline__ __half scaled(float sum, int cols) { return __float2half(sum * sqrtf(3.0f / float(cols))); }
__device__ __forceinline__ __half joined(const __half* x, int i) {
  const float a = __half2float(__ldcg(x + i)), b = __half2float(__ldcg(x + kWidth + i));
  return __float2half((a + b + __half2float(__ldcg(x + 2 * kWidth + i))) * 0.57735f);
}

// A warp has a row; its first 8 KB are on their way before the vector is there.
__global__ void __launch_bounds__(256) row_product(const __half* w, const __half* x, __half* y, int cols) {
  const int lane = int(threadIdx.x) % 32, row = int(blockIdx.x) * 8 + int(threadIdx.x) / 32;
  const auto* from = reinterpret_cast<const uint4*>(w + size_t(row) * cols) + lane;
  const auto* with = reinterpret_cast<const uint4*>(x) + lane;
  let_next_start();
  float sum = 0;
  for (int c = 0; c < cols / 8; c += 256) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = load_stream(from + c + 32 * j);
    if (c == 0) wait_for_previous();
#pragma unroll
    for (int j = 0; j < 8; j++) sum = multiply(v[j], __ldcg(with + c + 32 * j), sum);
  }
  sum = sum_warp(sum);
  if (lane == 0) y[row] = scaled(sum, cols);
}
__global__ void join(const __half* x, __half* y) {
  let_next_start();
  wait_for_previous();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = joined(x, i);
}

// ---- one kernel ----

constexpr int kStages = 8, kConsumers = 256;  // of 16 KB; threads that multiply, beside a warp that loads
constexpr int kMostChunks = 64;               // of a block in a step
struct RingShared {
  unsigned char stage[kStages][kChunk];
  __half x[kWide];
  float part[kMostChunks][8];
  uint64_t full[kStages], empty[kStages];
};
struct RingParams {
  const __half* weights;
  __half *x, *three, *wide;  // vectors of kWidth, of r, k and v, and of kWide
  uint32_t* counter;
  uint32_t passed;
};
// The four steps of a layer: how many chunks of 8192 weights, and how long a row is.
__device__ __forceinline__ int chunks_of(int step) { return (step % 4 == 0 ? 3 : step % 4 == 1 ? 1 : 4) * 512; }
__device__ __forceinline__ int cols_of(int step) { return step % 4 == 3 ? kWide : kWidth; }

__device__ __forceinline__ void consumers_meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

__global__ void __launch_bounds__(kConsumers + 32) ring(RingParams p) {
  extern __shared__ __align__(128) unsigned char memory[];
  RingShared& s = *reinterpret_cast<RingShared*>(memory);
  const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32, blocks = int(gridDim.x);
  if (thread == 0)
    for (int i = 0; i < kStages; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], kConsumers / 32);
  __syncthreads();
  uint32_t nth = 0;  // chunk of this block
  if (warp == kConsumers / 32) {
    const auto* from = reinterpret_cast<const unsigned char*>(p.weights);
    for (int step = 0; step < 4 * kLayers && lane == 0; from += size_t(chunks_of(step++)) * kChunk)
      for (int c = int(blockIdx.x); c < chunks_of(step); c += blocks, nth++) {
        const uint32_t at = nth % kStages;
        if (nth >= kStages) barrier_wait(&s.empty[at], (nth / kStages + 1) % 2);
        bulk_load(s.stage[at], from + size_t(c) * kChunk, kChunk, &s.full[at]);
      }
    return;
  }
  for (int step = 0; step < 4 * kLayers; step++) {
    const int cols = cols_of(step), kind = step % 4;
    // What the step reads is what the one before has written in other blocks.
    const __half* x = kind == 3 ? p.wide : p.x + kind / 2 * kWidth;
    for (int i = thread; i < cols; i += kConsumers) s.x[i] = kind == 1 ? joined(p.three, i) : __ldcg(x + i);
    consumers_meet();
    int own = 0;
    for (int c = int(blockIdx.x); c < chunks_of(step); c += blocks, nth++, own++) {
      const uint32_t at = nth % kStages;
      barrier_wait(&s.full[at], nth / kStages % 2);
      const auto* w = reinterpret_cast<const uint4*>(s.stage[at] + warp * 2048) + lane;
      const auto* with = reinterpret_cast<const uint4*>(s.x + warp * 1024 % cols) + lane;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) sum = multiply(w[32 * j], with[32 * j], sum);
      __syncwarp();
      if (lane == 0) barrier_arrive(&s.empty[at]);
      sum = sum_warp(sum);
      if (lane == 0) s.part[own][warp] = sum;
    }
    consumers_meet();
    // A row is one of 4 in a chunk or all of it.
    const int rows = kChunk / 2 / cols, warps = 8 / rows;
    __half* y = kind == 0 ? p.three : kind == 2 ? p.wide : p.x + (kind == 1 ? kWidth : 0);
    for (int i = thread; i < own * rows; i += kConsumers) {
      float sum = 0;
      for (int j = 0; j < warps; j++) sum += s.part[i / rows][i % rows * warps + j];
      y[(int(blockIdx.x) + i / rows * blocks) * rows + i % rows] = scaled(sum, cols);
    }
    __threadfence();
    consumers_meet();
    if (thread == 0) count_and_wait(p.counter, p.passed += gridDim.x);
    consumers_meet();
  }
}

class Chain {
 public:
  explicit Chain(int processors) : processors_(processors) { counter_.zero(); }

  size_t bytes() const { return weights_.bytes(); }
  bool fits_persistent() const { return has_bulk() && processors_ * kMostChunks >= 2048; }
  void kernels(bool early) {
    begin();
    bool follows = false;  // a kernel: what follows a copy cannot start early
    const auto product = [&](const __half* w, const __half* x, __half* y, int rows, int cols) {
      launch(row_product, rows / 8, 256, 0, early && follows, w, x, y, cols);
      follows = true;
    };
    for (int layer = 0; layer < kLayers; layer++) {
      constexpr size_t kSquare = size_t(kWidth) * kWidth;
      const __half* w = weights_ + layer * kLayerHalves;
      for (int i = 0; i < 3; i++) product(w + i * kSquare, x_, three_ + i * kWidth, kWidth, kWidth);
      launch(join, kWidth / 256, 256, 0, early, three_, joined_);
      product(w + 3 * kSquare, joined_, x_ + kWidth, kWidth, kWidth);
      product(w + 4 * kSquare, x_ + kWidth, wide_, kWide, kWidth);
      product(w + 8 * kSquare, wide_, x_, kWidth, kWide);
    }
  }
  void persistent() {
    begin();
    const RingParams p = {weights_, x_, three_, wide_, counter_, passed_};
    launch_together(ring, processors_, kConsumers + 32, sizeof(RingShared), p);
    passed_ += uint32_t(processors_) * 4 * kLayers;
  }
  // Of what ran last.
  std::vector<float> result() const {
    std::vector<__half> found(kWidth);
    CHECK(cudaStreamSynchronize(own().stream));
    CHECK(cudaMemcpy(found.data(), x_, kWidth * sizeof(__half), cudaMemcpyDeviceToHost));
    return {found.begin(), found.end()};
  }

 private:
  void begin() { CHECK(cudaMemcpyAsync(x_, start_, kWidth * sizeof(__half), cudaMemcpyDeviceToDevice, own().stream)); }

  const int processors_;
  Memory<__half> weights_{kLayers * kLayerHalves}, start_{kWidth}, x_{2 * kWidth}, three_{3 * kWidth}, joined_{kWidth},
      wide_{kWide};
  Memory<uint32_t> counter_{1};
  uint32_t passed_ = 0;
};
