// The tensors of a GGUF file under the names and in the orientation of the official checkpoints.
#pragma once
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

// Throws ModelFormatError for an architecture other than rwkv6 and rwkv7.
std::vector<TensorInfo> gguf_views(const Checkpoint& file);

}  // namespace rwkv
