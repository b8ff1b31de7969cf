// The names of gguf_names.cpp, the other way round, in the layout of llama.cpp's own converter: the mixing vectors of a
// layer in one tensor, low-rank factors as (out, in), vectors without dimensions of one.
#include "model/gguf_tensors.h"

#include <map>
#include <string_view>

#include "core/error.h"
#include "model/tuned_state.h"

namespace rwkv {
namespace {

class Collector {
 public:
  Collector(const Checkpoint& file, const Config& config) : file_(file), config_(config) {}

  GgufModel collect() {
    const bool seven = config_.version == "7";
    out_.architecture = seven ? "rwkv7" : "rwkv6";
    matrix("token_embd.weight", "emb.weight");
    norm("token_embd_norm", "blocks.0.ln0");
    for (int i = 0; i < config_.n_layer; ++i) {
      const std::string to = join("blk.", i, "."), from = join("blocks.", i, ".");
      norm(to + "attn_norm", from + "ln1"), norm(to + "attn_norm_2", from + "ln2");
      seven ? time_mix7(i, to + "time_mix_", from + "att.") : time_mix6(to + "time_mix_", from + "att.");
      for (const std::string name : {"receptance", "key", "value", "output"})
        matrix(to + "time_mix_" + name + ".weight", from + "att." + name + ".weight");
      norm(to + "time_mix_ln", from + "att.ln_x");
      seven ? channel_mix7(to + "channel_mix_", from + "ffn.") : channel_mix6(to + "channel_mix_", from + "ffn.");
      for (const std::string name : {"key", "value"})
        matrix(to + "channel_mix_" + name + ".weight", from + "ffn." + name + ".weight");
    }
    norm("output_norm", "ln_out");
    matrix("output.weight", "head.weight");
    return std::move(out_);
  }

 private:
  const TensorInfo& find(const std::string& name) const {
    const TensorInfo* t = file_.find(name);
    RWKV_CHECK(ModelFormatError, t, file_.path(), ": expected the tensor ", name, ", found none of that name");
    return *t;
  }
  // The model may have dimensions of one where it likes, llama.cpp may not.
  const TensorInfo& find(const std::string& name, size_t dimensions) const {
    const TensorInfo& t = find(name);
    RWKV_CHECK(ModelFormatError, t.shape.size() == dimensions, file_.path(), ": ", name, ": expected ", dimensions,
               " dimensions, found ", shape_text(t.shape));
    return t;
  }

  void add(const std::string& name, std::vector<TensorInfo> parts, std::vector<int64_t> shape, bool large = false) {
    out_.tensors.push_back({name, std::move(parts), std::move(shape), large});
  }
  void vector(const std::string& name, const std::string& official) {
    const TensorInfo& t = find(official);
    add(name, {t}, {t.count()});
  }
  void norm(const std::string& name, const std::string& official) {
    for (const char* end : {".weight", ".bias"}) vector(name + end, official + end);
  }
  void matrix(const std::string& name, const std::string& official) {
    const TensorInfo& t = find(official, 2);
    add(name, {t}, t.shape, true);
  }

  // With the last two dimensions swapped. All layers must agree on the rank.
  void factor(const std::string& name, const TensorInfo& t, const std::string& size, int64_t rank) {
    add(name, {t}, t.shape);
    std::vector<int64_t>& shape = out_.tensors.back().shape;
    std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
    out_.tensors.back().turned = true;
    const auto [known, first] = ranks_.emplace(size, rank);
    RWKV_CHECK(ModelFormatError, known->second == rank, file_.path(), ": ", t.name, ": expected the rank ",
               known->second, " of the layers before, since llama.cpp reads one for all, found ", rank);
    if (first) out_.sizes.emplace_back(size, rank);
  }
  // A pair of them: (in, rank) and (rank, out), or several in (in, parts * rank) and (parts, rank, out).
  void factors(const std::string& name, const std::string& official, const std::string& size, int parts = 1) {
    const TensorInfo &in = find(official + "1", 2), &out = find(official + "2", parts == 1 ? 2 : 3);
    const int64_t rank = in.shape.back() / parts;
    factor(name + "1.weight", in, size, rank);
    factor(name + "2.weight", out, size, rank);
  }

  void lerps(const std::string& name, const std::string& official, std::string_view letters) {
    std::vector<TensorInfo> parts;
    for (const char letter : letters) parts.push_back(find(official + letter));
    add(name, std::move(parts), {int64_t(letters.size()), 1, 1, config_.n_embd});
  }

  void time_mix7(int layer, const std::string& to, const std::string& from) {
    static const std::map<std::string, std::string> kSizes = {{"w", "attention.decay_lora_rank"},
                                                              {"a", "attention.iclr_lora_rank"},
                                                              {"v", "attention.value_residual_mix_lora_rank"},
                                                              {"g", "attention.gate_lora_rank"}};
    lerps(to + "lerp_fused.weight", from + "x_", "rwkvag");
    for (const std::string letter : {"w", "a", "v", "g"}) {
      // The first layer has no value residual, but llama.cpp wants tensors of some kind there, of the rank of a.
      const std::string source = letter == "v" && layer == 0 ? "a" : letter;
      if (letter != "g") vector(to + letter + "0.weight", from + source + "0");
      factors(to + letter, from + source, kSizes.at(source));
    }
    if (config_.n_layer == 1) out_.sizes.emplace_back(kSizes.at("v"), ranks_.at(kSizes.at("a")));
    for (const std::string name : {"k_k", "k_a", "r_k"}) vector(to + name + ".weight", from + name);
  }
  void channel_mix7(const std::string& to, const std::string& from) { vector(to + "lerp_k.weight", from + "x_k"); }

  void time_mix6(const std::string& to, const std::string& from) {
    lerps(to + "lerp_fused.weight", from + "time_maa_", "wkvrg");
    vector(to + "lerp_x.weight", from + "time_maa_x");
    factors(to + "w", from + "time_maa_w", "time_mix_extra_dim", 5);
    vector(to + "decay.weight", from + "time_decay");
    factors(to + "decay_w", from + "time_decay_w", "time_decay_extra_dim");
    const TensorInfo& bonus = find(from + "time_faaaa", 2);
    add(to + "first.weight", {bonus}, bonus.shape);
    matrix(to + "gate.weight", from + "gate.weight");
  }
  void channel_mix6(const std::string& to, const std::string& from) {
    for (const std::string name : {"k", "r"}) vector(to + "lerp_" + name + ".weight", from + "time_maa_" + name);
    matrix(to + "receptance.weight", from + "receptance.weight");
  }

  const Checkpoint& file_;
  const Config& config_;
  std::map<std::string, int64_t> ranks_;
  GgufModel out_;
};

}  // namespace

GgufModel gguf_model(const Checkpoint& file, const Config& config) {
  RWKV_CHECK(ModelFormatError, config.version == "7" || config.version == "6", file.path(), ": this is RWKV-",
             config.version,
             "; expected RWKV-6 or RWKV-7, which llama.cpp runs (a .safetensors file takes any version)");
  RWKV_CHECK(ModelFormatError, config.n_att == config.n_embd, file.path(), ": expected as many channels in ",
             "blocks.0.att.key.weight as in the embedding, ", config.n_embd, ", since llama.cpp takes them for equal, ",
             "found ", config.n_att);
  RWKV_CHECK(ModelFormatError, !file.find(tuned_state_name(0)), file.path(), ": expected a model without a tuned ",
             "initial state, which GGUF files have no place for, found ", tuned_state_name(0),
             " (a .safetensors file takes it)");
  return Collector(file, config).collect();
}

}  // namespace rwkv
