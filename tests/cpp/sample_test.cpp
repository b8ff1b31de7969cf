// Sampling against the definition: a full sort and long sums in plain code, known answers, frequencies, bad input.
#include "cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>

#include "allocations.h"
#include "check.h"
#include "core/error.h"
#include "core/philox.h"

using namespace rwkv;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

int32_t sample(const std::vector<float>& logits, const SampleJob& job) {
  cpu::SampleScratch scratch;
  return cpu::sample_row(logits.data(), static_cast<int>(logits.size()), job, scratch);
}

// The probabilities that a draw must follow, straight from the definition.
std::vector<double> definition(const std::vector<float>& logits, double temperature, double top_p) {
  const size_t n = logits.size();
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(n);
  for (size_t i = 0; i < n; ++i) p[i] = std::exp(double{logits[i]} - max);
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  std::vector<double> sorted = p;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double cutoff = 0, sum = 0;
  for (double x : sorted) {
    cutoff = x;
    if ((sum += x) >= top_p) break;
  }
  double kept = 0;
  for (double& x : p) kept += x = x < cutoff ? 0 : std::pow(x, 1 / temperature);
  for (double& x : p) x /= kept;
  return p;
}

std::vector<float> random_logits(std::mt19937& random, int n, float spread) {
  std::normal_distribution<float> normal;
  std::vector<float> logits(static_cast<size_t>(n));
  for (float& x : logits) x = spread * normal(random);
  return logits;
}

}  // namespace

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

TEST(exp_is_close) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(-708, 0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 ? uniform(random) : uniform(random) / 1000, expected = std::exp(x);
    CHECK(std::abs(cpu::exp_of_negative(x) - expected) <= 1e-15 * expected);
  }
  CHECK(cpu::exp_of_negative(0) == 1);
  CHECK(cpu::exp_of_negative(-708) > 0);
  CHECK(cpu::exp_of_negative(-709) == 0);
  CHECK(cpu::exp_of_negative(-double{kInfinity}) == 0);
}

TEST(draws_follow_the_definition) {
  std::mt19937 random(2);
  for (const auto& [temperature, top_p] : std::vector<std::pair<float, float>>{
           {1, 1}, {1, 0.85f}, {0.7f, 0.5f}, {2.5f, 0.95f}, {1, 0.3f}, {0.2f, 1}, {5, 0.999f}}) {
    std::vector<float> logits = random_logits(random, 50, 2);
    logits[3] = logits[17] = logits[40];  // ties
    logits[5] = -kInfinity;
    const std::vector<double> p = definition(logits, temperature, top_p);
    std::vector<int> count(logits.size());
    constexpr int kDraws = 40000;
    for (uint64_t i = 0; i < kDraws; ++i) ++count[static_cast<size_t>(sample(logits, {temperature, top_p, 11, i}))];
    double chi2 = 0;
    int degrees = -1;
    for (size_t i = 0; i < p.size(); ++i) {
      CHECK(p[i] > 0 || count[i] == 0);
      if (p[i] * kDraws < 5) continue;
      chi2 += std::pow(count[i] - p[i] * kDraws, 2) / (p[i] * kDraws);
      ++degrees;
    }
    CHECK(chi2 < degrees + 5 * std::sqrt(2.0 * degrees + 2) + 5);
  }
}

// The drawn token is the one at which the definition's cumulative distribution passes the uniform number.
TEST(draws_invert_the_cumulative_distribution) {
  std::mt19937 random(3);
  int near_border = 0, draws = 0;
  for (int n : {1, 2, 3, 100, 5000, 65536}) {
    for (float spread : {0.0f, 0.01f, 1.0f, 10.0f, 300.0f}) {
      const std::vector<float> logits = random_logits(random, n, spread);
      for (float top_p : {1e-6f, 0.2f, 0.85f, 0.9999f, 1.0f}) {
        const float temperature = draws % 2 ? 1.0f : 0.6f;
        const SampleJob job{temperature, top_p, 5, static_cast<uint64_t>(draws)};
        const std::vector<double> p = definition(logits, temperature, top_p);
        const double u = philox_uniform(job.seed, job.counter);
        const int32_t drawn = sample(logits, job);
        double before = 0;
        for (int32_t i = 0; i < drawn; ++i) before += p[static_cast<size_t>(i)];
        const double after = before + p[static_cast<size_t>(drawn)];
        ++draws;
        if (std::min(std::abs(u - before), std::abs(u - after)) < 1e-9) {
          ++near_border;
        } else {
          CHECK(before < u && u < after);
        }
      }
    }
  }
  CHECK(draws == 150 && near_border < 3);
}

