// Sampling on the device against the CPU's: the same tokens, logprobs and lists, and errors for the same rows.
#include "core/philox.h"
#include "cpu/sample.h"
#include "cuda_operands.h"

namespace {

using cuda::SampleCode;

struct Draw {
  float temperature = 1, top_p = 1;
  int top_k = 0;
  float min_p = 0;
  uint64_t seed = 7, counter = 0;
  std::vector<TokenBias> bias = {};
  size_t tops = 0;
  int32_t given = -1;
};
struct Drawn {
  cuda::SampleResult result = {};
  std::vector<cuda::TokenNumber> top;
};

// All draws from rows of n logits in one launch, each from its own row.
std::vector<Drawn> on_device(Device& d, const std::vector<Row>& logits, const std::vector<Draw>& draws) {
  const int n = int(logits[0].size());
  const size_t count = draws.size();
  std::vector<std::unique_ptr<Buffer<float>>> rows, biased;
  std::vector<std::unique_ptr<Buffer<cuda::TokenNumber>>> biases, tops;
  std::vector<cuda::SampleJobParams> jobs;
  for (size_t i = 0; i < count; i++) {
    const Draw& draw = draws[i];
    std::vector<cuda::TokenNumber> bias;
    for (const TokenBias& b : draw.bias) bias.push_back({b.token, b.bias});
    rows.push_back(std::make_unique<Buffer<float>>(d, logits[i]));
    biases.push_back(std::make_unique<Buffer<cuda::TokenNumber>>(d, bias));
    tops.push_back(std::make_unique<Buffer<cuda::TokenNumber>>(d, draw.tops));
    biased.push_back(std::make_unique<Buffer<float>>(d, bias.empty() ? 0 : size_t(n)));
    jobs.push_back({rows[i]->data(), biases[i]->data(), tops[i]->data(), biased[i]->data(),
                    draw.temperature == 0 ? 0 : 1 / double(draw.temperature), philox_uniform(draw.seed, draw.counter),
                    draw.top_p, draw.min_p, draw.top_k, int32_t(bias.size()), int32_t(draw.tops), draw.given});
  }
  const Buffer<cuda::SampleJobParams> d_jobs(d, jobs);
  const Buffer<cuda::SampleResult> results(d, count);
  const Buffer<unsigned char> scratch(d, count * cuda::sample_scratch_bytes(n));
  const cuda::SampleParams p{d_jobs, results, scratch.data(), n};
  d.launch(Kernel::sample, {int(count), 1, 1}, &p);
  const std::vector<cuda::SampleResult> found = results.read();
  std::vector<Drawn> all(count);
  for (size_t i = 0; i < count; i++) all[i] = {found[i], tops[i]->read()};
  return all;
}

// The CPU's token and list; what it throws has to be found as `code`.
void compare(Device& d, const std::vector<Row>& logits, const std::vector<Draw>& draws) {
  static cpu::SampleScratch scratch;
  const std::vector<Drawn> found = on_device(d, logits, draws);
  for (size_t i = 0; i < draws.size(); i++) {
    const auto n = int64_t(logits[i].size());
    std::vector<TokenLogprob> top(draws[i].tops);
    const Draw& w = draws[i];
    SampleJob job{{const_cast<float*>(logits[i].data()), DType::f32, 1, n, n},
                  w.temperature,
                  w.top_p,
                  w.top_k,
                  w.min_p,
                  w.seed,
                  w.counter,
                  w.bias,
                  top};
    job.given = w.given;
    const TokenLogprob expected = cpu::sample_row(choose_kernels(), job, scratch);
    CHECK(found[i].result.code == SampleCode::drawn);
    CHECK(found[i].result.token == expected.token);
    CHECK(near(double(found[i].result.logprob), double(expected.logprob), 1e-7));
    for (size_t j = 0; j < top.size(); j++) {
      CHECK(found[i].top[j].token == top[j].token);
      CHECK(found[i].top[j].number == top[j].logprob ||
            near(double(found[i].top[j].number), double(top[j].logprob), 1e-7));
    }
  }
}

Row coarse(Random& random, int n, float spread, bool ties) {
  Row x = random.row(size_t(n), spread);
  for (float& v : x)
    if (ties) v = std::round(2 * v) / 2;
  return x;
}

}  // namespace

