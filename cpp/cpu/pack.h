// Weights into panels, once per model: the same code for every instruction set.
#pragma once
#include "cpu/kernels.h"

namespace rwkv::cpu {

// The `count` <= kGroup columns x of row `row` of a panel, from a multiple of kGroup on; `panel` is where its columns
// begin. Fewer than kGroup only where the matrix ends.
void pack_weights(Format format, const float* x, int row, int count, std::byte* panel);

}  // namespace rwkv::cpu
