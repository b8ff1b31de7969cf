// The kernels against float64, against each other, and against themselves in other shapes: what has to be equal is
// compared bit by bit.
#include <numeric>

#include "check.h"
#include "products.h"

TEST(product_has_the_same_bits_on_every_set_for_any_tokens_and_panels) {
  Random random;
  for (Format format : kFormats)
    for (auto [rows, cols] : {std::pair{32, 4}, {97, 515}, {130, 1037}, {33, 6200}, {1, 1}, {64, 64}}) {
      Matrix w(rows, cols, format, [&] { return random.unit(); });
      const int most = cols > (check::kSanitized ? 1000 : 2000) ? 30 : 300;  // more than any set has in a block
      const Row x = random.row(size_t(most) * size_t(cols));
      const Act act = Act(random.below(5));
      Outcome reference;
      for (const Kernels* k : all_sets()) {
        const Outcome whole = multiply(*k, w, x, most, {}, act, format);
        if (reference.y.empty()) reference = whole;
        if (k != &kGeneric) {
          CHECK(same(whole.y, reference.y) && same(whole.sum, reference.sum) && same(whole.out, reference.out));
          CHECK(same(whole.active, reference.active) && same(whole.gated, reference.gated));
        }
        for (int tokens : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 29}) {
          if (check::kSanitized && tokens % 4 != 1) continue;
          const int panels = panels_of(rows), first = random.below(most - tokens + 1);
          const Row part(x.begin() + first * cols, x.begin() + (first + tokens) * cols);
          int cut = random.below(panels + 1);
          if (quantises(format)) cut = cut / 2 * 2;  // its operands are made of two panels at a time
          const std::vector<int> cuts = {cut};
          const Outcome o = multiply(*k, w, part, tokens, cuts, act, format);
          CHECK(same(o.y.data(), &whole.y[size_t(first) * size_t(rows)], o.y.size()));
          CHECK(same(o.sum.data(), &whole.sum[size_t(first) * size_t(rows)], o.sum.size()));
          CHECK(same(o.active.data(), &whole.active[size_t(first) * size_t(rows)], o.y.size()));
          CHECK(same(o.gated.data(), &whole.gated[size_t(first) * size_t(rows)], o.sum.size()));
          CHECK(same(o.out.data(), &whole.out[size_t(first) * size_t(padded_k(format, rows))], o.out.size()));
        }
      }
    }
}

TEST(product_is_close_to_float64_and_follows_its_definition) {
  Random random;
  const int rows = 70, cols = 700, tokens = 17;
  for (Format format : {Format::f32, Format::f16, Format::bf16}) {
    Matrix w(rows, cols, format, [&] { return random.unit(); });
    const Row x = random.row(size_t(tokens) * cols);
    for (const Kernels* k : all_sets()) {
      const Outcome o = multiply(*k, w, x, tokens);
      for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) {
          double sum = 0, size = 0;
          float chain = 0, swapped = 0, low = 0, low_swapped = 0, total = 0, total_swapped = 0;
          for (int c = 0; c < cols; c += 2) {
            for (int i : {1, 0}) {  // bf16: the odd column of a pair first
              const int at = format != Format::bf16 ? c + 1 - i : c + i,
                        other = format != Format::bf16 ? c + i : c + 1 - i;
              const auto factor = [&](int j) { return rounded(operand_format(format), x[size_t(t * cols + j)]); };
              const auto weight = [&](int j) { return w.values[size_t(r * cols + j)]; };
              chain = std::fma(factor(at), weight(at), chain);
              swapped = std::fma(factor(other), weight(other), swapped);
              sum += double(factor(at)) * double(weight(at));
              size += std::fabs(double(factor(at)) * double(weight(at)));
            }
            if (format != Format::bf16) continue;
            const bool half = (c + 2) % (kChain / 2) == 0;
            if (half && (c + 2) % kChain != 0) low = chain, low_swapped = swapped, chain = swapped = 0;
            if ((c + 2) % kChain == 0 || c + 2 == cols) {
              total += low + chain, total_swapped += low_swapped + swapped;
              low = low_swapped = chain = swapped = 0;
            }
          }
          if (format == Format::bf16) chain = total, swapped = total_swapped;
          const float y = o.y[size_t(t * rows + r)];
          CHECK(std::fabs(double(y) - sum) < 1e-6 * size);
          if (k != &kGeneric) CHECK(y == chain);
          static int differs = 0;  // the comparison must be able to tell one order from another
          differs += swapped != chain;
          if (t == tokens - 1 && r == rows - 1) CHECK(differs > 100);
        }
    }
  }
}

