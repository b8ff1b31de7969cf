// A state as a document: a safetensors file with the named parts over all layers, (L, C) or (L, H, N, N) [value, key],
// float32, last_logits (V) where there are any, and the penalty weights of the text that the state is in, if it is in
// one: sampler.tokens (i32) and sampler.weights (f64). Its metadata names the format and the model; the first key is
// "digest", SHA-256 over the whole file with its own 64 hex digits as zeros.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

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

// The names and shapes that a state of this model has on paper, with last_logits and `weights` penalties on request.
std::vector<TensorInfo> snapshot_tensors(const Config& config, bool with_logits = false, int64_t weights = 0);

// Everything before the numbers; the digest is still 64 zeros.
std::string snapshot_header(const Config& config, const std::string& fingerprint, const SnapshotInfo& info,
                            const std::vector<TensorInfo>& tensors);
void seal_snapshot(std::span<std::byte> snapshot);  // writes the digest

struct SnapshotView {
  SnapshotInfo info;
  std::vector<std::span<const std::byte>> parts;  // float32, as snapshot_tensors orders them
  std::span<const std::byte> last_logits;         // empty if there are none
};

// Checks, in this order: length, header size, digest, format, model, shapes, numbers. Throws StateError.
SnapshotView read_snapshot(std::span<const std::byte> bytes, const Config& config, const std::string& fingerprint,
                           bool check_weights);

}  // namespace rwkv
