// The tensors of a GGUF file under the names and in the orientation of the official checkpoints.
#pragma once
#include "core/checkpoint.h"

namespace rwkv {

// Any other container comes back as it is. Throws ModelFormatError for an architecture other than rwkv6 and rwkv7.
Checkpoint with_official_names(const Checkpoint& file);

}  // namespace rwkv
