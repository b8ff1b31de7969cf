#include "model/model.h"

#include <algorithm>
#include <array>
#include <climits>
#include <map>
#include <ranges>

#include "core/error.h"
#include "core/text.h"
#include "model/adapters.h"
#include "model/names.h"
#include "model/packed.h"
#include "model/tuned_state.h"

namespace rwkv {

namespace {

// The precision that loses nothing of what the file holds: a narrow one only if every matrix has it.
Format native_format(const Checkpoint& file) {
  const auto all = [&](DType dtype) {
    return std::ranges::none_of(file.tensors(), [&](const TensorInfo& t) {
      const auto wide = std::ranges::count_if(t.shape, [](int64_t d) { return d > 1; });
      const DType stored = t.derived ? t.derived->stored : t.dtype;
      return wide > 1 && stored != dtype && !is_tuned_state(t.name);
    });
  };
  return all(DType::bf16) ? Format::bf16 : all(DType::f16) ? Format::f16 : Format::f32;
}

std::vector<Model::Stage> open_stages(std::string_view strategy, Format native, const std::optional<Formats>& only,
                                      int layers, const DeviceOptions& options) {
  const auto specs = parse_strategy(strategy, native, only);
  std::map<std::string, std::shared_ptr<Backend>> backends;
  std::vector<Model::Stage> stages;
  int first = 0;
  for (const StageSpec& spec : specs) {
    const int left = layers - first, count = spec.layers && !spec.streamed ? spec.layers : left;
    RWKV_CHECK(StrategyError, count > 0 && count <= left, "strategy '", strategy, "': expected ", layers,
               " layers in all, found ", first + std::max(count, 1));
    auto& backend = backends[spec.device];
    if (!backend) backend = open_backend(spec.device, options);
    const int staying = spec.streamed ? std::min(spec.layers, count) : count;
    if (staying > 0) stages.push_back({backend, first, staying, spec.formats, spec.state});
    if (staying < count)
      stages.push_back({.backend = backend,
                        .first = first + staying,
                        .count = count - staying,
                        .formats = spec.formats,
                        .state = spec.state,
                        .streamed = true});
    first += count;
  }
  RWKV_CHECK(StrategyError, first == layers, "strategy '", strategy, "': expected ", layers, " layers in all, found ",
             first);
  return stages;
}

constexpr size_t kLeastScratch = size_t(256) << 20;

// No layers yet, of the version that a model is of.
Model::Layers layers_of(const std::string& version) {
  if (version == "4") return std::vector<v4::Layer>();
  if (version.starts_with("5.")) return std::vector<v5::Layer>();
  if (version == "6") return std::vector<v6::Layer>();
  return std::vector<v7::Layer>();
}

template <class Layers>
using LayerOf = typename std::remove_cvref_t<Layers>::value_type;

}  // namespace

std::vector<StatePart> state_parts(const Config& config) {
  return std::visit([&](const auto& layers) { return LayerOf<decltype(layers)>::state_parts(config); },
                    layers_of(config.version));
}

std::shared_ptr<const Model> Model::load(const Checkpoint& opened, std::string_view strategy,
                                         const DeviceOptions& options, const LoadProgress& progress) {
  const Checkpoint file = with_official_names(opened);
  std::shared_ptr<Model> model(new Model);
  model->config_ = read_config(file);
  const auto packed = packed_in(file);
  const auto only = packed ? std::optional(packed->formats) : std::nullopt;
  const Format native = packed ? packed->formats.small : native_format(file);
  model->stages_ = open_stages(strategy, native, only, model->config_.n_layer, options);
  model->mapped_ = packed.has_value();

  const bool maps = std::ranges::any_of(model->stages_, [](const Stage& s) { return s.backend->reads_mapped(); });
  const auto mapping = packed && maps ? map_packed(file) : nullptr;
  Loader measure(file), loader(file);
  for (Loader* l : {&measure, &loader}) l->make_columns_of_packed(options.sparse.value_or(false));
  if (packed) measure.trust(mapping), loader.trust(mapping);
  model->build(measure);
  measure.check_all_used();
  for (Stage& stage : model->stages_)
    if (stage.streamed) stage.stream = stage.backend->stream(stage.count, stage.layer_bytes);
  model->column_bytes_ = measure.column_bytes();
  model->choose_rows();
  const Config& c = model->config_;
  StepShape shape{.width = std::max<int64_t>({c.n_embd, c.n_att, measure.widest_table()}),
                  .ffn = c.n_ffn,
                  .rows = model->panel_rows_,
                  .results = model->result_rows_,
                  .vocab = c.n_vocab,
                  .heads = c.n_head,
                  .head_size = c.head_size,
                  .wkv7 = c.version.starts_with("7")};
  for (Stage& stage : model->stages_) {
    model->weight_bytes_ += stage.weights.used() + size_t(stage.streamed ? stage.count : 0) * stage.layer_bytes;
    stage.weights = Arena(stage.backend->allocate(stage.weights.used()));
    shape.activations = stage.formats.operands(*stage.backend).large;
    stage.backend->prepare(shape);
    stage.states = StateLayout(state_parts(c), stage.count, *stage.backend, stage.state);
    // What a device has computed it also samples from, so it stays there.
    if (&stage == &model->stages_.back() && stage.backend->device().kind != DeviceId::cpu)
      stage.states.keep_logits(c.n_vocab);
  }
  loader.report(progress, measure.bytes());
  model->build(loader);
  loader.tell();
  model->weight_bytes_ += model->task_heads_.bytes();
  model->mappings_ = loader.take_mappings();
  model->matrices_ = loader.take_matrices();
  model->linears_ = loader.take_linears();
  model->fingerprint_ = packed ? packed->fingerprint : loader.fingerprint().hex(model->config_);
  const auto said = file.metadata().find(kFingerprintKey);
  RWKV_CHECK(ModelFormatError,
             said == file.metadata().end() || has_adapters(file) || said->second == model->fingerprint_, file.path(),
             ": expected the weights with the fingerprint that the file names, ", shown(said->second), ", found ",
             model->fingerprint_, ": they are not those that were written");
  return model;
}

std::set<std::string> Model::check(const Checkpoint& file) {
  Model model;
  model.config_ = read_config(file);
  model.stages_ = open_stages("cpu fp32", Format::f32, {}, model.config_.n_layer, {.threads = 1});
  Loader measure(file);
  model.build(measure);
  measure.check_all_used();
  return measure.used();
}

void Model::build(Loader& loader) {
  const Config& c = config_;
  layers_ = layers_of(c.version);
  for (Stage& stage : stages_) {
    loader.enter(*stage.backend, stage.weights);
    // Every layer of 7a needs the embedding.
    if (&stage == &stages_.front() || (c.version == "7a" && &stage == &first_on(*stage.backend))) {
      const std::string table = "emb.weight";
      stage.embedding =
          mapped_ ? loader.mapped_table(table, c.n_vocab, c.n_embd) : loader.table(table, c.n_vocab, c.n_embd);
      stage.embedding_norm = loader.norm("blocks.0.ln0", c.n_embd, 1e-5f);
    }
    std::visit(
        [&](auto& layers) {
          for (int i = stage.first; i < stage.first + stage.count; i++)
            load_layer(loader, stage, i,
                       [&] { layers.push_back(LayerOf<decltype(layers)>::load(loader, c, i, stage.formats)); });
        },
        layers_);
    if (&stage == &stages_.back()) {
      out_norm_ = loader.norm("ln_out", c.n_embd, 1e-5f);
      if (c.is_embedding())
        task_heads_ = TaskHeads::load(loader, c.n_embd);
      else
        head_ = loader.matrix("head.weight", c.n_vocab, c.n_embd, stage.formats.head);
    }
  }
  load_tuned_state(loader);
}

void Model::load_tuned_state(Loader& loader) {
  const Config& c = config_;
  const auto name = [](int i) { return tuned_state_name(i); };
  const auto layers = std::views::iota(0, c.n_layer);
  if (c.n_head == 0 || std::ranges::none_of(layers, [&](int i) { return loader.has(name(i)); })) return;
  tuned_state_.clear();
  for (const int i : layers) {
    const auto numbers = loader.host_numbers(name(i), {c.n_head, c.head_size, c.head_size});
    tuned_state_.insert(tuned_state_.end(), numbers.begin(), numbers.end());
  }
}

void Model::load_layer(Loader& loader, Stage& stage, int layer, const std::function<void()>& load) {
  if (!stage.streamed) return load();
  const int at = layer - stage.first;
  Arena arena = stage.stream ? Arena(stage.stream->place(at)) : Arena();
  loader.enter(*stage.backend, arena);
  load();
  stage.layer_bytes = std::max(stage.layer_bytes, arena.used());
  if (stage.stream) stage.stream->loaded(at);
  loader.enter(*stage.backend, stage.weights);
}

const Model::Stage& Model::first_on(const Backend& device) const {
  return *std::ranges::find_if(stages_, [&](const Stage& stage) { return stage.backend.get() == &device; });
}

// ---- sizes ----

namespace {

Tensor residual(Arena& arena, const Backend& b, const Config& c, int rows) {
  return arena.take(DType::f32, rows, c.n_embd, b.row_stride(c.n_embd));
}

// What a step needs after the layers.
struct Ends {
  Tensor hidden, logits;
  Operand operand;

