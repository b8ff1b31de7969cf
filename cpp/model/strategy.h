#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"

namespace rwkv {

// How the matrices of a stretch of layers are stored: the low-rank pairs, a small share of all numbers, are never
// quantised, and the head not to four bits.
struct Formats {
  Format large = Format::f32, small = Format::f32, head = Format::f32;
  // Those of the activations that are multiplied with them.
  Formats operands() const { return {operand_format(large), operand_format(small), operand_format(head)}; }
};

// One stretch of layers: where they run and how their matrices are stored.
struct StageSpec {
  std::string device;  // "cpu"
  Formats formats;
  int layers = 0;  // 0: all that are left
};

// "auto", "cpu fp32", "cpu bf16", "cpu int8 *6 -> cpu fp32". `native` is the file's own precision, which "auto" keeps
// and so do the small matrices beside int8 and int4. Throws StrategyError saying which word is wrong and what may stand
// there.
std::vector<StageSpec> parse_strategy(std::string_view text, Format native);

}  // namespace rwkv
