// Longest match over a double array: a node's child for byte c is the cell at base + c, if that cell is labelled c. No
// two nodes share a base, so the label alone proves whose child a cell is: one load and one comparison per byte.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/vocabulary.h"

namespace rwkv {

class Trie {
 public:
  // Throws ModelFormatError, in the name of the file, for a vocabulary that needs more cells.
  Trie(const Vocabulary& vocabulary, const std::string& name, size_t max_cells = size_t{1} << 25);

  struct Match {
    int32_t id;  // -1: no token is a prefix of the text
    size_t length;
    bool open;  // the text ended before it was certain that no longer token begins here
  };
  Match longest(const uint8_t* text, const uint8_t* end) const {
    Match match{-1, 0, false};
    uint32_t base = kRootBase;
    const uint8_t* at = text;
    while (at != end) {
      const Cell cell = cells_[base + *at];
      if (cell.label != *at) break;
      ++at;
      if (cell.token != 0) match = {static_cast<int32_t>(cell.token) - 1, static_cast<size_t>(at - text), false};
      base = cell.base;
    }
    match.open = at == end;
    return match;
  }

 private:
  // Leaves point at the first 256 cells, which stay unlabelled; the root's children begin behind them.
  static constexpr uint32_t kLeafBase = 0, kRootBase = 256, kNoLabel = 256;
  static_assert(Vocabulary::kMaxIds < 1 << 23);

  struct Cell {
    uint32_t base = kLeafBase;
    uint32_t label : 9 = kNoLabel;
    uint32_t token : 23 = 0;  // id + 1; 0: no token ends here
  };
  std::vector<Cell> cells_;
};

}  // namespace rwkv