TEST(ties_with_the_cutoff_are_kept) {
  const std::vector<float> logits = {1, 3, 3, 2, 3, -1};
  std::vector<int> seen(6);
  for (uint64_t i = 0; i < 300; ++i) ++seen[static_cast<size_t>(sample(logits, {1, 0.01f, 1, i}))];
  CHECK(seen[1] > 50 && seen[2] > 50 && seen[4] > 50 && seen[1] + seen[2] + seen[4] == 300);
}

TEST(the_cutoff_is_where_the_sum_reaches_top_p) {
  // probabilities 1/4, 1/2, 1/8, 1/8
  const float step = std::log(2.0f);
  const std::vector<float> logits = {-step, 0, -2 * step, -2 * step};
  const auto kept = [&](float top_p) {
    int mask = 0;
    for (uint64_t i = 0; i < 400; ++i) mask |= 1 << sample(logits, {1, top_p, 9, i});
    return mask;
  };
  CHECK(kept(0.4f) == 0b0010);
  CHECK(kept(0.55f) == 0b0011);
  CHECK(kept(0.7f) == 0b0011);
  CHECK(kept(0.8f) == 0b1111);
  CHECK(kept(1.0f) == 0b1111);
}

TEST(temperature_0_and_top_p_0_take_the_first_of_the_best) {
  const std::vector<float> logits = {1, 7, 2, 7, 7, -kInfinity};
  for (uint64_t i = 0; i < 20; ++i) {
    CHECK(sample(logits, {0, 1, i, i}) == 1);
    CHECK(sample(logits, {1, 0, i, i}) == 1);
    CHECK(sample(logits, {1e-38f, 1, i, i}) % 2 == 1 || sample(logits, {1e-38f, 1, i, i}) == 4);
  }
}

TEST(banned_tokens_are_never_drawn) {
  for (uint64_t i = 0; i < 200; ++i) {
    CHECK(sample({-kInfinity, 0, -kInfinity}, {100, 1, 1, i}) == 1);
    CHECK(sample({-kInfinity, 0, 0, -kInfinity}, {3e38f, 0.999f, 1, i}) % 3 != 0);
    CHECK(sample({-3e38f, 3e38f, -kInfinity}, {1, 0.5f, 1, i}) == 1);
  }
}

TEST(what_is_not_a_number_is_refused_with_its_place) {
  CHECK_THROWS(sample({0, kNaN, 1}, {}), NonFiniteError,
               "logit of token 1: expected a finite number or -inf, found nan");
  CHECK_THROWS(sample({0, 1, kInfinity}, {0, 1}), NonFiniteError, "logit of token 2");
  CHECK_THROWS(sample({kNaN}, {}), NonFiniteError, "logit of token 0");
  CHECK_THROWS(sample({-kInfinity, -kInfinity}, {}), NonFiniteError, "expected one above -inf among 2, found none");
  CHECK_THROWS(sample({}, {}), Error, "expected one per token, found 0");
}

TEST(parameters_out_of_range_are_refused_by_name) {
  for (float bad : {-1.0f, -1e-30f, kNaN, kInfinity, -kInfinity}) {
    CHECK_THROWS(sample({0, 1}, {bad, 1}), Error, "temperature: expected a finite number of 0 or more, found ");
  }
  for (float bad : {-0.01f, 1.001f, kNaN, kInfinity, -kInfinity}) {
    CHECK_THROWS(sample({0, 1}, {1, bad}), Error, "top_p: expected a number from 0 to 1, found ");
  }
}

TEST(a_token_depends_on_its_job_alone_and_warm_scratch_does_not_allocate) {
  std::mt19937 random(4);
  cpu::SampleScratch scratch;
  std::vector<std::vector<float>> rows;
  for (float spread : {0.0f, 1.0f, 5.0f}) rows.push_back(random_logits(random, 4096, spread));
  std::vector<int32_t> fresh;
  for (const auto& row : rows) {
    for (float top_p : {0.5f, 1.0f}) fresh.push_back(sample(row, {0.9f, top_p, 3, 4}));
  }
  cpu::sample_row(rows[0].data(), 4096, {}, scratch);
  const long before = allocations;
  bool equal = true;
  for (size_t i = fresh.size(); i-- > 0;) {
    equal &= cpu::sample_row(rows[i / 2].data(), 4096, {0.9f, i % 2 ? 1.0f : 0.5f, 3, 4}, scratch) == fresh[i];
  }
  CHECK(allocations == before);
  CHECK(equal);
}

CHECK_MAIN
