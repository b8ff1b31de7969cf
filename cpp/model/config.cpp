#include "model/config.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/error.h"
#include "core/text.h"
#include "model/declared.h"
#include "model/task_heads.h"

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
    return has_part(file, ".ffn.s_emb.") ? "7a" : "7";
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

// Two dimensions: heads and head size.
const std::vector<int64_t>& heads_of(const Checkpoint& file, const std::string& name, int64_t channels,
                                     const std::string& whose) {
  const auto& shape = required(file, name, 2).shape;
  RWKV_CHECK(ModelFormatError, shape[0] * shape[1] == channels, file.path(), ": ", name,
             ": expected heads x head size = ", channels, " (", whose, "), found ", shape_text(shape));
  return shape;
}

// One number per head, whatever dimensions of one the file has around them.
int64_t count_heads(const Checkpoint& file, const std::string& name, int64_t channels, const std::string& whose) {
  const TensorInfo* t = file.find(name);
  RWKV_CHECK(ModelFormatError, t, file.path(), ": expected the tensor ", name, ", found none of that name");
  const auto heads = std::ranges::find_if(t->shape, [](int64_t d) { return d != 1; });
  const int64_t count = heads == t->shape.end() ? 1 : *heads;
  RWKV_CHECK(
      ModelFormatError,
      count > 0 && channels % count == 0 && std::ranges::count_if(t->shape, [](int64_t d) { return d != 1; }) < 2,
      file.path(), ": ", name, ": expected one number per head, heads that divide ", channels, " (", whose, "), found ",
      shape_text(t->shape));
  return count;
}

}  // namespace

bool is_version(std::string_view name) {
  constexpr std::array<std::string_view, 7> kRun = {"4", "5.0", "5.1", "5.2", "6", "7", "7a"};
  return std::ranges::find(kRun, name) != kRun.end();
}

Config read_config(const Checkpoint& file) {
  RWKV_CHECK(ModelFormatError, file.find("emb.weight") || !(has_part(file, ".lora_") || has_part(file, ".disha")),
             file.path(), ": expected a model, found an adapter, which Engine(model, adapters=...) takes");
  const std::string version = recognise(file);
  RWKV_CHECK(ModelFormatError, !version.empty() || !has_part(file, ".att.time_state"), file.path(),
             ": expected a model, found a tuned state, which new_state(init=...) takes");
  RWKV_CHECK(ModelFormatError, !version.empty(), file.path(),
             ": expected the tensors of an RWKV model (such as blocks.0.att.r_k), found ", file.tensors().size(),
             " tensors of other names");
  RWKV_CHECK(ModelFormatError, is_version(version), file.path(), ": this is RWKV-", version,
             "; this release runs RWKV-4, 5.0, 5.1, 5.2, 6, 7 and 7a");

  const std::string att = "blocks.0.att.", key_name = att + "key.weight";
  Config c;
  c.version = version;
  if (has_task_heads(file)) c.kind = "embedding model";
  const bool seven = version.starts_with("7");
  const auto& emb = required(file, "emb.weight", 2).shape;
  const auto& ffn_key = required(file, "blocks.0.ffn.key.weight", 2).shape;
  c.n_vocab = int(emb[0]);
  c.n_embd = int(emb[1]);
  c.n_ffn = int(ffn_key[0]);
  c.n_att = seven ? c.n_embd : int(required(file, key_name, 2).shape[0]);
  const std::string whose = seven ? "the embedding" : "the rows of " + key_name;
  const std::string heads = att + (seven ? "r_k" : version == "6" ? "time_faaaa" : "time_decay");
  if (version == "5.0" || version == "5.1") {
    c.n_head = int(count_heads(file, heads, c.n_att, whose));
    c.head_size = c.n_att / c.n_head;
  } else if (version != "4") {
    const auto& shape = heads_of(file, heads, c.n_att, whose);
    c.n_head = int(shape[0]);
    c.head_size = int(shape[1]);
  }
  RWKV_CHECK(ModelFormatError, c.head_size <= kMaxHeadSize, file.path(), ": ", heads,
             ": expected a head size of at most ", kMaxHeadSize, ", found ", c.head_size);
  while (file.find(join("blocks.", c.n_layer, seven ? ".att.r_k" : ".att.key.weight"))) c.n_layer++;
  check_declared(file, c);
  return c;
}

}  // namespace rwkv
