#include "cpu/sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "backend/sample_job.h"
#include "core/philox.h"

namespace rwkv::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

size_t top_k_of(const SampleJob& job) {
  const auto n = static_cast<size_t>(job.logits.cols);
  return job.top_k == 0 ? n : std::min(n, static_cast<size_t>(job.top_k));
}

float round_down(double x) {
  const float f = static_cast<float>(x);
  return double{f} > x ? std::nextafter(f, -kInfinity) : f;
}
float round_up(double x) {
  const float f = static_cast<float>(x);
  return double{f} < x ? std::nextafter(f, kInfinity) : f;
}

// A row under work: its logits and what stands in the scratch about them.
class Row {
 public:
  // Throws NonFiniteError where a logit is NaN or +inf, with its bias or without.
  Row(const Kernels& kernels, const float* x, size_t n, SampleScratch& scratch, bool biased = false)
      : kernels_(&kernels), s_(&scratch), x_(x), n_(n), blocks_(sample_blocks(n)) {
    kernels_->block_maxima(x_, n_, s_->maxima.data());
    max_ = -kInfinity;
    for (size_t b = 0; b < blocks_; ++b) {
      if (!(s_->maxima[b] < kInfinity)) refuse(b, biased);
      max_ = std::max(max_, s_->maxima[b]);
    }
  }

  float max() const { return max_; }

  // The most likely token, the lowest id of equals.
  int32_t best() const {
    size_t b = 0;
    while (s_->maxima[b] < max_) ++b;
    const float* const block = x_ + b * kSampleBlock;
    return static_cast<int32_t>(std::find(block, x_ + n_, max_) - x_);
  }

  // Block sums of e^((x - reference) * scale), and all of them together.
  void sum(double reference, double scale) { kernels_->block_sums(x_, n_, reference, scale, s_->sums.data()); }
  double total() const {
    double part[4] = {};  // four short chains take a quarter of the time of a long one
    for (size_t b = 0; b < blocks_; ++b) part[b % 4] += s_->sums[b];
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  // The same where only the blocks of some tokens have changed.
  void sum_again(std::span<const TokenBias> changed, double reference) {
    size_t last = blocks_;
    for (const TokenBias& c : changed) {
      const size_t b = static_cast<size_t>(c.token) / kSampleBlock, begin = b * kSampleBlock;
      if (b == last) continue;
      kernels_->block_sums(x_ + begin, std::min(kSampleBlock, n_ - begin), reference, 1, &s_->sums[last = b]);
    }
  }

  // The k most likely of the tokens at or above `low`, all finite: ids ascending, logits beside. Returns how many.
  size_t collect(float low, size_t k) {
    if (k <= blocks_) {  // as many blocks have a maximum that high, so the k-th most likely token has too
      std::copy_n(s_->maxima.begin(), blocks_, s_->selection.begin());
      low = std::max(low, greatest(blocks_, k));
    }
    const size_t count = kernels_->collect(x_, n_, s_->maxima.data(), low, s_->ids.data(), s_->values.data());
    if (count <= k) return count;
    std::copy_n(s_->values.begin(), count, s_->selection.begin());
    const float last = greatest(count, k);
    size_t equal = k;  // how many of those equal to the last one still have room
    for (size_t i = 0; i < count; ++i) equal -= s_->values[i] > last;
    return filter(count, [&](float x) { return x > last || (x == last && equal > 0 && equal-- > 0); });
  }

  size_t truncate(const SampleJob& job, double reference);
  int32_t draw(double uniform, double scale);
  void list(std::span<TokenLogprob> top, double log_total);

 private:
  [[noreturn]] void refuse(size_t block, bool biased) const {
    size_t i = block * kSampleBlock;
    while (x_[i] < kInfinity) ++i;
    refuse_logit(i, x_[i], biased);
  }

  // The k-th greatest of the first `count` logits in the selection.
  float greatest(size_t count, size_t k) {
    const auto begin = s_->selection.begin(), kth = begin + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(begin, kth, begin + static_cast<std::ptrdiff_t>(count), std::greater<>());
    return *kth;
  }

  template <class Keep>
  size_t filter(size_t count, Keep keep) {
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = s_->ids[i];
      const float x = s_->values[i];
      s_->ids[kept] = id;
      s_->values[kept] = x;
      kept += keep(x);
    }
    return kept;
  }

