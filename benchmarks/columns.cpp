// The ffn's value product of one token, with and without skipping zero inputs: how much faster it is for each share of
// zeros, and so from which share on it pays. Before each of them comes a product that skips nothing, as in a model:
// what skipping does to the speed of what follows counts too.
//
//   columns [threads] [rows columns]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"

using namespace rwkv;

namespace {

constexpr size_t kBytes = size_t(600) << 20;  // of panels: more than any cache holds
constexpr int kRounds = 7;

struct Matrices {
  std::shared_ptr<Backend> backend;
  Arena arena;
  std::vector<Linear> all;
  Operand x;
  Tensor y, sum;

  Matrices(int threads, Format format, int rows, int cols)
      : backend(open_backend("cpu", {.threads = threads, .sparse = true})) {
    const Linear shape{.format = format, .rows = rows, .cols = cols, .mostly_zero_inputs = true};
    const size_t panels = backend->linear_bytes(shape), columns = backend->column_bytes(shape);
    const size_t count = kBytes / panels;
    arena = Arena(backend->allocate(count * (panels + columns + 128) + (size_t(rows) + size_t(cols)) * 64));
    backend->prepare({.width = cols});
    std::mt19937 random(1);
    std::vector<float> values(size_t(rows) * size_t(cols));
    for (float& v : values) v = float(random() % 1000) / 1000 - 0.5f;
    for (size_t i = 0; i < count; i++) {
      Linear w = shape;
      w.data = arena.take(panels), w.columns = arena.take(columns);
      if (i == 0) {
        backend->pack(w, {DType::f32, 1 << 18, [&](int64_t row, int64_t n, std::byte* to) {
                            std::memcpy(to, &values[size_t(row * cols)], size_t(n * cols) * sizeof(float));
                          }});
        backend->pack_columns(w);
      } else {
        std::memcpy(w.data, all[0].data, panels);
        std::memcpy(w.columns, all[0].columns, columns);
      }
      all.push_back(w);
    }
    const Format operand = backend->operand_format(format);
    x = {arena.take(backend->operand_bytes(operand, 1, cols)), operand, 1, cols};
    for (Tensor* t : {&y, &sum}) *t = arena.take(DType::f32, 1, rows, backend->row_stride(rows));
  }

  void set_zeros(int percent) {
    std::mt19937 random(2);
    std::vector<float> values(size_t(x.cols));
    for (float& v : values) v = int(random() % 100) < percent ? 0.0f : float(random() % 1000 + 1) / 1000;
    const int k = cpu::padded_k(x.format, x.cols);
    cpu::choose_kernels().pack_rows(x.format, values.data(), values.size(), 1, 0, x.cols, k, x.data, 1, 0);
  }
  // Microseconds of a product and of the one before it.
  std::pair<double, double> time(bool skip) {
    using Clock = std::chrono::steady_clock;
    std::chrono::duration<double, std::micro> before(0), product(0);
    const size_t half = all.size() / 2;
    for (size_t i = 0; i < half; i++) {
      Linear other = all[half + i], w = all[i];
      other.columns = nullptr;
      if (!skip) w.columns = nullptr;
      const LinearJob first[] = {{x, other, y, Act::none, {}, sum}}, job[] = {{x, w, y, Act::none, {}, sum}};
      const auto begin = Clock::now();
      backend->linear(first);
      const auto middle = Clock::now();
      backend->linear(job);
      before += middle - begin, product += Clock::now() - middle;
    }
    return {product.count() / double(half), before.count() / double(half)};
  }
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void measure(int threads, Format format, int rows, int cols) {
  Matrices m(threads, format, rows, cols);
  const double bytes = double(m.backend->linear_bytes(m.all[0]));
  for (int percent : {0, 30, 40, 50, 60, 70, 86}) {
    m.set_zeros(percent);
    std::vector<double> dense, skipping, saved;
    for (int round = 0; round < kRounds; round++) {  // in turns
      const auto [d, before_d] = m.time(false);
      const auto [s, before_s] = m.time(true);
      dense.push_back(d), skipping.push_back(s), saved.push_back(d + before_d - s - before_s);
    }
    const double all = median(dense), net = all - median(saved);
    std::printf(
        "%s  %d x %d  %d thread%s  %3d %% zeros  %7.1f us, %5.1f GB/s  skipping %7.1f us, %7.1f with what it costs "
        "others  %5.2f times faster\n",
        format == Format::f32    ? "f32 "
        : format == Format::bf16 ? "bf16"
                                 : "int8",
        rows, cols, threads, threads == 1 ? " " : "s", percent, all, bytes / all / 1e3, median(skipping), net,
        all / net);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int only = argc > 1 ? std::atoi(argv[1]) : 0;
  for (auto [rows, cols] : {std::pair{2048, 8192}, {768, 3072}}) {
    if (argc > 3 && (rows != std::atoi(argv[2]) || cols != std::atoi(argv[3]))) continue;
    for (Format format : {Format::i8, Format::bf16, Format::f32})
      for (int threads : {1, 2})
        if (only == 0 || only == threads) measure(threads, format, rows, cols);
  }
}
