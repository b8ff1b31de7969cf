// Initial states that were trained: blocks.{i}.att.time_state, the matrices (H, N, N) that the recurrence of a layer
// begins with instead of zeros. Trainers of every version write them as [value, key], as states are here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace rwkv {

std::string tuned_state_name(int layer);
bool is_tuned_state(std::string_view name);

// The name and shape of one array of many.
struct ArrayShape {
  std::string name;
  std::vector<int64_t> shape;
};

// Which of the arrays is layer 0's, layer 1's and so on. Throws StateError, whose message begins with `where`, unless
// they are the tuned state of such a model, the whole and nothing else.
std::vector<size_t> find_tuned_layers(const Config& config, std::span<const ArrayShape> arrays,
                                      const std::string& where);

// (L, H, N, N) out of a .pth or safetensors file with nothing else in it. Throws StateError.
std::vector<float> read_tuned_state(const std::string& path, const Config& config);

// Throws StateError for NaN and infinity.
void expect_finite(std::span<const float> values, const std::string& where, const std::string& name);

}  // namespace rwkv
