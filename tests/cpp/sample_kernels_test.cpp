// What sampling is made of: random bits, logarithms, and the kernels that go along a row of logits.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "check.h"
#include "core/philox.h"
#include "cpu/sample.h"
#include "kernel_sets.h"

TEST(philox_gives_the_published_answers) {
  using Counter = std::array<uint32_t, 4>;
  constexpr uint32_t ones = 0xffffffff;
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) == Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK(
      (philox4x32({ones, ones, ones, ones}, {ones, ones}) == Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(uniform_uses_all_of_seed_and_counter) {
  CHECK(philox_uniform(0, 0) == std::ldexp(double(0x6627e8d5e169c58du >> 11), -53));
  for (int shift : {0, 31, 32, 63}) {
    CHECK(philox_uniform(uint64_t{1} << shift, 0) != philox_uniform(0, 0));
    CHECK(philox_uniform(0, uint64_t{1} << shift) != philox_uniform(0, 0));
  }
  double sum = 0, low = 1, high = 0;
  for (uint64_t i = 0; i < 100000; ++i) {
    const double u = philox_uniform(7, i);
    sum += u;
    low = std::min(low, u);
    high = std::max(high, u);
  }
  CHECK(low >= 0 && low < 1e-3 && high < 1 && high > 1 - 1e-3);
  CHECK(std::abs(sum / 100000 - 0.5) < 0.005);
}

TEST(logarithms_are_close) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> exponent(-700, 700);
  for (int i = 0; i < 100000; ++i) {
    const double x = std::exp(i % 2 ? exponent(random) : exponent(random) / 1000), expected = std::log(x);
    CHECK(std::abs(log_of(x) - expected) <= 4e-16 * std::max(1.0, std::abs(expected)));
  }
  CHECK(log_of(1) == 0);
}

TEST(exponentials_are_close_on_every_set) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-706, 0);
  Row x(10007);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i % 2 ? uniform(random) : uniform(random) / 1000;
  const std::vector<std::pair<float, double>> known = {
      {3, 1}, {-704, std::exp(-707.0)}, {-706, 0}, {-3e38f, 0}, {-kInf, 0}};
  for (const auto& k : known) x.push_back(k.first - 3);
  std::vector<double> y(x.size());
  for (const Kernels* k : all_sets()) {
    k->exponentials(x.data(), x.size(), 0, 1, y.data());
    for (size_t i = 0; i + known.size() < x.size(); ++i) CHECK(near(y[i] / std::exp(double(x[i])), 1, 5e-13));
    for (size_t i = 0; i < known.size(); ++i)
      CHECK(near(y[y.size() - known.size() + i], known[i].second, 1e-12) &&
            (known[i].second > 0 || y[y.size() - known.size() + i] == 0));
    k->exponentials(x.data(), x.size(), 2, 0.125, y.data());
    for (size_t i = 0; i < 1000; ++i) CHECK(near(y[i] / std::exp((double(x[i]) - 2) / 8), 1, 5e-13));
  }
}

TEST(every_set_gives_the_same_bits_of_a_row) {
  std::mt19937 random(2);
  for (size_t n : {1, 15, 127, 128, 129, 1000, 4096}) {
    std::normal_distribution<float> normal(0, 5);
    Row x(n);
    for (float& v : x) v = normal(random);
    if (n > 3) x[n / 3] = x[n / 2] = -kInf;
    const size_t blocks = sample_blocks(n);
    const float max = *std::max_element(x.begin(), x.end());
    Row maxima(blocks);
    std::vector<double> sums(blocks), first_sums, e(n), first_e;
    for (const Kernels* k : all_sets()) {
      k->block_maxima(x.data(), n, maxima.data());
      k->block_sums(x.data(), n, max, 1.5, sums.data());
      k->exponentials(x.data(), n, max, 1.5, e.data());
      for (size_t b = 0; b < blocks; ++b) {
        const auto begin = std::ptrdiff_t(b * kSampleBlock), end = std::ptrdiff_t(std::min(n, (b + 1) * kSampleBlock));
        CHECK(maxima[b] == *std::max_element(x.begin() + begin, x.begin() + end));
        CHECK(near(sums[b], std::accumulate(e.begin() + begin, e.begin() + end, 0.0), 1e-14));
      }
      if (first_e.empty()) first_e = e, first_sums = sums;
      CHECK(e == first_e && sums == first_sums);
      for (float low : {-1e30f, -4.0f, 1.0f, 7.0f, max}) {
        std::vector<int32_t> ids(n), expected;
        Row values(n);
        const size_t count = k->collect(x.data(), n, maxima.data(), low, ids.data(), values.data());
        for (size_t i = 0; i < n; ++i)
          if (x[i] >= low) expected.push_back(int32_t(i));
        CHECK(count == expected.size() && std::equal(expected.begin(), expected.end(), ids.begin()));
        for (size_t i = 0; i < count; ++i) CHECK(values[i] == x[size_t(ids[i])]);
      }
    }
    for (float bad : {kNan, -kNan, kInf}) {
      const size_t at = n - 1;
      const float good = x[at];
      x[at] = bad;
      for (const Kernels* k : all_sets()) {
        k->block_maxima(x.data(), n, maxima.data());
        for (size_t b = 0; b < blocks; ++b) CHECK((maxima[b] < kInf) == (b != at / kSampleBlock));
      }
      x[at] = good;
    }
  }
}

CHECK_MAIN
