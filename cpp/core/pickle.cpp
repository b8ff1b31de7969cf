// A stack machine over small nodes. Lists, floats and the like are one and the same node: nothing made of them matters.
#include "core/pickle.h"

#include <algorithm>
#include <bit>
#include <set>

#include "core/bounds.h"
#include "core/error.h"
#include "core/text.h"

namespace rwkv {
namespace {

using Ref = uint32_t;  // place of a value in the machine's list

enum class Kind : uint8_t { other, integer, text, tuple, dict, global, storage, tensor };
enum class Global : uint8_t { ordered_dict, tensor_v2, tensor_v1, parameter, storage };

struct Node {
  Kind kind = Kind::other;
  Global global = Global::ordered_dict;
  DType dtype = DType::f32;  // of a storage class
  uint32_t count = 0;        // text: bytes; tuple: items; dict: last entry
  uint64_t value = 0;        // integer; text: place in the pickle; tuple: first item; dict: first entry; storage and
                             // tensor: the tuple that describes it
};

// Only what can lead to a tensor is kept, text -> tensor and text -> dict, and the mark of a converted file.
struct DictEntry {
  Ref key, value;
  uint32_t next;
};
constexpr uint32_t kNoEntry = UINT32_MAX;

constexpr size_t kMaxStorageKey = 64;  // bytes; it is a number

// The `rwkv` package writes it into files that it has packed for one strategy.
constexpr std::string_view kConverted = "_strategy";

struct NamedGlobal {
  std::string_view module, name;
  Global global;
  DType dtype = DType::f32;
};
constexpr NamedGlobal kGlobals[] = {
    {"collections", "OrderedDict", Global::ordered_dict},
    {"torch._utils", "_rebuild_tensor_v2", Global::tensor_v2},
    {"torch._utils", "_rebuild_tensor", Global::tensor_v1},
    {"torch._utils", "_rebuild_parameter", Global::parameter},
    {"torch", "FloatStorage", Global::storage, DType::f32},
    {"torch", "HalfStorage", Global::storage, DType::f16},
    {"torch", "BFloat16Storage", Global::storage, DType::bf16},
    {"torch", "DoubleStorage", Global::storage, DType::f64},
    {"torch", "LongStorage", Global::storage, DType::i64},
    {"torch", "IntStorage", Global::storage, DType::i32},
    {"torch", "ShortStorage", Global::storage, DType::i16},
    {"torch", "CharStorage", Global::storage, DType::i8},
    {"torch", "ByteStorage", Global::storage, DType::u8},
    {"torch", "BoolStorage", Global::storage, DType::boolean},
};

class Machine {
 public:
  explicit Machine(std::string_view pickle) : pickle_(pickle) {
    nodes_.resize(kSmallIntegers + 256);
    nodes_[kEmptyTuple].kind = Kind::tuple;
    for (Ref i = 0; i < 256; ++i) {
      nodes_[kSmallIntegers + i].kind = Kind::integer;
      nodes_[kSmallIntegers + i].value = i;
    }
    // Honest files spend three bytes or more on each new value (smaller integers are here already); a file that spends
    // one would make the machine many times larger than itself.
    max_nodes_ = nodes_.size() + 1024 + pickle.size() / 3;
  }

  Ref run();
  std::vector<PickledTensor> tensors(Ref dict) const;

 private:
  static constexpr Ref kOther = 0;
  static constexpr Ref kEmptyTuple = 1;
  static constexpr Ref kSmallIntegers = 2;

  template <class... Parts>
  void check(bool condition, const Parts&... parts) const {
    RWKV_CHECK(ModelFormatError, condition, "data.pkl, byte ", opcode_at_, ": ", parts...);
  }

  // reading the pickle
  std::string_view bytes(uint64_t count) {
    check(count <= pickle_.size() - at_, "expected ", count, " more bytes, found ", pickle_.size() - at_);
    at_ += size_t(count);
    return pickle_.substr(at_ - size_t(count), size_t(count));
  }
  uint64_t number(size_t width) {
    uint64_t value = 0;
    const std::string_view field = bytes(width);
    for (size_t i = width; i-- > 0;) value = value << 8 | uint8_t(field[i]);
    return value;
  }
  std::string_view line() {
    const size_t end = pickle_.find('\n', at_);
    check(end != std::string_view::npos, "expected the name of a class, found no end of it");
    const std::string_view text = bytes(end - at_);
    ++at_;
    return text;
  }

