#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/platform.h"
#include "engine/snapshot.h"
#include "engine/state_pool.h"
#include "model/model.h"

namespace rwkv {

namespace {

std::shared_ptr<StatePool> pool_for(const Model& model) {
  std::vector<StatePool::Stage> stages;
  for (const Model::Stage& stage : model.stages()) stages.push_back({stage.backend, stage.states});
  return std::make_shared<StatePool>(std::move(stages));
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, int64_t process)
    : model_(std::move(model)),
      pool_(pool_for(*model_)),
      initial_(pool_->make_initial(model_->tuned_state())),
      space_(model_->workspace()),
      results_(std::make_shared<ResultMemory>(model_->stages().back().backend)),
      process_(process) {}

Engine::~Engine() = default;

std::shared_ptr<Engine> Engine::open(const std::string& path, const EngineOptions& options) {
  RWKV_CHECK(Error, options.threads >= 0 && options.threads <= 1024, "threads: expected 1 to 1024, found ",
             options.threads);
  const Checkpoint file = with_adapters(Checkpoint::open(path), options.adapters, options.poll);
  const auto report = [&](int64_t done, int64_t total) {
    if (options.poll) options.poll();
    if (options.progress) options.progress(done, total);
  };
  auto model = Model::load(file, options.strategy, {options.threads, options.sparse, options.pin}, report);
  return std::shared_ptr<Engine>(new Engine(std::move(model), process_id()));
}

const Config& Engine::config() const { return model_->config(); }
const std::string& Engine::fingerprint() const { return model_->fingerprint(); }

std::string Engine::description() const {
  const auto stages = model_->stages();
  std::string text;
  for (size_t s = 0, end; s < stages.size(); s = end) {
    int layers = 0;
    for (end = s; end < stages.size() && stages[end].backend == stages[s].backend; end++) layers += stages[end].count;
    text += join(s > 0 ? " -> " : "", stages[s].backend->description());
    if (layers < config().n_layer) text += join(" *", layers);
  }
  return text;
}

size_t Engine::weight_bytes() const { return model_->weight_bytes(); }
size_t Engine::column_bytes() const { return model_->column_bytes(); }

size_t Engine::state_bytes() const {
  size_t bytes = 0;
  for (const Model::Stage& stage : model_->stages()) bytes += stage.states.portable_bytes();
  return bytes;
}

void Engine::check_process() const {
  RWKV_CHECK(DeviceError, process_id() == process_, "expected the process that opened the engine (", process_,
             "), found its child (", process_id(),
             "): threads do not survive os.fork(); open the engine in the child, or use spawn");
}

void Engine::check_mine(const State& state) const {
  RWKV_CHECK(StateError, state.engine().get() == this, "expected a state of this engine, found one of another; ",
             "to_bytes() and state_from_bytes() carry it over");
}

std::shared_ptr<State> Engine::new_state(AdapterRef adapter) {
  check_process();
  check_mine(adapter);
  return std::make_shared<State>(shared_from_this(), StateContents{.slot = initial_, .adapter = std::move(adapter)});
}

// ---- steps ----

void Engine::check_tokens(std::span<const int32_t> tokens) const {
  const int vocab = config().n_vocab;
  for (size_t i = 0; i < tokens.size(); i++)
    RWKV_CHECK(Error, tokens[i] >= 0 && tokens[i] < vocab, "token ", i, ": expected an id from 0 to ", vocab - 1,
               ", found ", tokens[i]);
}

void Engine::check_sequences(std::span<const Sequence> sequences, std::vector<const State*>& states) const {
  for (const Sequence& s : sequences) {
    check_mine(*s.state);
    states.push_back(s.state);
    RWKV_CHECK(
        Error,
        s.embeddings.empty() == sequences.front().embeddings.empty() && (s.embeddings.empty() || s.tokens.empty()),
        "expected tokens or embeddings for all sequences, found both");
    if (!s.embeddings.empty()) {
      RWKV_CHECK(Error, config().version != "7a",
                 "this is RWKV-7a, whose layers read tables by token: expected tokens, found embeddings");
      RWKV_CHECK(Error, s.embeddings.size() % size_t(config().n_embd) == 0, "embeddings: expected rows of ",
                 config().n_embd, " numbers, found ", s.embeddings.size(), " in all");
      continue;
    }
    RWKV_CHECK(Error, !s.tokens.empty(), "expected at least one token, found none");
    check_tokens(s.tokens);
  }
  check_once(states);
}

void Engine::check_once(std::vector<const State*>& states) {
  std::ranges::sort(states);
  RWKV_CHECK(StateError, std::ranges::adjacent_find(states) == states.end(),
             "expected every state once in a batch, found one twice; fork() gives a second handle");
}

int64_t Engine::rows_of(const Sequence& s) const {
  return s.embeddings.empty() ? std::ssize(s.tokens) : std::ssize(s.embeddings) / config().n_embd;
}

void Engine::check_output(Output output) const {
  RWKV_CHECK(Error, !config().is_embedding() || output == Output::hidden || output == Output::none,
             "output: expected 'hidden' or 'none' of an embedding model, found logits: it has no language-model head");
}

size_t Engine::result_size(std::span<const Sequence> sequences, Output output) const {
  check_output(output);
  size_t tokens = 0;
  for (const Sequence& s : sequences) tokens += size_t(rows_of(s));
  switch (output) {
    case Output::last:
      return sequences.size() * size_t(config().n_vocab);
    case Output::all:
      return tokens * size_t(config().n_vocab);
    case Output::hidden:
      return tokens * size_t(config().n_embd);
    case Output::none:
      break;
  }
  return 0;
}

std::vector<float> Engine::forward(std::span<const Sequence> sequences, Output output, const Poll& poll,
                                   const Progress& progress) {
  std::vector<float> result(result_size(sequences, output));
  forward(sequences, output, result, poll, progress);
  return result;
}

void Engine::forward(std::span<const Sequence> sequences, Output output, std::span<float> result, const Poll& poll,
                     const Progress& progress) {
  RWKV_CHECK(Error, result.empty() || result.size() == result_size(sequences, output), "result: expected room for ",
             result_size(sequences, output), " floats, found ", result.size());
  step(sequences, {.output = output, .rows = result}, poll, progress);
}

void Engine::layer_outputs(const Sequence& sequence, std::span<const int> layers, std::span<float> result,
                           const Poll& poll, const Progress& progress) {
  for (size_t i = 0; i < layers.size(); i++) {
    RWKV_CHECK(Error, layers[i] >= 0 && layers[i] < config().n_layer, "layers: expected numbers from 0 to ",
               config().n_layer - 1, ", found ", layers[i]);
    RWKV_CHECK(Error, i == 0 || layers[i - 1] < layers[i], "layers: expected each once and ascending, found ",
               layers[i], " after ", i > 0 ? layers[i - 1] : 0);
  }
  const size_t size = layers.size() * size_t(rows_of(sequence)) * size_t(config().n_embd);
  RWKV_CHECK(Error, result.size() == size, "result: expected room for ", size, " floats, found ", result.size());
  const Output output = config().is_embedding() ? Output::none : Output::last;
  step(std::span(&sequence, 1), {.output = output, .layers = layers, .of_layers = result.data()}, poll, progress);
}

DeviceArray Engine::forward_on_device(std::span<const Sequence> sequences, Output output, const Poll& poll,
                                      const Progress& progress) {
  check_process();
  const int64_t cols = output == Output::hidden ? config().n_embd : config().n_vocab;
  const size_t size = result_size(sequences, output);
  const auto memory = results_->take(size * sizeof(float));
  auto* const data = reinterpret_cast<float*>(memory.get());
  step(sequences, {.output = output, .on_device = data}, poll, progress);
  const auto& device = model_->stages().back().backend;
  return {device->device(), data, {int64_t(size) / cols, cols}, {cols, 1}, lent(device, memory)};
}

void Engine::step(std::span<const Sequence> sequences, const Results& results, const Poll& poll,
                  const Progress& progress) {
  const auto& [output, result, on_device, layers, of_layers, look] = results;
  check_process();
  check_output(output);
  const ListsPool::Use lists(lists_);
  check_sequences(sequences, lists->states);
  if (sequences.empty()) return;
  // Calls one after the other hold their states until the last has ended.
  for (const Sequence& s : sequences) lists->uses.emplace_back(*s.state);
  const Turn::Hold hold(turn_, poll);

  // Everything a step needs is there before it begins: slots to write to, room for the logits, the lists of a panel.
  const size_t count = sequences.size(), vocab = size_t(config().n_vocab), width = size_t(config().n_embd);
  Backend& device = *model_->stages().back().backend;       // where results are
  const auto kept = model_->stages().back().states.logits;  // where they stay with a state, if they do
  auto& target = lists->target;
  auto& logits = lists->logits;
  Panel& panel = lists->panel;
  int64_t total = 0;
  target.resize(count), logits.resize(count);
  for (size_t s = 0; s < count; s++) {
    total += rows_of(sequences[s]);
    target[s] = pool_->take();
    if (output != Output::last && output != Output::all) continue;
    logits[s] = pool_->take_logits();
    if (!kept)
      logits[s]->on_host().reserve(vocab);
    else
      logits[s]->leave_in(target[s], device, target[s]->data(model_->stages().size() - 1) + *kept, vocab);
  }
  // Panels of about equal size.
  const int64_t most = model_->panel_rows(), panels = (total + most - 1) / most;
  const int64_t step = std::min(most, ((total + panels - 1) / panels + 23) / 24 * 24);

  panel.clear();
  panel.reserve(size_t(std::min(step, total)), count, model_->stages().size());
  if (!sequences.front().embeddings.empty()) panel.embeddings.reserve(size_t(std::min(step, total)) * width);

  const bool every_row = output == Output::all || output == Output::hidden;
  for (size_t s = 0, row = 0; s < count; s++) {
    lists->order.push_back(s), lists->first.push_back(row);
    row += every_row ? size_t(rows_of(sequences[s])) : 1;
  }
  // Those that share an adapter become neighbours, unless somebody looks on.
  const auto adapter_of = [&](size_t s) { return sequences[s].state->contents_.adapter.get(); };
  if (!look && !std::ranges::is_sorted(lists->order, {}, adapter_of))
    std::ranges::stable_sort(lists->order, {}, adapter_of);
  const Model::Result kind = output == Output::hidden ? Model::Result::hidden
                             : output == Output::none ? Model::Result::none
                                                      : Model::Result::logits;
  size_t next = 0, at = 0;  // the next token to read
  for (int64_t done = 0; done < total; done += int64_t(panel.token.size())) {
    panel.clear();
    while (next < count && int64_t(panel.token.size()) < step) {
      const size_t s = lists->order[next];
      const auto& [tokens, state, sampler, embeddings] = sequences[s];
      const size_t rows = size_t(rows_of(sequences[s]));
      const size_t n = std::min(rows - at, size_t(step) - panel.token.size());
      panel.begin(at == 0 ? *state->contents_.slot : *target[s], *target[s]);
      panel.adapt(state->contents_.adapter.get(), n);
      if (!embeddings.empty()) {
        const auto part = embeddings.subspan(at * width, n * width);
        panel.embeddings.insert(panel.embeddings.end(), part.begin(), part.end());
      }
      for (size_t i = 0; i < n; i++) {
        const bool last = at + i + 1 == rows;
        // The last row of a panel goes to the end in any case: that is where numbers that are not finite show.
        if (every_row || last || (kind == Model::Result::none && i + 1 == n)) {
          panel.rows.push_back(int32_t(panel.token.size()));
          panel.ending.push_back(last ? s : count);
          panel.place.push_back(lists->first[s] + (every_row ? at + i : 0));
        }
        panel.token.push_back(tokens.empty() ? int32_t(panel.token.size()) : tokens[at + i]);
      }
      at += n;
      if (at == rows) next++, at = 0;
    }

    size_t row = 0;
    const auto take = [&](const Tensor& values) {
      if (look) look(values);
      for (int64_t i = 0, n; i < values.rows; i += n) {  // as many at a time as lie together there too
        const size_t place = panel.place[row + size_t(i)], to = place * size_t(values.cols);
        for (n = 1; i + n < values.rows && panel.place[row + size_t(i + n)] == place + size_t(n);) n++;
        const Tensor some{values.row(i), DType::f32, n, values.cols, values.stride};
        if (on_device) device.copy_rows(some, {on_device + to, DType::f32, n, values.cols, values.cols});
        if (!result.empty()) device.read(some, result.data() + to);
      }
      for (int64_t i = 0; i < values.rows; i++, row++) {
        if (kind != Model::Result::logits || panel.ending[row] == count || kept) continue;
        Logits::Values& last = logits[panel.ending[row]]->on_host();
        if (!result.empty()) {
          const auto there = result.subspan(panel.place[row] * size_t(values.cols), size_t(values.cols));
          last.assign(there.begin(), there.end());
        } else {
          last.resize(size_t(values.cols));
          device.read({values.row(i), DType::f32, 1, values.cols, values.stride}, last.data());
        }
      }
    };
    // By reference: a function that held the captures would allocate.
    const bool wanted = !kept || on_device || look || !result.empty();
    size_t taken = 0;  // of the layers asked for
    const auto take_layer = [&](int layer, Backend& home, const Tensor& x) {
      if (taken == layers.size() || layers[taken] != layer) return;
      home.read(x, of_layers + (taken++ * size_t(total) + size_t(done)) * width);
    };
    model_->forward(panel.finish(), kind, space_, poll, wanted ? Model::Take(std::ref(take)) : Model::Take(),
                    layers.empty() ? Model::TakeLayer() : Model::TakeLayer(std::ref(take_layer)), panel.adapted);
    if (progress) progress(done + int64_t(panel.token.size()), total);
  }

  if (on_device) device.synchronise();
  for (size_t i = 0; i < count; i++) {
    StateContents& state = sequences[i].state->contents_;
    const auto& tokens = sequences[i].tokens;
    state = {std::move(target[i]),
             state.tokens_seen + rows_of(sequences[i]),
             tokens.empty() ? -1 : tokens.back(),
             std::move(logits[i]),
             sequences[i].sampler,
             std::move(state.adapter)};
  }
}

std::vector<double> Engine::apply_task_head(std::string_view task, std::span<const double> pooled) const {
  RWKV_CHECK(Error, config().is_embedding(), "task: expected an embedding model, found a language model, which has no ",
             "heads for tasks");
  return model_->task_heads().apply(task, pooled);
}

std::vector<TokenLogprob> Engine::sample(std::span<const SampleJob> jobs, const Poll& poll) {
  check_process();
  std::vector<TokenLogprob> drawn(jobs.size());
  const Turn::Hold hold(turn_, poll);
  model_->stages().back().backend->sample(jobs, drawn);
  return drawn;
}

}  // namespace rwkv