TEST(a_finished_product_goes_through_its_activation_or_its_gate) {
  Random random;
  for (Format format : kFormats) {
    Matrix w(70, 30, format, [&] { return random.unit(); });
    for (const Kernels* k : all_sets()) {
      const Outcome o = multiply(*k, w, random.row(13 * 30), 13, {}, Act::silu);
      for (size_t i = 0; i < o.y.size(); i++) {
        const double y = double(o.y[i]);
        CHECK(near(double(o.active[i]), y / (1 + std::exp(-y)), 1e-6));
        CHECK(near(double(o.sum[i]), 1 + y, 1e-6) && near(double(o.gated[i]), 1 + 3 * y, 1e-6));
      }
    }
  }
}

TEST(dot_products_of_bf16_equal_two_fused_multiply_adds_at_any_magnitude) {
  Random random;
  for (int round = 0; round < 40; round++) {
    const int rows = 96, cols = 130, tokens = round < 20 ? 12 : 45;
    const bool any = round % 4 == 3;  // any bits at all: infinities, NaN, denormals
    const auto value = [&] {
      return any ? std::bit_cast<float>(random.bits()) : random.wide() * float(random.below(5) > 0);
    };
    Matrix w(rows, cols, Format::bf16, value);
    Row x(size_t(tokens) * cols);
    for (float& v : x) v = round % 2 ? random.wide() : value() * 0x1p-60f;  // products around the denormals
    Row reference;
    for (const Kernels* k : exact_sets()) {
      const Row y = multiply(*k, w, x, tokens).y;
      if (reference.empty()) reference = y;
      CHECK(same(y, reference));
    }
  }
}

TEST(denormal_halves_keep_their_value_on_every_set) {
  for (const Kernels* k : all_sets())
    for (int tokens : {1, 30}) {
      int i = 0;
      Matrix w(32, 70, Format::f16, [&] { return float(++i % 1024) * 0x1p-24f; });
      for (float v : w.values) CHECK(v < 0x1p-14f);
      const Outcome o = multiply(*k, w, Row(size_t(tokens) * 70, 1.0f), tokens);
      for (size_t r = 0; r < 32; r++) {
        const float* row = &w.values[r * 70];
        const float sum = std::accumulate(row, row + 70, 0.0f);  // exact
        CHECK(sum > 0 && o.y[r] == sum && o.y[size_t(tokens - 1) * 32 + r] == sum);
      }
    }
}

TEST(denormal_factors_and_sums_count_as_zero_on_every_set) {
  for (Format format : kFormats)
    for (const Kernels* k : all_sets()) {
      if (k == &kGeneric && !RWKV_X86) continue;
      int i = 0;
      Matrix tiny(32, 8, format, [&] { return ++i % 2 ? 0x1p-130f : -0x1p-128f; });
      for (float v : multiply(*k, tiny, Row(8, 0x1p20f), 1).y) CHECK(v == 0);
      Matrix small(32, 8, format, [] { return 0x1p-100f; });
      for (float v : multiply(*k, small, Row(8, 0x1p-28f), 1).y) CHECK(v == 0);
      const FlushDenormals flush;
      const Row x(40, 0x1p-130f), one(40, 1.0f), none(40, 0.0f);
      Row y(40);
      k->lerp(x.data(), none.data(), none.data(), nullptr, 40, y.data());
      CHECK(same(y, none));
      k->layer_norm(x.data(), one.data(), none.data(), 40, 1e-5f, y.data());
      CHECK(same(y, none));
    }
}

TEST(nan_and_infinity_go_through_the_product_and_its_activations) {
  for (Format format : kFormats)
    for (const Kernels* k : all_sets())
      for (Act act : {Act::none, Act::tanh, Act::sigmoid, Act::relu2}) {
        int i = 0;
        Matrix w(40, 6, format, [&] { return i++ == 33 * 6 + 2 ? kNan : 1.0f; });
        const Outcome o = multiply(*k, w, Row(6, 1.0f), 1, {}, act, format);
        for (size_t r = 0; r < 40; r++)
          CHECK(std::isnan(o.y[r]) == (r == 33) && std::isnan(o.out[r]) == (r == 33 || quantises(format)));
        const Outcome big = multiply(*k, w, Row(6, kInf), 1, {}, act, format);
        const float limit = act == Act::tanh || act == Act::sigmoid ? 1 : kInf;
        for (size_t r = 0; r < 40; r++)
          CHECK(r == 33 || quantises(format) ? std::isnan(big.out[r]) : big.out[r] == limit);
      }
}

// ---- activations ----

namespace {

// Values through an activation: products of x with one column of scales.
struct Activations {
  Row in, out;
};
Activations activations(const Kernels& k, Act act, const Row& x, Matrix& scales) {
  Outcome o = multiply(k, scales, x, int(x.size()), {}, act);
  return {std::move(o.y), std::move(o.out)};
}

double ulps(float found, double expected) {
  if (std::isnan(expected)) return std::isnan(found) ? 0 : 1e9;
  if (std::isinf(expected) || double(found) == expected) return double(found) == expected ? 0 : 1e9;
  if (std::fabs(expected) < 0x1p-126) return found == 0 || std::fabs(expected - double(found)) < 0x1p-149 ? 0 : 1e9;
  return std::fabs(double(found) - expected) / std::ldexp(1.0, std::ilogb(expected) - 23);
}

}  // namespace

