// Products of int8 and int4 against their definition in integers, quantisation against its own, accuracy against
// float64.
#include "cpu/pack.h"
#include "products.h"

namespace {

// The activations of a group, as their definition says.
Group quantised(const float* x, int count) {
  Group g;
  float most = 0;
  for (int i = 0; i < count; i++) most = std::max(most, std::fabs(x[i]));
  if (most < 0x1p-119f) return g;
  const float inverse = 127 / most;
  g.scale = most / 127;
  for (int i = 0; i < count; i++) g.q[i] = int(std::nearbyint(x[i] * inverse));
  return g;
}

// Magnitudes from one to another, with zeros and whole groups of them.
Row mixed(Random& random, int rows, int cols) {
  Row x = random.row(size_t(rows * cols));
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < cols; j++) {
      float& v = x[size_t(i * cols + j)];
      if ((i + j / kGroup) % 7 == 0) v = 0;
      if (random.below(50) == 0) v *= 30;
      if (j / kGroup == 1) v = std::ldexp(v, random.below(40) - 20);
    }
  return x;
}

}  // namespace

TEST(products_of_int8_and_int4_follow_their_definition_in_every_bit) {
  Random random;
  double worst = 0;
  for (const Format format : {Format::i8, Format::i4})
    for (auto [rows, cols] : {std::pair{70, 700}, {33, 64}, {5, 1}, {32, 130}})
      for (int tokens : {1, 6, 12, 17, 40}) {
        const Row weights = mixed(random, rows, cols), x = mixed(random, tokens, cols);
        size_t next = 0;
        Matrix w(rows, cols, format, [&] { return weights[next++]; });
        for (const Kernels* k : all_sets()) {
          const Outcome o = multiply(*k, w, x, tokens);
          for (int t = 0; t < tokens; t++)
            for (int r = 0; r < rows; r++) {
              float expected = 0;
              double exact = 0, bound = 0;
              for (int c = 0; c < cols; c += kGroup) {
                const int count = std::min(kGroup, cols - c);
                const float *row = &weights[size_t(r * cols + c)], *factors = &x[size_t(t * cols + c)];
                const Group a = quantised_weights(format, row, count), b = quantised(factors, count);
                int dot = 0;
                for (int i = 0; i < count; i++) {
                  dot += a.q[i] * b.q[i];
                  exact += double(row[i]) * double(factors[i]);
                  // Half a step of each, the other as it is, and both steps; of int4 a whole one, as 8 is not there.
                  const double step = std::fabs(double(a.scale)) * (format == Format::i8 ? 1 : 2),
                               other = double(b.scale);
                  bound += std::fabs(double(row[i])) * other + (std::fabs(double(factors[i])) + other) * step;
                }
                expected = std::fma(float(dot), a.scale * b.scale, expected);
              }
              const float found = o.y[size_t(t * rows + r)];
              if (k != &kGeneric) CHECK(same(&found, &expected, 1));
              CHECK(std::fabs(double(found - expected)) <= 1e-6 * (std::fabs(double(expected)) + bound));
              CHECK(std::fabs(double(found) - exact) <= bound / 2 + 1e-30);
              worst = std::max(worst, std::fabs(double(found) - exact) / (bound + 1e-30));
            }
        }
      }
  CHECK(worst > 0.05);  // the bound is one that quantisation comes near
}

TEST(products_of_int8_and_int4_for_any_number_of_tokens) {
  constexpr Format kOperands[] = {Format::f32, Format::bf16, Format::i8};
  Random random;
  std::vector<int> counts = {63, 64, 65, 95, 96, 300};
  for (int i = 1; i <= 40; i++) counts.push_back(i);
  for (const Format format : {Format::i8, Format::i4})
    for (auto [rows, cols] : {std::pair{70, 700}, {160, 1250}, {33, 63}})
      for (int tokens : counts) {
        if (rows == 160 && tokens < 63 && tokens % 8 > 1) continue;
        const Row weights = mixed(random, rows, cols), x = mixed(random, tokens, cols);
        size_t next = 0;
        Matrix w(rows, cols, format, [&] { return weights[next++]; });
        for (Format out : kOperands) {
          if (out != kOperands[size_t(tokens) % 3] && tokens < 63) continue;
          const std::vector<int> cuts = rows > 64 ? std::vector{2} : std::vector<int>();
          Outcome first;
          for (const Kernels* k : exact_sets()) {
            const Outcome o = multiply(*k, w, x, tokens, cuts, Act::relu2, out);
            if (first.y.empty()) first = o;
            CHECK(same(o.y, first.y) && same(o.active, first.active) && same(o.sum, first.sum));
            CHECK(same(o.gated, first.gated) && same(o.out, first.out));
          }
        }
      }
}

