#include "backend/sample_job.h"

#include <cmath>
#include <limits>

#include "core/error.h"

namespace rwkv {

void check(const SampleJob& job) {
  const int64_t n = job.logits.cols;
  RWKV_CHECK(Error, n > 0, "logits: expected one per token, found ", n);
  RWKV_CHECK(Error, std::isfinite(job.temperature) && job.temperature >= 0,
             "temperature: expected a finite number of 0 or more, found ", job.temperature);
  RWKV_CHECK(Error, job.top_p >= 0 && job.top_p <= 1, "top_p: expected a number from 0 to 1, found ", job.top_p);
  RWKV_CHECK(Error, job.top_k >= 0, "top_k: expected 0 (all) or more, found ", job.top_k);
  RWKV_CHECK(Error, job.min_p >= 0 && job.min_p <= 1, "min_p: expected a number from 0 to 1, found ", job.min_p);
  RWKV_CHECK(Error, job.top.size() <= size_t(n), "top: expected at most the ", n, " tokens there are, found ",
             job.top.size());
  RWKV_CHECK(Error, job.given < n, "given: expected a token below ", n, ", found ", job.given);
  int64_t next = 0;  // the least id that may come
  for (const TokenBias& b : job.bias) {
    RWKV_CHECK(Error, b.token >= next && b.token < n, "bias: expected ascending tokens from 0 to ", n - 1, ", found ",
               b.token, " where ", next, " or more may stand");
    RWKV_CHECK(Error, b.bias < std::numeric_limits<float>::infinity(), "bias of token ", b.token,
               ": expected a finite number or -inf, found ", b.bias);
    next = int64_t{b.token} + 1;
  }
}

void refuse_logit(size_t token, float found, bool biased) {
  throw NonFiniteError(join("logit of token ", token, biased ? " with its bias" : "",
                            ": expected a finite number or -inf, found ", found));
}

void refuse_no_logit(size_t count) {
  throw NonFiniteError(join("logits: expected one above -inf among ", count, ", found none"));
}

void refuse_all_banned(size_t count) {
  throw Error(join("bias: expected one of ", count, " tokens to stay above -inf, found all banned"));
}

}  // namespace rwkv
