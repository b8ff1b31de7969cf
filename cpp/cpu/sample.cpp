#include "cpu/sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"
#include "core/philox.h"

namespace rwkv::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check(const SampleJob& job) {
  RWKV_CHECK(Error, std::isfinite(job.temperature) && job.temperature >= 0,
             "temperature: expected a finite number of 0 or more, found ", job.temperature);
  RWKV_CHECK(Error, job.top_p >= 0 && job.top_p <= 1, "top_p: expected a number from 0 to 1, found ", job.top_p);
}

// The first of the largest logits, all of which are seen to be usable.
int argmax(const float* logits, int n) {
  int best = 0;
  for (int i = 0; i < n; ++i) {
    RWKV_CHECK(NonFiniteError, logits[i] < kInfinity, "logit of token ", i,
               ": expected a finite number or -inf, found ", logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  RWKV_CHECK(NonFiniteError, logits[best] > -kInfinity, "logits: expected one above -inf among ", n, ", found none");
  return best;
}

// Logits are sorted by their distance from the largest into buckets of 1/16; the last takes all beyond 64.
constexpr size_t kBuckets = 1024;
size_t bucket_of(double distance) {
  return distance < kBuckets / 16 ? static_cast<size_t>(distance * 16) : kBuckets - 1;
}

// The lowest logit that top-p keeps, given each token's probability up to a common factor. The probability in whole
// buckets says in which one the cutoff lies, so only that one's logits are sorted.
float cutoff(const float* logits, int n, float max, float top_p, const double* weights, std::vector<float>& boundary) {
  std::array<double, kBuckets> mass{};
  for (int i = 0; i < n; ++i) mass[bucket_of(double{max} - double{logits[i]})] += weights[i];
  double total = 0;
  for (double m : mass) total += m;
  const double target = double{top_p} * total;
  double sum = 0;
  size_t bucket = 0;
  for (; bucket < kBuckets - 1 && sum + mass[bucket] < target; ++bucket) sum += mass[bucket];

  boundary.clear();
  for (int i = 0; i < n; ++i) {
    if (bucket_of(double{max} - double{logits[i]}) == bucket) boundary.push_back(logits[i]);
  }
  std::sort(boundary.begin(), boundary.end(), std::greater<>());
  for (float logit : boundary) {
    sum += exp_of_negative(double{logit} - double{max});
    if (sum >= target) return logit;
  }
  return boundary.back();  // rounding left the sum a little short
}

// weights[i] = e^((logits[i] - max) * scale)
void exponentials(const float* logits, int n, double max, double scale, double* weights) {
  for (int i = 0; i < n; ++i) weights[i] = exp_of_negative((double{logits[i]} - max) * scale);
}

}  // namespace

double exp_of_negative(double x) {
  if (!(x >= -708)) return 0;
  // x = k ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits; ln 2 is
  // split so that k * high is exact.
  constexpr double kRound = 0x1.8p52, kHigh = 0x1.62e42fee00000p-1, kLow = 0x1.a39ef35793c76p-33;
  const double shifted = x * 0x1.71547652b82fep0 + kRound;
  const double k = shifted - kRound;
  const double r = (x - k * kHigh) - k * kLow;
  double sum = 1.0 / 479001600;  // Taylor up to r^12 / 12!
  sum = sum * r + 1.0 / 39916800;
  sum = sum * r + 1.0 / 3628800;
  sum = sum * r + 1.0 / 362880;
  sum = sum * r + 1.0 / 40320;
  sum = sum * r + 1.0 / 5040;
  sum = sum * r + 1.0 / 720;
  sum = sum * r + 1.0 / 120;
  sum = sum * r + 1.0 / 24;
  sum = sum * r + 1.0 / 6;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  return sum * std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) + 1023) << 52);  // 2^k
}

int32_t sample_row(const float* logits, int n, const SampleJob& job, SampleScratch& scratch) {
  check(job);
  RWKV_CHECK(Error, n > 0, "logits: expected one per token, found ", n);
  const int best = argmax(logits, n);
  if (job.temperature == 0 || job.top_p == 0) return best;
  const float max = logits[best];
  const size_t size = static_cast<size_t>(n);
  if (scratch.weights.size() < size) scratch.weights.resize(size);
  scratch.boundary.reserve(size);
  double* const weights = scratch.weights.data();

  // p^(1 / temperature) is, up to a factor that all tokens share, the exponential of the logit over the temperature.
  const double scale = 1 / double{job.temperature};
  if (job.top_p == 1) {
    exponentials(logits, n, max, scale, weights);
  } else {
    exponentials(logits, n, max, 1, weights);
    const float low = cutoff(logits, n, max, job.top_p, weights, scratch.boundary);
    for (int i = 0; i < n; ++i) {
      if (logits[i] < low) {
        weights[i] = 0;
      } else if (scale != 1) {
        weights[i] = exp_of_negative((double{logits[i]} - double{max}) * scale);
      }
    }
  }
  double total = 0;
  for (int i = 0; i < n; ++i) total += weights[i];
  const double goal = philox_uniform(job.seed, job.counter) * total;
  double sum = 0;
  int drawn = best;
  for (int i = 0; i < n && sum <= goal; ++i) {
    if (weights[i] == 0) continue;
    sum += weights[i];
    drawn = i;
  }
  return drawn;
}

}  // namespace rwkv::cpu
