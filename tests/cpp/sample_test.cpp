// Sampling against definitions of a few lines: plain softmax and a full sort. Frequencies, ties, bans, lists, bad
// input, and the same bits from every instruction set and any number of threads.
#include "cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <random>

#include "allocations.h"
#include "check.h"
#include "core/error.h"
#include "core/philox.h"
#include "cpu/backend.h"
#include "kernel_sets.h"

namespace {

constexpr double kTolerance = 1e-10;  // of a probability

// Everything of a job but where its logits are.
struct Draw {
  float temperature = 1, top_p = 1;
  int top_k = 0;
  float min_p = 0;
  uint64_t seed = 0, counter = 0;
  std::vector<TokenBias> bias = {};
};

SampleJob job_of(const Row& logits, const Draw& d, std::span<TokenLogprob> top = {}) {
  const auto n = int64_t(logits.size());
  return {{const_cast<float*>(logits.data()), DType::f32, 1, n, n},
          d.temperature,
          d.top_p,
          d.top_k,
          d.min_p,
          d.seed,
          d.counter,
          d.bias,
          top};
}

TokenLogprob draw(const Row& logits, const Draw& d, std::span<TokenLogprob> top = {}) {
  static const Kernels& kernels = choose_kernels();
  static SampleScratch scratch;  // what an earlier draw has left there must not matter
  return sample_row(kernels, job_of(logits, d, top), scratch);
}
int sample(const Row& logits, const Draw& d) { return draw(logits, d).token; }

std::vector<double> softmax(const Row& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(logits.size());
  double total = 0;
  for (size_t i = 0; i < p.size(); ++i) total += p[i] = std::exp(double(logits[i]) - max);
  for (double& x : p) x /= total;
  return p;
}

// Tokens from the most likely to the least, of equals the lower id first.
std::vector<int> ranking(const Row& logits) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[size_t(a)] > logits[size_t(b)]; });
  return order;
}

Row with_bias(Row logits, const std::vector<TokenBias>& bias) {
  for (const TokenBias& b : bias) logits[size_t(b.token)] += b.bias;
  return logits;
}

// The probabilities that a draw must follow.
std::vector<double> definition(const Row& raw, const Draw& d) {
  const Row logits = with_bias(raw, d.bias);
  const std::vector<double> p = softmax(logits);
  const std::vector<int> order = ranking(logits);
  const auto at = [&](size_t rank) { return size_t(order[rank]); };

  size_t kept = d.top_k > 0 ? std::min(order.size(), size_t(d.top_k)) : order.size();
  if (d.top_p < 1) {
    size_t rank = 0;
    for (double sum = p[at(0)]; sum < double(d.top_p) && rank + 1 < order.size(); sum += p[at(rank)]) ++rank;
    while (rank + 1 < order.size() && logits[at(rank + 1)] == logits[at(rank)]) ++rank;
    kept = std::min(kept, rank + 1);
  }
  while (kept > 1 && p[at(kept - 1)] < double(d.min_p) * p[at(0)] * (1 - 1e-12)) --kept;
  if (d.temperature == 0 || d.top_p == 0) kept = 1;

  std::vector<double> weights(p.size());
  double total = 0;
  for (size_t rank = 0; rank < kept; ++rank) {
    const double ratio = p[at(rank)] / p[at(0)];
    total += weights[at(rank)] = d.temperature == 0 ? 1 : std::pow(ratio, 1 / double(d.temperature));
  }
  for (double& w : weights) w /= total;
  return weights;
}

Row random_logits(std::mt19937& random, size_t n, float spread) {
  std::normal_distribution<float> normal;
  Row logits(n);
  for (float& x : logits) x = spread * normal(random);
  return logits;
}

// Logits that are often equal.
Row coarse_logits(std::mt19937& random, size_t n) {
  Row logits = random_logits(random, n, 2);
  for (float& x : logits) x = std::round(2 * x) / 2;
  return logits;
}