TEST(activations_are_within_two_units_everywhere) {
  Random random;
  Row x = {0.0f,
           -0.0f,
           kInf,
           -kInf,
           kNan,
           87.0f,
           88.5f,
           89.0f,
           -87.0f,
           -87.4f,
           -88.0f,
           -200.0f,
           200.0f,
           0.625f,
           1e-30f,
           -1e-30f,
           std::numeric_limits<float>::max(),
           -std::numeric_limits<float>::max(),
           9.0f,
           -9.1f,
           44.5f};
  for (int i = 0; i < 1900; i++)
    x.push_back(i % 3 ? random.unit() * 100 : std::ldexp(random.unit(), random.below(80) - 70));
  for (int i = 0; i < 600; i++) x.push_back(random.unit() * 2);
  int row = 0;
  Matrix scales(kPanel, 1, Format::f32, [&] { return row++ == 0 ? 1.0f : 1 + random.unit() / 2; });
  Activations first[4];
  for (const Kernels* k : all_sets()) {
    const Activations t = activations(*k, Act::tanh, x, scales), s = activations(*k, Act::sigmoid, x, scales),
                      r = activations(*k, Act::relu2, x, scales), g = activations(*k, Act::silu, x, scales);
    double worst_tanh = 0, worst_sigmoid = 0;
    for (size_t i = 0; i < t.in.size(); i++) {
      const float v = t.in[i];
      worst_tanh = std::max(worst_tanh, ulps(t.out[i], std::tanh(double(v))));
      worst_sigmoid = std::max(worst_sigmoid, ulps(s.out[i], 1 / (1 + std::exp(-double(v)))));
      const float gated = v * s.out[i], positive = v > 0 ? v : std::isnan(v) ? kNan : 0.0f;
      const float squared = positive * positive;
      CHECK(same(&g.out[i], &gated, 1) || std::fabs(gated) < 0x1p-126f);
      CHECK(same(&r.out[i], &squared, 1) || std::fabs(squared) < 0x1p-126f);
    }
    CHECK(worst_tanh <= 2.25);
    CHECK(worst_sigmoid <= 2.25);
    if (worst_tanh > 2.25 || worst_sigmoid > 2.25)
      std::printf("%s: tanh %g, sigmoid %g ulp\n", k->name, worst_tanh, worst_sigmoid);
    if (k == &kGeneric) continue;
    if (first[0].in.empty()) first[0] = t, first[1] = s, first[2] = r, first[3] = g;
    CHECK(same(t.in, first[0].in));
    CHECK(same(t.out, first[0].out) && same(s.out, first[1].out) && same(r.out, first[2].out));
    CHECK(same(g.out, first[3].out));
  }
}

// ---- packing ----

TEST(packing_comes_back_and_rounds_to_nearest_even) {
  Random random;
  for (Format format : {Format::f32, Format::bf16})
    for (int cols : {1, 2, 5, 31, 32, 47, 515})
      for (int tokens : {1, 3, 12, 13, 25}) {
        Row x = random.row(size_t(tokens * cols));
        for (float& v : x)
          if (random.below(9) == 0) v = std::bit_cast<float>(random.bits());
        x.back() = std::bit_cast<float>(tokens % 2 ? 0x7fffffff : 0xff800001);  // NaN that rounding could lose
        for (const Kernels* k : all_sets()) {
          const Row back = unpack(*k, format, pack(*k, format, x, tokens, cols), tokens, cols);
          const int padded = padded_k(format, cols);
          bool equal = true;
          for (int t = 0; t < tokens; t++)
            for (int c = 0; c < padded; c++) {
              const float expected = c < cols ? rounded(format, x[size_t(t * cols + c)]) : 0;
              equal = equal && same(&back[size_t(t * padded + c)], &expected, 1);
            }
          CHECK(equal);
        }
      }
}

TEST(packing_by_rows_and_columns_equals_packing_at_once) {
  Random random;
  const int cols = 205;
  const Row x = random.row(size_t(32 * cols));
  for (Format format : {Format::f32, Format::bf16, Format::i8})
    for (const Kernels* k : all_sets()) {
      const int m = tile_of(*k, format), padded = padded_k(format, cols);
      const int step = format == Format::i8 ? kGroup : format == Format::bf16 ? kChain : 22;
      const size_t bytes = size_t(m) * row_bytes(format, padded);
      std::vector<std::byte> once(bytes, std::byte{0xff}), parts = once;
      k->pack_rows(format, x.data(), size_t(cols), m, 0, cols, padded, once.data(), m, 0);
      for (int row = 0; row < m; row += 5)
        for (int k0 = 0; k0 < cols; k0 += step) {
          const int kn = std::min(step, cols - k0), end = k0 + kn == cols ? padded : k0 + kn;
          k->pack_rows(format, x.data() + row * cols + k0, size_t(cols), std::min(5, m - row), k0, kn, end,
                       parts.data(), m, row);
        }
      CHECK(once == parts);
    }
}