  // values
  Ref add(Kind kind, uint64_t value, uint32_t count = 0) {
    check(nodes_.size() < max_nodes_, "more values than ", pickle_.size(), " bytes of a state dict describe");
    Node node;
    node.kind = kind;
    node.value = value;
    node.count = count;
    nodes_.push_back(node);
    return Ref(nodes_.size() - 1);
  }
  Ref integer(int64_t value) {
    return value >= 0 && value < 256 ? kSmallIntegers + Ref(value) : add(Kind::integer, uint64_t(value));
  }
  Ref text(uint64_t size) {
    const std::string_view found = bytes(size);
    check(is_utf8(found), "expected UTF-8 text, found '", shown(found), "'");
    return add(Kind::text, at_ - size, uint32_t(size));
  }
  Ref dict() { return add(Kind::dict, kNoEntry, kNoEntry); }
  std::string_view text_of(Ref ref) const { return pickle_.substr(size_t(nodes_[ref].value), nodes_[ref].count); }
  Ref item(Ref tuple, size_t i) const { return items_[size_t(nodes_[tuple].value) + i]; }
  bool is(Ref ref, Kind kind) const { return nodes_[ref].kind == kind; }

  // the stack
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(Ref ref) { stack_.push_back(ref); }
  Ref pop() {
    check(stack_.size() > floor(), "expected a value on the stack, found none");
    const Ref ref = stack_.back();
    stack_.pop_back();
    return ref;
  }
  Ref top() const {
    check(stack_.size() > floor(), "expected a value on the stack, found none");
    return stack_.back();
  }
  size_t pop_mark() {
    check(!marks_.empty(), "expected a mark on the stack, found none");
    const size_t height = marks_.back();
    marks_.pop_back();
    return height;
  }

  // opcodes
  void tuple(size_t first);
  void set_items(size_t first);
  void memoize(uint64_t place, Ref ref);
  Ref remembered(uint64_t place) const;
  Ref global(std::string_view module, std::string_view name);
  Ref persistent(Ref id);
  Ref reduce(Ref function, Ref arguments);
  void step(uint8_t opcode);

  // results
  std::vector<int64_t> integers(Ref ref, std::string_view name, std::string_view what) const;
  int64_t natural(Ref ref, std::string_view name, std::string_view what) const;