// Whatever is settable, with limits that cut in the middle of things.
std::vector<Draw> combinations() {
  std::vector<Draw> all;
  for (float temperature : {1.0f, 0.6f, 2.5f})
    for (float top_p : {1.0f, 0.9f, 0.5f})
      for (int top_k : {0, 1, 2, 5, 40, 200})
        for (float min_p : {0.0f, 0.03f, 0.4f}) all.push_back({temperature, top_p, top_k, min_p});
  return all;
}

}  // namespace

// ---- draws ----

TEST(draws_follow_the_definition) {
  std::mt19937 random(2);
  std::vector<Draw> settings = {{1, 1},          {1, 0.85f}, {0.7f, 0.5f},       {2.5f, 0.95f},        {0.2f, 1},
                                {5, 0.999f},     {1, 1, 7},  {1.3f, 1, 0, 0.1f}, {1, 0.9f, 12, 0.02f}, {0.8f, 0.6f, 3},
                                {2, 1, 20, 0.2f}};
  settings.push_back({1, 0.9f, 0, 0, 0, 0, {{0, 1.5f}, {7, -2}, {9, -kInf}, {40, 3}}});
  settings.push_back({1.5f, 1, 15, 0.05f, 0, 0, {{1, -1}, {2, -1}, {3, 0.25f}, {30, -kInf}}});
  for (Draw& d : settings) {
    Row logits = random_logits(random, 50, 2);
    logits[3] = logits[17] = logits[40];
    logits[5] = -kInf;
    d.seed = 11;
    const std::vector<double> p = definition(logits, d);
    std::vector<int> count(logits.size());
    constexpr int kDraws = 10000;
    for (d.counter = 0; d.counter < kDraws; ++d.counter) ++count[size_t(sample(logits, d))];
    // Tokens with fewer than 5 draws to be expected count as one.
    double chi2 = 0, rare = 0;
    int degrees = -1, rare_count = 0;
    const auto add = [&](double expected, int found) {
      chi2 += (found - expected) * (found - expected) / expected;
      ++degrees;
    };
    for (size_t i = 0; i < p.size(); ++i) {
      CHECK(p[i] > 0 || count[i] == 0);
      if (p[i] * kDraws >= 5)
        add(p[i] * kDraws, count[i]);
      else
        rare += p[i] * kDraws, rare_count += count[i];
    }
    if (rare >= 1) add(rare, rare_count);
    CHECK(degrees > 0 && chi2 < degrees + 3 * std::sqrt(2.0 * degrees) + 2);  // seen: up to 1.6 deviations
  }
}

// The drawn token is the one at which the definition's cumulative distribution passes the uniform number.
TEST(draws_invert_the_cumulative_distribution) {
  std::mt19937 random(3);
  int near_border = 0, draws = 0;
  const auto look = [&](const Row& logits, const Draw& d) {
    const std::vector<double> p = definition(logits, d);
    const double u = philox_uniform(d.seed, d.counter);
    const auto drawn = size_t(sample(logits, d));
    double before = 0;
    for (size_t i = 0; i < drawn; ++i) before += p[i];
    ++draws;
    if (std::min(std::abs(u - before), std::abs(u - before - p[drawn])) < kTolerance) {
      ++near_border;  // either neighbour will do
    } else {
      CHECK(before < u && u < before + p[drawn]);
    }
  };
  for (size_t n : {1, 2, 3, 100, 128, 5000}) {
    for (Draw d : combinations()) {
      d.seed = 5, d.counter = uint64_t(draws);
      const Row logits = draws % 3 ? random_logits(random, n, 2) : coarse_logits(random, n);
      if (draws % 2)
        for (size_t i = 0; i < n; i += 1 + n / 9) d.bias.push_back({int32_t(i), i % 2 ? -1.5f : 0.5f});
      look(logits, d);
    }
  }
  uint64_t counter = 0;
  for (float spread : {0.0f, 0.01f, 1.0f, 3.0f, 10.0f, 300.0f}) {
    const Row logits = random_logits(random, 65536, spread);
    for (float top_p : {1e-6f, 0.2f, 0.85f, 0.9999f, 1 - 0x1p-24f, 1.0f}) look(logits, {1, top_p, 0, 0, 6, counter++});
    for (int top_k : {2, 600, 40000, 70000}) look(logits, {0.9f, 0.95f, top_k, 0, 6, counter++});
    for (float bias : {40.0f, -40.0f, 2000.0f})
      look(logits, {1, 0.9f, 0, 0, 6, counter++, {{77, bias}, {60000, -kInf}}});
    Row one_far_above = logits;
    one_far_above[500] = 3000;
    look(one_far_above, {1, 0.9f, 0, 0, 6, counter++, {{500, -kInf}}});
    look(one_far_above, {1, 0.9f, 0, 0, 6, counter++, {{500, -2999}}});
  }
  CHECK(draws == 6 * 162 + 90 && near_border < 5 + 162);  // with one token u is never near a border but 0 and 1
}

