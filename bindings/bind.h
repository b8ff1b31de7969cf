// What the bindings share. They translate and hold no logic; documentation is in Python.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/engine.h"
#include "engine/sampling.h"
#include "model/adapter_weights.h"

namespace py = pybind11;

void bind_errors(py::module_& m);
void bind_engine(py::module_& m);
void bind_generation(py::module_& m);
void bind_device(py::module_& m);
void bind_state(py::module_& m);
void bind_state_file(py::module_& m);
void bind_tokenizer(py::module_& m);
void bind_checkpoint(py::module_& m);

// Text out of a file or about one, which need not be UTF-8.
py::str text_of(std::string_view bytes);

// A sequence or one-dimensional array of integers from 0 to limit - 1. Nothing wraps and nothing is rounded: other
// types raise TypeError, other numbers Error with the position.
std::vector<int32_t> ids_of(const py::object& ids, int64_t limit);

// Arrays that take over the memory of a state's parts, by name.
py::dict arrays_of(std::vector<rwkv::StateArray>&& parts);

// SamplingParams of the dataclass of that name.
rwkv::SamplingParams params_of(const py::object& params);

// (path, alpha or None, scale) of each.
using Adapters = std::vector<std::tuple<std::string, std::optional<double>, double>>;
std::vector<rwkv::AdapterSpec> adapters_of(const Adapters& adapters);

// A handle, as pybind11 wants objects that can be changed.
struct LoadedAdapter {
  std::shared_ptr<const rwkv::AdapterWeights> weights;
};

// Lets go of the GIL for a call. The interpreter waits for such calls before it ends, because a thread that came back
// to one that has ended would take the process down.
class Unlocked {
 public:
  Unlocked();
  ~Unlocked();
  Unlocked(const Unlocked&) = delete;

 private:
  PyThreadState* thread_;
};
void bind_exit(py::module_& m);  // has the interpreter wait

// For calls that run without the GIL: lets Ctrl-C and the end of the interpreter end them.
rwkv::Poll signal_poll();
// `progress` is None or a callable, and outlives the result; what it raises ends the call.
rwkv::Progress progress_of(const py::object& progress);