TEST(tokens_are_those_of_the_cpu) {
  Random random;
  for (const char* schedule : schedules()) {
    Device d(schedule);
    for (int n : {1, 130, 700}) {
      std::vector<Row> logits;
      std::vector<Draw> draws;
      for (float temperature : {1.0f, 0.0f, 0.6f, 2.5f})
        for (float top_p : {1.0f, 0.9f, 0.5f, 0.0f})
          for (int top_k : {0, 1, 5, 200})
            for (float min_p : {0.0f, 0.1f}) {
              if (random.below(on_gpu() ? 1 : 16) != 0) continue;
              logits.push_back(coarse(random, n, 6, random.below(2) == 0));
              draws.push_back({temperature,
                               top_p,
                               top_k,
                               min_p,
                               random.bits(),
                               random.bits(),
                               {},
                               random.below(2) ? size_t(std::min(n, 5)) : 0});
              if (n > 3 && random.below(2)) draws.back().bias = {{0, 1.5f}, {2, -kInf}, {n - 1, 3}};
              if (random.below(4) == 0) draws.back().given = random.below(n);
              if (n > 3 && random.below(2)) logits.back()[1] = logits.back()[size_t(n - 2)] = -kInf;
            }
      compare(d, logits, draws);
    }
  }
}

TEST(extreme_rows) {
  Random random;
  for (const char* schedule : schedules()) {
    Device d(schedule);
    Row one(300, -kInf), far = random.row(300, 1e30f), equal(300, -2.5f), zeros(300);
    one[299] = -1e30f;
    for (int i = 0; i < 300; i += 2) zeros[size_t(i)] = -0.0f;
    std::vector<Row> logits;
    std::vector<Draw> draws;
    for (const Row& row : {one, far, equal, zeros})
      for (const Draw& w : {Draw{1, 1}, Draw{0.7f, 0.8f, 150}, Draw{2, 0.999f, 299, 0.5f}}) {
        logits.push_back(row), draws.push_back(w);
        draws.back().tops = 3;
      }
    compare(d, logits, draws);
  }
}

// What top_k and top_p look for is not among the tokens within 8 of the best, or these are more than a block has room
// for.
TEST(rows_with_few_or_many_likely_tokens) {
  Random random;
  for (const char* schedule : schedules()) {
    Device d(schedule);
    Row many = random.row(cuda::kSampleList + 900, 1), few = random.row(700, 0.3f);
    for (float& x : few) x -= 9;
    few[300] = 0;
    for (const Row& row : {many, few}) {
      std::vector<Draw> draws = {{1, 0.5f}, {1, 0.99f}, {3, 0.97f, 20}, {3, 1, 650}, {2, 0.999f, 4500}};
      for (Draw& draw : draws) draw.seed = random.bits();
      compare(d, std::vector<Row>(draws.size(), row), draws);
    }
  }
}

TEST(equal_tokens_have_room_or_not) {
  Random random;
  for (const char* schedule : schedules()) {
    Device d(schedule);
    Row levels(300);
    for (size_t i = 0; i < 300; i++) levels[i] = -float(i * 7 % 3);
    std::vector<Draw> draws;
    for (int top_k : {1, 99, 100, 101, 150, 199, 200, 299})
      for (int i = 0; i < (on_gpu() ? 40 : 4); i++) draws.push_back({100, 1, top_k, 0, random.bits()});
    compare(d, std::vector<Row>(draws.size(), levels), draws);
  }
}

TEST(long_rows_are_walked_to_their_end) {
  Random random;
  for (const char* schedule : schedules()) {
    Device d(schedule);
    const int n = 2 * cuda::kSampleSpan * cuda::kSampleSpan + 300;
    Row gaps(size_t(n), -kInf);  // spans without a token, and the last one alone in its own
    for (int i = 0; i < n - 200; i += 301) gaps[size_t(i)] = float(random.below(3));
    gaps.back() = 3;
    std::vector<Draw> draws;
    for (int i = 0; i < (on_gpu() ? 40 : 3); i++) draws.push_back({i == 0 ? 0.1f : 1.0f, 1, 0, 0, random.bits()});
    compare(d, std::vector<Row>(draws.size(), gaps), draws);
  }
}

TEST(rows_without_a_token_are_told_apart) {
  for (const char* schedule : schedules()) {
    Device d(schedule);
    Row nan(200, 1.0f), infinite(200, 1.0f), nothing(200, -kInf), fine(200, 1.0f);
    nan[150] = nan[20] = kNan, infinite[199] = kInf;
    Draw banned, overflow;
    for (int i = 0; i < 200; i++) banned.bias.push_back({i, -kInf});
    fine[3] = 3e38f, overflow.bias = {{3, 3e38f}};
    const std::vector<Drawn> found = on_device(d, {nan, infinite, nothing, fine, fine}, {{}, {}, {}, banned, overflow});
    const auto is = [&](size_t i, SampleCode code, int where) {
      return found[i].result.code == code && found[i].result.where == where;
    };
    CHECK(is(0, SampleCode::not_finite, 20));
    CHECK(is(1, SampleCode::not_finite, 199));
    CHECK(is(2, SampleCode::all_infinite, 0));
    CHECK(is(3, SampleCode::all_banned, 0));
    CHECK(is(4, SampleCode::not_finite_biased, 3));
  }
}

CHECK_MAIN
