// How close the kernels come to what this machine can do. Everything is a ratio to a limit measured in the same
// process: bytes of weights per second to the best reader, multiply-adds per second to chains of nothing else.
//
//   kernels [threads] [name of an instruction set]
#include "cpu/kernels.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "core/platform.h"
#include "simd/limits.h"

using namespace rwkv;
using namespace rwkv::cpu;

namespace {

constexpr size_t kBytes = size_t(5) << 28;  // of weights: more than any cache holds
constexpr int kSide = 2048;                 // of a matrix

// Best of several runs of fn(thread) on that many threads, in seconds.
template <class F>
double best_time(int threads, int runs, F fn) {
  double best = 1e30;
  for (int run = 0; run < runs; run++) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; i++) pool.emplace_back([&fn, i] { fn(i); });
    fn(0);
    for (std::thread& t : pool) t.join();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> all = {&kGeneric};
#if RWKV_X86
  const x86::Features has = x86::features();
  if (has.avx2) all.push_back(&kAvx2);
  if (has.avx512) all.push_back(&kAvx512);
  if (has.avx512vnni) all.push_back(&kAvx512Vnni);
  if (has.avx512bf16) all.push_back(&kAvx512Bf16);
#endif
  return all;
}

bool has(const char* name) {
  for (const Kernels* k : tables())
    if (std::strncmp(k->name, name, std::strcspn(name, ",")) == 0) return true;
  return std::strncmp(name, "avx", 3) != 0;
}

double read_bandwidth(int threads, const std::byte* data, bool print) {
  static volatile uint64_t sink;
  double best = 0;
  for (const limits::Reader& reader : limits::kReaders) {
    if (!has(reader.name)) continue;
    const size_t part = kBytes / size_t(threads) / 4096 * 4096;
    const double s = best_time(threads, 6, [&](int i) { sink = sink ^ reader.read(data + size_t(i) * part, part); });
    const double rate = double(part) * threads / s / 1e9;
    if (print) std::printf("  read, %-16s %6.1f GB/s\n", reader.name, rate);
    best = std::max(best, rate);
  }
  return best;
}

double peak(const Kernels& kernels, int threads) {
  for (const limits::Peak& p : limits::kPeaks) {
    if (std::strcmp(p.name, kernels.name) != 0) continue;
    const long rounds = 4'000'000;
    return double(rounds) * threads * p.operations / best_time(threads, 5, [&](int) { p.run(rounds); }) / 1e9;
  }
  return NAN;
}

// Products of matrices that lie one behind the other, all of the same shape, each cut between the threads.
struct Bench {
  const Kernels& kernels;
  const std::byte* weights;
  Format format;
  int tokens;
  std::vector<std::byte> x;
  std::vector<float> plain, y;

  Bench(const Kernels& k, const std::byte* w, Format f, int t)
      : kernels(k),
        weights(w),
        format(f),
        tokens(t),
        x(size_t(t) * kSide * 4),
        plain(size_t(t) * kSide),
        y(plain.size()) {
    for (size_t i = 0; i < plain.size(); i++) plain[i] = float(int(uint32_t(i) * 2654435761u >> 24) - 128) / 128;
    const int tiles = tile_count(tokens, kernels.tile);
    for (int i = 0; i < tiles; i++) {
      const int begin = tile_start(tokens, tiles, i), m = tile_start(tokens, tiles, i + 1) - begin;
      kernels.pack_rows(format, plain.data() + size_t(begin) * kSide, kSide, m, 0, kSide, kSide,
                        x.data() + size_t(begin) * kSide * size_t(size_of(format)), m, 0);
    }
  }
  size_t matrix_bytes() const { return size_t(kSide) * kSide * size_t(size_of(format)); }
  int matrices() const { return int(kBytes / matrix_bytes()); }

  double seconds(int threads, int runs, int begin, int count) {
    return best_time(threads, runs, [&](int thread) {
      const FlushDenormals flush;
      const int panels = kSide / kPanel;
      for (int i = begin; i < begin + count; i++) {
        const Product p{weights + size_t(i % matrices()) * matrix_bytes(),
                        format,
                        kSide,
                        x.data(),
                        tokens,
                        y.data(),
                        kSide,
                        Act::none,
                        nullptr,
                        Format::f32,
                        0,
                        0,
                        nullptr,
                        0};
        kernels.product(p, panels * thread / threads, panels * (thread + 1) / threads);
      }
    });
  }
  // Some outputs of the last matrix against float64.
  double error(int matrix) const {
    const std::byte* w = weights + size_t(matrix % matrices()) * matrix_bytes();
    const auto bf16 = [](uint32_t b) { return double(std::bit_cast<float>(b << 16)); };
    double worst = 0;
    for (int row = 5; row < kSide; row += 97)
      for (int t : {0, tokens / 2, tokens - 1}) {
        double sum = 0, size = 0;
        for (int k = 0; k < kSide; k++) {
          const std::byte* at = w + size_t(row / kPanel) * kPanel * kSide * size_t(size_of(format));
          const size_t r = size_t(row % kPanel);
          const double a = plain[size_t(t) * kSide + size_t(k)];
          const double b =
              format == Format::f32
                  ? double(reinterpret_cast<const float*>(at)[size_t(k) * kPanel + r])
                  : bf16(reinterpret_cast<const uint16_t*>(at)[(size_t(k / 2) * kPanel + r) * 2 + size_t(k % 2)]);
          sum += a * b;
          size += std::fabs(a * b);
        }
        worst = std::max(worst, std::fabs(sum - double(y[size_t(t) * kSide + size_t(row)])) / size);
      }
    return worst;
  }
};