  float cutoff(size_t count, float low, double reference, double target);

  const Kernels* kernels_;
  SampleScratch* s_;
  const float* x_;
  size_t n_, blocks_;
  float max_;
};

// The logit at which the `count` collected tokens, the most likely first, hold `target` together; -inf if they do not.
// The probability in each of many equal steps between `low` and the maximum says in which one the cutoff lies; that one
// is cut into steps again until few are left to be sorted.
float Row::cutoff(size_t count, float low, double reference, double target) {
  constexpr size_t kSteps = 1024, kFew = 256;
  float* const values = s_->selection.data();
  double* const weights = s_->weights.data();
  std::copy_n(s_->values.begin(), count, values);
  kernels_->exponentials(values, count, reference, 1, weights);
  double above = 0;  // held by tokens known to be kept
  float high = max_;
  for (bool first = true; first || (count > kFew && low < high); first = false) {
    const double range = double{high} - double{low}, steps = range > 0 ? kSteps / range : 0;
    const auto step_of = [&](float x) {
      return static_cast<size_t>(static_cast<int>(std::min((double{high} - double{x}) * steps, kSteps - 1.0)));
    };
    std::array<double, kSteps> mass{};
    for (size_t i = 0; i < count; ++i) mass[step_of(values[i])] += weights[i];
    size_t step = 0;
    for (; step < kSteps - 1 && above + mass[step] < target; ++step) above += mass[step];
    if (first && above + mass[step] < target) return -kInfinity;

    size_t inside = 0;
    float least = kInfinity, greatest = -kInfinity;
    for (size_t i = 0; i < count; ++i) {
      if (step_of(values[i]) != step) continue;
      least = std::min(least, values[i]);
      greatest = std::max(greatest, values[i]);
      values[inside] = values[i];
      weights[inside++] = weights[i];
    }
    count = inside, low = least, high = greatest;
  }
  if (low == high) return low;
  std::sort(values, values + count, std::greater<>());
  kernels_->exponentials(values, count, reference, 1, weights);
  for (size_t i = 0; i < count; ++i)
    if ((above += weights[i]) >= target) return values[i];
  return low;  // rounding left the sum a little short
}

// Collects the tokens that top_p, top_k and min_p keep. Block sums at scale 1 stand in the scratch if top_p asks.
size_t Row::truncate(const SampleJob& job, double reference) {
  const size_t k = top_k_of(job);
  float low = kLowest;
  if (job.min_p > 0) low = std::max(low, round_up(double{max_} + log_of(job.min_p)));
  if (job.top_p == 1) return collect(low, k);

  // So far below the maximum all n tokens together hold less than 1 - top_p; most often a nearer bound will do.
  const double total = this->total(), log_total = log_of(total) + (reference - double{max_});
  const double enough = log_of(double(n_)) - log_of(1 - double{job.top_p}) - log_total + 0.01;
  for (double distance = std::min(8.0, enough);; distance = enough) {
    const float bound = std::max(low, round_down(double{max_} - distance));
    const size_t count = collect(bound, k);
    const float last = cutoff(count, bound, reference, job.top_p * total);
    if (last > -kInfinity) return filter(count, [=](float x) { return x >= last; });
    // The others keep fewer than top_p would; after the second try that is rounding.
    if (bound == low || count == k || distance == enough) return count;
  }
}

// Walks the row in ascending order until the sum of weights e^((x - max) * scale) passes that share of all: block by
// block, whose sums stand in the scratch, then one by one.
int32_t Row::draw(double uniform, double scale) {
  const double goal = uniform * total();
  double sum = 0, after = 0;  // of the blocks before this one, and with it
  size_t block = 0;
  for (size_t b = 0; b < blocks_ && after <= goal; ++b) {
    if (s_->sums[b] == 0) continue;
    block = b;
    sum = after;
    after += s_->sums[b];
  }
  const size_t begin = block * kSampleBlock, count = std::min(kSampleBlock, n_ - begin);
  std::array<double, kSampleBlock> weights;
  kernels_->exponentials(x_ + begin, count, max_, scale, weights.data());
  size_t drawn = 0;
  for (size_t i = 0; i < count && sum <= goal; ++i) {
    if (weights[i] == 0) continue;
    sum += weights[i];
    drawn = i;
  }
  return static_cast<int32_t>(begin + drawn);
}

