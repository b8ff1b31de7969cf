// Six measurements on which the design of the kernels rests, as JSON:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 benchmarks/gpu/probes.cu -o probes && ./probes [bandwidth nodes barrier chain wkv
//   mma]
//
// bandwidth: memory that is read and copied. nodes: kernels of a graph that wait for each other. barrier: of all
// blocks. chain: the products of 24 layers one after the other, as kernels and as one kernel (chain.cuh). wkv: states
// that are read, changed and written elsewhere. mma: products of few tokens with the weights as rows of tensor-core
// products, and the peak of those.
#include <cooperative_groups.h>

#include "chain.cuh"
#include "instructions.cuh"
#include "probes.h"

namespace {

constexpr size_t kLarge = size_t(4) << 30;  // bytes, of which no cache keeps much

int processors() {
  int n;
  CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
  return n;
}

// ---- 1: bandwidth ----

__global__ void read_words(const uint4* from, size_t n, uint32_t* never) {
  const size_t step = size_t(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i + 7 * step < n; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = load_stream(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; j++) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x5eed5eed) *never = sum;
}
__global__ void copy_words(const uint4* from, uint4* to, size_t n) {
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i + 3 * step < n; i += 4 * step) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = load_stream(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 4; j++) to[i + j * step] = v[j];
  }
}
// By bulk copies to shared memory, four under way in each block.
__global__ void read_bulk(const unsigned char* from, size_t chunks) {
  constexpr int kStages = 4;
  extern __shared__ __align__(128) unsigned char stage[];
  __shared__ uint64_t full[kStages];
  if (threadIdx.x != 0) return;
  for (uint64_t& barrier : full) barrier_init(&barrier, 1);
  const auto begin = [&](size_t i) {
    const size_t chunk = blockIdx.x + i * gridDim.x;
    if (chunk < chunks) bulk_load(stage + i % kStages * kChunk, from + chunk * kChunk, kChunk, &full[i % kStages]);
  };
  for (size_t i = 0; i < kStages; i++) begin(i);
  for (size_t i = 0; blockIdx.x + i * gridDim.x < chunks; i++) {
    barrier_wait(&full[i % kStages], i / kStages % 2);
    begin(i + kStages);
  }
}

void bandwidth(Results& r) {
  Memory<uint4> a(kLarge / 16), b(kLarge / 16);
  uint4 *const words = a, *const never = b;
  for (int blocks : {2, 4, 8}) {
    const int grid = blocks * processors();
    const Times read =
        times([&] { launch(read_words, grid, 512, 0, false, a, kLarge / 16, reinterpret_cast<uint32_t*>(never)); });
    const Times copy = times([&] { launch(copy_words, grid, 512, 0, false, a, b, kLarge / 16); });
    const std::string each = ", " + std::to_string(blocks) + " blocks of 512 threads a processor";
    r.add("bandwidth", "read" + each, read, 1, double(kLarge));
    r.add("bandwidth", "copy" + each, copy, 1, 2.0 * double(kLarge));
    r.limit("read_gigabytes", double(kLarge) / read.p50 / 1e9);
    r.limit("copy_gigabytes", 2.0 * double(kLarge) / copy.p50 / 1e9);
  }
  const Times copy = times([&] { CHECK(cudaMemcpyAsync(b, a, kLarge, cudaMemcpyDeviceToDevice, own().stream)); });
  r.add("bandwidth", "cudaMemcpy", copy, 1, 2.0 * double(kLarge));
  r.limit("copy_gigabytes", 2.0 * double(kLarge) / copy.p50 / 1e9);
  if (!has_bulk()) return;
  const Times read = times([&] {
    launch(read_bulk, 3 * processors(), 32, 4 * kChunk, false, reinterpret_cast<const unsigned char*>(words),
           kLarge / kChunk);
  });
  r.add("bandwidth", "read by bulk copies", read, 1, double(kLarge));
  r.limit("read_gigabytes", double(kLarge) / read.p50 / 1e9);
}

// ---- 2: nodes of a graph ----

__global__ void node(const unsigned char* ahead, size_t bytes) {
  let_next_start();
  const size_t step = size_t(gridDim.x) * blockDim.x * 128;
  for (size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * 128; i < bytes; i += step) prefetch(ahead + i);
  wait_for_previous();
}