// Every kept token, down to the one where ties are cut, and no other.
TEST(the_kept_tokens_are_those_of_the_definition) {
  std::mt19937 random(4);
  for (int repeat = 0; repeat < 4; ++repeat) {
    const Row logits = coarse_logits(random, 12);
    for (Draw d : combinations()) {
      if (repeat % 2) d.bias = {{2, -1}, {5, 0.5f}, {9, -kInf}};
      const std::vector<double> p = definition(logits, d);
      int expected = 0, certain = 0, found = 0;
      for (size_t i = 0; i < p.size(); ++i) {
        expected |= (p[i] > 0) << i;
        certain |= (p[i] > 0.02) << i;
      }
      for (d.counter = 0; d.counter < 600; ++d.counter) found |= 1 << sample(logits, d);
      CHECK((found & ~expected) == 0 && (certain & ~found) == 0);
    }
  }
}

TEST(ties_are_kept_by_top_p_and_cut_by_top_k_in_the_order_of_ids) {
  const Row logits = {1, 3, 3, 2, 3, -1};
  const auto kept = [&](Draw d) {
    int mask = 0;
    for (d.counter = 0; d.counter < 300; ++d.counter) mask |= 1 << sample(logits, d);
    return mask;
  };
  CHECK(kept({1, 0.01f}) == 0b010110);
  CHECK(kept({1, 1, 2}) == 0b000110);
  CHECK(kept({1, 0.01f, 2}) == 0b000110);
  CHECK(kept({1, 1, 4}) == 0b011110);
  CHECK(kept({1, 1, 0, 1}) == 0b010110);
  CHECK(kept({1, 1, 0, 0.3f}) == 0b011110);
  CHECK(kept({1, 1, 1}) == 0b000010);
}

TEST(the_cutoff_is_where_the_sum_reaches_top_p) {
  // probabilities 1/4, 1/2, 1/8, 1/8
  const float step = std::log(2.0f);
  const Row logits = {-step, 0, -2 * step, -2 * step};
  const auto kept = [&](float top_p) {
    int mask = 0;
    for (uint64_t i = 0; i < 400; ++i) mask |= 1 << sample(logits, {1, top_p, 0, 0, 9, i});
    return mask;
  };
  CHECK(kept(0.4f) == 0b0010);
  CHECK(kept(0.55f) == 0b0011);
  CHECK(kept(0.7f) == 0b0011);
  CHECK(kept(0.8f) == 0b1111);
  CHECK(kept(1.0f) == 0b1111);
}