  Ends(Arena& arena, const Backend& b, const Config& c, const Linear& head, int results)
      : hidden(residual(arena, b, c, results)),
        logits(arena.take(DType::f32, results, c.n_vocab, b.row_stride(c.n_vocab))),
        operand{nullptr, b.operand_format(head.format), results, c.n_embd} {
    operand.data = arena.take(b.operand_bytes(operand.format, results, c.n_embd));
  }
};

// What layers need of those before them: the residual and, of some versions, what the first layer has left.
template <class Scratch>
auto carried(const Scratch& s, const Tensor& x) {
  if constexpr (requires { s.v_first; })
    return std::array{x, s.v_first};
  else
    return std::array{x};
}

}  // namespace

size_t Model::scratch_bytes(const Stage& stage) const {
  Arena arena;
  residual(arena, *stage.backend, config_, panel_rows_);
  std::visit(
      [&](const auto& layers) {
        typename LayerOf<decltype(layers)>::Scratch(arena, *stage.backend, config_, layers, panel_rows_);
      },
      layers_);
  if (&stage == &stages_.back()) Ends(arena, *stage.backend, config_, head_, result_rows_);
  return arena.used();
}

void Model::choose_rows() {
  const int64_t work = 4 * int64_t(config_.n_embd) * config_.n_ffn;
  result_rows_ = stages_.back().backend->result_rows();
  panel_rows_ = INT_MAX;
  for (const Stage& stage : stages_) panel_rows_ = std::min(panel_rows_, stage.backend->panel_rows(work));
  // Scratch in proportion to the weights on the same device, whatever the model's shape.
  for (const Stage& stage : stages_) {
    size_t weights = 0;
    for (const Stage& other : stages_)
      if (other.backend == stage.backend) weights += other.weights.used();
    while (panel_rows_ > 1 && scratch_bytes(stage) > std::max(kLeastScratch, weights)) {
      panel_rows_ /= 2;
      result_rows_ = std::min(result_rows_, panel_rows_);
    }
  }
}

Workspace Model::workspace() const {
  Workspace space;
  bool carries = false;
  for (const Stage& stage : stages_) {
    const Stage& first = first_on(*stage.backend);
    carries |= stage.backend != stages_.front().backend;
    if (&first != &stage) {
      space.scratch.push_back(space.scratch[size_t(&first - stages_.data())]);
      continue;
    }
    size_t bytes = 0;
    for (const Stage& other : stages_)
      if (other.backend == stage.backend) bytes = std::max(bytes, scratch_bytes(other));
    space.scratch.emplace_back(stage.backend->allocate(bytes));
  }
  if (carries) space.carried.resize(2 * size_t(panel_rows_) * size_t(config_.n_embd));
  return space;
}

// ---- steps ----

void Model::forward(std::span<const Batch> batches, Result result, Workspace& space, const std::function<void()>& poll,
                    const Take& take, const TakeLayer& take_layer, std::span<const AdaptedRows> adapted) const {
  const int tokens = int(batches.front().token.size());
  const auto check = [&] {
    if (poll) poll();
  };
  const auto run = [&](const auto& layers) {
    for (size_t s = 0; s < stages_.size(); s++) {
      const Stage& stage = stages_[s];
      const Batch& batch = batches[s];
      Backend& b = *stage.backend;
      Arena& arena = space.scratch[s];
      arena.reset();
      const Tensor x = residual(arena, b, config_, tokens);
      typename LayerOf<decltype(layers)>::Scratch scratch(arena, b, config_, layers, tokens);
      scratch.set_formats(stage.formats.operands(b));
      const auto moved = carried(scratch, x);
      const auto place = [&](size_t i) { return space.carried.data() + i * size_t(tokens) * size_t(x.cols); };

      const Visit visit(b);
      b.begin(batch);
      if (s == 0 && !batch.embeddings.empty()) b.write(x, batch.embeddings.data());
      if (s == 0)
        b.embed(batch.embeddings.empty() ? stage.embedding : x, stage.embedding_norm, batch, x);
      else if (stages_[s - 1].backend != stage.backend)
        for (size_t i = 0; i < moved.size(); i++) b.write(moved[i], place(i));
      if constexpr (requires { scratch.embedded; })
        if (scratch.embedded) {
          const Stage& home = first_on(b);
          b.embed(home.embedding, home.embedding_norm, batch, {}, scratch.embedded);
        }
      std::optional<Adapted> with_adapters;
      if (!adapted.empty()) with_adapters.emplace(b, adapted, space.adapters);
      Verbs& verbs = with_adapters ? static_cast<Verbs&>(*with_adapters) : b;
      for (int i = 0; i < stage.count; i++) {
        if (stage.stream) stage.stream->need(i);
        step(verbs, layers[size_t(stage.first + i)], config_, stage.states, i, batch, scratch, x, check);
        if (with_adapters) with_adapters->flush();
        if (take_layer) take_layer(stage.first + i, b, x);
      }
      if (s + 1 == stages_.size())
        finish(x, batch, adapted, result, space, poll, take);
      else if (stages_[s + 1].backend != stage.backend)
        for (size_t i = 0; i < moved.size(); i++) b.read(moved[i], place(i));
      b.end();
    }
  };
  std::visit(run, layers_);
}

void Model::finish(const Tensor& x, const Batch& batch, std::span<const AdaptedRows> adapted, Result result,
                   Workspace& space, const std::function<void()>& poll, const Take& take) const {
  Arena& arena = space.scratch.back();
  Backend& b = *stages_.back().backend;
  const int wanted = int(batch.rows.size());
  const auto kept = stages_.back().states.logits;
  const Ends ends(arena, b, config_, head_, std::min(result_rows_, wanted));
  for (int at = 0, n; at < wanted; at += n) {
    n = std::min(result_rows_, wanted - at);
    Tensor hidden = ends.hidden, logits = ends.logits;
    Operand operand = ends.operand;
    hidden.rows = logits.rows = operand.rows = n;
    const auto check_hidden = [&] {
      b.norm(x, out_norm_, batch, at, n, hidden, {});
      RWKV_CHECK(NonFiniteError, b.all_finite(hidden, take && result == Result::hidden),
                 "expected finite numbers after the last layer, found NaN or infinity; the states are unchanged");
    };
    if (result != Result::logits) {
      check_hidden();
      if (take && result == Result::hidden) take(hidden);
      continue;
    }
    b.norm(x, out_norm_, batch, at, n, {}, operand);
    const LinearJob head[] = {{operand, head_, logits}};
    const auto of_results = adapted_results(adapted, batch.rows.subspan(size_t(at), size_t(n)), space.adapters);
    if (of_results.empty()) {
      b.linear(head);
    } else {
      Adapted with_adapters(b, of_results, space.adapters);
      with_adapters.linear(head);
      with_adapters.flush();
    }
    if (kept) b.keep_rows(logits, batch, at, *kept);
    // What is not finite before the head is not after it, so one look is enough.
    if (!b.all_finite(logits, bool(take))) {
      check_hidden();
      throw NonFiniteError("expected finite logits, found NaN or infinity; the states are unchanged");
    }
    if (take) take(logits);
    if (poll) poll();
  }
}

}  // namespace rwkv
