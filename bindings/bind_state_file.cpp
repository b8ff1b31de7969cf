#include <algorithm>
#include <utility>

#include "bind.h"
#include "core/pth.h"
#include "engine/state_file.h"

namespace {

using rwkv::PthList;
using rwkv::StateFile;

StateFile open(const py::bytes& path) {
  const std::string name = path;
  const Unlocked unlocked;
  return StateFile::open(name);
}

StateFile parse(const py::bytes& blob) {
  const std::string_view bytes = blob;
  const auto all = std::as_bytes(std::span(bytes));
  const Unlocked unlocked;
  return StateFile({all.begin(), all.end()});
}

py::dict parts(const StateFile& file) {
  std::vector<rwkv::StateArray> arrays;
  {
    const Unlocked unlocked;
    arrays = file.parts();
  }
  return arrays_of(std::move(arrays));
}

py::object last_logits(const StateFile& file) {
  const std::vector<float> logits = file.last_logits();
  if (logits.empty()) return py::none();
  return py::array_t<float>(static_cast<py::ssize_t>(logits.size()), logits.data());
}

// (seed, penalty style, pending bytes, the end of the text, token to weight), or None.
py::object sampler(const StateFile& file) {
  const rwkv::SamplerState* s = file.info().sampler.get();
  if (!s) return py::none();
  py::dict weights;
  for (const rwkv::TokenWeight& w : s->weights) weights[py::int_(w.token)] = w.weight;
  return py::make_tuple(s->seed, text_of(rwkv::name_of(s->style)), py::bytes(s->pending), text_of(s->tail), weights);
}

py::bytes to_bytes(const StateFile& file, const std::string& dtype) {
  const rwkv::DType type = rwkv::snapshot_type(dtype);
  std::vector<std::byte> blob;
  {
    const Unlocked unlocked;
    blob = file.to_bytes(type);
  }
  return {reinterpret_cast<const char*>(blob.data()), blob.size()};
}

// (name, type, shape) as they are stored.
template <class Of>
py::list tensors(const Of& of) {
  py::list rows;
  for (const rwkv::TensorInfo& t : of.tensors())
    rows.append(py::make_tuple(text_of(t.name), text_of(rwkv::name_of(t.dtype)), py::tuple(py::cast(t.shape))));
  return rows;
}

PthList open_list(const py::bytes& path) {
  const std::string name = path;
  const Unlocked unlocked;
  return PthList(name);
}

py::array_t<float> read_tensor(const PthList& list, size_t i) {
  std::vector<float> values;
  {
    const Unlocked unlocked;
    values = list.read(i);
  }
  py::array_t<float> array(list.tensors()[i].shape);
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

}  // namespace

void bind_state_file(py::module_& m) {
  py::class_<StateFile>(m, "StateFile")
      .def_static("open", open)
      .def_static("parse", parse)
      .def_property_readonly("format", [](const StateFile& file) { return text_of(snapshot_format(file.type())); })
      .def_property_readonly("dtype", [](const StateFile& file) { return text_of(rwkv::snapshot_word(file.type())); })
      .def_property_readonly("config", [](const StateFile& file) { return file.model().config; })
      .def_property_readonly("fingerprint", [](const StateFile& file) { return file.model().fingerprint; })
      .def_property_readonly("tokens_seen", [](const StateFile& file) { return file.info().tokens_seen; })
      .def_property_readonly("last_token", [](const StateFile& file) { return file.info().last_token; })
      .def_property_readonly("tensors", tensors<StateFile>)
      .def_property_readonly("sampler", sampler)
      .def("parts", parts)
      .def("last_logits", last_logits)
      .def("to_bytes", to_bytes);
  py::class_<PthList>(m, "PthList")
      .def_static("open", open_list)
      .def_property_readonly("tensors", tensors<PthList>)
      .def("read", read_tensor);
}
