// Products that skip zero inputs against those that do not: every comparison is one of bits.
#include "cpu/columns.h"

#include "products.h"

namespace {

constexpr Format kSkipping[] = {Format::f32, Format::f16, Format::bf16, Format::i8};

struct Columns {
  std::vector<std::byte> bytes;
  bool finite = true;

  explicit Columns(Matrix& w) {
    const int k = padded_k(w.format, w.cols);
    bytes.resize(kColumnHead + column_bytes(w.format, column_rows(w.rows), k) + 64);
    for (int k0 = 0; k0 < k; k0 += kGroup) finite &= turn_columns(w.format, w.data(), w.rows, k, k0, data());
    allow_skipping(data(), finite);
  }
  std::byte* data() { return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64; }
};

// Zeros of both signs, so many in a hundred, among numbers of any size.
Row with_zeros(Random& random, int count, int percent) {
  Row x = random.row(size_t(count));
  for (float& v : x) {
    if (random.below(100) < percent) v = random.below(2) ? 0.0f : -0.0f;
    if (random.below(20) == 0) v *= 40;
    if (random.below(40) == 0) v *= 1e-30f;
    if (random.below(60) == 0) v *= 1e-38f;
  }
  return x;
}

struct Sums {
  Row y, sum;
};

// What both products add to the same numbers, zeros of both signs among them; sum += y, or gate y.
Sums add(const Kernels& k, Matrix& w, Columns* columns, const Row& x, const Row& gate, const std::vector<int>& cuts) {
  const FlushDenormals flush;
  const int panels = panels_of(w.rows), padded = padded_k(w.format, w.cols);
  const size_t n = size_t(panels) * kPanel;
  const std::vector<std::byte> operand = pack(k, operand_format(w.format), x, 1, w.cols);
  Sums s{Row(n), Row(n)};
  for (size_t i = 0; i < n; i++) s.sum[i] = i % 3 == 0 ? -0.0f : i % 3 == 1 ? 0.0f : float(i) * 0x1p-20f;
  const Product p{w.data(),
                  w.format,
                  padded,
                  operand.data(),
                  1,
                  s.y.data(),
                  n,
                  Act::none,
                  nullptr,
                  Format::f32,
                  0,
                  0,
                  s.sum.data(),
                  n,
                  gate.empty() ? nullptr : gate.data(),
                  n};
  std::vector<int32_t> live(static_cast<size_t>(padded));
  const int count = columns ? k.live_columns(w.format, operand.data(), padded, padded, live.data()) : 0;
  int from = 0;
  for (int i = 0; i <= int(cuts.size()); i++) {
    const int to = i < int(cuts.size()) ? cuts[size_t(i)] : panels;
    if (columns)
      k.column_product(p, {columns->data(), w.rows, live.data(), count}, from, to);
    else
      k.product(p, from, to);
    from = to;
  }
  s.y.resize(size_t(w.rows)), s.sum.resize(size_t(w.rows));
  return s;
}

}  // namespace

TEST(skipping_changes_no_bit) {
  Random random;
  for (Format format : kSkipping)
    for (auto [rows, cols] : {std::pair{70, 700}, {33, 64}, {5, 1}, {64, 130}, {200, 91}, {2200, 70}})
      for (int percent : {0, 50, 86, 100}) {
        Matrix w(rows, cols, format, [&] { return random.unit() * (random.below(30) ? 1.0f : 1e-38f); });
        Columns columns(w);
        CHECK(columns.finite);
        const Row x = with_zeros(random, cols, percent), gate = random.row(size_t(panels_of(rows) * kPanel));
        for (const Kernels* k : all_sets())
          for (const Row& g : {Row(), gate}) {
            const Sums expected = add(*k, w, nullptr, x, g, {}), found = add(*k, w, &columns, x, g, {});
            CHECK(std::memcmp(found.sum.data(), expected.sum.data(), size_t(rows) * 4) == 0);
            if (rows > 128) CHECK(same(add(*k, w, &columns, x, g, {2, 6}).sum, expected.sum));
          }
      }
}

TEST(sums_that_underflow_to_minus_zero_make_no_difference) {
  for (Format format : kSkipping) {
    // A negative product that is flushed to -0, then zeros times weights of both signs.
    int column = 0;
    const float weight = format == Format::f16 ? 1e-4f : 1e-20f, input = format == Format::f16 ? 1e-37f : 1e-25f;
    Matrix w(70, 200, format, [&] {
      const int at = column++;
      return at % 200 == 3 ? -weight : at / 200 % 2 ? weight : -weight;
    });
    Columns columns(w);
    Row x(200, 0.0f);
    x[3] = input;
    for (const Kernels* k : all_sets()) {
      const Sums expected = add(*k, w, nullptr, x, {}, {}), found = add(*k, w, &columns, x, {}, {});
      CHECK(std::memcmp(found.sum.data(), expected.sum.data(), 70 * 4) == 0);
      // Without the addition of 0 there would be one. (The generic set has it after every product, bf16 in each half of
      // 32 columns.)
      if (operand_format(format) == Format::f32 && k != &kGeneric)
        CHECK(std::memcmp(found.y.data(), expected.y.data(), 70 * 4) != 0);
    }
  }
}

