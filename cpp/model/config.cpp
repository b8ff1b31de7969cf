#include "model/config.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/error.h"

namespace rwkv {

namespace {

constexpr int64_t kMaxHeadSize = 1024;          // the recurrence keeps some vectors of a head on the stack
constexpr int64_t kMaxSize = int64_t(1) << 24;  // no model has a dimension near this; products of two stay in 64 bits

bool has_part(const Checkpoint& file, std::string_view part) {
  return std::ranges::any_of(file.tensors(), [&](const TensorInfo& t) { return t.name.find(part) != t.name.npos; });
}

// The first tensor, in any block, whose name ends so. Versions differ in their first and later blocks.
const TensorInfo* ending(const Checkpoint& file, std::string_view end) {
  const auto it = std::ranges::find_if(file.tensors(), [&](const TensorInfo& t) { return t.name.ends_with(end); });
  return it == file.tensors().end() ? nullptr : &*it;
}

// What the tensor names say the model is. In two passes over the whole file, so the order of tensors does not matter.
std::string recognise(const Checkpoint& file) {
  if (has_part(file, ".rosa.")) return "8 (ROSA)";
  if (has_part(file, ".ffn.enn.")) return has_part(file, ".qkv.kk.") ? "8 (rc00-hybrid)" : "8 (rc00)";
  if (has_part(file, ".att.r_k")) {
    if (has_part(file, ".qkv.k1")) return "7b (DeepEmbed attention)";
    return has_part(file, ".ffn.s_emb.") ? "7a (DeepEmbed)" : "7";
  }
  if (has_part(file, ".att.time_maa_rkvw_w1")) return "6b/6c (research)";
  if (has_part(file, ".att.time_maa_x")) return has_part(file, ".att.gate_w1") ? "6a (research)" : "6";
  if (has_part(file, ".att.ln_x.")) {
    if (!has_part(file, ".att.gate.")) return "5.0";
    const TensorInfo* decay = ending(file, ".att.time_decay");
    return decay && decay->shape.size() == 2 && decay->shape[1] > 1 ? "5.2" : "5.1";
  }
  return has_part(file, ".att.time_mix_k") ? "4" : "";
}

const TensorInfo& required(const Checkpoint& file, const std::string& name, size_t dimensions) {
  const TensorInfo* t = file.find(name);
  RWKV_CHECK(ModelFormatError, t, file.path(), ": expected the tensor ", name, ", found none of that name");
  RWKV_CHECK(ModelFormatError, t->shape.size() == dimensions, file.path(), ": ", name, ": expected ", dimensions,
             " dimensions, found shape ", shape_text(t->shape));
  for (int64_t d : t->shape)
    RWKV_CHECK(ModelFormatError, d > 0 && d <= kMaxSize, file.path(), ": ", name, ": expected dimensions from 1 to ",
               kMaxSize, ", found shape ", shape_text(t->shape));
  return *t;
}

}  // namespace

Config read_config(const Checkpoint& file) {
  const std::string version = recognise(file);
  RWKV_CHECK(ModelFormatError, !version.empty(), file.path(),
             ": expected the tensors of an RWKV model (such as blocks.0.att.r_k), found ", file.tensors().size(),
             " tensors of other names");
  RWKV_CHECK(ModelFormatError, version == "7", file.path(), ": this is RWKV-", version, "; this release runs RWKV-7");

  Config c;
  c.version = version;
  const auto& emb = required(file, "emb.weight", 2).shape;
  const auto& r_k = required(file, "blocks.0.att.r_k", 2).shape;
  const auto& key = required(file, "blocks.0.ffn.key.weight", 2).shape;
  c.n_vocab = int(emb[0]);
  c.n_embd = int(emb[1]);
  c.n_head = int(r_k[0]);
  c.head_size = int(r_k[1]);
  c.n_ffn = int(key[0]);
  RWKV_CHECK(ModelFormatError, r_k[0] * r_k[1] == emb[1], file.path(),
             ": blocks.0.att.r_k: expected heads x head size = ", emb[1], " (the embedding), found ", shape_text(r_k));
  RWKV_CHECK(ModelFormatError, r_k[1] <= kMaxHeadSize, file.path(),
             ": blocks.0.att.r_k: expected a head size of at most ", kMaxHeadSize, ", found ", shape_text(r_k));
  while (file.find(join("blocks.", c.n_layer, ".att.r_k"))) c.n_layer++;
  return c;
}

}  // namespace rwkv