void nodes(Results& r) {
  constexpr int kNodes = 1000;
  Memory<unsigned char> weights(size_t(1) << 30);
  struct Way {
    const char* what;
    bool early;
    size_t ahead;
  };
  for (const Way& way : {Way{"a node that waits", false, 0}, Way{"a dependent launch", true, 0},
                         Way{"a dependent launch, 64 KB fetched ahead", true, size_t(64) << 10},
                         Way{"a dependent launch, 1 MB fetched ahead", true, size_t(1) << 20}}) {
    if (way.early && !has_bulk()) continue;
    const Times t = graph_times([&] {
      for (size_t i = 0; i < kNodes; i++)
        launch(node, processors(), 256, 0, way.early, weights + i * (size_t(1) << 20), way.ahead);
    });
    r.add("nodes", way.what, t, kNodes, double(way.ahead) * kNodes);
  }
}

// ---- 3: a barrier of all blocks ----

constexpr int kBarriers = 1000;

__global__ void barriers_of_the_runtime() {
  for (int i = 0; i < kBarriers; i++) cooperative_groups::this_grid().sync();
}
__global__ void barriers_by_counting(uint32_t* counter, uint32_t passed) {
  for (int i = 0; i < kBarriers; i++) {
    __syncthreads();
    if (threadIdx.x == 0) count_and_wait(counter, passed += gridDim.x);
    __syncthreads();
  }
}

void barrier(Results& r) {
  Memory<uint32_t> counter(1);
  counter.zero();
  uint32_t passed = 0;
  for (int threads : {256, 512}) {
    const std::string each = std::to_string(threads) + " threads a block";
    const Times runtime = times([&] { launch_together(barriers_of_the_runtime, processors(), threads, 0); });
    r.add("barrier", "cooperative groups, " + each, runtime, kBarriers);
    const Times counted = times([&] {
      launch_together(barriers_by_counting, processors(), threads, 0, counter, passed);
      passed += uint32_t(processors()) * kBarriers;
    });
    r.add("barrier", "a counter, " + each, counted, kBarriers);
  }
}

// ---- 4: a chain of products ----

void chain(Results& r) {
  Chain chain(processors());
  const double bytes = double(chain.bytes());
  r.add("chain", "7 kernels a layer", graph_times([&] { chain.kernels(false); }), 1, bytes);
  if (!chain.fits_persistent()) return;
  r.add("chain", "7 kernels a layer, dependent launches", graph_times([&] { chain.kernels(true); }), 1, bytes);
  const std::vector<float> expected = chain.result();
  r.add("chain", "one kernel with a ring of weights", times([&] { chain.persistent(); }), 1, bytes);
  const std::vector<float> found = chain.result();
  double difference = 0, largest = 0;
  for (size_t i = 0; i < found.size(); i++) {
    difference = std::max(difference, double(std::abs(found[i] - expected[i])));
    largest = std::max(largest, double(std::abs(expected[i])));
  }
  r.limit("chain_largest_difference", difference / largest);
}

// ---- 5: states of a recurrence ----

// A head of 64 of one sequence; four threads have a row of the state, as in the engine.
template <class T>
__global__ void wkv(const T* from, T* to, const float* vectors) {
  __shared__ float x[6][64];
  const int row = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4;
  for (int i = int(threadIdx.x); i < 384; i += 256) x[i / 64][i % 64] = vectors[size_t(blockIdx.x % 4096) * 384 + i];
  constexpr int kPart = 16 / sizeof(T), kParts = 16 / kPart;  // of 16 bytes
  union Part {
    uint4 words;
    T value[kPart];
  } part[kParts];
  const size_t at = blockIdx.x * size_t(4096) + row * 64;
#pragma unroll
  for (int m = 0; m < kParts; m++) part[m].words = load_stream(from + at + kPart * (q + 4 * m));
  __syncthreads();
  float removed = 0;
#pragma unroll
  for (int m = 0; m < kParts; m++)
    for (int i = 0; i < kPart; i++) removed += x[0][kPart * (q + 4 * m) + i] * float(part[m].value[i]);
  removed += __shfl_xor_sync(~0u, removed, 1);
  removed += __shfl_xor_sync(~0u, removed, 2);
#pragma unroll
  for (int m = 0; m < kParts; m++) {
    for (int i = 0; i < kPart; i++) {
      const int c = kPart * (q + 4 * m) + i;
      part[m].value[i] = T(0.5f * x[1][c] * float(part[m].value[i]) + 0.01f * x[2][c] * removed + x[3][c] * x[4][row]);
    }
    *reinterpret_cast<uint4*>(to + at + kPart * (q + 4 * m)) = part[m].words;
  }
}