TEST(the_first_of_the_best) {
  Row logits(1000, 1.0f);
  logits[300] = logits[301] = logits[999] = 7;
  for (uint64_t i = 0; i < 20; ++i) {
    CHECK(sample(logits, {0, 1, 0, 0, i, i}) == 300);
    CHECK(sample(logits, {1, 0, 0, 0, i, i}) == 300);
    CHECK(sample(logits, {1, 1, 1, 0, i, i}) == 300);
    CHECK(sample(logits, {0, 1, 0, 0, i, i, {{300, -1}}}) == 301);
    CHECK(sample(logits, {0, 1, 0, 0, i, i, {{5, 6}}}) == 5);
    const int any = sample(logits, {1e-38f, 1, 0, 0, i, i});
    CHECK(any == 300 || any == 301 || any == 999);
  }
}

TEST(banned_tokens_are_never_drawn) {
  for (uint64_t i = 0; i < 200; ++i) {
    CHECK(sample({-kInf, 0, -kInf}, {100, 1, 0, 0, 1, i}) == 1);
    CHECK(sample({-kInf, 0, 0, -kInf}, {3e38f, 0.999f, 0, 0, 1, i}) % 3 != 0);
    CHECK(sample({-3e38f, 3e38f, -kInf}, {1, 0.5f, 0, 0, 1, i}) == 1);
    CHECK(sample({9, 0, 9, 8}, {100, 1, 3, 0, 1, i, {{0, -kInf}, {2, -kInf}, {3, -kInf}}}) == 1);
    CHECK(sample({9, 0, 9, 8}, {3, 0.99f, 0, 0, 1, i, {{2, -kInf}}}) != 2);
    CHECK(sample({3e38f, 0, 1}, {1, 0.9f, 0, 0.5f, 1, i, {{0, -kInf}}}) != 0);
    CHECK(sample({-3e38f, 0}, {1, 1, 0, 0, 1, i, {{0, -3e38f}}}) == 1);  // -inf by overflow
  }
}

// ---- logprobs ----

TEST(logprobs_are_those_of_the_raw_logits) {
  std::mt19937 random(5);
  for (size_t n : {1, 7, 130, 5000}) {
    for (int repeat = 0; repeat < 30; ++repeat) {
      Row logits = repeat % 2 ? coarse_logits(random, n) : random_logits(random, n, 3);
      if (n > 10) logits[4] = logits[9] = logits[n - 1] = -kInf;
      Draw d = combinations()[size_t(repeat * 5)];
      d.seed = uint64_t(repeat);
      if (repeat % 3) d.bias = {{int32_t(n / 2), repeat % 3 == 1 ? 30.0f : -2.0f}};
      const std::vector<double> p = softmax(logits);
      const std::vector<int> order = ranking(logits);
      const auto right = [&](TokenLogprob t) {
        const double expected = std::log(p[size_t(t.token)]);
        return logits[size_t(t.token)] == -kInf ? t.logprob == -kInf : near(t.logprob, expected, 1e-7);
      };
      for (size_t count : {size_t{0}, size_t{1}, n / 3, n}) {
        std::vector<TokenLogprob> top(count);
        const TokenLogprob drawn = draw(logits, d, top);
        CHECK(right(drawn) && drawn.token == sample(logits, d));
        for (size_t i = 0; i < count; ++i) CHECK(top[i].token == order[i] && right(top[i]));
        for (const TokenLogprob& t : top) CHECK(t.token != drawn.token || t.logprob == drawn.logprob);
      }
    }
  }
}

// ---- errors ----

TEST(what_is_not_a_number_is_refused_with_its_place) {
  CHECK_THROWS(sample({0, kNan, 1}, {}), NonFiniteError,
               "logit of token 1: expected a finite number or -inf, found nan");
  CHECK_THROWS(sample({0, 1, -kNan}, {}), NonFiniteError, "logit of token 2: ");
  CHECK_THROWS(sample({0, 1, kInf}, {0, 1}), NonFiniteError, "logit of token 2");
  Row late(1000);
  late[777] = kNan;
  CHECK_THROWS(sample(late, {}), NonFiniteError, "logit of token 777");
  CHECK_THROWS(sample({kNan}, {}), NonFiniteError, "logit of token 0");
  CHECK_THROWS(sample({-kInf, -kInf}, {}), NonFiniteError, "expected one above -inf among 2, found none");
  CHECK_THROWS(sample({}, {}), Error, "expected one per token, found 0");
  CHECK_THROWS(sample({0, 3e38f}, {1, 1, 0, 0, 0, 0, {{1, 3e38f}}}), NonFiniteError,
               "logit of token 1 with its bias: expected a finite number or -inf, found inf");
}

