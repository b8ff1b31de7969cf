// Drawing a token from a row of logits: softmax, top-p, temperature, one uniform number. Plain C++ in double precision
// and fixed order, so a row's token depends on its logits and its job alone.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace rwkv::cpu {

// Kept between calls so that sampling allocates once, for the widest row seen.
struct SampleScratch {
  std::vector<double> weights;  // (n) every token's probability, up to a common factor
  std::vector<float> boundary;  // the logits among which the cutoff lies
};

// Keeps every token at least as likely as the least likely of the smallest set that holds top_p of the probability,
// then draws with weight p^(1/temperature). temperature 0 and top_p 0 take the most likely token, the lowest id of
// equals. A logit of -inf bans its token. Throws Error for a parameter out of range and NonFiniteError for NaN, +inf,
// or nothing but -inf.
int32_t sample_row(const float* logits, int n, const SampleJob& job, SampleScratch& scratch);

// e^x for x <= 0, to about 1e-15 relative and with the same bits everywhere, which libm does not promise; 0 below -708.
double exp_of_negative(double x);

}  // namespace rwkv::cpu