template <class T>
void wkv_of(Results& r, const char* name) {
  constexpr size_t kHeads = 32, kState = 4096;
  Memory<float> vectors(4096 * 384);
  for (size_t batch : {64, 256, 960}) {
    const size_t one = batch * kHeads * kState, layers = std::max<size_t>(1, (size_t(1) << 30) / (one * sizeof(T)));
    Memory<T> from(one * layers), to(one * layers);
    const Times t = graph_times([&] {
      for (size_t i = 0; i < layers; i++)
        launch(wkv<T>, int(batch * kHeads), 256, 0, false, from + i * one, to + i * one, vectors);
    });
    r.add("wkv", std::string(name) + " states, batch " + std::to_string(batch), t, double(layers),
          2.0 * double(from.bytes()));
  }
}

// ---- 6: tensor cores ----

constexpr int kDepth = 1024, kSteps = kDepth / 16;  // k of the products, and of the instructions in it

// A warp has 16 rows of weights, whose 16 bytes a lane are its fragment; tokens are 8 N columns.
template <int N>
__global__ void __launch_bounds__(256) few_tokens(const uint4* weights, const uint2* tokens, float4* y, int tiles) {
  extern __shared__ uint2 operand[];
  for (int i = int(threadIdx.x); i < kSteps * N * 32; i += 256) operand[i] = tokens[i];
  __syncthreads();
  const int lane = int(threadIdx.x) % 32;
  for (int tile = int(blockIdx.x) * 8 + int(threadIdx.x) / 32; tile < tiles; tile += int(gridDim.x) * 8) {
    const uint4* from = weights + size_t(tile) * kSteps * 32 + lane;
    float4 sum[N] = {};
    for (int k = 0; k < kSteps; k += 8) {
      uint4 a[8];
#pragma unroll
      for (int i = 0; i < 8; i++) a[i] = load_stream(from + (k + i) * 32);
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int n = 0; n < N; n++) mma(sum[n], a[i], operand[((k + i) * N + n) * 32 + lane]);
    }
#pragma unroll
    for (int n = 0; n < N; n++) y[(size_t(tile) * N + n) * 32 + lane] = sum[n];
  }
}
__global__ void __launch_bounds__(256) peak(const uint4* numbers, float4* y, int rounds) {
  const int i = int(blockIdx.x) * 256 + int(threadIdx.x);
  const uint4 a = numbers[i % 4096];
  const uint2 b = {numbers[(i + 1) % 4096].x, numbers[(i + 1) % 4096].y};
  float4 sum[8] = {};
  for (int k = 0; k < rounds; k++)
#pragma unroll
    for (int n = 0; n < 8; n++) mma(sum[n], a, b);
#pragma unroll
  for (int n = 1; n < 8; n++) sum[0].x += sum[n].x + sum[n].y + sum[n].z + sum[n].w;
  y[i] = sum[0];
}

template <int N>
void few(Results& r, const uint4* weights, int tiles, const uint4* tokens, float4* y) {
  const Times t = times([&] {
    launch(few_tokens<N>, (N == 1 ? 6 : 3) * processors(), 256, kSteps * N * 32 * sizeof(uint2), false, weights,
           reinterpret_cast<const uint2*>(tokens), y, tiles);
  });
  const double rows = double(tiles) * 16, count = rows * kDepth;
  r.add("mma", "batch " + std::to_string(8 * N), t, 1, 2 * count + 4 * rows * 8 * N, 2 * count * 8 * N);
}

void tensor_cores(Results& r) {
  constexpr int kTiles = 65536;  // 2 GB
  Memory<uint4> weights(size_t(kTiles) * kSteps * 32), tokens(size_t(kSteps) * 4 * 32);
  Memory<float4> y(size_t(kTiles) * 4 * 32);
  few<1>(r, weights, kTiles, tokens, y);
  few<4>(r, weights, kTiles, tokens, y);
  constexpr int kRounds = 4096;
  const Times t = times([&] { launch(peak, 4 * processors(), 256, 0, false, weights, y, kRounds); });
  const double operations = 2.0 * 16 * 8 * 16 * 8 * kRounds * 4 * processors() * 8;  // 8 of each of 8 warps
  r.add("mma", "peak of mma.sync, fp16 with float32 sums", t, 1, 0, operations);
  r.limit("mma_teraflops", operations / t.p50 / 1e12);
}

}  // namespace

int main(int count, char** names) {
  const std::vector<std::pair<std::string, void (*)(Results&)>> probes = {
      {"bandwidth", bandwidth},
      {"nodes", nodes},
      {"barrier", barrier},
      {"chain", chain},
      {"wkv", [](Results& r) { wkv_of<float>(r, "float32"), wkv_of<__half>(r, "fp16"); }},
      {"mma", tensor_cores}};
  Results results;
  for (const auto& [name, probe] : probes)
    if (count == 1 || std::find(names + 1, names + count, name) != names + count) probe(results);
  results.print();
}