TEST(parameters_out_of_range_are_refused_by_name) {
  for (float bad : {-1.0f, -1e-30f, kNan, kInf, -kInf})
    CHECK_THROWS(sample({0, 1}, {bad, 1}), Error, "temperature: expected a finite number of 0 or more, found ");
  for (float bad : {-0.01f, 1.001f, kNan, kInf, -kInf}) {
    CHECK_THROWS(sample({0, 1}, {1, bad}), Error, "top_p: expected a number from 0 to 1, found ");
    CHECK_THROWS(sample({0, 1}, {1, 1, 0, bad}), Error, "min_p: expected a number from 0 to 1, found ");
  }
  CHECK_THROWS(sample({0, 1}, {1, 1, -1}), Error, "top_k: expected 0 (all) or more, found -1");
  std::vector<TokenLogprob> three(3);
  CHECK_THROWS(draw({0, 1}, {}, three), Error, "top: expected at most the 2 tokens there are, found 3");
}

TEST(a_bad_bias_is_refused) {
  const auto biased = [](std::vector<TokenBias> bias) {
    return sample({0, 1, 2}, {1, 1, 0, 0, 0, 0, std::move(bias)});
  };
  CHECK_THROWS(biased({{3, 1}}), Error, "bias: expected ascending tokens from 0 to 2, found 3");
  CHECK_THROWS(biased({{-1, 1}}), Error, "found -1");
  CHECK_THROWS(biased({{1, 1}, {0, 1}}), Error, "found 0 where 2 or more may stand");
  CHECK_THROWS(biased({{1, 1}, {1, 1}}), Error, "found 1 where 2 or more may stand");
  CHECK_THROWS(biased({{1, kNan}}), Error, "bias of token 1: expected a finite number or -inf, found nan");
  CHECK_THROWS(biased({{1, kInf}}), Error, "bias of token 1: expected a finite number or -inf, found inf");
  CHECK_THROWS(biased({{0, -kInf}, {1, -kInf}, {2, -kInf}}), Error,
               "bias: expected one of 3 tokens to stay above -inf, found all banned");
}

TEST(the_probability_of_a_given_token) {
  std::mt19937 random(8);
  const Kernels& kernels = choose_kernels();
  SampleScratch scratch;
  for (size_t n : {1, 5, 130, 700}) {
    const Row logits = random_logits(random, n, 3);
    const std::vector<double> p = softmax(logits);
    for (int given = 0; given < int(n); given += 1 + int(n) / 40) {
      // Nothing of how a token would be drawn matters.
      for (const Draw& d : {Draw{}, Draw{0}, Draw{0.5f, 0.1f, 3, 0.2f, 1, 2, {{0, -5}}}}) {
        std::array<TokenLogprob, 1> top;
        SampleJob job = job_of(logits, d, top);
        job.given = given;
        const TokenLogprob found = sample_row(kernels, job, scratch);
        CHECK(found.token == given);
        CHECK(near(double(found.logprob), std::log(p[size_t(given)]), 1e-5));
        CHECK(top[0].token == ranking(logits)[0]);
      }
    }
    // The bits are those of a token that is drawn.
    const TokenLogprob drawn = draw(logits, {1, 1, 0, 0, 4, 5});
    SampleJob job = job_of(logits, {});
    job.given = drawn.token;
    CHECK(sample_row(kernels, job, scratch).logprob == drawn.logprob);
    job.given = int(n);
    CHECK_THROWS(sample_row(kernels, job, scratch), Error, "given: expected a token below");
  }
  const Row banned = {-kInf, 0, 0};
  SampleJob job = job_of(banned, {});
  job.given = 0;
  CHECK(sample_row(kernels, job, scratch).logprob == -kInf);
}

