#include <algorithm>
#include <limits>

#include "bind.h"
#include "core/error.h"
#include "engine/generation.h"

namespace {

using rwkv::Engine;
using rwkv::Generation;
using rwkv::Tokenizer;

// Called without the GIL; `processors` outlives the result and has one, or None, for each text.
Generation::Process process_of(const std::vector<py::object>& processors) {
  return [&processors](size_t text, std::span<const int32_t> written, std::span<float> logits) {
    const py::gil_scoped_acquire gil;
    py::list tokens(written.size());
    for (size_t i = 0; i < written.size(); i++) tokens[i] = written[i];
    const py::array_t<float> array(static_cast<py::ssize_t>(logits.size()), logits.data());
    py::object changed = processors[text](tokens, array);
    if (changed.is_none()) changed = array;
    const auto result = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(changed);
    if (!result)
      throw py::type_error("logits_processor: expected an array of numbers or None, found " +
                           std::string(py::str(py::type::of(changed).attr("__name__"))));
    RWKV_CHECK(rwkv::Error, result.ndim() == 1 && static_cast<size_t>(result.size()) == logits.size(),
               "logits_processor: expected an array of ", logits.size(), " numbers or None, found one of shape ",
               std::string(py::str(result.attr("shape"))));
    std::copy_n(result.data(), logits.size(), logits.data());
  };
}

using Request = std::tuple<py::object, std::shared_ptr<rwkv::State>, py::object, int>;

std::unique_ptr<Generation> generation_of(const std::shared_ptr<Engine>& engine,
                                          const std::shared_ptr<Tokenizer>& tokenizer,
                                          const std::vector<Request>& requests) {
  std::vector<rwkv::TextRequest> texts;
  for (const auto& [ids, state, params, count] : requests)
    texts.push_back({ids_of(ids, engine->config().n_vocab), state, params_of(params), count});
  return std::make_unique<Generation>(engine, tokenizer, std::move(texts));
}

py::tuple tuple_of(const rwkv::Piece& piece) {
  py::list top;
  for (const auto& [token, logprob] : piece.top) top.append(py::make_tuple(token, logprob));
  return py::make_tuple(piece.text, piece.token, piece.logprob, top);
}

void read_prompts(Generation& generation, const py::object& progress) {
  const auto report = progress_of(progress);
  const Unlocked unlocked;
  generation.read(signal_poll(), report);
}

py::object next_piece(Generation& generation, size_t text, const std::vector<py::object>& processors) {
  const auto process = process_of(processors);
  std::optional<rwkv::Piece> piece;
  {
    const Unlocked unlocked;
    piece = generation.next(text, signal_poll(), process);
  }
  return piece ? py::object(tuple_of(*piece)) : py::none();
}

py::list run(Generation& generation, const std::vector<py::object>& processors, const py::object& progress) {
  const auto process = process_of(processors);
  const auto report = progress_of(progress);
  std::vector<std::vector<rwkv::Piece>> texts;
  {
    const Unlocked unlocked;
    texts = generation.run(signal_poll(), report, process);
  }
  py::list result;
  for (const auto& pieces : texts) {
    py::list list;
    for (const auto& piece : pieces) list.append(tuple_of(piece));
    result.append(list);
  }
  return result;
}

const char* finish(const Generation& generation, size_t text) {
  return generation.finish(text) == rwkv::Finish::stop ? "stop" : "length";
}

}  // namespace

rwkv::SamplingParams params_of(const py::object& params) {
  rwkv::SamplingParams p;
  p.temperature = params.attr("temperature").cast<float>();
  p.top_p = params.attr("top_p").cast<float>();
  p.top_k = static_cast<int>(std::min(params.attr("top_k").cast<int64_t>(), int64_t{std::numeric_limits<int>::max()}));
  p.min_p = params.attr("min_p").cast<float>();
  p.presence_penalty = params.attr("presence_penalty").cast<double>();
  p.frequency_penalty = params.attr("frequency_penalty").cast<double>();
  p.penalty_decay = params.attr("penalty_decay").cast<double>();
  const auto style = params.attr("penalty_style").cast<std::string>();
  const auto known = rwkv::penalty_style_of(style);
  RWKV_CHECK(rwkv::Error, known, "penalty_style: expected 'rwkv', 'rapid' or 'openai', found '", style, "'");
  p.penalty_style = *known;
  p.seed = params.attr("seed").cast<std::optional<uint64_t>>();
  p.stop = params.attr("stop").cast<std::vector<std::string>>();
  p.stop_tokens = params.attr("stop_tokens").cast<std::vector<int32_t>>();
  if (const py::object bias = params.attr("logit_bias"); !bias.is_none())
    for (const auto& [token, value] : py::dict(bias))
      p.logit_bias.push_back({token.cast<int32_t>(), value.cast<float>()});
  p.max_tokens = params.attr("max_tokens").cast<int64_t>();
  p.ignore_eos = params.attr("ignore_eos").cast<bool>();
  p.top_logprobs = params.attr("top_logprobs").cast<int>();
  p.process_logits = !params.attr("logits_processor").is_none();
  return p;
}

void bind_generation(py::module_& m) {
  py::class_<Generation>(m, "Generation")
      .def(py::init(&generation_of))
      .def("count", &Generation::count)
      .def("prompt_tokens", &Generation::prompt_tokens)
      .def("read", read_prompts)
      .def("next", next_piece)
      .def("run", run)
      .def("finish", finish)
      .def("state", &Generation::state);
}