void check(double error) {
  if (error < 1e-5) return;
  std::printf("WRONG ANSWER: error %g\n", error);
  std::exit(1);
}

double wkv_nanoseconds(const Kernels& kernels, int tokens, int threads) {
  constexpr int n = 64, heads = 16, ld = n * heads;
  return best_time(threads, 7,
                   [&](int) {
                     const FlushDenormals flush;
                     std::vector<float> in(size_t(8) * size_t(tokens) * ld), channel(ld, 0.5f),
                         state(size_t(heads) * n * n), y(in.size() / 8);
                     for (size_t i = 0; i < in.size(); i++)
                       in[i] = float(int(uint32_t(i) * 2654435761u >> 24) - 128) / 128;
                     const float* c = channel.data();
                     for (int done = 0; done < 480; done += tokens)
                       for (int h = 0; h < heads; h++) {
                         const auto tensor = [&](int i) { return in.data() + size_t(i) * size_t(tokens) * ld + h * n; };
                         float* s = state.data() + h * n * n;
                         kernels.wkv7({n,
                                       tokens,
                                       ld,
                                       tensor(0),
                                       tensor(1),
                                       tensor(2),
                                       tensor(3),
                                       tensor(4),
                                       tensor(5),
                                       tensor(6),
                                       const_cast<float*>(tensor(7)),
                                       c,
                                       c,
                                       c,
                                       c,
                                       c,
                                       c,
                                       c,
                                       c,
                                       64e-5f,
                                       s,
                                       s,
                                       y.data() + h * n,
                                       ld});
                       }
                     if (!kernels.all_finite(y.data(), y.size())) check(INFINITY);
                   }) *
         1e9 / 480 / heads;
}

void measure(int threads, const char* only, const std::byte* f32, const std::byte* bf16) {
  std::printf("%d thread%s\n", threads, threads == 1 ? "" : "s");
  double bandwidth = read_bandwidth(threads, f32, true);
  for (const Kernels* k : tables()) {
    if (only && std::strcmp(only, k->name) != 0) continue;
    const double most = peak(*k, threads);
    std::printf("  %s: at most %.0f Gop/s of float32\n", k->name, most);
    for (Format f : {Format::f32, Format::bf16}) {
      const char* name = f == Format::f32 ? "f32" : "bf16";
      const std::byte* weights = f == Format::f32 ? f32 : bf16;
      Bench one(*k, weights, f, 1);
      const double s = one.seconds(threads, 9, 0, one.matrices());
      check(one.error(one.matrices() - 1));
      bandwidth = std::max(bandwidth, read_bandwidth(threads, f32, false));
      const double rate = double(one.matrix_bytes()) * one.matrices() / s / 1e9;
      std::printf("    %-4s    1 token  %6.1f GB/s  %3.0f %% of reading\n", name, rate, 100 * rate / bandwidth);
      for (int tokens : {4, 16, 64, 512}) {
        Bench many(*k, weights, f, tokens);
        const int count = std::max(2, 1024 / tokens);
        const double time = many.seconds(threads, 5, 0, count);
        check(many.error(count - 1));
        const double ops = 2.0 * kSide * kSide * tokens * count / time / 1e9;
        std::printf("    %-4s  %3d tokens %6.0f Gop/s %3.0f %% of the peak\n", name, tokens, ops, 100 * ops / most);
      }
    }
    std::printf("    wkv7  %.0f ns per token and head, %.0f one token at a time\n", wkv_nanoseconds(*k, 48, threads),
                wkv_nanoseconds(*k, 1, threads));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int only_threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const auto f32 = map_pages(kBytes), bf16 = map_pages(kBytes);
  // A few MB of random weights, again and again: the memory differs, the numbers need not.
  std::vector<float> block(size_t(1) << 20);
  std::vector<uint16_t> half(block.size() * 2);
  uint32_t seed = 1;
  const auto random = [&seed] { return float(int(seed = seed * 1664525 + 1013904223) >> 8) * 0x1p-27f; };
  for (float& v : block) v = random();
  for (uint16_t& v : half) v = f32_to_bf16(random());
  for (size_t i = 0; i < kBytes; i += block.size() * 4) {
    std::memcpy(f32.get() + i, block.data(), block.size() * 4);
    std::memcpy(bf16.get() + i, half.data(), block.size() * 4);
  }
  for (int threads : {1, 2})
    if (only_threads == 0 || only_threads == threads)
      measure(threads, argc > 2 ? argv[2] : nullptr, f32.get(), bf16.get());
}
