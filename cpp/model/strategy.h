#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"

namespace rwkv {

// One stretch of layers: where they run and how their matrices are stored.
struct StageSpec {
  std::string device;  // "cpu"
  Format format = Format::f32;
  int layers = 0;  // 0: all that are left
};

// "auto", "cpu fp32", "cpu bf16", "cpu bf16 *6 -> cpu fp32". `native` is the file's own precision, which "auto" keeps.
// Throws StrategyError saying which word is wrong and what may stand there.
std::vector<StageSpec> parse_strategy(std::string_view text, Format native);

}  // namespace rwkv
