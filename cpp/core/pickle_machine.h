// A stack machine for pickles over small nodes. Floats and the like are one and the same node: nothing made of them
// matters. What a pickle has made is looked at through its nodes; pickle.cpp takes tensors out of them.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace rwkv {

class PickleMachine {
 public:
  using Ref = uint32_t;  // place of a value in the machine's list

  enum class Kind : uint8_t { other, integer, text, tuple, list, dict, global, storage, tensor };
  enum class Global : uint8_t { ordered_dict, tensor_v2, tensor_v1, parameter, storage };

  struct Node {
    Kind kind = Kind::other;
    Global global = Global::ordered_dict;
    DType dtype = DType::f32;  // of a storage class
    bool strangers = false;    // list: whether something else than tensors has been put into it
    uint32_t count = 0;        // text: bytes; tuple: items; dict and list: last entry
    uint64_t value = 0;        // integer; text: place in the pickle; tuple: first item; dict and list: first entry;
                               // storage and tensor: the tuple that describes it
  };

  // Of a dict or a list. Only what can lead to a tensor is kept: tensors of a list, text -> tensor, text -> dict, and
  // the mark of a converted file.
  struct Entry {
    Ref key, value;
    uint32_t next;
  };
  static constexpr uint32_t kNoEntry = UINT32_MAX;

  explicit PickleMachine(std::string_view pickle);  // which outlives it

  Ref run();  // the value that the pickle is of; throws ModelFormatError

  bool is(Ref ref, Kind kind) const { return nodes_[ref].kind == kind; }
  const Node& node(Ref ref) const { return nodes_[ref]; }
  std::string_view text_of(Ref ref) const { return pickle_.substr(size_t(nodes_[ref].value), nodes_[ref].count); }
  Ref item(Ref tuple, size_t i) const { return items_[size_t(nodes_[tuple].value) + i]; }
  const Entry* first_entry(Ref owner) const { return entry(uint32_t(nodes_[owner].value)); }
  const Entry* next_entry(const Entry& before) const { return entry(before.next); }

 private:
  static constexpr Ref kOther = 0;
  static constexpr Ref kEmptyTuple = 1;
  static constexpr Ref kSmallIntegers = 2;

  template <class... Parts>
  void check(bool condition, const Parts&... parts) const {
    RWKV_CHECK(ModelFormatError, condition, "data.pkl, byte ", opcode_at_, ": ", parts...);
  }

  // reading the pickle
  std::string_view bytes(uint64_t count);
  uint64_t number(size_t width);
  std::string_view line();

  // values
  Ref add(Kind kind, uint64_t value, uint32_t count = 0);
  Ref integer(int64_t value) {
    return value >= 0 && value < 256 ? kSmallIntegers + Ref(value) : add(Kind::integer, uint64_t(value));
  }
  Ref text(uint64_t size);
  Ref dict() { return add(Kind::dict, kNoEntry, kNoEntry); }
  const Entry* entry(uint32_t place) const { return place == kNoEntry ? nullptr : &entries_[place]; }

  // the stack
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(Ref ref) { stack_.push_back(ref); }
  Ref pop();
  Ref top() const;
  size_t pop_mark();

  // opcodes
  void tuple(size_t first);
  void keep(Ref owner, Ref key, Ref value);
  void set_items(size_t first);
  void append_items(size_t first);
  void memoize(uint64_t place, Ref ref);
  Ref remembered(uint64_t place) const;
  Ref global(std::string_view module, std::string_view name);
  Ref persistent(Ref id);
  Ref reduce(Ref function, Ref arguments);
  void step(uint8_t opcode);

  std::string_view pickle_;
  size_t at_ = 0;
  size_t opcode_at_ = 0;
  size_t max_nodes_ = 0;
  std::vector<Node> nodes_;
  std::vector<Ref> items_;
  std::vector<Entry> entries_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;
  std::vector<Ref> memo_;
  size_t memoized_ = 0;
};

}  // namespace rwkv
