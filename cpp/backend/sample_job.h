// What every device says of a row that cannot be sampled from, in the same words.
#pragma once
#include "backend/backend.h"

namespace rwkv {

// Throws Error for a parameter out of range.
void check(const SampleJob& job);

[[noreturn]] void refuse_logit(size_t token, float found, bool biased);  // NonFiniteError: NaN or +inf
[[noreturn]] void refuse_no_logit(size_t count);                         // NonFiniteError: nothing but -inf
[[noreturn]] void refuse_all_banned(size_t count);                       // Error

}  // namespace rwkv
