// How close the kernels come to what this machine can do. Everything is a ratio to a limit measured in the same
// process: bytes of weights per second to the best reader, multiply-adds per second to chains of nothing else.
//
//   kernels [threads, 0: one and two] [name of an instruction set or all] [name of a format]
#include "cpu/kernels.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "core/platform.h"
#include "cpu/pack.h"
#include "simd/limits.h"

using namespace rwkv;
using namespace rwkv::cpu;

namespace {

constexpr size_t kBytes = size_t(5) << 28;  // of weights: more than any cache holds
constexpr int kSide = 2048;                 // of a matrix
constexpr Format kFormats[] = {Format::f32, Format::f16, Format::bf16, Format::i8, Format::i4};
constexpr const char* kNames[] = {"f32", "f16", "bf16", "int8", "int4"};

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
  if (has.avxvnni) all.push_back(&kAvxVnni);
  if (has.avx512) all.push_back(&kAvx512);
  if (has.avx512vnni) all.push_back(&kAvx512Vnni);
  if (has.avx512amx && request_tiles()) all.push_back(&kAvx512Amx);
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

double peak(const Kernels& kernels, Format format, int threads) {
  for (const limits::Peak& p : limits::kPeaks) {
    if (std::strcmp(p.name, kernels.name) != 0) continue;
    const bool bytes = operand_format(format) == Format::i8;
    const long rounds = 4'000'000;
    const double seconds = best_time(threads, 5, [&](int) { (bytes ? p.run_bytes : p.run)(rounds); });
    return double(rounds) * threads * (bytes ? p.byte_operations : p.operations) / seconds / 1e9;
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
    const Format operand = operand_format(format);
    const int tiles = tile_count(tokens, tile_of(kernels, operand));
    for (int i = 0; i < tiles; i++) {
      const int begin = tile_start(tokens, tiles, i), m = tile_start(tokens, tiles, i + 1) - begin;
      kernels.pack_rows(operand, plain.data() + size_t(begin) * kSide, kSide, m, 0, kSide, kSide,
                        x.data() + size_t(begin) * row_bytes(operand, kSide), m, 0);
    }
  }
  size_t matrix_bytes() const { return size_t(kSide / kPanel) * panel_bytes(format, kSide); }
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
  double weight(const std::byte* panel, int row, int k) const {
    if (format == Format::f32) return double(reinterpret_cast<const float*>(panel)[k * kPanel + row]);
    const auto* halves = reinterpret_cast<const uint16_t*>(panel);
    if (format == Format::f16) return double(f16_to_f32(halves[k * kPanel + row]));
    if (format == Format::bf16) return double(bf16_to_f32(halves[(k / 2 * kPanel + row) * 2 + k % 2]));
    panel += panel_bytes(format, k / kGroup * kGroup);
    const int per = format == Format::i8 ? 4 : 8;
    int q = int(panel[kPanel * 2 + (k % kGroup / per * kPanel + row) * 4 + k % 4]);
    q = format == Format::i8 ? q - 128 : (q >> (k % 8 < 4 ? 0 : 4) & 15) - 8;
    return q * double(bf16_to_f32(reinterpret_cast<const uint16_t*>(panel)[row]));
  }
  // Some outputs of the last matrix against float64.
  double error(int matrix) const {
    const std::byte* w = weights + size_t(matrix % matrices()) * matrix_bytes();
    double worst = 0;
    for (int row = 5; row < kSide; row += 97)
      for (int t : {0, tokens / 2, tokens - 1}) {
        double sum = 0, size = 0;
        for (int k = 0; k < kSide; k++) {
          const std::byte* at = w + size_t(row / kPanel) * panel_bytes(format, kSide);
          const double a = plain[size_t(t) * kSide + size_t(k)], b = weight(at, row % kPanel, k);
          sum += a * b;
          size += std::fabs(a * b);
        }
        worst = std::max(worst, std::fabs(sum - double(y[size_t(t) * kSide + size_t(row)])) / size);
      }
    return worst;
  }
};

void check(double error, Format format = Format::f32) {
  if (error < (operand_format(format) == Format::i8 ? 5e-3 : 1e-5))
    return;  // int8, int4: the activations are rounded too
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

void measure(int threads, const char* only, std::span<const std::byte* const> weights) {
  std::printf("%d thread%s\n", threads, threads == 1 ? "" : "s");
  const std::byte* some = *std::ranges::find_if(weights, [](const std::byte* w) { return w; });
  double bandwidth = read_bandwidth(threads, some, true);
  for (const Kernels* k : tables()) {
    if (only && std::strcmp(only, k->name) != 0) continue;
    for (Format f : kFormats) {
      const char* name = kNames[size_t(f)];
      if (!weights[size_t(f)]) continue;
      const double most = peak(*k, f, threads);
      std::printf("  %s: at most %.0f Gop/s of %s\n", k->name, most,
                  operand_format(f) == Format::i8 ? "int8" : "float32");
      Bench one(*k, weights[size_t(f)], f, 1);
      const double s = one.seconds(threads, 9, 0, one.matrices());
      check(one.error(one.matrices() - 1), f);
      bandwidth = std::max(bandwidth, read_bandwidth(threads, some, false));
      const double rate = double(one.matrix_bytes()) * one.matrices() / s / 1e9;
      std::printf("    %-4s    1 token  %6.1f GB/s  %3.0f %% of reading\n", name, rate, 100 * rate / bandwidth);
      for (int tokens : {4, 16, 64, 512}) {
        Bench many(*k, weights[size_t(f)], f, tokens);
        const int count = std::max(2, 1024 / tokens);
        const double time = many.seconds(threads, 5, 0, count);
        check(many.error(count - 1), f);
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
  // A few MB of random weights, again and again: the memory differs, the numbers need not.
  constexpr int kRows = 1 << 10;
  std::vector<float> row(kSide);
  std::vector<std::byte> block;
  std::vector<std::shared_ptr<std::byte>> pages;
  std::vector<const std::byte*> weights;
  uint32_t seed = 1;
  for (Format f : kFormats) {
    if (argc > 3 && std::strcmp(argv[3], kNames[size_t(f)]) != 0) {
      weights.push_back(nullptr);
      continue;
    }
    block.assign(size_t(kRows / kPanel) * panel_bytes(f, kSide), std::byte{0});
    for (int r = 0; r < kRows; r++) {
      for (float& v : row) v = float(int(seed = seed * 1664525 + 1013904223) >> 8) * 0x1p-27f;
      for (int k = 0; k < kSide; k += kGroup)
        pack_weights(f, &row[size_t(k)], r % kPanel, kGroup,
                     block.data() + size_t(r / kPanel) * panel_bytes(f, kSide) + panel_bytes(f, k));
    }
    weights.push_back(pages.emplace_back(map_pages(kBytes)).get());
    for (size_t i = 0; i < kBytes; i += block.size())
      std::memcpy(pages.back().get() + i, block.data(), std::min(block.size(), kBytes - i));
  }
  for (int threads : {1, 2})
    if (only_threads == 0 || only_threads == threads)
      measure(threads, argc > 2 && std::strcmp(argv[2], "all") != 0 ? argv[2] : nullptr, weights);
}
