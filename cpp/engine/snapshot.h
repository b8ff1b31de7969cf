// A state as a document: a safetensors file with the named parts over all layers, (L, C) or (L, H, N, N) [value, key],
// last_logits (V) where there are any, and the penalty weights of the text that the state is in, if it is in one:
// sampler.tokens (i32) and sampler.weights (f64). Its metadata names the format and the model; the first key is
// "digest", SHA-256 over the whole file with its own 64 hex digits as zeros.
//
// In the format "rwkv-state 1" all parts are float32. In "rwkv-state 2" they are float16, but for those whose first
// value no half holds (RWKV-4's att.pp); all else is as in 1, and readers of 1 alone refuse it by its name.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "engine/sampling.h"
#include "model/config.h"
#include "model/state_layout.h"

namespace rwkv {

// What a snapshot says beside the numbers of its parts.
struct SnapshotInfo {
  int64_t tokens_seen = 0;
  int32_t last_token = -1;
  std::shared_ptr<const SamplerState> sampler = nullptr;
  int64_t weights() const { return sampler ? int64_t(sampler->weights.size()) : 0; }
};

struct SnapshotModel {
  Config config;
  std::string fingerprint;
};

// What a snapshot's parts may be stored as: "fp32" or "fp16". Throws Error for another word.
DType snapshot_type(std::string_view word);

std::string_view snapshot_word(DType type);
std::string_view snapshot_format(DType type);  // the name of the format

// The names, types and shapes that a state of this model has on paper, with last_logits and `weights` penalties on
// request.
std::vector<TensorInfo> snapshot_tensors(const Config& config, bool with_logits = false, int64_t weights = 0,
                                         DType type = DType::f32);

// A snapshot to be written. Its parts go behind the header, in order; finish_snapshot() writes all else.
struct SnapshotPlan {
  std::string header;
  std::vector<TensorInfo> tensors;
  size_t size;  // of the snapshot
};
SnapshotPlan plan_snapshot(const SnapshotModel& model, const SnapshotInfo& info, bool with_logits, DType type);
void finish_snapshot(std::span<std::byte> snapshot, const SnapshotPlan& plan, const SnapshotInfo& info,
                     std::span<const float> last_logits);
void seal_snapshot(std::span<std::byte> snapshot);  // writes the digest, which is done with that

// Numbers of a part into a snapshot, as its type says. Throws StateError for one that is beyond what a half holds.
void store(const TensorInfo& part, std::span<const float> values, std::byte* to);

// A part as a snapshot holds it.
struct SnapshotPart {
  DType dtype;
  std::span<const std::byte> bytes;
  // Numbers [first, first + values.size()) of it.
  void load(size_t first, std::span<float> values) const;
};

struct SnapshotView {
  DType type = DType::f32;  // what it was written as
  std::string fingerprint;  // of whoever made it
  SnapshotInfo info;
  std::vector<SnapshotPart> parts;         // as snapshot_tensors orders them
  std::span<const std::byte> last_logits;  // float32; empty if there are none
};

// Checks, in this order: length, header size, digest, format, model, shapes, numbers. The fingerprint must be one of
// those given: the model's, which is the first, and of its adapters. Throws StateError.
SnapshotView read_snapshot(std::span<const std::byte> bytes, const Config& config,
                           std::span<const std::string> fingerprints, bool check_weights);

// The same without the model: its parts must be those of the model that it names. Of that model's configuration no more
// is known than states depend on.
std::pair<SnapshotModel, SnapshotView> read_snapshot(std::span<const std::byte> bytes);
// Of the first bytes of a file alone: whether the whole may be read. Throws StateError.
inline constexpr size_t kSnapshotHead = 99;  // up to the end of the digest
void check_snapshot_head(std::span<const std::byte> head, uint64_t file_size);

}  // namespace rwkv