// ---- the verb ----

namespace {

// The rows, draws and lists of a batch.
struct Many {
  std::vector<Row> rows;
  std::vector<Draw> draws;
  std::vector<std::vector<TokenLogprob>> top;
  std::vector<SampleJob> jobs;
  std::vector<TokenLogprob> drawn;

  Many() {
    std::mt19937 random(6);
    for (const Draw& d : combinations()) {
      const size_t i = rows.size(), n = i % 5 ? 700 : 20000;
      rows.push_back(i % 2 ? random_logits(random, n, 2) : coarse_logits(random, n));
      draws.push_back(d);
      draws.back().counter = i;
      if (i % 3 == 0) draws.back().bias = {{3, -1}, {5, 2.5f}, {600, -kInf}};
      top.emplace_back(i % 4 * 7);
    }
    for (size_t i = 0; i < rows.size(); ++i) jobs.push_back(job_of(rows[i], draws[i], top[i]));
    drawn.resize(jobs.size());
  }
  std::vector<TokenLogprob> results() const {
    std::vector<TokenLogprob> all = drawn;
    for (const auto& list : top) all.insert(all.end(), list.begin(), list.end());
    return all;
  }
};

bool equal(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(TokenLogprob)) == 0;
}

std::vector<TokenLogprob> results_of(const char* isa, int threads) {
  setenv("RWKV_ISA", isa, 1);
  CpuBackend backend({threads});
  unsetenv("RWKV_ISA");
  Many many;
  backend.sample(many.jobs, many.drawn);
  return many.results();
}

}  // namespace

TEST(the_same_bits_on_every_set_with_any_number_of_threads_and_alone) {
  const std::vector<TokenLogprob> expected = results_of("generic", 1);
  for (const Kernels* k : all_sets())
    for (int threads : {1, 2, 3, 7}) CHECK(equal(results_of(k->name, threads), expected));
  CpuBackend backend({2});
  Many many;
  for (size_t i = many.jobs.size(); i-- > 0;)
    backend.sample(std::span(many.jobs).subspan(i, 1), std::span(many.drawn).subspan(i, 1));
  CHECK(equal(many.results(), expected));
}

TEST(the_first_bad_job_is_the_error_and_the_next_call_works) {
  CpuBackend backend({3});
  Many many;
  backend.sample(many.jobs, many.drawn);
  const std::vector<TokenLogprob> expected = many.results();
  for (size_t first : {size_t{4}, many.jobs.size() - 9}) {
    std::vector<SampleJob> jobs = many.jobs;
    jobs[first].top_k = -1;
    for (size_t i = first + 1; i < jobs.size(); ++i) jobs[i].top_p = 2;
    CHECK_THROWS(backend.sample(jobs, many.drawn), Error, "top_k");
    backend.sample(many.jobs, many.drawn);
    CHECK(equal(many.results(), expected));
  }
  CHECK_THROWS(backend.sample(many.jobs, std::span(many.drawn).subspan(1)), Error,
               "drawn: expected room for 162 tokens");
  backend.sample({}, {});
}

TEST(a_warm_backend_does_not_allocate) {
  CpuBackend backend({2});
  Many many;
  backend.sample(many.jobs, many.drawn);
  const long before = allocations;
  backend.sample(many.jobs, many.drawn);
  for (size_t i = 0; i < many.jobs.size(); ++i)
    backend.sample(std::span(many.jobs).subspan(i, 1), std::span(many.drawn).subspan(i, 1));
  CHECK(allocations == before);
}

CHECK_MAIN