// The most likely tokens of the row, those at -inf last.
void Row::list(std::span<TokenLogprob> top, double log_total) {
  if (top.empty()) return;
  size_t count = collect(kLowest, top.size());
  for (size_t i = 0; i < count; ++i) top[i] = {s_->ids[i], s_->values[i]};
  std::sort(top.begin(), top.begin() + static_cast<std::ptrdiff_t>(count), [](TokenLogprob a, TokenLogprob b) {
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
  });
  for (size_t i = 0; count < top.size(); ++i)
    if (x_[i] == -kInfinity) top[count++] = {static_cast<int32_t>(i), -kInfinity};
  for (TokenLogprob& t : top) t.logprob = static_cast<float>(double{t.logprob} - double{max_} - log_total);
}

}  // namespace

void SampleScratch::reserve(size_t vocabulary) {
  if (weights.size() >= vocabulary) return;
  for (std::vector<float>* v : {&biased, &maxima, &values, &selection}) v->resize(vocabulary);
  sums.resize(sample_blocks(vocabulary));
  ids.resize(vocabulary);
  weights.resize(vocabulary);  // last: it tells that all of them are
}

double log_of(double x) {
  // x = 2^k m with m between the roots of 1/2 and 2; log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const uint64_t bits = std::bit_cast<uint64_t>(x) - kRootHalf;
  const int64_t k = static_cast<int64_t>(bits) >> 52;
  const double m = std::bit_cast<double>((bits & 0xfffffffffffff) + kRootHalf);
  const double s = (m - 1) / (m + 1), z = s * s;
  double sum = 0;
  for (int i = 21; i >= 3; i -= 2) sum = (sum + 1.0 / i) * z;
  return static_cast<double>(k) * 0x1.62e42fefa39efp-1 + 2 * (s + s * sum);
}

TokenLogprob sample_row(const Kernels& kernels, const SampleJob& job, SampleScratch& scratch) {
  check(job);
  const auto n = static_cast<size_t>(job.logits.cols);
  const float* const logits = job.logits.row(0);
  scratch.reserve(n);

  Row row(kernels, logits, n, scratch);
  const float max = row.max();
  if (max == -kInfinity) refuse_no_logit(n);
  row.sum(max, 1);
  const double log_total = log_of(row.total());
  const auto with_logprob = [&](int32_t token) {
    return TokenLogprob{token, static_cast<float>(double{logits[token]} - double{max} - log_total)};
  };
  row.list(job.top, log_total);
  if (job.given >= 0) return with_logprob(job.given);

  const bool biased = !job.bias.empty();
  if (biased) {
    std::copy_n(logits, n, scratch.biased.begin());
    for (const TokenBias& b : job.bias) scratch.biased[static_cast<size_t>(b.token)] += b.bias;
    row = Row(kernels, scratch.biased.data(), n, scratch, true);
    if (row.max() == -kInfinity) refuse_all_banned(n);
  }
  if (job.temperature == 0 || job.top_p == 0 || job.top_k == 1) return with_logprob(row.best());

  const double scale = 1 / double{job.temperature}, uniform = philox_uniform(job.seed, job.counter);
  if (job.top_p == 1 && job.min_p == 0 && top_k_of(job) == n) {
    if (biased || scale != 1) row.sum(row.max(), scale);
    return with_logprob(row.draw(uniform, scale));
  }
  double reference = max;  // of the sums
  if (biased && job.top_p < 1) {
    // The sums of blocks without bias still hold, unless their exponentials may have grown or shrunk too far.
    if (std::abs(row.max() - max) <= 64)
      row.sum_again(job.bias, reference);
    else
      row.sum(reference = row.max(), 1);
  }
  const size_t count = row.truncate(job, reference);
  Row kept(kernels, scratch.values.data(), count, scratch);
  kept.sum(kept.max(), scale);
  return with_logprob(scratch.ids[static_cast<size_t>(kept.draw(uniform, scale))]);
}

}  // namespace rwkv::cpu
