// Drawing a token from a row of logits: softmax, truncation, temperature, one uniform number. In double precision and
// fixed order, so a row's token depends on its logits and its job alone.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"

namespace rwkv::cpu {

// What sampling a row works in. Kept between calls, so that only a row wider than all before allocates.
class SampleScratch {
 public:
  void reserve(size_t vocabulary);

  std::vector<float> biased;     // (V) the row with its bias
  std::vector<float> maxima;     // of each block of the row
  std::vector<double> sums;      // of each block's exponentials
  std::vector<int32_t> ids;      // (V) the tokens under consideration, ascending
  std::vector<float> values;     // (V) and their logits
  std::vector<float> selection;  // (V) logits in the order of a selection
  std::vector<double> weights;   // (V) their exponentials
};

// Draws as SampleJob says and fills job.top. Throws Error for a parameter out of range and for a bias that leaves no
// token; NonFiniteError for NaN or +inf among the logits, before or after the bias, or nothing but -inf.
TokenLogprob sample_row(const Kernels& kernels, const SampleJob& job, SampleScratch& scratch);

// The natural logarithm of a normal x > 0, to 2e-16 of the greater of it and 1; the same bits everywhere, which libm
// does not promise.
double log_of(double x);

}  // namespace rwkv::cpu
