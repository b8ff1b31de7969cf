#include "core/pickle_machine.h"

#include "core/text.h"

namespace rwkv {
namespace {

// The `rwkv` package writes it into files that it has packed for one strategy.
constexpr std::string_view kConverted = "_strategy";

struct NamedGlobal {
  std::string_view module, name;
  PickleMachine::Global global;
  DType dtype = DType::f32;
};
using Global = PickleMachine::Global;

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

}  // namespace

PickleMachine::PickleMachine(std::string_view pickle) : pickle_(pickle) {
  // Values are counted in 32 bits.
  RWKV_CHECK(ModelFormatError, pickle.size() < UINT32_MAX / 4, "expected a pickle below 1 GiB, found ", pickle.size(),
             " bytes");
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

std::string_view PickleMachine::bytes(uint64_t count) {
  check(count <= pickle_.size() - at_, "expected ", count, " more bytes, found ", pickle_.size() - at_);
  at_ += size_t(count);
  return pickle_.substr(at_ - size_t(count), size_t(count));
}

uint64_t PickleMachine::number(size_t width) {
  uint64_t value = 0;
  const std::string_view field = bytes(width);
  for (size_t i = width; i-- > 0;) value = value << 8 | uint8_t(field[i]);
  return value;
}

std::string_view PickleMachine::line() {
  const size_t end = pickle_.find('\n', at_);
  check(end != std::string_view::npos, "expected the name of a class, found no end of it");
  const std::string_view text = bytes(end - at_);
  ++at_;
  return text;
}

PickleMachine::Ref PickleMachine::add(Kind kind, uint64_t value, uint32_t count) {
  check(nodes_.size() < max_nodes_, "more values than ", pickle_.size(), " bytes of a state dict describe");
  Node node;
  node.kind = kind;
  node.value = value;
  node.count = count;
  nodes_.push_back(node);
  return Ref(nodes_.size() - 1);
}

PickleMachine::Ref PickleMachine::text(uint64_t size) {
  const std::string_view found = bytes(size);
  check(is_utf8(found), "expected UTF-8 text, found '", shown(found), "'");
  return add(Kind::text, at_ - size, uint32_t(size));
}

PickleMachine::Ref PickleMachine::pop() {
  check(stack_.size() > floor(), "expected a value on the stack, found none");
  const Ref ref = stack_.back();
  stack_.pop_back();
  return ref;
}

PickleMachine::Ref PickleMachine::top() const {
  check(stack_.size() > floor(), "expected a value on the stack, found none");
  return stack_.back();
}

size_t PickleMachine::pop_mark() {
  check(!marks_.empty(), "expected a mark on the stack, found none");
  const size_t height = marks_.back();
  marks_.pop_back();
  return height;
}

void PickleMachine::tuple(size_t first) {
  check(first >= floor() && first <= stack_.size(), "expected values for a tuple, found too few");
  const size_t count = stack_.size() - first;
  const Ref made = count == 0 ? kEmptyTuple : add(Kind::tuple, items_.size(), uint32_t(count));
  items_.insert(items_.end(), stack_.begin() + ptrdiff_t(first), stack_.end());
  stack_.resize(first);
  push(made);
}

void PickleMachine::keep(Ref owner, Ref key, Ref value) {
  const auto place = uint32_t(entries_.size());
  entries_.push_back({key, value, kNoEntry});
  Node& node = nodes_[owner];
  if (node.value == kNoEntry) {
    node.value = place;
  } else {
    entries_[node.count].next = place;
  }
  node.count = place;
}

void PickleMachine::set_items(size_t first) {
  check(first > floor() && first <= stack_.size() && (stack_.size() - first) % 2 == 0,
        "expected a dict with keys and values on the stack");
  const Ref target = stack_[first - 1];
  check(is(target, Kind::dict), "expected a dict to put values into, found something else");
  for (size_t i = first; i < stack_.size(); i += 2) {
    const Ref key = stack_[i], value = stack_[i + 1];
    if (!is(key, Kind::text)) continue;
    const bool kept =
        is(value, Kind::tensor) || is(value, Kind::dict) || (is(value, Kind::text) && text_of(key) == kConverted);
    if (kept) keep(target, key, value);
  }
  stack_.resize(first);
}

void PickleMachine::append_items(size_t first) {
  check(first > floor() && first <= stack_.size(), "expected a list with values to append on the stack");
  const Ref target = stack_[first - 1];
  check(is(target, Kind::list), "expected a list to append to, found something else");
  for (size_t i = first; i < stack_.size(); i++) {
    if (is(stack_[i], Kind::tensor))
      keep(target, kOther, stack_[i]);
    else
      nodes_[target].strangers = true;
  }
  stack_.resize(first);
}

void PickleMachine::memoize(uint64_t place, Ref ref) {
  // Whoever writes a pickle counts upwards, and every number costs a byte or more.
  check(place < pickle_.size(), "expected a memo number below ", pickle_.size(), ", found ", place);
  if (place >= memo_.size()) memo_.resize(size_t(place) + 1, UINT32_MAX);
  if (memo_[size_t(place)] == UINT32_MAX) ++memoized_;
  memo_[size_t(place)] = ref;
}

PickleMachine::Ref PickleMachine::remembered(uint64_t place) const {
  check(place < memo_.size() && memo_[size_t(place)] != UINT32_MAX, "memo number ", place, " was never set");
  return memo_[size_t(place)];
}

PickleMachine::Ref PickleMachine::global(std::string_view module, std::string_view name) {
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
PickleMachine::Ref PickleMachine::persistent(Ref id) {
  const bool storage = is(id, Kind::tuple) && nodes_[id].count == 5 && is(item(id, 0), Kind::text) &&
                       text_of(item(id, 0)) == "storage" && is(item(id, 1), Kind::global) &&
                       nodes_[item(id, 1)].global == Global::storage && is(item(id, 2), Kind::text) &&
                       is(item(id, 4), Kind::integer);
  check(storage, "expected a reference to a storage, found something else");
  return add(Kind::storage, id);
}

PickleMachine::Ref PickleMachine::reduce(Ref function, Ref arguments) {
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

void PickleMachine::step(uint8_t opcode) {
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
      return push(kOther);
    case ']':
      return push(add(Kind::list, kNoEntry, kNoEntry));
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
      top();  // is there one
      return append_items(stack_.size() - 1);
    case 'e':
      return append_items(pop_mark());
    default:
      check(false, "expected an instruction that a state dict needs, found number ", int(opcode));
  }
}

PickleMachine::Ref PickleMachine::run() {
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

}  // namespace rwkv
