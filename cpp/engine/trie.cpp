#include "engine/trie.h"

#include <bit>
#include <span>

#include "core/error.h"

namespace rwkv {
namespace {

// Finds room: a base that no node has, with a free cell for each label. Bit sets answer for 64 bases at a time, and
// words that have become hopeless are left behind, so placing a node costs a bounded time whatever the vocabulary.
class Places {
 public:
  explicit Places(uint32_t lowest) : first_(lowest / 64) {}

  uint32_t take(std::span<const uint8_t> labels) {
    for (size_t word = first_;; ++word) {
      grow(word + 6);  // 64 bases and 255 cells on
      uint64_t taken = bases_[word];
      for (size_t i = 0; i < labels.size() && ~taken; ++i) taken |= cells_from(word * 64 + labels[i]);
      if (~taken == 0) {
        if (word == first_ && ++misses_ == kMisses) leave_first();
        continue;
      }
      const uint32_t base = static_cast<uint32_t>(word * 64) + static_cast<uint32_t>(std::countr_one(taken));
      bases_[word] |= uint64_t{1} << base % 64;
      for (uint8_t label : labels) cells_[(base + label) / 64] |= uint64_t{1} << (base + label) % 64;
      while (first_ + kWindow < word) leave_first();
      return base;
    }
  }

 private:
  static constexpr size_t kWindow = 64, kMisses = 16;

  void leave_first() {
    ++first_;
    misses_ = 0;
  }
  void grow(size_t words) {
    if (cells_.size() >= words) return;
    cells_.resize(words * 2, 0);
    bases_.resize(words * 2, 0);
  }
  uint64_t cells_from(size_t bit) const {
    const uint64_t low = cells_[bit / 64] >> bit % 64;
    return bit % 64 == 0 ? low : low | cells_[bit / 64 + 1] << (64 - bit % 64);
  }

  std::vector<uint64_t> cells_, bases_;  // taken ones
  size_t first_, misses_ = 0;            // the word where a search begins, and how many found nothing there
};

}  // namespace

Trie::Trie(const Vocabulary& vocabulary, const std::string& name, size_t max_cells) {
  // A node is the run of sorted tokens that share their first `depth` bytes. Breadth first, so that the nodes every
  // match begins with lie together.
  struct Node {
    uint32_t begin, end, depth, cell;
  };
  const std::vector<Vocabulary::Token>& tokens = vocabulary.tokens;
  const auto byte_at = [&](uint32_t token, uint32_t depth) {
    return static_cast<uint8_t>(vocabulary.bytes[tokens[token].offset + depth]);
  };
  Places places(kRootBase);
  std::vector<uint8_t> labels;
  std::vector<uint32_t> starts;  // of each child's run, and the end of the last
  std::vector<Node> level = {{0, static_cast<uint32_t>(tokens.size()), 0, 0}}, next;
  for (; !level.empty(); level.swap(next), next.clear()) {
    for (const Node& node : level) {
      labels.clear();
      starts.clear();
      for (uint32_t i = node.begin; i < node.end; ++i) {
        const uint8_t label = byte_at(i, node.depth);
        if (!labels.empty() && labels.back() == label) continue;
        labels.push_back(label);
        starts.push_back(i);
      }
      starts.push_back(node.end);

      const uint32_t base = places.take(labels);
      const size_t needed = size_t{base} + 256;  // any byte may be looked up from this base
      RWKV_CHECK(ModelFormatError, needed <= max_cells, name, ": expected a vocabulary whose trie fits in ", max_cells,
                 " cells, found ", tokens.size(), " tokens that need more");
      if (cells_.size() < needed) cells_.resize(needed);
      if (node.depth > 0) cells_[node.cell].base = base;
      for (size_t i = 0; i < labels.size(); ++i) {
        Cell& cell = cells_[base + labels[i]];
        cell.label = labels[i];
        uint32_t begin = starts[i];
        const uint32_t end = starts[i + 1], depth = node.depth + 1;
        if (tokens[begin].length == depth) {  // the shortest of the run sorts first
          cell.token = static_cast<uint32_t>(tokens[begin].id) + 1;
          ++begin;
        }
        if (begin < end) next.push_back({begin, end, depth, base + labels[i]});
      }
    }
  }
}

}  // namespace rwkv
