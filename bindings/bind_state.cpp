#include <tuple>
#include <utility>

#include "bind.h"
#include "engine/snapshot.h"

namespace {

using rwkv::State;

py::object last_logits(const State& state) {
  const auto logits = state.last_logits();
  if (!logits) return py::none();
  {
    const Unlocked unlocked;
    logits->data();  // fetches them
  }
  return py::array_t<float>(static_cast<py::ssize_t>(logits->size()), logits->data());
}

std::optional<LoadedAdapter> adapter_of(const State& state) {
  auto weights = state.adapter();
  if (!weights) return std::nullopt;
  return LoadedAdapter{std::move(weights)};
}

py::bytes to_bytes(const State& state, const std::string& dtype) {
  const rwkv::DType type = rwkv::snapshot_type(dtype);
  const rwkv::StateContents contents = state.contents();
  const size_t size = state.engine()->snapshot_size(contents, type);
  const auto blob = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!blob) throw py::error_already_set();
  const std::span<char> bytes(PyBytes_AS_STRING(blob.ptr()), size);
  const Unlocked unlocked;
  state.engine()->to_bytes(contents, std::as_writable_bytes(bytes), type);
  return blob;
}

void save(const State& state, const py::bytes& path, const std::string& dtype) {
  const rwkv::DType type = rwkv::snapshot_type(dtype);
  const std::string name = path;
  const Unlocked unlocked;
  state.engine()->save(state, name, type);
}

// The array takes over the part's memory.
py::array_t<float> array_of(rwkv::StateArray&& part) {
  auto owner = std::make_unique<rwkv::StateArray>(std::move(part));
  const rwkv::StateArray& kept = *owner;
  const py::capsule free(owner.get(), [](void* memory) { delete static_cast<rwkv::StateArray*>(memory); });
  (void)owner.release();
  return py::array_t<float>(kept.shape, kept.values.data(), free);
}

py::dict parts(const State& state) {
  std::vector<rwkv::StateArray> arrays;
  {
    const Unlocked unlocked;
    arrays = state.engine()->parts(state);
  }
  return arrays_of(std::move(arrays));
}

std::vector<std::pair<std::string, rwkv::DeviceArray>> views(const State& state) {
  return state.engine()->views(state);
}

bool equals(const State& state, const State& other) {
  const Unlocked unlocked;
  return state.engine()->equal(state, other);
}

// Of (state, a fork of what it was, a fork that has gone on).
void advance(const std::vector<std::tuple<State*, const State*, const State*>>& states) {
  std::vector<State::Advance> all;
  for (const auto& [state, from, to] : states) all.push_back({*state, from->contents(), to->contents()});
  State::advance(all);
}

}  // namespace

py::dict arrays_of(std::vector<rwkv::StateArray>&& parts) {
  py::dict named;
  for (auto& part : parts) {
    const py::str name(part.name);
    named[name] = array_of(std::move(part));
  }
  return named;
}

void bind_state(py::module_& m) {
  m.def("advance", advance);
  py::class_<State, std::shared_ptr<State>>(m, "State")
      .def_property_readonly("tokens_seen", &State::tokens_seen)
      .def_property_readonly("last_token", &State::last_token)
      .def_property_readonly("last_logits", last_logits)
      .def_property_readonly("config", [](const State& state) { return state.engine()->config(); })
      .def_property_readonly("nbytes", [](const State& state) { return state.engine()->state_bytes(); })
      .def_property_readonly("adapter", adapter_of)
      .def("fork", &State::fork)
      .def("to_bytes", to_bytes)
      .def("save", save)
      .def("parts", parts)
      .def("views", views)
      .def("equals", equals);
}
