#include "bind.h"
#include "core/checkpoint.h"
#include "model/config.h"
#include "model/gguf_write.h"
#include "model/names.h"
#include "model/state_layout.h"

namespace {

using rwkv::Config;
using rwkv::TensorInfo;

// (container, configuration, bytes of a state, tensors) of a model file; reads no weights.
py::tuple inspect(const py::bytes& path) {
  const std::string name = path;
  std::string container;
  Config config;
  std::vector<TensorInfo> tensors;
  {
    const Unlocked unlocked;
    const auto file = rwkv::with_official_names(rwkv::Checkpoint::open(name));
    config = rwkv::read_config(file);
    container = file.container();
    tensors = file.tensors();
  }
  size_t state_floats = 0;
  for (const auto& part : rwkv::state_parts(config))
    state_floats += static_cast<size_t>(part.count()) * static_cast<size_t>(config.n_layer);
  py::list rows;
  for (const TensorInfo& t : tensors)
    rows.append(py::make_tuple(text_of(t.name), text_of(rwkv::name_of(t.dtype)), py::tuple(py::cast(t.shape)),
                               rwkv::size_of(t.dtype)));
  return py::make_tuple(container, config, state_floats * sizeof(float), rows);
}

void write_gguf(const py::bytes& from, const py::bytes& to, const std::string& type,
                const std::vector<std::string>& tokens, const py::object& progress) {
  const std::string source = from, path = to;
  const auto report = progress_of(progress);
  const auto poll = signal_poll();
  const Unlocked unlocked;
  rwkv::write_gguf(rwkv::Checkpoint::open(source), path, type, tokens, [&](int64_t done, int64_t total) {
    if (poll) poll();
    if (report) report(done, total);
  });
}

}  // namespace

void bind_checkpoint(py::module_& m) {
  py::class_<Config>(m, "Config")
      .def_readonly("version", &Config::version)
      .def_readonly("n_layer", &Config::n_layer)
      .def_readonly("n_embd", &Config::n_embd)
      .def_readonly("n_head", &Config::n_head)
      .def_readonly("head_size", &Config::head_size)
      .def_readonly("n_ffn", &Config::n_ffn)
      .def_readonly("n_vocab", &Config::n_vocab);
  m.def("inspect", inspect);
  m.def("write_gguf", write_gguf);
}
