#include "model/names.h"

#include <algorithm>
#include <array>
#include <functional>
#include <string_view>

#include "core/error.h"
#include "model/adapters.h"
#include "model/fingerprint.h"
#include "model/gguf_names.h"
#include "model/hub_names.h"
#include "model/packed.h"
#include "model/task_heads.h"
#include "model/tuned_state.h"
#include "model/views.h"

namespace rwkv {
namespace {

using Test = std::function<bool(std::string_view)>;

bool any_name(const Checkpoint& file, const Test& test) {
  return std::ranges::any_of(file.tensors(), [&](const TensorInfo& t) { return test(t.name); });
}

auto contains(std::string_view part) {
  return [part](std::string_view name) { return name.find(part) != name.npos; };
}
auto begins(std::string_view start) {
  return [start](std::string_view name) { return name.starts_with(start); };
}

// torch.compile marks every module that it wraps; the others stand in front once.
constexpr std::string_view kCompiled = "_orig_mod.";
constexpr std::array<std::string_view, 4> kWrappers = {"module.", "_forward_module.", "base_model.", "model."};

std::string bare(std::string_view name) {
  std::string out;
  while (!name.empty()) {
    const bool compiled = name.starts_with(kCompiled);
    if (!compiled) out += name.front();
    name.remove_prefix(compiled ? kCompiled.size() : 1);
  }
  size_t wrapped = 0;
  const auto at_wrapper = [&](std::string_view wrapper) {
    const bool found = std::string_view(out).substr(wrapped).starts_with(wrapper);
    if (found) wrapped += wrapper.size();
    return found;
  };
  while (std::ranges::any_of(kWrappers, at_wrapper)) {
  }
  return out.substr(wrapped);
}

// web-rwkv's .st files turn these around, all or none of a file: some of its converters turn them twice.
struct LowRank {
  std::string_view name;
  bool in;  // from the embedding; otherwise to the channels
};
constexpr LowRank kLowRank[] = {{".att.w1", true},
                                {".att.a1", true},
                                {".att.v1", true},
                                {".att.g1", true},
                                {".att.w2", false},
                                {".att.a2", false},
                                {".att.v2", false},
                                {".att.g2", false},
                                {".att.time_maa_w1", true},
                                {".att.time_maa_w2", false},
                                {".att.time_decay_w1", true},
                                {".att.time_decay_w2", false}};

const LowRank* low_rank(std::string_view name) {
  const auto it = std::ranges::find_if(kLowRank, [&](const LowRank& known) { return name.ends_with(known.name); });
  return it == std::end(kLowRank) ? nullptr : it;
}

std::string replaced(std::string name, std::string_view from, std::string_view to) {
  const size_t at = name.find(from);
  return at == name.npos ? name : name.replace(at, from.size(), to);
}

// A safetensors file with official names is such a file too, one with nothing to do.
Checkpoint with_official_st(const Checkpoint& file) {
  const bool six = any_name(file, contains(".att.time_mix_w1"));
  const auto is_wide_decay = [](const TensorInfo& t) {
    return t.name.ends_with(".att.time_decay") && t.shape.size() == 2 && t.shape[1] > 1;
  };
  const bool raw_bonus =
      six || (any_name(file, contains(".att.ln_x.")) && std::ranges::any_of(file.tensors(), is_wide_decay));
  Views named(file);
  for (const TensorInfo& t : file.tensors()) {
    std::string name = t.name;
    if (six) name = replaced(std::move(name), ".time_mix_", ".time_maa_");
    if (raw_bonus) name = replaced(std::move(name), ".att.time_first", ".att.time_faaaa");
    named.same(t, std::move(name));
  }
  Checkpoint official = file.with(named.take());

  // By the side as long as the embedding or the channels; a square matrix goes as the others of the file do.
  const TensorInfo *emb = official.find("emb.weight"), *key = official.find("blocks.0.att.key.weight");
  if (!emb || !key || emb->shape.size() != 2 || key->shape.size() != 2) return official;
  size_t turned = 0, straight = 0, square = 0;
  for (const TensorInfo& t : official.tensors()) {
    const LowRank* known = low_rank(t.name);
    if (!known || t.shape.size() < 2) continue;
    const bool mixes = known->name.ends_with("maa_w2");
    const int64_t length = known->in || mixes ? emb->shape[1] : key->shape[0];
    int64_t near = t.shape[t.shape.size() - 2], far = t.shape.back();
    if (!known->in) std::swap(near, far);
    turned += near != length && far == length;
    straight += near == length && far != length;
    square += near == length && far == length;
  }
  // Files that we wrote are official, as the fingerprint in them says.
  RWKV_CHECK(ModelFormatError, turned + straight > 0 || square == 0 || file.metadata().contains(kFingerprintKey),
             file.path(), ": expected a low-rank matrix that is not square, to tell official files from web-rwkv's, ",
             "which have them turned around; found only square ones: open the .pth file it was made of");
  const bool tuned = any_name(official, is_tuned_state);
  RWKV_CHECK(ModelFormatError, !tuned || (turned == 0 && !six), file.path(), ": expected a model of web-rwkv's ",
             "converters without a tuned initial state, which some of them turn around and some do not, found one: ",
             "open the .pth file it was made of");
  if (turned == 0 || straight > 0) return official;
  Views views(official);
  for (const TensorInfo& t : official.tensors()) {
    if (low_rank(t.name) && t.shape.size() >= 2) {
      views.transposed(t, t.name);
    } else {
      views.same(t, t.name);
    }
  }
  return official.with(views.take());
}

// EmbeddingRWKV's second model: a few layers over the matrices of states, and two linear layers for a head.
bool is_reranker(const Checkpoint& file) {
  return any_name(file, begins("reranker.")) || (file.find("head.0.weight") && file.find("head.2.weight"));
}

}  // namespace

Checkpoint without_wrappers(const Checkpoint& file) {
  Views views(file);
  for (const TensorInfo& t : file.tensors()) views.same(t, bare(t.name));
  return file.with(views.take());
}

Checkpoint with_official_names(const Checkpoint& opened) {
  if (has_adapters(opened)) return opened;
  if (is_packed(opened)) return with_packed_matrices(opened);
  if (opened.container() == "gguf") return opened.with(gguf_views(opened));
  const Checkpoint file = without_wrappers(opened);
  if (any_name(file, begins("rwkv.emb."))) {
    RWKV_CHECK(ModelFormatError, has_task_heads(file), file.path(), ": expected an EmbeddingRWKV, as the names rwkv.* ",
               "say, found no tensor head.retr_head.*: this is another model around an RWKV");
    return file.with(embedding_rwkv_views(file));
  }
  RWKV_CHECK(ModelFormatError, !is_reranker(file), file.path(),
             ": this is a reranker, which reads the states of an EmbeddingRWKV; expected a model that reads tokens");
  if (any_name(file, begins("rwkv.embeddings."))) return file.with(transformers_views(file));
  if (any_name(file, contains(".linear_attn."))) return file.with(rwkv_rs_views(file));
  if (any_name(file, begins("layers.")) && any_name(file, contains(".attn."))) return file.with(fla_views(file));
  return file.container() == "safetensors" ? with_official_st(file) : file;
}

}  // namespace rwkv
