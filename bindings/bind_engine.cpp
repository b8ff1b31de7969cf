#include <algorithm>
#include <optional>
#include <string>

#include "bind.h"
#include "core/error.h"

namespace {

using rwkv::Engine;
using rwkv::State;
using StateRef = std::shared_ptr<State>;

rwkv::Output output_of(const std::string& name) {
  if (name == "last") return rwkv::Output::last;
  if (name == "all") return rwkv::Output::all;
  if (name == "none") return rwkv::Output::none;
  if (name == "hidden") return rwkv::Output::hidden;
  throw rwkv::Error("output: expected 'last', 'all', 'none' or 'hidden', found '" + name + "'");
}

std::shared_ptr<Engine> open(const py::bytes& path, const py::bytes& strategy, int threads, bool pin,
                             std::optional<bool> sparse, const Adapters& adapters, const py::object& progress) {
  const rwkv::EngineOptions options{strategy, threads, progress_of(progress), signal_poll(),
                                    sparse,   pin,     adapters_of(adapters)};
  const std::string name = path;
  const Unlocked unlocked;
  return Engine::open(name, options);
}

// The arguments of a call, kept as long as it lasts. A sequence is one of tokens, or a float32 array (T, C) of
// embeddings.
struct Call {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> embeddings;  // copies, because nobody else may change them meanwhile
  std::vector<rwkv::Sequence> sequences;

