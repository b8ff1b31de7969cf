// Writes a model of any version as a safetensors file with the official names.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "core/checkpoint.h"

namespace rwkv {

// `type`: what all tensors become, "f32", "f16" or "bf16"; empty: each keeps its own, and blocks become f32. `progress`
// is called with the bytes written and all.
void write_safetensors(const Checkpoint& model, const std::string& path, std::string_view type,
                       const std::function<void(int64_t, int64_t)>& progress);

}  // namespace rwkv
