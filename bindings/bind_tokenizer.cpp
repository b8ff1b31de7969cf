#include <limits>

#include "bind.h"
#include "engine/gguf_vocabulary.h"
#include "engine/tokenizer.h"

namespace {

using rwkv::StreamDecoder;
using rwkv::Tokenizer;
using TokenizerRef = std::shared_ptr<Tokenizer>;

// Any id is welcome that a vocabulary could have; those without a token decode to nothing.
std::vector<int32_t> any_ids(const py::object& ids) {
  return ids_of(ids, int64_t{std::numeric_limits<int32_t>::max()} + 1);
}

// pybind11 holds no pointers to const; every method of a tokenizer is const.
TokenizerRef open(const py::bytes& path) {
  const std::string name = path;
  const Unlocked unlocked;
  return std::const_pointer_cast<Tokenizer>(Tokenizer::open(name));
}

TokenizerRef in_model(const py::bytes& path) {
  const std::string name = path;
  const Unlocked unlocked;
  return std::const_pointer_cast<Tokenizer>(rwkv::tokenizer_in_model(name));
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, const py::bytes& text) {
  const std::string_view bytes = text;
  const Unlocked unlocked;
  return tokenizer.encode(bytes);
}

std::string decode(const Tokenizer& tokenizer, const py::object& ids) {
  const auto list = any_ids(ids);
  const Unlocked unlocked;
  return tokenizer.decode(list);
}

py::bytes decode_bytes(const Tokenizer& tokenizer, const py::object& ids) {
  return tokenizer.decode_bytes(any_ids(ids));
}

}  // namespace

void bind_tokenizer(py::module_& m) {
  py::class_<Tokenizer, TokenizerRef>(m, "Tokenizer")
      .def_static("open", open)
      .def_static("in_model", in_model)
      .def_property_readonly("size", &Tokenizer::size)
      .def("encode", encode)
      .def("decode", decode)
      .def("decode_bytes", decode_bytes);
  py::class_<StreamDecoder>(m, "StreamDecoder")
      .def(py::init([](const TokenizerRef& tokenizer) { return StreamDecoder(tokenizer); }))
      .def("put", &StreamDecoder::put)
      .def("finish", &StreamDecoder::finish);
}
