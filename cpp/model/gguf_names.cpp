// Every tensor becomes one or more views of itself: renamed, transposed where the official files keep (in, out), cut
// where several vectors were stored as one. Names that are not known stay; whoever loads the model refuses them.
#include "model/gguf_names.h"

#include <charconv>
#include <span>
#include <string_view>

#include "core/error.h"
#include "core/text.h"
#include "model/views.h"

namespace rwkv {
namespace {

enum class View { same, transposed, heads, lerps, output };

struct Rename {
  std::string_view gguf, official;
  View view = View::same;
};

constexpr Rename kOutside[] = {
    {"token_embd.weight", "emb.weight"},           {"token_embd_norm.weight", "blocks.0.ln0.weight"},
    {"token_embd_norm.bias", "blocks.0.ln0.bias"}, {"output_norm.weight", "ln_out.weight"},
    {"output_norm.bias", "ln_out.bias"},           {"output.weight", "head.weight"}};

// After "blk.i." and "blocks.i.". `output` marks the two matrices that version 6 may have scaled down.
constexpr Rename kBoth[] = {{"attn_norm.weight", "ln1.weight"},
                            {"attn_norm.bias", "ln1.bias"},
                            {"attn_norm_2.weight", "ln2.weight"},
                            {"attn_norm_2.bias", "ln2.bias"},
                            {"time_mix_receptance.weight", "att.receptance.weight"},
                            {"time_mix_key.weight", "att.key.weight"},
                            {"time_mix_value.weight", "att.value.weight"},
                            {"time_mix_output.weight", "att.output.weight", View::output},
                            {"time_mix_ln.weight", "att.ln_x.weight"},
                            {"time_mix_ln.bias", "att.ln_x.bias"},
                            {"channel_mix_key.weight", "ffn.key.weight"},
                            {"channel_mix_value.weight", "ffn.value.weight", View::output}};

constexpr Rename kVersion7[] = {{"time_mix_lerp_fused.weight", "att.x_", View::lerps},
                                {"time_mix_w0.weight", "att.w0"},
                                {"time_mix_w1.weight", "att.w1", View::transposed},
                                {"time_mix_w2.weight", "att.w2", View::transposed},
                                {"time_mix_a0.weight", "att.a0"},
                                {"time_mix_a1.weight", "att.a1", View::transposed},
                                {"time_mix_a2.weight", "att.a2", View::transposed},
                                {"time_mix_v0.weight", "att.v0"},
                                {"time_mix_v1.weight", "att.v1", View::transposed},
                                {"time_mix_v2.weight", "att.v2", View::transposed},
                                {"time_mix_g1.weight", "att.g1", View::transposed},
                                {"time_mix_g2.weight", "att.g2", View::transposed},
                                {"time_mix_k_k.weight", "att.k_k"},
                                {"time_mix_k_a.weight", "att.k_a"},
                                {"time_mix_r_k.weight", "att.r_k", View::heads},
                                {"channel_mix_lerp_k.weight", "ffn.x_k"}};

constexpr Rename kVersion6[] = {{"time_mix_lerp_fused.weight", "att.time_maa_", View::lerps},
                                {"time_mix_lerp_x.weight", "att.time_maa_x"},
                                {"time_mix_lerp_w.weight", "att.time_maa_w"},
                                {"time_mix_lerp_k.weight", "att.time_maa_k"},
                                {"time_mix_lerp_v.weight", "att.time_maa_v"},
                                {"time_mix_lerp_r.weight", "att.time_maa_r"},
                                {"time_mix_lerp_g.weight", "att.time_maa_g"},
                                {"time_mix_w1.weight", "att.time_maa_w1", View::transposed},
                                {"time_mix_w2.weight", "att.time_maa_w2", View::transposed},
                                {"time_mix_decay.weight", "att.time_decay"},
                                {"time_mix_decay_w1.weight", "att.time_decay_w1", View::transposed},
                                {"time_mix_decay_w2.weight", "att.time_decay_w2", View::transposed},
                                {"time_mix_first.weight", "att.time_faaaa", View::heads},
                                {"time_mix_gate.weight", "att.gate.weight"},
                                {"channel_mix_lerp_k.weight", "ffn.time_maa_k"},
                                {"channel_mix_lerp_r.weight", "ffn.time_maa_r"},
                                {"channel_mix_receptance.weight", "ffn.receptance.weight"}};

// The vectors of time_mix_lerp_fused, in its order.
constexpr std::string_view kLerps7 = "rwkvag", kLerps6 = "wkvrg";

const Rename* find(std::span<const Rename> table, std::string_view name) {
  for (const Rename& entry : table) {
    if (entry.gguf == name) return &entry;
  }
  return nullptr;
}

class Renamer {
 public:
  explicit Renamer(const Checkpoint& file) : file_(file), views_(file) {
    const std::string architecture = text("general.architecture", "");
    RWKV_CHECK(ModelFormatError, architecture != "arwkv7" && architecture != "rwkv6qwen2", file.path(), ": this is ",
               architecture, ", attention of RWKV in the body of another model; expected rwkv6 or rwkv7");
    RWKV_CHECK(ModelFormatError, architecture == "rwkv7" || architecture == "rwkv6", file.path(),
               ": expected a GGUF file of the architecture rwkv6 or rwkv7, found '", shown(architecture), "'");
    const std::string parts = text("split.count", "1");
    RWKV_CHECK(ModelFormatError, parts == "1" || parts == "0", file.path(),
               ": expected a GGUF file in one piece, found one of ", shown(parts),
               " (join them with llama-gguf-split)");
    seven_ = architecture == "rwkv7";
    head_size_ = natural(architecture + ".wkv.head_size", true);
    rescale_every_ = seven_ ? 0 : natural(architecture + ".rescale_every_n_layers", false);
  }

