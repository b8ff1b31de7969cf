// Names come without the "model." in front. Those that are not known stay; whoever loads the model refuses them.
#include "model/hub_names.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "model/views.h"

namespace rwkv {
namespace {

// `low_rank_in` and `low_rank_out` are the two matrices of the five mixes of version 6, which stand in another order.
enum class View { same, transposed, rows7, rows6, low_rank_in, low_rank_out };

struct Rename {
  std::string_view name, official;
  View view = View::same;
};

constexpr Rename kFlaOutside[] = {{"embeddings.weight", "emb.weight"},
                                  {"norm.weight", "ln_out.weight"},
                                  {"norm.bias", "ln_out.bias"},
                                  {"lm_head.weight", "head.weight"}};

// After "layers.i." and "blocks.i.".
constexpr Rename kFla[] = {{"pre_norm.weight", "ln0.weight"},
                           {"pre_norm.bias", "ln0.bias"},
                           {"attn_norm.weight", "ln1.weight"},
                           {"attn_norm.bias", "ln1.bias"},
                           {"ffn_norm.weight", "ln2.weight"},
                           {"ffn_norm.bias", "ln2.bias"},
                           {"attn.g_norm.weight", "att.ln_x.weight"},
                           {"attn.g_norm.bias", "att.ln_x.bias"},
                           {"attn.o_proj.weight", "att.output.weight"},
                           {"ffn.value.weight", "ffn.value.weight"},
                           // RWKV-7
                           {"attn.x_x", "att.x_", View::rows7},  // of early files
                           {"attn.x_r", "att.x_r"},
                           {"attn.x_w", "att.x_w"},
                           {"attn.x_k", "att.x_k"},
                           {"attn.x_v", "att.x_v"},
                           {"attn.x_a", "att.x_a"},
                           {"attn.x_g", "att.x_g"},
                           {"attn.k_k", "att.k_k"},
                           {"attn.k_a", "att.k_a"},
                           {"attn.r_k", "att.r_k"},
                           {"attn.r_proj.weight", "att.receptance.weight"},
                           {"attn.k_proj.weight", "att.key.weight"},
                           {"attn.v_proj.weight", "att.value.weight"},
                           {"attn.w_lora.lora.0.weight", "att.w1", View::transposed},
                           {"attn.w_lora.lora.2.weight", "att.w2", View::transposed},
                           {"attn.w_lora.lora.2.bias", "att.w0"},
                           {"attn.a_lora.lora.0.weight", "att.a1", View::transposed},
                           {"attn.a_lora.lora.2.weight", "att.a2", View::transposed},
                           {"attn.a_lora.lora.2.bias", "att.a0"},
                           {"attn.v_lora.lora.0.weight", "att.v1", View::transposed},
                           {"attn.v_lora.lora.2.weight", "att.v2", View::transposed},
                           {"attn.v_lora.lora.2.bias", "att.v0"},
                           {"attn.g_lora.lora.0.weight", "att.g1", View::transposed},
                           {"attn.g_lora.lora.2.weight", "att.g2", View::transposed},
                           {"ffn.x_k", "ffn.x_k"},
                           {"ffn.key.weight", "ffn.key.weight"},
                           // RWKV-6
                           {"attn.x_proj.0.mu", "att.time_maa_x"},
                           {"attn.x_proj.0.linear.weight", "att.time_maa_w1", View::low_rank_in},
                           {"attn.x_proj.2.weight", "att.time_maa_w2", View::low_rank_out},
                           {"attn.x_bias", "att.time_maa_", View::rows6},
                           {"attn.r_proj.linear.weight", "att.receptance.weight"},
                           {"attn.k_proj.linear.weight", "att.key.weight"},
                           {"attn.v_proj.linear.weight", "att.value.weight"},
                           {"attn.g_proj.linear.weight", "att.gate.weight"},
                           {"attn.w_proj.linear.lora.0.weight", "att.time_decay_w1", View::transposed},
                           {"attn.w_proj.linear.lora.2.weight", "att.time_decay_w2", View::transposed},
                           {"attn.w_proj.linear.lora.2.bias", "att.time_decay"},
                           {"attn.bonus", "att.time_faaaa"},
                           {"ffn.key.mu", "ffn.time_maa_k"},
                           {"ffn.key.linear.weight", "ffn.key.weight"},
                           {"ffn.receptance.mu", "ffn.time_maa_r"},
                           {"ffn.receptance.linear.weight", "ffn.receptance.weight"}};

constexpr Rename kRwkvRsOutside[] = {{"embed_tokens.weight", "emb.weight"},
                                     {"embedding_norm.weight", "blocks.0.ln0.weight"},
                                     {"embedding_norm.bias", "blocks.0.ln0.bias"},
                                     {"norm.weight", "ln_out.weight"},
                                     {"norm.bias", "ln_out.bias"},
                                     {"lm_head.weight", "head.weight"}};

// Beginnings of what follows "layers.i."; the rest of a name is the official one.
constexpr Rename kRwkvRs[] = {{"input_layernorm.", "ln1."},
                              {"post_attention_layernorm.", "ln2."},
                              {"linear_attn.r_proj.", "att.receptance."},
                              {"linear_attn.k_proj.", "att.key."},
                              {"linear_attn.v_proj.", "att.value."},
                              {"linear_attn.o_proj.", "att.output."},
                              {"linear_attn.g_norm.", "att.ln_x."},
                              {"linear_attn.", "att."},
                              {"mlp.up_proj.", "ffn.key."},
                              {"mlp.down_proj.", "ffn.value."},
                              {"mlp.", "ffn."}};

constexpr Rename kTransformersOutside[] = {{"rwkv.embeddings.weight", "emb.weight"},
                                           {"rwkv.ln_out.weight", "ln_out.weight"},
                                           {"rwkv.ln_out.bias", "ln_out.bias"}};

constexpr Rename kTransformers[] = {{"pre_ln.", "ln0."},
                                    {"attention.time_mix_key", "att.time_mix_k"},
                                    {"attention.time_mix_value", "att.time_mix_v"},
                                    {"attention.time_mix_receptance", "att.time_mix_r"},
                                    {"attention.time_mix_gate", "att.time_mix_g"},
                                    {"attention.", "att."},
                                    {"feed_forward.time_mix_key", "ffn.time_mix_k"},
                                    {"feed_forward.time_mix_receptance", "ffn.time_mix_r"},
                                    {"feed_forward.", "ffn."}};

// The order of the mixes in flash-linear-attention, and for each mix of the official order where it stands there.
constexpr std::string_view kFlaOrder6 = "rwkvg", kFlaOrder7 = "rwkvag";
constexpr std::array<int64_t, 5> kOfficialOrder6 = {1, 2, 3, 0, 4};  // w k v r g

const Rename* find(std::span<const Rename> table, std::string_view name) {
  for (const Rename& entry : table) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const Rename* find_beginning(std::span<const Rename> table, std::string_view name) {
  for (const Rename& entry : table) {
    if (name.starts_with(entry.name)) return &entry;
  }
  return nullptr;
}

// (5 D, C) there, (C, 5 D) here.
void add_low_rank_in(Views& views, const TensorInfo& t, std::string name) {
  const auto count = int64_t(kOfficialOrder6.size());
  views.expect(t.shape.size() == 2 && t.count() > 0 && t.shape[0] % count == 0, t,
               "a matrix of five parts, one below the other");
  const int64_t rank = t.shape[0] / count, channels = t.shape[1];
  const size_t width = size_of(t.dtype);
  TensorInfo& joined = views.transposed(t, std::move(name));
  joined.joined = 1;
  for (const int64_t at : kOfficialOrder6) {
    TensorInfo& part = joined.parts.emplace_back(t);
    part.shape = {channels, rank};
    part.stride = {t.stride[1], t.stride[0]};
    part.offset += uint64_t(at * rank * t.stride[0]) * width;
  }
}

// (C, 5 D) there, (5, D, C) here.
void add_low_rank_out(Views& views, const TensorInfo& t, std::string name) {
  const auto count = int64_t(kOfficialOrder6.size());
  views.expect(t.shape.size() == 2 && t.count() > 0 && t.shape[1] % count == 0, t,
               "a matrix of five parts side by side");
  const int64_t rank = t.shape[1] / count, channels = t.shape[0];
  const size_t width = size_of(t.dtype);
  TensorInfo& joined = views.same(t, std::move(name));
  joined.shape = {count, rank, channels};
  joined.joined = 0;
  for (const int64_t at : kOfficialOrder6) {
    TensorInfo& part = joined.parts.emplace_back(t);
    part.shape = {1, rank, channels};
    part.stride = {rank * channels, t.stride[1], t.stride[0]};
    part.offset += uint64_t(at * rank * t.stride[1]) * width;
  }
}

void add_fla(Views& views, const TensorInfo& t, const Rename& entry, int block) {
  std::string name = join("blocks.", block, ".", entry.official);
  switch (entry.view) {
    case View::same:
      views.same(t, std::move(name));
      return;
    case View::transposed:
      views.transposed(t, std::move(name));
      return;
    case View::rows7:
      return views.rows(t, name, kFlaOrder7);
    case View::rows6:
      return views.rows(t, name, kFlaOrder6);
    case View::low_rank_in:
      return add_low_rank_in(views, t, std::move(name));
    case View::low_rank_out:
      return add_low_rank_out(views, t, std::move(name));
  }
}

// Names outside the blocks by one table, in them by how they begin.
std::vector<TensorInfo> renamed(const Checkpoint& file, std::span<const Rename> outside, std::string_view blocks,
                                std::span<const Rename> beginnings) {
  Views views(file);
  for (const TensorInfo& t : file.tensors()) {
    std::string_view name = t.name;
    if (const Rename* known = find(outside, name)) {
      views.same(t, std::string(known->official));
      continue;
    }
    const bool inside = name.starts_with(blocks);
    if (inside) name.remove_prefix(blocks.size());
    const auto block = inside ? take_block(name) : std::nullopt;
    if (!block) {
      views.same(t, t.name);
      continue;
    }
    const Rename* known = find_beginning(beginnings, name);
    const std::string rest = known ? join(known->official, name.substr(known->name.size())) : std::string(name);
    views.same(t, join("blocks.", *block, ".", rest));
  }
  return views.take();
}

}  // namespace

std::vector<TensorInfo> fla_views(const Checkpoint& file) {
  constexpr std::string_view kBlocks = "layers.";
  Views views(file);
  for (const TensorInfo& t : file.tensors()) {
    std::string_view name = t.name;
    const Rename* entry = find(kFlaOutside, name);
    if (entry) {
      views.same(t, std::string(entry->official));
      continue;
    }
    const bool inside = name.starts_with(kBlocks);
    if (inside) name.remove_prefix(kBlocks.size());
    const auto block = inside ? take_block(name) : std::nullopt;
    if (block) entry = find(kFla, name);
    if (entry) {
      add_fla(views, t, *entry, *block);
    } else {
      views.same(t, t.name);
    }
  }
  return views.take();
}

std::vector<TensorInfo> rwkv_rs_views(const Checkpoint& file) {
  return renamed(file, kRwkvRsOutside, "layers.", kRwkvRs);
}

std::vector<TensorInfo> transformers_views(const Checkpoint& file) {
  return renamed(file, kTransformersOutside, "rwkv.blocks.", kTransformers);
}

// A language-model head in such a file is the one of the model that training began with, and not used.
std::vector<TensorInfo> embedding_rwkv_views(const Checkpoint& file) {
  constexpr std::string_view kInner = "rwkv.", kOldHead = "rwkv.head.weight";
  constexpr std::array<std::string_view, 3> kOthers = {"vit.", "proj.", "reranker"};
  Views views(file);
  for (const TensorInfo& t : file.tensors()) {
    const std::string_view name = t.name;
    const auto is_start = [&](std::string_view start) { return name.starts_with(start); };
    if (name == kOldHead || std::ranges::any_of(kOthers, is_start)) continue;
    views.same(t, std::string(name.substr(is_start(kInner) ? kInner.size() : 0)));
  }
  return views.take();
}

}  // namespace rwkv
