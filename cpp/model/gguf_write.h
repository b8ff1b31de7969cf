// Writes a model as a GGUF file that llama.cpp loads.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

// `type`: what the large matrices become, "f32", "f16", "bf16", "q8_0" or "q4_0"; vectors and low-rank factors are kept
// as float32. `tokens`: the bytes of each id, empty for ids without text. `progress` is called with bytes read and all.
void write_gguf(const Checkpoint& model, const std::string& path, std::string_view type,
                const std::vector<std::string>& tokens, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace rwkv