  std::vector<TensorInfo> views() {
    for (const TensorInfo& t : file_.tensors()) {
      std::string_view name = t.name;
      if (const Rename* known = find(kOutside, name)) {
        views_.same(t, std::string(known->official));
      } else if (name.starts_with("blk.")) {
        name.remove_prefix(4);
        const auto block = take_block(name);
        const Rename* entry = block ? find(kBoth, name) : nullptr;
        if (block && !entry) entry = seven_ ? find(kVersion7, name) : find(kVersion6, name);
        if (entry) {
          add_block(t, *entry, *block);
        } else {
          views_.same(t, t.name);
        }
      } else {
        views_.same(t, t.name);
      }
    }
    return views_.take();
  }

 private:
  std::string text(const std::string& key, std::string_view otherwise) const {
    const auto at = file_.metadata().find(key);
    return at == file_.metadata().end() ? std::string(otherwise) : at->second;
  }

  int64_t natural(const std::string& key, bool required) const {
    const std::string value = text(key, required ? "" : "0");
    int number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    RWKV_CHECK(ModelFormatError,
               error == std::errc() && end == value.data() + value.size() && number >= (required ? 1 : 0), file_.path(),
               ": ", key, ": expected a ", required ? "positive " : "", "number, found '", shown(value), "'");
    return number;
  }

  void add_block(const TensorInfo& t, const Rename& entry, int block) {
    const std::string official = join("blocks.", block, ".", entry.official);
    // The first layer has no use for a value residual; llama.cpp's converter puts copies of a0, a1, a2 there.
    if (seven_ && block == 0 && entry.official.starts_with("att.v") && entry.official.size() == 6) return;
    switch (entry.view) {
      case View::same:
        views_.same(t, official);
        return;
      case View::transposed:
        views_.transposed(t, official);
        return;
      case View::heads:
        views_.heads(t, official, head_size_);
        return;
      case View::lerps:
        return views_.rows(t, official, seven_ ? kLerps7 : kLerps6);
      case View::output:
        return add_output(t, official, block);
    }
  }

  // Some files of version 6 hold these divided by 2 once every so many layers, for runtimes that halve the residual
  // stream there to stay within float16. A float16 value is read as float32, where undoing it cannot overflow.
  void add_output(const TensorInfo& t, const std::string& official, int block) {
    TensorInfo& view = views_.same(t, official);
    if (rescale_every_ == 0) return;
    const int64_t exponent = block / rescale_every_;
    RWKV_CHECK(ModelFormatError, exponent <= 64, file_.path(), ": rwkv6.rescale_every_n_layers: expected at most 64",
               " halvings, found ", exponent, " at layer ", block);
    if (exponent == 0) return;
    view.exponent = int(exponent);
    if (view.dtype == DType::f16) view.dtype = DType::f32, view.blocks = BlockType::f16;
    RWKV_CHECK(ModelFormatError, view.dtype == DType::f32 || view.dtype == DType::bf16, file_.path(), ": ",
               shown(t.name), ": expected numbers as f32, f16 or bf16, found ", name_of(t.dtype));
  }

  const Checkpoint& file_;
  bool seven_ = true;
  int64_t head_size_ = 0, rescale_every_ = 0;
  Views views_;
};

}  // namespace

std::vector<TensorInfo> gguf_views(const Checkpoint& file) { return Renamer(file).views(); }

}  // namespace rwkv