  Call(const Engine& engine, const std::vector<py::object>& inputs, const std::vector<StateRef>& states) {
    RWKV_CHECK(rwkv::Error, inputs.size() == states.size(), "states: expected one for each of ", inputs.size(),
               " sequences, found ", states.size());
    ids.reserve(inputs.size()), embeddings.reserve(inputs.size());
    for (size_t i = 0; i < inputs.size(); i++) {
      if (!states[i]) throw py::type_error("states: expected a State, found None");
      if (py::isinstance<py::array_t<float>>(inputs[i])) {
        const auto rows = py::array_t<float, py::array::c_style>::ensure(inputs[i]);
        if (!rows) throw py::error_already_set();
        const py::ssize_t width = engine.config().n_embd;
        RWKV_CHECK(rwkv::Error, rows.ndim() == 2 && rows.shape(0) > 0 && rows.shape(1) == width,
                   "embeddings: expected shape (T, ", width, ") with T of 1 or more, found ",
                   std::string(py::str(rows.attr("shape"))));
        embeddings.emplace_back(rows.data(), rows.data() + rows.size());
        sequences.push_back({.tokens = {}, .state = states[i].get(), .embeddings = embeddings.back()});
      } else {
        ids.push_back(ids_of(inputs[i], engine.config().n_vocab));
        sequences.push_back({ids.back(), states[i].get()});
      }
    }
  }
};

// Rows of all sequences one behind the other: (S, V), (sum of T, V) or (sum of T, C); None for output "none".
py::object forward(Engine& engine, const std::vector<py::object>& tokens, const std::vector<StateRef>& states,
                   const std::string& output, const py::object& progress) {
  const rwkv::Output kind = output_of(output);
  const Call call(engine, tokens, states);
  const auto report = progress_of(progress);
  const auto width = kind == rwkv::Output::hidden ? engine.config().n_embd : engine.config().n_vocab;
  const size_t size = engine.result_size(call.sequences, kind);
  py::array_t<float> result({static_cast<py::ssize_t>(size) / width, static_cast<py::ssize_t>(width)});
  const std::span<float> values(result.mutable_data(), size);
  {
    const Unlocked unlocked;
    engine.forward(call.sequences, kind, values, signal_poll(), report);
  }
  return kind == rwkv::Output::none ? py::object(py::none()) : result;
}

rwkv::DeviceArray forward_on_device(Engine& engine, const std::vector<py::object>& tokens,
                                    const std::vector<StateRef>& states, const std::string& output,
                                    const py::object& progress) {
  const rwkv::Output kind = output_of(output);
  RWKV_CHECK(rwkv::Error, kind != rwkv::Output::none, "output: expected rows for device=True, found 'none'");
  const Call call(engine, tokens, states);
  const auto report = progress_of(progress);
  const Unlocked unlocked;
  return engine.forward_on_device(call.sequences, kind, signal_poll(), report);
}

// (layers, T, C).
py::array_t<float> layer_outputs(Engine& engine, const py::object& input, const StateRef& state,
                                 const std::vector<int>& layers, const py::object& progress) {
  const Call call(engine, {input}, {state});
  const auto report = progress_of(progress);
  const auto width = static_cast<size_t>(engine.config().n_embd);
  const size_t rows = engine.result_size(call.sequences, rwkv::Output::hidden) / width;
  py::array_t<float> result({layers.size(), rows, width});
  const std::span<float> values(result.mutable_data(), static_cast<size_t>(result.size()));
  const Unlocked unlocked;
  engine.layer_outputs(call.sequences.front(), layers, values, signal_poll(), report);
  return result;
}

using Doubles = py::array_t<double, py::array::c_style>;

Doubles apply_task_head(const Engine& engine, const std::string& task, const Doubles& pooled) {
  const std::span<const double> values(pooled.data(), size_t(pooled.size()));
  std::vector<double> vector;
  {
    const Unlocked unlocked;
    vector = engine.apply_task_head(task, values);
  }
  return Doubles(static_cast<py::ssize_t>(vector.size()), vector.data());
}

// For each sequence the log-probabilities of its tokens, and which of them are the most likely.
std::vector<std::pair<py::array_t<float>, py::array_t<bool>>> score(Engine& engine,
                                                                    const std::vector<py::object>& tokens,
                                                                    const std::vector<StateRef>& states,
                                                                    const py::object& progress, bool advance) {
  const Call call(engine, tokens, states);
  const auto report = progress_of(progress);
  std::vector<std::vector<rwkv::TokenScore>> scores;
  {
    const Unlocked unlocked;
    scores = engine.score(call.sequences, signal_poll(), report, advance);
  }
  std::vector<std::pair<py::array_t<float>, py::array_t<bool>>> found;
  for (const auto& of_sequence : scores) {
    const auto count = static_cast<py::ssize_t>(of_sequence.size());
    auto& [logprobs, greedy] = found.emplace_back(count, count);
    std::ranges::transform(of_sequence, logprobs.mutable_data(), &rwkv::TokenScore::logprob);
    std::ranges::transform(of_sequence, greedy.mutable_data(), &rwkv::TokenScore::greedy);
  }
  return found;
}

using Array = py::array_t<float, py::array::c_style>;

int32_t sample(Engine& engine, const Array& logits, const py::object& params, uint64_t seed, uint64_t position) {
  const rwkv::SamplingParams p = params_of(params);
  const int64_t n = logits.size();
  p.check(static_cast<int>(n));
  // A copy, because nobody else may change it meanwhile.
  std::vector<float> row(logits.data(), logits.data() + n);
  const rwkv::SampleJob job{.logits = {row.data(), rwkv::DType::f32, 1, n, n},
                            .temperature = p.temperature,
                            .top_p = p.top_p,
                            .top_k = p.top_k,
                            .min_p = p.min_p,
                            .seed = seed,
                            .counter = position,
                            .bias = p.logit_bias};
  const Unlocked unlocked;
  return engine.sample(std::span(&job, 1), signal_poll()).front().token;
}

using AdapterArgument = std::optional<LoadedAdapter>;
Engine::AdapterRef weights_of(const AdapterArgument& adapter) { return adapter ? adapter->weights : nullptr; }

StateRef state_from_bytes(Engine& engine, const py::bytes& blob, bool check_weights, const AdapterArgument& adapter) {
  const std::string_view bytes = blob;
  const Unlocked unlocked;
  return engine.state_from_bytes(std::as_bytes(std::span(bytes)), check_weights, weights_of(adapter));
}

StateRef load_state(Engine& engine, const py::bytes& path, bool check_weights, const AdapterArgument& adapter) {
  const std::string name = path;
  const Unlocked unlocked;
  return engine.load_state(name, check_weights, weights_of(adapter));
}

using Arrays = std::vector<std::pair<std::string, Array>>;

std::vector<rwkv::StateArray> copies_of(const Arrays& arrays) {
  std::vector<rwkv::StateArray> copies;
  for (const auto& [name, array] : arrays)
    copies.push_back(
        {name, {array.shape(), array.shape() + array.ndim()}, {array.data(), array.data() + array.size()}});
  return copies;
}

LoadedAdapter load_adapter(Engine& engine, const Adapters::value_type& adapter) {
  const auto specs = adapters_of({adapter});
  const Unlocked unlocked;
  return {engine.load_adapter(specs.front(), signal_poll())};
}

StateRef new_state(Engine& engine, const AdapterArgument& adapter) { return engine.new_state(weights_of(adapter)); }

StateRef new_tuned_state(Engine& engine, const py::bytes& path, bool transposed, const AdapterArgument& adapter) {
  const std::string name = path;
  const Unlocked unlocked;
  return engine.new_state(name, transposed, weights_of(adapter));
}

StateRef new_state_of_arrays(Engine& engine, const Arrays& arrays, bool transposed, const AdapterArgument& adapter) {
  const auto tuned = copies_of(arrays);
  const Unlocked unlocked;
  return engine.new_state(tuned, transposed, weights_of(adapter));
}

StateRef state_from_parts(Engine& engine, const Arrays& arrays, const AdapterArgument& adapter) {
  const auto parts = copies_of(arrays);
  const Unlocked unlocked;
  return engine.state_from_parts(parts, weights_of(adapter));
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<LoadedAdapter>(m, "LoadedAdapter")
      .def_property_readonly("fingerprint", [](const LoadedAdapter& a) { return a.weights->fingerprint(); })
      .def_property_readonly("nbytes", [](const LoadedAdapter& a) { return a.weights->bytes(); });
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def_static("open", open)
      .def_property_readonly("config", &Engine::config)
      .def_property_readonly("fingerprint", &Engine::fingerprint)
      .def_property_readonly("description", &Engine::description)
      .def_property_readonly("weight_bytes", &Engine::weight_bytes)
      .def_property_readonly("column_bytes", &Engine::column_bytes)
      .def_property_readonly("state_bytes", &Engine::state_bytes)
      .def("load_adapter", load_adapter)
      .def("new_state", new_state)
      .def("new_tuned_state", new_tuned_state)
      .def("new_state_of_arrays", new_state_of_arrays)
      .def("forward", forward)
      .def("forward_on_device", forward_on_device)
      .def("layer_outputs", layer_outputs)
      .def("apply_task_head", apply_task_head)
      .def("score", score)
      .def("sample", sample)
      .def("state_from_bytes", state_from_bytes)
      .def("load_state", load_state)
      .def("state_from_parts", state_from_parts);
}