// ---- rows ----

TEST(layer_norm_of_any_length) {
  Random random;
  for (int n : {1, 2, 7, 15, 16, 17, 31, 48, 64, 65, 100, 768, 2049}) {
    const Row x = random.row(size_t(n), 5), weight = random.row(size_t(n)), bias = random.row(size_t(n));
    double mean = 0, variance = 0;
    for (float v : x) mean += double(v) / n;
    for (float v : x) variance += (double(v) - mean) * (double(v) - mean) / n;
    Row expected, first;
    for (size_t i = 0; i < size_t(n); i++)
      expected.push_back(
          float((double(x[i]) - mean) / std::sqrt(variance + 1e-5) * double(weight[i]) + double(bias[i])));
    for (const Kernels* k : all_sets()) {
      const FlushDenormals flush;
      Row y(size_t(n) + 1, 7.0f);
      k->layer_norm(x.data(), weight.data(), bias.data(), n, 1e-5f, y.data());
      CHECK(y.back() == 7);  // nothing behind the row
      y.pop_back();
      CHECK(near(y, expected, 2e-6));
      if (first.empty()) first = y;
      if (k != &kGeneric) CHECK(same(y, first));
      Row in_place = x;
      k->layer_norm(in_place.data(), weight.data(), bias.data(), n, 1e-5f, in_place.data());
      CHECK(same(in_place, y));
    }
  }
}

TEST(lerp_of_any_length) {
  Random random;
  for (int n : {1, 15, 16, 40, 257}) {
    const Row a = random.row(size_t(n)), b = random.row(size_t(n)), mu = random.row(size_t(n));
    const Row more = random.row(size_t(n)), zeros(size_t(n), 0.0f);
    for (const Row* dynamic : {&zeros, &more}) {
      Row first;
      for (const Kernels* k : all_sets()) {
        Row y(size_t(n) + 1, 7.0f);
        k->lerp(a.data(), b.data(), mu.data(), dynamic == &zeros ? nullptr : dynamic->data(), n, y.data());
        CHECK(y.back() == 7);
        for (size_t i = 0; i < size_t(n); i++) {
          const double m = double(mu[i]) + double((*dynamic)[i]);
          CHECK(near(double(y[i]), double(a[i]) + double(b[i] - a[i]) * m, 1e-6));
        }
        if (first.empty()) first = y;
        if (k != &kGeneric) CHECK(same(y, first));
      }
    }
  }
}

TEST(widening_equals_the_portable_conversion_for_all_16_bit_patterns) {
  std::vector<uint16_t> all(65536 + 5);
  for (size_t i = 0; i < all.size(); i++) all[i] = uint16_t(i);
  Row f16(all.size()), bf16(all.size()), y(all.size());
  for (size_t i = 0; i < all.size(); i++) {
    const int exponent = all[i] >> 10 & 31, fraction = all[i] & 1023;
    const double size = exponent == 31 ? (fraction ? double(kNan) : double(kInf))
                        : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                       : std::ldexp(fraction, -24);
    f16[i] = float(all[i] >> 15 ? -size : size);
    bf16[i] = bf16_to_f32(all[i]);
  }
  for (const Kernels* k : all_sets()) {
    const FlushDenormals flush;
    k->widen(all.data(), DType::f16, int(all.size()), y.data());
    CHECK(same(y, f16));
    k->widen(all.data(), DType::bf16, int(all.size()), y.data());
    CHECK(same(y, bf16));
    k->widen(bf16.data(), DType::f32, int(all.size()), y.data());
    CHECK(same(y, bf16));
    const double wide[] = {0.1, -3.0, 1e300};
    k->widen(wide, DType::f64, 3, y.data());
    CHECK(y[0] == 0.1f && y[1] == -3 && y[2] == kInf);
  }
}

TEST(all_finite_finds_one_bad_value_anywhere) {
  for (const Kernels* k : all_sets())
    for (size_t n : {size_t(0), size_t(1), size_t(15), size_t(16), size_t(37), size_t(100)}) {
      Row x(n, std::numeric_limits<float>::max());
      CHECK(k->all_finite(x.data(), n));
      for (float& v : x)
        for (float bad : {kInf, -kInf, kNan}) {
          const float good = v;
          v = bad;
          CHECK(!k->all_finite(x.data(), n));
          v = good;
        }
    }
}

CHECK_MAIN