  std::string_view pickle_;
  size_t at_ = 0;
  size_t opcode_at_ = 0;
  size_t max_nodes_ = 0;
  std::vector<Node> nodes_;
  std::vector<Ref> items_;
  std::vector<DictEntry> entries_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;
  std::vector<Ref> memo_;
  size_t memoized_ = 0;
};

void Machine::tuple(size_t first) {
  check(first >= floor() && first <= stack_.size(), "expected values for a tuple, found too few");
  const size_t count = stack_.size() - first;
  const Ref made = count == 0 ? kEmptyTuple : add(Kind::tuple, items_.size(), uint32_t(count));
  items_.insert(items_.end(), stack_.begin() + ptrdiff_t(first), stack_.end());
  stack_.resize(first);
  push(made);
}

void Machine::set_items(size_t first) {
  check(first > floor() && first <= stack_.size() && (stack_.size() - first) % 2 == 0,
        "expected a dict with keys and values on the stack");
  const Ref target = stack_[first - 1];
  check(is(target, Kind::dict), "expected a dict to put values into, found something else");
  for (size_t i = first; i < stack_.size(); i += 2) {
    const Ref key = stack_[i], value = stack_[i + 1];
    if (!is(key, Kind::text)) continue;
    const bool kept =
        is(value, Kind::tensor) || is(value, Kind::dict) || (is(value, Kind::text) && text_of(key) == kConverted);
    if (!kept) continue;
    const auto place = uint32_t(entries_.size());
    entries_.push_back({key, value, kNoEntry});
    Node& node = nodes_[target];
    if (node.value == kNoEntry) {
      node.value = place;
    } else {
      entries_[node.count].next = place;
    }
    node.count = place;
  }
  stack_.resize(first);
}

void Machine::memoize(uint64_t place, Ref ref) {
  // Whoever writes a pickle counts upwards, and every number costs a byte or more.
  check(place < pickle_.size(), "expected a memo number below ", pickle_.size(), ", found ", place);
  if (place >= memo_.size()) memo_.resize(size_t(place) + 1, UINT32_MAX);
  if (memo_[size_t(place)] == UINT32_MAX) ++memoized_;
  memo_[size_t(place)] = ref;
}

Ref Machine::remembered(uint64_t place) const {
  check(place < memo_.size() && memo_[size_t(place)] != UINT32_MAX, "memo number ", place, " was never set");
  return memo_[size_t(place)];
}

Ref Machine::global(std::string_view module, std::string_view name) {
  for (const NamedGlobal& known : kGlobals) {
    if (known.module != module || known.name != name) continue;
    const Ref ref = add(Kind::global, 0);
    nodes_[ref].global = known.global;
    nodes_[ref].dtype = known.dtype;
    return ref;
  }
  check(false, "expected a state dict of plain tensors, found the class or function ", shown(module), ".", shown(name),
        ", which is not allowed");
  return kOther;
}

// ('storage', torch.FloatStorage, '0', 'cpu', elements)
Ref Machine::persistent(Ref id) {
  const bool storage = is(id, Kind::tuple) && nodes_[id].count == 5 && is(item(id, 0), Kind::text) &&
                       text_of(item(id, 0)) == "storage" && is(item(id, 1), Kind::global) &&
                       nodes_[item(id, 1)].global == Global::storage && is(item(id, 2), Kind::text) &&
                       is(item(id, 4), Kind::integer);
  check(storage, "expected a reference to a storage, found something else");
  return add(Kind::storage, id);
}

Ref Machine::reduce(Ref function, Ref arguments) {
  check(is(function, Kind::global) && is(arguments, Kind::tuple), "expected a known function and its arguments");
  const uint32_t count = nodes_[arguments].count;
  switch (nodes_[function].global) {
    case Global::ordered_dict:
      check(count == 0, "expected an empty OrderedDict, found ", count, " arguments");
      return dict();
    case Global::tensor_v2:
      check(count == 6, "expected 6 arguments for a tensor, found ", count,
            " (a seventh tells of a conjugate or negative view, whose bytes are not its values)");
      return add(Kind::tensor, arguments);
    case Global::tensor_v1:
      check(count == 4, "expected 4 arguments for a tensor, found ", count);
      return add(Kind::tensor, arguments);
    case Global::parameter:
      check(count == 3 && is(item(arguments, 0), Kind::tensor), "expected a tensor to make a parameter of");
      return item(arguments, 0);
    case Global::storage:
      break;
  }
  check(false, "expected a storage to be referred to, found it called");
  return kOther;
}

void Machine::step(uint8_t opcode) {
  switch (opcode) {
    case 0x80: {  // PROTO
      const uint64_t protocol = number(1);
      return check(protocol >= 2 && protocol <= 5, "expected pickle protocol 2 to 5, found ", protocol);
    }
    case 0x95:  // FRAME: only a hint for buffered reading
      number(8);
      return;
    case '(':
      return marks_.push_back(stack_.size());
    case 'N':
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
    case ']':   // nothing that leads to a tensor is ever in a list
      return push(kOther);
    case 'G':  // BINFLOAT
      bytes(8);
      return push(kOther);
    case '}':
      return push(dict());
    case ')':
      return push(kEmptyTuple);
    case 'K':
      return push(integer(int64_t(number(1))));
    case 'M':
      return push(integer(int64_t(number(2))));
    case 'J':
      return push(integer(int32_t(number(4))));
    case 0x8a: {  // LONG1
      const auto width = size_t(number(1));
      if (width > 8) {
        bytes(width);
        return push(kOther);
      }
      const uint64_t value = width == 0 ? 0 : number(width) << (64 - 8 * width);
      return push(integer(width == 0 ? 0 : int64_t(value) >> (64 - 8 * width)));
    }
    case 'X':
      return push(text(number(4)));
    case 0x8c:  // SHORT_BINUNICODE
      return push(text(number(1)));
    case 't':
      return tuple(pop_mark());
    case 0x85:  // TUPLE1, TUPLE2, TUPLE3
    case 0x86:
    case 0x87: {
      const size_t count = opcode - 0x84u;
      check(stack_.size() >= count, "expected values for a tuple, found too few");
      return tuple(stack_.size() - count);
    }
    case 'q':
      return memoize(number(1), top());
    case 'r':
      return memoize(number(4), top());
    case 0x94:  // MEMOIZE
      return memoize(memoized_, top());
    case 'h':
      return push(remembered(number(1)));
    case 'j':
      return push(remembered(number(4)));
    case 'c': {
      const std::string_view module = line();
      return push(global(module, line()));
    }
    case 0x93: {  // STACK_GLOBAL
      const Ref name = pop(), module = pop();
      check(is(name, Kind::text) && is(module, Kind::text), "expected the name of a class, found something else");
      return push(global(text_of(module), text_of(name)));
    }
    case 'Q':
      return push(persistent(pop()));
    case 'R': {
      const Ref arguments = pop(), function = pop();
      return push(reduce(function, arguments));
    }
    case 'b':  // BUILD: attributes of an OrderedDict, such as the _metadata of a module
      pop();
      return check(is(top(), Kind::dict), "expected attributes of a dict, found them of something else");
    case 's':
      check(stack_.size() >= 2, "expected a dict with keys and values on the stack");
      return set_items(stack_.size() - 2);
    case 'u':
      return set_items(pop_mark());
    case 'a':
      pop();
      return check(top() == kOther, "expected a list to append to, found something else");
    case 'e':
      stack_.resize(pop_mark());
      return check(top() == kOther, "expected a list to append to, found something else");
    default:
      check(false, "expected an instruction that a state dict needs, found number ", int(opcode));
  }
}

Ref Machine::run() {
  check(pickle_.starts_with('\x80'), "expected a pickle of protocol 2 to 5, found another beginning");
  for (;;) {
    opcode_at_ = at_;
    const auto opcode = uint8_t(number(1));
    if (opcode == '.') break;
    step(opcode);
  }
  check(stack_.size() == 1 && marks_.empty() && at_ == pickle_.size(), "expected one value and the end, found ",
        stack_.size(), " values and ", pickle_.size() - at_, " more bytes");
  return stack_[0];
}

int64_t Machine::natural(Ref ref, std::string_view name, std::string_view what) const {
  const auto value = is(ref, Kind::integer) ? int64_t(nodes_[ref].value) : -1;
  RWKV_CHECK(ModelFormatError, is(ref, Kind::integer), shown(name), ": expected an integer as ", what);
  RWKV_CHECK(ModelFormatError, value >= 0, shown(name), ": expected ", what, " of 0 or more, found ", value);
  return value;
}

std::vector<int64_t> Machine::integers(Ref ref, std::string_view name, std::string_view what) const {
  RWKV_CHECK(ModelFormatError, is(ref, Kind::tuple), shown(name), ": expected a tuple as ", what);
  const size_t rank = nodes_[ref].count;
  RWKV_CHECK(ModelFormatError, rank <= kMaxRank, shown(name), ": expected at most ", kMaxRank, " dimensions, found ",
             rank);
  std::vector<int64_t> values;
  for (size_t i = 0; i < rank; ++i) values.push_back(natural(item(ref, i), name, what));
  return values;
}

std::vector<PickledTensor> Machine::tensors(Ref dict) const {
  RWKV_CHECK(ModelFormatError, is(dict, Kind::dict), "expected a dict of tensors in data.pkl, found something else");
  for (uint64_t i = nodes_[dict].value; i != kNoEntry; i = entries_[size_t(i)].next) {
    const DictEntry& entry = entries_[size_t(i)];
    if (is(entry.value, Kind::dict) && text_of(entry.key) == "state_dict") {
      dict = entry.value;
      break;
    }
  }
  std::vector<PickledTensor> found;
  // A name or key may be recalled from few bytes: each is looked at before it is copied.
  std::set<std::string_view> names;
  for (uint64_t i = nodes_[dict].value; i != kNoEntry; i = entries_[size_t(i)].next) {
    const DictEntry& entry = entries_[size_t(i)];
    RWKV_CHECK(ModelFormatError, !is(entry.value, Kind::text),
               "expected an original checkpoint, found one that the rwkv package has converted for the strategy '",
               shown(text_of(entry.value)), "'; open the file it was made of");
    if (!is(entry.value, Kind::tensor)) continue;
    RWKV_CHECK(ModelFormatError, found.size() < kMaxTensors, "expected at most ", kMaxTensors, " tensors, found more");
    const std::string_view name = text_of(entry.key);
    RWKV_CHECK(ModelFormatError, name.size() <= kMaxName, shown(name), ": expected a name of at most ", kMaxName,
               " bytes, found ", name.size());
    RWKV_CHECK(ModelFormatError, names.insert(name).second, "expected different tensor names, found ", shown(name),
               " twice");
    const auto arguments = Ref(nodes_[entry.value].value);
    const Ref storage = item(arguments, 0);
    RWKV_CHECK(ModelFormatError, is(storage, Kind::storage), shown(name), ": expected a tensor made of a storage");
    const auto id = Ref(nodes_[storage].value);
    PickledTensor tensor;
    const std::string_view key = text_of(item(id, 2));
    RWKV_CHECK(ModelFormatError, key.size() <= kMaxStorageKey, shown(name), ": expected a storage's key of at most ",
               kMaxStorageKey, " bytes, found ", key.size());
    tensor.name = name;
    tensor.dtype = nodes_[item(id, 1)].dtype;
    tensor.storage = key;
    tensor.storage_elements = natural(item(id, 4), name, "a storage's size");
    tensor.storage_offset = natural(item(arguments, 1), name, "a storage offset");
    tensor.shape = integers(item(arguments, 2), name, "a shape");
    tensor.stride = integers(item(arguments, 3), name, "strides");
    found.push_back(std::move(tensor));
  }
  return found;
}

}  // namespace

std::vector<PickledTensor> read_pickled_state_dict(std::string_view pickle) {
  // Values are counted in 32 bits.
  RWKV_CHECK(ModelFormatError, pickle.size() < UINT32_MAX / 4, "expected a pickle below 1 GiB, found ", pickle.size(),
             " bytes");
  Machine machine(pickle);
  return machine.tensors(machine.run());
}

}  // namespace rwkv
