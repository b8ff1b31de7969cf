#pragma once
#include <optional>
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
  Formats operands(const Backend& b) const {
    return {b.operand_format(large), b.operand_format(small), b.operand_format(head)};
  }
  bool operator==(const Formats&) const = default;
};

// What a precision such as "int8" makes of a file whose own is `native`; and the word for a format. The first throws
// StrategyError.
Formats parse_precision(std::string_view word, Format native);
std::string_view word_of(Format format);

// One stretch of layers: where they run and how their matrices are stored.
struct StageSpec {
  std::string device;  // "cpu", "cuda:0", or "auto" for the best there is
  Formats formats;
  DType state = DType::f32;  // of states' matrices; f16 where the strategy says state16
  int layers = 0;            // 0: all that are left
  bool streamed = false;     // all that are left, of which so many stay on the device
};

// "auto", "cpu fp32", "cpu int8 *6 -> cpu fp32", "cuda fp16 state16 *10 -> cuda:1 fp16i8". `native` is the file's own
// precision, which "auto" keeps and so do the small matrices beside int8 and int4; a file whose matrices are packed has
// `only` these formats. Throws StrategyError saying which word is wrong and what may stand there.
std::vector<StageSpec> parse_strategy(std::string_view text, Format native, const std::optional<Formats>& only = {});

}  // namespace rwkv
