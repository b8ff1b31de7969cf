#include "model/adapter_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "core/platform.h"
#include "core/text.h"

namespace rwkv {
namespace {

constexpr uint64_t kMaxBytes = uint64_t(1) << 20;
constexpr size_t kMaxPatterns = 10'000;

// Options that change what an adapter means, and the name of what they make of it.
struct Variant {
  std::string_view key, name;
};
constexpr std::array<Variant, 11> kVariants = {{{"use_dora", "DoRA"},
                                                {"lora_bias", "LoRA with biases"},
                                                {"fan_in_fan_out", "an adapter of turned weights"},
                                                {"alora_invocation_tokens", "activated LoRA"},
                                                {"use_qalora", "QALoRA"},
                                                {"use_bdlora", "block-diagonal LoRA"},
                                                {"layer_replication", "LoRA of replicated layers"},
                                                {"trainable_token_indices", "an adapter of single tokens"},
                                                {"arrow_config", "Arrow"},
                                                {"kasa_config", "KaSA"},
                                                {"monteclora_config", "MonteCLoRA"}}};
// Ways to begin a LoRA that leave the weights as they are.
constexpr std::array<std::string_view, 5> kHarmless = {"true", "false", "gaussian", "eva", "orthogonal"};

bool is_set(const std::string& value) { return value != "null" && value != "false"; }

double number(JsonReader& json, std::string_view key) {
  const std::string text = json.scalar();
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  RWKV_CHECK(ModelFormatError, error == std::errc() && end == text.data() + text.size() && std::isfinite(value), key,
             ": expected a number, found ", shown(text));
  return value;
}

AdapterConfig::Pattern pattern(JsonReader& json, const std::string& key) {
  AdapterConfig::Pattern found;
  json.object([&](std::string&& name) {
    if (name.starts_with('^')) name.erase(0, 1);
    const bool plain = std::ranges::all_of(name, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
    });
    RWKV_CHECK(ModelFormatError, plain && !name.empty() && found.size() < kMaxPatterns, key,
               ": expected the ends of names of modules, found ", shown(name));
    found.emplace_back(std::move(name), number(json, key));
  });
  return found;
}

double value_of(const AdapterConfig::Pattern& pattern, std::string_view module, double otherwise) {
  for (const auto& [name, value] : pattern)
    if (module == name || (module.ends_with(name) && module[module.size() - name.size() - 1] == '.')) return value;
  return otherwise;
}

void check(const AdapterConfig& c) {
  RWKV_CHECK(ModelFormatError, c.type == "LORA" || c.type == "MISS" || c.type == "BONE",
             "peft_type: expected LORA, MISS or BONE, found ", c.type.empty() ? "none" : shown(c.type));
  if (c.type == "LORA") {
    RWKV_CHECK(ModelFormatError, std::ranges::find(kHarmless, c.init) != kHarmless.end(),
               "init_lora_weights: expected a plain LoRA, found ", shown(c.init),
               ", which has changed the model's weights before training: convert the adapter where it was trained, ",
               "save_pretrained(folder, path_initial_model_for_weight_conversion=...)");
  } else {
    RWKV_CHECK(ModelFormatError, c.init == "true" || c.init == "false" || c.init == "bat" || c.init == "mini",
               "init_weights: expected true, false, bat or mini, found ", shown(c.init));
  }
}

}  // namespace

double AdapterConfig::rank_of(std::string_view module) const { return value_of(ranks, module, rank); }
double AdapterConfig::alpha_of(std::string_view module) const { return value_of(alphas, module, alpha); }

AdapterConfig read_adapter_config(const std::string& path) try {
  const File file(path);
  RWKV_CHECK(ModelFormatError, file.size() <= kMaxBytes, "expected at most ", kMaxBytes, " bytes, found ", file.size());
  std::string text(size_t(file.size()), '\0');
  file.read(0, text.data(), text.size());

  AdapterConfig config;
  JsonReader json(text);
  json.object([&](std::string&& key) {
    const auto* variant = std::ranges::find(kVariants, key, &Variant::key);
    if (variant != kVariants.end()) {
      RWKV_CHECK(ModelFormatError, !is_set(json.plain()), key, ": expected a plain adapter, found ", variant->name);
    } else if (key == "peft_type") {
      config.type = json.scalar();
    } else if (key == "r") {
      config.rank = number(json, key);
    } else if (key == "lora_alpha") {
      config.alpha = number(json, key);
    } else if (key == "mini_r") {
      config.mini_rank = number(json, key);
      RWKV_CHECK(ModelFormatError, config.mini_rank >= 1 && config.mini_rank == std::floor(config.mini_rank), key,
                 ": expected an integer from 1 on, found ", config.mini_rank);
    } else if (key == "use_rslora") {
      const std::string value = json.plain();
      RWKV_CHECK(ModelFormatError, value == "true" || !is_set(value), key, ": expected true or false, found ",
                 value.empty() ? "another value" : shown(value));
      config.root_of_rank = value == "true";
    } else if (key == "init_lora_weights" || key == "init_weights") {
      config.init = json.scalar();
    } else if (key == "rank_pattern") {
      config.ranks = pattern(json, key);
    } else if (key == "alpha_pattern") {
      config.alphas = pattern(json, key);
    } else {
      json.skip();
    }
  });
  json.finish();
  check(config);
  return config;
} catch (const ModelFormatError& error) {
  throw ModelFormatError(join(path, ": ", error.what()));
}

}  // namespace rwkv
