#include "core/pickle.h"

#include <algorithm>
#include <set>

#include "core/bounds.h"
#include "core/pickle_machine.h"
#include "core/text.h"

namespace rwkv {
namespace {

using Ref = PickleMachine::Ref;
using Kind = PickleMachine::Kind;

constexpr size_t kMaxList = 512;       // tensors; five times the layers of any model, where a state has five each
constexpr size_t kMaxStorageKey = 64;  // bytes; it is a number

int64_t natural(const PickleMachine& m, Ref ref, std::string_view name, std::string_view what) {
  const auto value = m.is(ref, Kind::integer) ? int64_t(m.node(ref).value) : -1;
  RWKV_CHECK(ModelFormatError, m.is(ref, Kind::integer), shown(name), ": expected an integer as ", what);
  RWKV_CHECK(ModelFormatError, value >= 0, shown(name), ": expected ", what, " of 0 or more, found ", value);
  return value;
}

std::vector<int64_t> integers(const PickleMachine& m, Ref ref, std::string_view name, std::string_view what) {
  RWKV_CHECK(ModelFormatError, m.is(ref, Kind::tuple), shown(name), ": expected a tuple as ", what);
  const size_t rank = m.node(ref).count;
  RWKV_CHECK(ModelFormatError, rank <= kMaxRank, shown(name), ": expected at most ", kMaxRank, " dimensions, found ",
             rank);
  std::vector<int64_t> values;
  for (size_t i = 0; i < rank; ++i) values.push_back(natural(m, m.item(ref, i), name, what));
  return values;
}

// Whatever a tensor is called is for messages too.
PickledTensor described(const PickleMachine& m, Ref ref, std::string name) {
  const auto arguments = Ref(m.node(ref).value);
  const Ref storage = m.item(arguments, 0);
  RWKV_CHECK(ModelFormatError, m.is(storage, Kind::storage), shown(name), ": expected a tensor made of a storage");
  const auto id = Ref(m.node(storage).value);
  PickledTensor tensor;
  const std::string_view key = m.text_of(m.item(id, 2));
  RWKV_CHECK(ModelFormatError, key.size() <= kMaxStorageKey, shown(name), ": expected a storage's key of at most ",
             kMaxStorageKey, " bytes, found ", key.size());
  tensor.dtype = m.node(m.item(id, 1)).dtype;
  tensor.storage = key;
  tensor.storage_elements = natural(m, m.item(id, 4), name, "a storage's size");
  tensor.storage_offset = natural(m, m.item(arguments, 1), name, "a storage offset");
  tensor.shape = integers(m, m.item(arguments, 2), name, "a shape");
  tensor.stride = integers(m, m.item(arguments, 3), name, "strides");
  tensor.name = std::move(name);
  return tensor;
}

std::vector<PickledTensor> tensors_of_list(const PickleMachine& m, Ref list) {
  const bool tuple = m.is(list, Kind::tuple);
  RWKV_CHECK(ModelFormatError, tuple || m.is(list, Kind::list),
             "expected a list of tensors in data.pkl, found something else");
  std::vector<Ref> values;
  const auto add = [&](Ref value) {
    // One may be recalled from two bytes, again and again.
    RWKV_CHECK(ModelFormatError, values.size() < kMaxList, "expected a list of at most ", kMaxList,
               " tensors in data.pkl, found more");
    values.push_back(value);
  };
  if (tuple) {
    for (uint32_t i = 0; i < m.node(list).count; ++i) add(m.item(list, i));
  } else {
    for (auto* e = m.first_entry(list); e; e = m.next_entry(*e)) add(e->value);
  }
  const bool plain =
      !m.node(list).strangers && std::ranges::all_of(values, [&](Ref v) { return m.is(v, Kind::tensor); });
  RWKV_CHECK(ModelFormatError, plain, "expected a list of nothing but tensors in data.pkl, found something else in it");
  std::vector<PickledTensor> found;
  found.reserve(values.size());
  for (const Ref value : values) found.push_back(described(m, value, join("[", found.size(), "]")));
  return found;
}

std::vector<PickledTensor> tensors_of_dict(const PickleMachine& m, Ref dict) {
  RWKV_CHECK(ModelFormatError, m.is(dict, Kind::dict), "expected a dict of tensors in data.pkl, found something else");
  for (auto* entry = m.first_entry(dict); entry; entry = m.next_entry(*entry)) {
    if (m.is(entry->value, Kind::dict) && m.text_of(entry->key) == "state_dict") {
      dict = entry->value;
      break;
    }
  }
  std::vector<PickledTensor> found;
  // A name or key may be recalled from few bytes: each is looked at before it is copied.
  std::set<std::string_view> names;
  for (auto* entry = m.first_entry(dict); entry; entry = m.next_entry(*entry)) {
    RWKV_CHECK(ModelFormatError, !m.is(entry->value, Kind::text),
               "expected an original checkpoint, found one that the rwkv package has converted for the strategy '",
               shown(m.text_of(entry->value)), "'; open the file it was made of");
    if (!m.is(entry->value, Kind::tensor)) continue;
    RWKV_CHECK(ModelFormatError, found.size() < kMaxTensors, "expected at most ", kMaxTensors, " tensors, found more");
    const std::string_view name = m.text_of(entry->key);
    RWKV_CHECK(ModelFormatError, name.size() <= kMaxName, shown(name), ": expected a name of at most ", kMaxName,
               " bytes, found ", name.size());
    RWKV_CHECK(ModelFormatError, names.insert(name).second, "expected different tensor names, found ", shown(name),
               " twice");
    found.push_back(described(m, entry->value, std::string(name)));
  }
  return found;
}

}  // namespace

std::vector<PickledTensor> read_pickled_state_dict(std::string_view pickle) {
  PickleMachine machine(pickle);
  return tensors_of_dict(machine, machine.run());
}

std::vector<PickledTensor> read_pickled_list(std::string_view pickle) {
  PickleMachine machine(pickle);
  return tensors_of_list(machine, machine.run());
}

}  // namespace rwkv
