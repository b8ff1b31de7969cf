#include "model/adapter_file.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/error.h"
#include "core/folder.h"
#include "core/text.h"
#include "model/names.h"
#include "model/tuned_state.h"

namespace rwkv {
namespace {

struct Ending {
  std::string_view text;
  AdapterPart part;
};
constexpr std::array<Ending, 10> kEndings = {{{".lora_A.weight", AdapterPart::lora_a},
                                              {".lora_B.weight", AdapterPart::lora_b},
                                              {".lora_A", AdapterPart::lora_a},
                                              {".lora_B", AdapterPart::lora_b},
                                              {".lora_embedding_A", AdapterPart::embedding_a},
                                              {".lora_embedding_B", AdapterPart::embedding_b},
                                              {".disha", AdapterPart::disha},
                                              {".bone", AdapterPart::disha},
                                              {".miss_block", AdapterPart::miss},
                                              {".bone_block", AdapterPart::miss}}};

// Parts of names of what is not merged here, and what that is.
struct Foreign {
  std::string_view part, what;
};
constexpr std::array<Foreign, 8> kForeign = {
    {{".init_lora_", "where a PiSSA adapter began, not where it ended"},
     {".lora_magnitude_vector", "DoRA"},
     {".base_layer.", "a model that has its adapters beside its weights: save the adapter alone, or merge it"},
     {".hada_w", "LoHa"},
     {".lokr_w", "LoKr"},
     {".ia3_l", "IA3"},
     {".vera_lambda_", "VeRA"},
     {".lora_", "an unknown form of LoRA"}}};

std::string folder_of_file(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == path.npos ? "." : path.substr(0, slash);
}

// peft's files know less than the file beside them.
std::string config_beside(const std::string& path) {
  const std::string_view name = std::string_view(path).substr(path.find_last_of('/') + 1);
  if (name != "adapter_model.safetensors" && name != "adapter_model.bin") return "";
  const std::string config = folder_of_file(path) + "/adapter_config.json";
  return is_file(config) ? config : "";
}

Checkpoint open_folder(const std::string& path) {
  for (const char* name : {"/adapter_model.safetensors", "/adapter_model.bin"})
    if (is_file(path + name)) return Checkpoint::open(path + name);
  throw ModelFormatError(join(path, ": expected adapter_model.safetensors or adapter_model.bin beside ",
                              "adapter_config.json, found neither"));
}

AdapterFile open_files(const std::string& path) {
  if (!is_folder(path)) {
    const std::string config = config_beside(path);
    return {without_wrappers(Checkpoint::open(path)),
            config.empty() ? std::nullopt : std::optional(read_adapter_config(config)),
            {},
            {}};
  }
  const std::string config = path + "/adapter_config.json";
  RWKV_CHECK(ModelFormatError, is_file(config), path,
             ": expected the folder of an adapter with adapter_config.json, found no such file");
  return {without_wrappers(open_folder(path)), read_adapter_config(config), {}, {}};
}

}  // namespace

AdapterFile open_adapter(const std::string& path) {
  AdapterFile adapter = open_files(path);
  RWKV_CHECK(ModelFormatError, adapter.file.container() != "gguf", path,
             ": expected an adapter as a .pth or safetensors file, found GGUF");
  for (const TensorInfo& t : adapter.file.tensors()) {
    RWKV_CHECK(ModelFormatError, is_float(t.dtype) && t.dtype != DType::f64, path, ": ", shown(t.name),
               ": expected numbers as f32, f16 or bf16, found ", name_of(t.dtype));
    const auto* ending = std::ranges::find_if(kEndings, [&](const Ending& e) { return t.name.ends_with(e.text); });
    if (ending != kEndings.end()) {
      const std::string module = t.name.substr(0, t.name.size() - ending->text.size());
      RWKV_CHECK(ModelFormatError, adapter.additions[module].emplace(ending->part, t).second, path,
                 ": expected each part once, found ", shown(t.name), " twice");
      continue;
    }
    for (const Foreign& foreign : kForeign)
      RWKV_CHECK(ModelFormatError, t.name.find(foreign.part) == t.name.npos, path, ": ", shown(t.name),
                 ": expected LoRA, MiSS, Bone or DiSHA, found ", foreign.what);
    adapter.replacements.push_back(t);
  }
  const bool state = std::ranges::any_of(adapter.replacements, is_tuned_state, &TensorInfo::name);
  RWKV_CHECK(ModelFormatError, !adapter.additions.empty() || !state, path,
             ": expected an adapter, found a tuned state, which new_state(init=...) takes");
  RWKV_CHECK(ModelFormatError, !adapter.additions.empty(), path,
             ": expected an adapter, with tensors such as blocks.0.att.key.lora_A, found ",
             adapter.file.tensors().size(), " tensors of other names");
  return adapter;
}

}  // namespace rwkv
