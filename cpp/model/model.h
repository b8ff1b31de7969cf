// Floor 2: what an RWKV is. Immutable once loaded, shared by every engine on it.
#pragma once
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "model/adapted.h"
#include "model/config.h"
#include "model/rwkv4.h"
#include "model/rwkv5.h"
#include "model/rwkv6.h"
#include "model/rwkv7.h"
#include "model/scratch.h"
#include "model/state_layout.h"
#include "model/strategy.h"
#include "model/task_heads.h"

namespace rwkv {

class Model {
 public:
  // A stretch of layers, the device that runs them, their weights and where their states lie there.
  struct Stage {
    std::shared_ptr<Backend> backend;
    int first, count;
    Formats formats;
    DType state;  // of its states' matrices
    Arena weights = {};
    StateLayout states = {};
    bool streamed = false;   // its layers, not what else it has, take turns on the device
    size_t layer_bytes = 0;  // of the largest of them
    std::shared_ptr<WeightStream> stream = {};
    Tensor embedding = {};  // (V, C) in the file's precision, where the device needs it
    Norm embedding_norm = {};
  };
  // The layers of exactly one version.
  using Layers =
      std::variant<std::vector<v4::Layer>, std::vector<v5::Layer>, std::vector<v6::Layer>, std::vector<v7::Layer>>;

  static std::shared_ptr<const Model> load(const Checkpoint& file, std::string_view strategy,
                                           const DeviceOptions& options, const LoadProgress& progress);
  // The names of the tensors that a model of this file uses, all of them there and of the right shapes: what load
  // checks before it reads the weights. `file` has the official names. Throws ModelFormatError.
  static std::set<std::string> check(const Checkpoint& file);

  const Config& config() const { return config_; }
  const std::string& fingerprint() const { return fingerprint_; }
  std::span<const Stage> stages() const { return stages_; }
  size_t weight_bytes() const { return weight_bytes_; }
  size_t column_bytes() const { return column_bytes_; }  // of those, what is there twice, see Linear::columns
  const Formats& formats() const { return stages_.front().formats; }
  // (L, H, N, N) [value, key], what new states begin with if it was trained; otherwise empty.
  std::span<const float> tuned_state() const { return tuned_state_; }
  // All matrices by their official names, as far as this model packed them itself.
  const Loader::Matrices& matrices() const { return matrices_; }

  // Those that adapters may add to, by name: all but the low-rank ones, on whatever device.
  const Loader::Linears& linears() const { return linears_; }

  const TaskHeads& task_heads() const { return task_heads_; }

  int panel_rows() const { return panel_rows_; }  // most rows of one forward
  Workspace workspace() const;                    // for forwards, one after the other

  enum class Result { none, hidden, logits };
  using Take = std::function<void(const Tensor&)>;
  // The residual (T, C) behind a layer, in that device's memory.
  using TakeLayer = std::function<void(int layer, Backend& device, const Tensor& x)>;
  // Steps the batch (at most panel_rows rows), given once for each stage with its slots, `adapted` naming the rows that
  // have adapters, where all devices adapt(), and hands the wanted results of batch.rows to `take`, if there is one, in
  // order, some at a time: a (n, C) or (n, V) tensor in the last stage's memory, valid during the call. With
  // Result::none the rows are still computed to the end, so that what is not finite is found. `take_layer`, if there is
  // one, sees all rows behind every layer. Throws NonFiniteError, or what `poll` throws; then dst slots are undefined
  // and src slots untouched (except where they are the same).
  void forward(std::span<const Batch> batches, Result result, Workspace& space, const std::function<void()>& poll,
               const Take& take, const TakeLayer& take_layer = {}, std::span<const AdaptedRows> adapted = {}) const;

 private:
  Model() = default;
  void load_tuned_state(Loader& loader);
  void load_layer(Loader& loader, Stage& stage, int layer, const std::function<void()>& load);
  void build(Loader& loader);  // twice: with counting arenas, then with real ones
  const Stage& first_on(const Backend& device) const;
  size_t scratch_bytes(const Stage& stage) const;
  void choose_rows();
  // From the residual behind the last layer to results.
  void finish(const Tensor& x, const Batch& batch, std::span<const AdaptedRows> adapted, Result result,
              Workspace& space, const std::function<void()>& poll, const Take& take) const;

  Config config_;
  std::string fingerprint_;
  size_t weight_bytes_ = 0, column_bytes_ = 0;
  std::vector<Stage> stages_;
  Layers layers_;
  int panel_rows_ = 0, result_rows_ = 0;

  bool mapped_ = false;        // the file is packed: as much as can be stays in it
  Loader::Mappings mappings_;  // what stays there
  Loader::Matrices matrices_;
  Loader::Linears linears_;
  std::vector<float> tuned_state_;
  Norm out_norm_;
  Linear head_;           // (V, C)
  TaskHeads task_heads_;  // instead of it, of an embedding model
};

}  // namespace rwkv
