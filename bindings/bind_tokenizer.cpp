#include <limits>

#include "bind.h"
#include "engine/gguf_vocabulary.h"
#include "engine/tokenizer.h"

namespace {

using rwkv::StreamDecoder;
using rwkv::StreamEncoder;
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

TokenizerRef of_words(const std::vector<std::pair<int32_t, std::string>>& words, const std::string& name) {
  const Unlocked unlocked;
  return std::const_pointer_cast<Tokenizer>(Tokenizer::of_words(words, name));
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, const py::bytes& text) {
  const std::string_view bytes = text;
  const Unlocked unlocked;
  return tokenizer.encode(bytes);
}

std::vector<int32_t> put(StreamEncoder& encoder, const py::bytes& part) { return encoder.put(std::string_view(part)); }

std::string decode(const Tokenizer& tokenizer, const py::object& ids) {
  const auto list = any_ids(ids);
  const Unlocked unlocked;
  return tokenizer.decode(list);
}

py::bytes decode_bytes(const Tokenizer& tokenizer, const py::object& ids) {
  return tokenizer.decode_bytes(any_ids(ids));
}

// For those who do something with ids before an engine reads them.
py::array_t<int32_t> token_ids(const py::object& ids, int64_t limit) {
  const auto list = ids_of(ids, limit);
  return py::array_t<int32_t>(static_cast<py::ssize_t>(list.size()), list.data());
}

}  // namespace

void bind_tokenizer(py::module_& m) {
  m.def("token_ids", token_ids);
  py::class_<Tokenizer, TokenizerRef>(m, "Tokenizer")
      .def_static("open", open)
      .def_static("in_model", in_model)
      .def_static("of_words", of_words)
      .def_property_readonly("size", &Tokenizer::size)
      .def("encode", encode)
      .def("decode", decode)
      .def("decode_bytes", decode_bytes);
  py::class_<StreamEncoder>(m, "StreamEncoder")
      .def(py::init([](const TokenizerRef& tokenizer) { return StreamEncoder(tokenizer); }))
      .def("put", put)
      .def("finish", &StreamEncoder::finish);
  py::class_<StreamDecoder>(m, "StreamDecoder")
      .def(py::init([](const TokenizerRef& tokenizer) { return StreamDecoder(tokenizer); }))
      .def("put", &StreamDecoder::put)
      .def("finish", &StreamDecoder::finish);
}
