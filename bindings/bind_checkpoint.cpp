#include "bind.h"
#include "core/checkpoint.h"
#include "model/adapters.h"
#include "model/config.h"
#include "model/encode.h"
#include "model/gguf_write.h"
#include "model/names.h"
#include "model/packed.h"
#include "model/safetensors_write.h"
#include "model/state_layout.h"

namespace {

using rwkv::Config;
using rwkv::TensorInfo;

// (container, configuration, bytes of a state, tensors, the precision it was quantised to or nothing) of a model file;
// reads no weights. A tensor is its name, type and shape in the file, its bytes there, those of an element once read,
// and whether it is packed; those that adapters change are float32.
py::tuple inspect(const py::bytes& path, const Adapters& adapters) {
  const std::string name = path;
  const auto specs = adapters_of(adapters);
  std::string container, precision;
  Config config;
  std::vector<TensorInfo> tensors;
  {
    const Unlocked unlocked;
    const auto opened = rwkv::Checkpoint::open(name);
    const auto file = rwkv::with_official_names(rwkv::with_adapters(opened, specs, signal_poll()));
    config = rwkv::read_config(file);
    container = file.container();
    if (const auto packed = rwkv::packed_in(file)) precision = packed->precision;
    tensors = file.tensors();
  }
  size_t state_floats = 0;
  for (const auto& part : rwkv::state_parts(config))
    state_floats += static_cast<size_t>(part.count()) * static_cast<size_t>(config.n_layer);
  py::list rows;
  for (const TensorInfo& t : tensors) {
    const rwkv::Encoding stored{t.dtype, t.blocks};
    const bool packed = !t.packed.empty();
    const auto type = packed                              ? std::string_view(t.packed)
                      : t.blocks == rwkv::BlockType::none ? rwkv::name_of(t.dtype)
                                                          : rwkv::name_of(t.blocks);
    rows.append(py::make_tuple(text_of(t.name), text_of(type), py::tuple(py::cast(t.shape)),
                               packed ? t.packed_bytes : stored.bytes(t.count()), rwkv::size_of(t.dtype), packed));
  }
  return py::make_tuple(container, config, state_floats * sizeof(float), rows, precision);
}

// Calls write(checkpoint, progress) without the GIL.
template <class Write>
void convert(const py::bytes& from, const Adapters& adapters, const py::object& progress, Write write) {
  const std::string source = from;
  const auto specs = adapters_of(adapters);
  const auto report = progress_of(progress);
  const auto poll = signal_poll();
  const Unlocked unlocked;
  write(rwkv::with_adapters(rwkv::Checkpoint::open(source), specs, poll), [&](int64_t done, int64_t total) {
    if (poll) poll();
    if (report) report(done, total);
  });
}

void write_gguf(const py::bytes& from, const Adapters& adapters, const std::string& to, const std::string& type,
                const std::vector<std::string>& tokens, const py::object& progress) {
  convert(from, adapters, progress,
          [&](const auto& file, const auto& report) { rwkv::write_gguf(file, to, type, tokens, report); });
}

void write_safetensors(const py::bytes& from, const Adapters& adapters, const std::string& to, const std::string& type,
                       const py::object& progress) {
  convert(from, adapters, progress,
          [&](const auto& file, const auto& report) { rwkv::write_safetensors(file, to, type, report); });
}

void write_packed(const py::bytes& from, const Adapters& adapters, const std::string& to, const std::string& precision,
                  const py::object& progress) {
  convert(from, adapters, progress,
          [&](const auto& file, const auto& report) { rwkv::write_packed(file, to, precision, report); });
}

}  // namespace

void bind_checkpoint(py::module_& m) {
  py::class_<Config>(m, "Config")
      .def_readonly("version", &Config::version)
      .def_readonly("kind", &Config::kind)
      .def_readonly("n_layer", &Config::n_layer)
      .def_readonly("n_embd", &Config::n_embd)
      .def_readonly("n_head", &Config::n_head)
      .def_readonly("head_size", &Config::head_size)
      .def_readonly("n_ffn", &Config::n_ffn)
      .def_readonly("n_vocab", &Config::n_vocab);
  m.def("inspect", inspect);
  m.def("write_gguf", write_gguf);
  m.def("write_safetensors", write_safetensors);
  m.def("write_packed", write_packed);
  m.def(
      "write_file",
      [](const std::string& path, const std::string& data, bool owner) {
        const auto access = owner ? rwkv::Access::owner : rwkv::Access::usual;
        const Unlocked unlocked;
        rwkv::write_atomically(path, access, std::as_bytes(std::span(data)));
      },
      py::arg(), py::arg(), py::arg("owner") = false);
}
