// Engine's portable states: to and from bytes, files and named arrays.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/platform.h"
#include "core/text.h"
#include "engine/engine.h"
#include "engine/sampling.h"
#include "engine/snapshot.h"
#include "engine/state_pool.h"
#include "model/adapter_weights.h"
#include "model/model.h"
#include "model/tuned_state.h"

namespace rwkv {

namespace {

// Where a layer's part of a slot lies.
struct Place {
  Backend& backend;
  std::byte* data;
};

// Part by part, layer by layer: the order of the portable form.
template <class F>
void for_each_part(const Model& model, const StateSlot& slot, const F& visit) {
  const auto stages = model.stages();
  for (size_t p = 0; p < stages.front().states.parts.size(); p++)
    for (size_t s = 0; s < stages.size(); s++)
      for (int i = 0; i < stages[s].count; i++)
        visit(stages[s].states.parts[p], p, stages[s].first + i,
              Place{*stages[s].backend, slot.data(s) + stages[s].states.offset(i, int(p))});
}

SnapshotInfo info_of(const StateContents& contents) {
  return {contents.tokens_seen, contents.last_token, contents.sampler};
}

}  // namespace

size_t Engine::snapshot_size(const StateContents& contents, DType type) const {
  const SnapshotModel model{config(), fingerprint_of(contents)};
  return plan_snapshot(model, info_of(contents), contents.last_logits != nullptr, type).size;
}

void Engine::to_bytes(const StateContents& contents, std::span<std::byte> snapshot, DType type) {
  check_process();
  const SnapshotInfo info = info_of(contents);
  const SnapshotModel model{config(), fingerprint_of(contents)};
  const auto plan = plan_snapshot(model, info, contents.last_logits != nullptr, type);
  RWKV_CHECK(StateError, snapshot.size() == plan.size, "snapshot: expected room for ", plan.size, " bytes, found ",
             snapshot.size());
  std::byte* to = snapshot.data() + plan.header.size();  // 64-byte aligned in the file, so numbers are in the buffer
  std::vector<float> values;
  for_each_part(*model_, *contents.slot, [&](const StatePart& part, size_t p, int, const Place& place) {
    const auto count = size_t(part.count());
    const TensorInfo& stored = plan.tensors[p];
    if (stored.dtype == DType::f32) {
      place.backend.read_state(part, place.data, reinterpret_cast<float*>(to));
    } else {
      values.resize(count);
      place.backend.read_state(part, place.data, values.data());
      store(stored, values, to);
    }
    to += count * size_of(stored.dtype);
  });
  const auto& logits = contents.last_logits;
  finish_snapshot(snapshot, plan, info, logits ? std::span(logits->data(), logits->size()) : std::span<const float>());
}

std::vector<std::byte> Engine::to_bytes(const State& state, DType type) {
  check_process();
  check_mine(state);
  const StateContents contents = state.contents();
  std::vector<std::byte> snapshot(snapshot_size(contents, type));
  to_bytes(contents, snapshot, type);
  return snapshot;
}

std::shared_ptr<State> Engine::state_from_bytes(std::span<const std::byte> bytes, bool check_weights,
                                                AdapterRef adapter) {
  check_process();
  check_mine(adapter);
  std::vector<std::string> fingerprints = {adapter ? adapter->fingerprint() : fingerprint()};
  const auto makers = adapter ? std::vector<AdapterRef>() : adapters();
  for (const AdapterRef& maker : makers) fingerprints.push_back(maker->fingerprint());
  SnapshotView view = read_snapshot(bytes, config(), fingerprints, check_weights);
  const auto maker = std::ranges::find(makers, view.fingerprint, &AdapterWeights::fingerprint);
  if (maker != makers.end()) adapter = *maker;
  auto slot = pool_->take();
  std::vector<float> values;
  for_each_part(*model_, *slot, [&](const StatePart& part, size_t p, int layer, const Place& place) {
    values.resize(size_t(part.count()));
    view.parts[p].load(size_t(layer) * values.size(), values);
    place.backend.write_state(part, place.data, values.data());
  });
  std::shared_ptr<Logits> logits;
  if (!view.last_logits.empty()) {
    logits = pool_->take_logits();
    logits->on_host().resize(view.last_logits.size() / sizeof(float));
    std::memcpy(logits->on_host().data(), view.last_logits.data(), view.last_logits.size());
  }
  return std::make_shared<State>(
      shared_from_this(), StateContents{std::move(slot), view.info.tokens_seen, view.info.last_token, std::move(logits),
                                        std::move(view.info.sampler), std::move(adapter)});
}

void Engine::save(const State& state, const std::string& path, DType type) {
  write_atomically(path, Access::owner, to_bytes(state, type));
}

std::shared_ptr<State> Engine::load_state(const std::string& path, bool check_weights, AdapterRef adapter) {
  check_mine(adapter);  // which is no fault of the file
  const File file(path);
  // A state is as large as its model says; the rest is for the header, which later releases may lengthen.
  const uint64_t per_token = sizeof(float) + sizeof(int32_t) + sizeof(double);  // a logit, and a weight with its id
  const uint64_t most = state_bytes() + uint64_t(config().n_vocab) * per_token + (1 << 20);
  RWKV_CHECK(StateError, file.size() <= most, path, ": expected a state of at most ", most, " bytes, found ",
             file.size());
  std::vector<std::byte> bytes(size_t(file.size()));
  file.read(0, bytes.data(), bytes.size());
  try {
    return state_from_bytes(bytes, check_weights, std::move(adapter));
  } catch (const StateError& e) {
    throw StateError(join(path, ": ", e.what()));
  }
}

std::vector<StateArray> Engine::parts(const State& state) {
  check_process();
  check_mine(state);
  const StateContents contents = state.contents();
  std::vector<StateArray> arrays;
  for (const TensorInfo& t : snapshot_tensors(config()))
    arrays.push_back({t.name, t.shape, std::vector<float>(size_t(t.count()))});
  for_each_part(*model_, *contents.slot, [&](const StatePart& part, size_t p, int layer, const Place& place) {
    place.backend.read_state(part, place.data, arrays[p].values.data() + layer * part.count());
  });
  return arrays;
}

std::shared_ptr<State> Engine::state_from_parts(std::span<const StateArray> parts, AdapterRef adapter) {
  check_process();
  check_mine(adapter);
  const auto expected = snapshot_tensors(config());
  std::vector<const StateArray*> ordered;
  for (const TensorInfo& want : expected) {
    const auto found = std::ranges::find_if(parts, [&](const StateArray& a) { return a.name == want.name; });
    RWKV_CHECK(StateError, found != parts.end(), "state: expected the part ", want.name, ", found none of that name");
    RWKV_CHECK(StateError, found->shape == want.shape && int64_t(found->values.size()) == want.count(),
               "state: ", want.name, ": expected ", shape_text(want.shape), ", found ", shape_text(found->shape));
    RWKV_CHECK(StateError, std::ranges::all_of(found->values, [](float v) { return std::isfinite(v); }),
               "state: ", want.name, ": expected finite numbers, found NaN or infinity");
    ordered.push_back(&*found);
  }
  RWKV_CHECK(StateError, parts.size() == expected.size(), "state: expected ", expected.size(), " parts, found ",
             parts.size());
  auto slot = pool_->take();
  for_each_part(*model_, *slot, [&](const StatePart& part, size_t p, int layer, const Place& place) {
    place.backend.write_state(part, place.data, ordered[p]->values.data() + layer * part.count());
  });
  return std::make_shared<State>(shared_from_this(),
                                 StateContents{.slot = std::move(slot), .adapter = std::move(adapter)});
}

std::shared_ptr<State> Engine::state_with(std::vector<float> wkv, bool transposed, AdapterRef adapter) {
  const size_t n = size_t(config().head_size);
  for (size_t at = 0; transposed && at < wkv.size(); at += n * n)
    for (size_t r = 0; r < n; r++)
      for (size_t c = 0; c < r; c++) std::swap(wkv[at + r * n + c], wkv[at + c * n + r]);
  return std::make_shared<State>(shared_from_this(),
                                 StateContents{.slot = pool_->make_initial(wkv), .adapter = std::move(adapter)});
}

std::shared_ptr<State> Engine::new_state(const std::string& tuned_path, bool transposed, AdapterRef adapter) {
  check_process();
  check_mine(adapter);
  return state_with(read_tuned_state(tuned_path, config()), transposed, std::move(adapter));
}

std::shared_ptr<State> Engine::new_state(std::span<const StateArray> tuned, bool transposed, AdapterRef adapter) {
  check_process();
  check_mine(adapter);
  const std::string where = "init";
  std::vector<ArrayShape> shapes;
  for (const StateArray& a : tuned) shapes.push_back({a.name, a.shape});
  std::vector<float> wkv;
  for (const size_t i : find_tuned_layers(config(), shapes, where)) {
    const int64_t count = int64_t(config().n_att) * config().head_size;
    RWKV_CHECK(StateError, std::ssize(tuned[i].values) == count, where, ": ", tuned[i].name, ": expected ", count,
               " numbers, found ", tuned[i].values.size());
    expect_finite(tuned[i].values, where, tuned[i].name);
    wkv.insert(wkv.end(), tuned[i].values.begin(), tuned[i].values.end());
  }
  return state_with(std::move(wkv), transposed, std::move(adapter));
}

std::vector<std::pair<std::string, DeviceArray>> Engine::views(const State& state) {
  check_process();
  check_mine(state);
  RWKV_CHECK(DeviceError, model_->stages().size() == 1,
             "state: expected all layers in one stage of the strategy, found ", model_->stages().size(), " on ",
             description(), "; to_numpy() brings them together");
  const StateContents contents = state.contents();
  const Model::Stage& stage = model_->stages().front();
  const StateLayout& layout = stage.states;
  std::vector<std::pair<std::string, DeviceArray>> arrays;
  for (size_t p = 0; p < layout.parts.size(); p++) {
    const StatePart& part = layout.parts[p];
    // Parts of all layers lie in the same order, so from layer to layer it is always as far.
    const size_t first = layout.offset(0, int(p)), layers = size_t(layout.layers);
    DeviceArray array{stage.backend->device(),
                      contents.slot->data(0) + first,
                      {int64_t(layers)},
                      {},
                      lent(stage.backend, contents.slot),
                      part.dtype};
    const size_t next = layers > 1 ? layout.offset(1, int(p)) - first : 0;
    array.strides.push_back(int64_t(next / size_of(part.dtype)));
    array.shape.insert(array.shape.end(), part.shape.begin(), part.shape.end());
    const auto strides = stage.backend->state_strides(part);
    array.strides.insert(array.strides.end(), strides.begin(), strides.end());
    arrays.emplace_back(part.name, std::move(array));
  }
  return arrays;
}

std::vector<int64_t> Engine::part_shape(const std::string& name) const {
  for (const TensorInfo& t : snapshot_tensors(config()))
    if (t.name == name) return t.shape;
  throw StateError(join("state: expected the parts of this model, found ", shown(name)));
}

void Engine::read_device(DeviceId device, const std::byte* from, std::span<std::byte> to) {
  check_process();
  const auto stages = model_->stages();
  const auto found = std::ranges::find_if(stages, [&](const auto& stage) { return stage.backend->device() == device; });
  if (found != stages.end()) {
    found->backend->settle();
    return found->backend->read_foreign(from, to.size(), to.data());
  }
  RWKV_CHECK(DeviceError, device.kind == DeviceId::cpu, "state: expected arrays on a device of ", description(),
             ", found device ", device.index, " of kind ", int(device.kind), " as DLPack counts");
  std::copy_n(from, to.size(), to.data());
}

bool Engine::equal(const State& a, const State& b) {
  check_mine(a);
  check_mine(b);
  const StateContents p = a.contents(), q = b.contents();
  if (p.tokens_seen != q.tokens_seen || p.last_token != q.last_token || p.adapter != q.adapter) return false;
  const auto &u = p.last_logits, &v = q.last_logits;
  const bool same_logits =
      u == v || (u && v && u->size() == v->size() && std::memcmp(u->data(), v->data(), u->size() * sizeof(float)) == 0);
  if (!same_logits || p.slot == q.slot) return same_logits;
  const auto x = parts(a), y = parts(b);
  for (size_t i = 0; i < x.size(); i++)
    if (std::memcmp(x[i].values.data(), y[i].values.data(), x[i].values.size() * sizeof(float)) != 0) return false;
  return true;
}

}  // namespace rwkv