TEST(numbers_that_are_not_finite_go_the_same_way) {
  Random random;
  for (Format format : kSkipping)
    for (float bad : {kNan, kInf, -kInf}) {
      Matrix w(70, 150, format, [&] { return random.unit(); });
      Columns columns(w);
      Row x = with_zeros(random, 150, 86);
      x[70] = bad;
      for (const Kernels* k : all_sets()) {
        const Sums expected = add(*k, w, nullptr, x, {}, {}), found = add(*k, w, &columns, x, {}, {});
        CHECK(same(found.sum, expected.sum));
        CHECK(!std::isfinite(found.sum[5]));
      }
      for (int place : {0, 70 * 150 - 1, 31 * 150 + 77}) {
        int next = 0;
        Matrix broken(70, 150, format, [&] { return next++ == place ? bad : 1.0f; });
        Columns refused(broken);
        CHECK(!refused.finite && !may_skip(refused.data()) && may_skip(columns.data()));
      }
    }
  Matrix w(3, 3, Format::f32, [] { return 1.0f; });
  Columns unwritten(w);
  std::memset(unwritten.data(), 0, kColumnHead);
  CHECK(!may_skip(unwritten.data()));
}

TEST(live_columns_are_those_that_are_not_zero) {
  Random random;
  for (Format format : kSkipping)
    for (int cols : {1, 3, 64, 91, 700})
      for (int percent : {0, 50, 86, 100}) {
        const Row x = with_zeros(random, cols, percent);
        const int padded = padded_k(format, cols);
        for (const Kernels* k : all_sets()) {
          const std::vector<std::byte> operand = pack(*k, operand_format(format), x, 1, cols);
          std::vector<int32_t> expected, live(static_cast<size_t>(padded), -7);
          for (int c = 0; c < cols; c++) {
            const int at = format == Format::bf16 ? c ^ 1 : c;
            if (at >= cols) continue;
            const std::byte* group = operand.data() + row_bytes(Format::i8, at / kGroup * kGroup);
            if (format == Format::i8 ? group[at % kGroup] != std::byte{0}
                                     : rounded(operand_format(format), x[size_t(at)]) != 0)
              expected.push_back(at);
          }
          if (format == Format::bf16 && cols % 2 && x[size_t(cols - 1)] != 0) expected.push_back(cols - 1);
          const int count = int(expected.size());
          CHECK(k->live_columns(format, operand.data(), padded, count, live.data()) == count);
          live.resize(size_t(count));
          if (format == Format::i8) {  // in any order within a group
            for (int i = 1; i < count; i++) CHECK(live[size_t(i)] / kGroup >= live[size_t(i - 1)] / kGroup);
            std::ranges::sort(live);
          }
          CHECK(live == expected);
          live.resize(static_cast<size_t>(padded));
          if (count > 0) CHECK(k->live_columns(format, operand.data(), padded, count - 1, live.data()) == -1);
        }
      }
}

TEST(devices_skip_or_not_with_the_same_bits) {
  Random random;
  constexpr int kRows = 200, kCols = 330;
  for (Format format : kSkipping)
    for (int percent : {20, 86, 100})
      for (bool broken : {false, true}) {
        Row weights = random.row(size_t(kRows) * kCols), x = with_zeros(random, kCols, percent);
        if (broken) weights[777] = kInf, x[777 % kCols] = 0;
        Row expected;
        for (std::optional<bool> sparse : {std::optional(false), std::optional(true), std::optional<bool>()})
          for (int threads : {1, 2, 3, 8}) {
            const auto backend = open_backend("cpu", {threads, sparse});
            backend->prepare({.width = kCols});
            Arena arena(backend->allocate(4 << 20));
            Linear w{.format = format, .rows = kRows, .cols = kCols, .mostly_zero_inputs = true};
            w.data = arena.take(backend->linear_bytes(w));
            const size_t bytes = backend->column_bytes(w);
            CHECK((bytes == 0) == (sparse == std::optional(false)));
            if (bytes > 0) w.columns = arena.take(bytes);
            const auto pack = [&](const Linear& to, const Row& numbers) {
              backend->pack(to, {DType::f32, 4096, [&](int64_t row, int64_t count, std::byte* rows) {
                                   std::memcpy(rows, &numbers[size_t(row * to.cols)], size_t(count * to.cols) * 4);
                                 }});
            };
            pack(w, weights);
            if (bytes > 0) backend->pack_columns(w);
            const auto rows = [&](int cols) { return arena.take(DType::f32, 1, cols, backend->row_stride(cols)); };
            const Operand operand{arena.take(backend->operand_bytes(operand_format(format), 1, kCols)),
                                  operand_format(format), 1, kCols};
            const Tensor in = rows(kCols), one = rows(kCols), y = rows(kRows), sum = rows(kRows);
            std::ranges::copy(x, in.as<float>());
            // The operand of an identity's product: x itself.
            Linear identity{.format = Format::f32, .rows = kCols, .cols = kCols};
            identity.data = arena.take(backend->linear_bytes(identity));
            Row unit(size_t(kCols) * kCols);
            for (int i = 0; i < kCols; i++) unit[size_t(i) * (kCols + 1)] = 1;
            pack(identity, unit);
            const Operand plain{arena.take(backend->operand_bytes(Format::f32, 1, kCols)), Format::f32, 1, kCols};
            std::ranges::copy(x, reinterpret_cast<float*>(plain.data));
            const LinearJob make[] = {{plain, identity, one, Act::none, operand}};
            backend->linear(make);
            const LinearJob job[] = {{operand, w, y, Act::none, {}, sum}};
            backend->linear(job);
            const Row found(sum.as<float>(), sum.as<float>() + kRows);
            if (expected.empty()) expected = found;
            CHECK(same(found, expected));
            CHECK(std::isfinite(found[2]) == !broken);
          }
      }
}

CHECK_MAIN
