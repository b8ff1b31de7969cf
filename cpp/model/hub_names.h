// The tensors of Hugging Face files under the names and in the orientation of the official checkpoints.
#pragma once
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

std::vector<TensorInfo> fla_views(const Checkpoint& file);             // flash-linear-attention: RWKV-6 and 7
std::vector<TensorInfo> rwkv_rs_views(const Checkpoint& file);         // rwkv-rs: RWKV-7
std::vector<TensorInfo> transformers_views(const Checkpoint& file);    // the RwkvModel of transformers: RWKV-4, 5, 6
std::vector<TensorInfo> embedding_rwkv_views(const Checkpoint& file);  // without what reads images

}  // namespace rwkv
