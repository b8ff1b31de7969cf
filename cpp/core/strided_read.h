// Elements of a strided tensor straight from a file, in the order of its shape.
#pragma once
#include "core/checkpoint.h"

namespace rwkv {

// Elements [first, first + count) in row-major order. The range has been checked against the tensor.
void read_strided(const File& file, const TensorInfo& tensor, int64_t first, int64_t count, void* dst);

}  // namespace rwkv