TEST(activations_are_the_nearest_steps_on_every_set) {
  Random random;
  for (int cols : {1, 5, 63, 64, 65, 200})
    for (int tokens : {1, 3, 12, 13, 25}) {
      Row x = mixed(random, tokens, cols);
      for (int t = 0; t < tokens; t++) {  // ties, which go to the even step
        const size_t row = size_t(t * cols);
        for (int c = 0; c + 1 < std::min(cols, kGroup); c++) x[row + size_t(c)] = float(c - 30) + 0.5f;
        x[row + size_t(std::min(cols, kGroup) - 1)] = t % 2 ? 127.0f : -127.0f;
      }
      x.back() = tokens % 2 ? 0x1p-126f : std::numeric_limits<float>::max();
      for (const Kernels* k : all_sets()) {
        const FlushDenormals flush;
        const std::vector<std::byte> operand = pack(*k, Format::i8, x, tokens, cols);
        const int padded = padded_k(Format::i8, cols), tiles = tile_count(tokens, tile_of(*k, Format::i8));
        for (int i = 0; i < tiles; i++) {
          const int begin = tile_start(tokens, tiles, i), m = tile_start(tokens, tiles, i + 1) - begin;
          for (int t = 0; t < m; t++)
            for (int c = 0; c < padded; c += kGroup) {
              const std::byte* group =
                  operand.data() + row_bytes(Format::i8, padded) * size_t(begin) + row_bytes(Format::i8, c) * size_t(m);
              const Group expected = quantised(&x[size_t((begin + t) * cols + c)], std::min(kGroup, cols - c));
              int sum = 0;
              for (int j = 0; j < kGroup; j++) {
                const int q = int8_t(group[t * kGroup + j]);
                CHECK(q == expected.q[j] && q >= -127);
                sum += q;
              }
              CHECK(same(reinterpret_cast<const float*>(group + kGroup * m) + t, &expected.scale, 1));
              CHECK(reinterpret_cast<const int32_t*>(group + (kGroup + 4) * m)[t] == -128 * sum);
            }
        }
      }
    }
}

TEST(activations_that_are_not_finite_make_every_sum_nan) {
  for (float bad : {kNan, kInf, -kInf})
    for (int place : {0, 17, 63, 64, 99}) {
      for (const Format format : {Format::i8, Format::i4}) {
        Matrix w(40, 100, format, [] { return 1.0f; });
        Row x(3 * 100, 1.0f);
        x[size_t(100 + place)] = bad;
        for (const Kernels* k : all_sets()) {
          const Outcome o = multiply(*k, w, x, 3, {}, Act::relu2, Format::i8);
          for (size_t i = 0; i < o.y.size(); i++) CHECK(std::isnan(o.y[i]) == (i / 40 == 1));
          for (size_t i = 0; i < 3 * 40; i++) CHECK(std::isnan(o.out[i / 40 * 64 + i % 40]) == (i / 40 == 1));
        }
      }
    }
}

TEST(weights_are_packed_as_defined) {
  Random random;
  for (Format format : kFormats)
    for (int cols : {1, 3, 64, 65, 300}) {
      Row values = mixed(random, 32, cols);
      values[3] = 1e-38f;
      if (cols > 4) values[size_t(cols) * 4 + 1] = -(values[size_t(cols) * 4] = 50);  // one of them would be 8
      if (cols > 64) values[64] = kNan, values[size_t(cols) + 64] = -kInf;
      size_t next = 0;
      Matrix expected(32, cols, format, [&] { return values[next++]; });
      const size_t bytes = panel_bytes(format, padded_k(format, cols));
      std::vector<std::byte> panel(bytes + 64);
      for (int row = 0; row < 32; row++)
        for (int c = 0; c < cols; c += kGroup)
          pack_weights(format, &values[size_t(row * cols + c)], row, std::min(kGroup, cols - c),
                       panel.data() + panel_bytes(format, c));
      CHECK(std::memcmp(panel.data(), expected.data(), bytes) == 0);
    }
}

TEST(extreme_scales_neither_overflow_nor_lose_a_number) {
  for (const Kernels* k : all_sets())
    for (float size : {0x1p-118f, -1e-20f, 1e20f, std::numeric_limits<float>::max()})
      for (const Format format : {Format::i8, Format::i4}) {
        Matrix w(33, 70, format, [&] { return size; });
        const float other = std::clamp(std::fabs(1 / size), 0x1p-118f, 0x1p126f);
        const Outcome o = multiply(*k, w, Row(70, other), 1);
        for (float v : o.y) CHECK(near(double(v), 70 * double(size) * double(other), 0.01));
      }
}

CHECK_MAIN
