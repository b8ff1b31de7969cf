#include "model/strategy.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "core/error.h"

namespace rwkv {

namespace {

constexpr int kMaxLayers = 1 << 16, kMaxDevices = 64;

std::vector<std::string_view> words_of(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r";
  std::vector<std::string_view> words;
  for (size_t at = 0; (at = text.find_first_not_of(kSpace, at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

std::optional<Formats> find_precision(std::string_view word, Format native) {
  const auto all = [](Format f) { return Formats{f, f, f}; };
  if (word == "fp32") return all(Format::f32);
  if (word == "fp16") return all(Format::f16);
  if (word == "bf16") return all(Format::bf16);
  if (word == "int8") return Formats{Format::i8, native, Format::i8};
  if (word == "int4") return Formats{Format::i4, native, Format::i8};
  return std::nullopt;
}

std::optional<int> number_of(std::string_view digits) {
  if (digits.empty() || digits.find_first_not_of("0123456789") != digits.npos) return std::nullopt;
  int number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return error == std::errc() ? std::optional(number) : std::nullopt;
}

// As its backend is opened: with its number.
std::string parse_device(std::string_view word, std::string_view text) {
  if (word == "cpu") return "cpu";
  const auto number = word == "cuda"              ? std::optional(0)
                      : word.starts_with("cuda:") ? number_of(word.substr(5))
                                                  : std::nullopt;
  RWKV_CHECK(StrategyError, number && *number < kMaxDevices, "strategy '", text,
             "': expected a device (cpu, cuda, cuda:N with N up to ", kMaxDevices - 1, "), found '", word, "'");
  return join("cuda:", *number);
}

// On a GPU activations keep a precision of their own beside weights of few bits, so a word names both.
constexpr std::pair<std::string_view, Formats> kMixed[] = {{"fp16i8", {Format::i8, Format::f16, Format::i8}},
                                                           {"bf16i8", {Format::i8, Format::bf16, Format::i8}},
                                                           {"fp16i4", {Format::i4, Format::f16, Format::i8}},
                                                           {"bf16i4", {Format::i4, Format::bf16, Format::i8}}};

std::string precisions_of(const std::string& device) {
  std::string words = "fp32, fp16, bf16, int8, int4";
  if (device != "cpu")
    for (const auto& [word, formats] : kMixed) words += join(", ", word);
  return join("(", words, ")");
}

Formats parse_formats(std::string_view word, const std::string& device, std::string_view text, Format native) {
  const auto mixed = std::ranges::find(kMixed, word, [](const auto& pair) { return pair.first; });
  if (device != "cpu" && mixed != std::end(kMixed)) return mixed->second;
  const auto formats = find_precision(word, native);
  RWKV_CHECK(StrategyError, formats, "strategy '", text, "': expected a precision ", precisions_of(device), ", found '",
             word, "'");
  return *formats;
}

void parse_layers(std::string_view word, std::string_view text, StageSpec& spec) {
  const bool gpu = spec.device != "cpu";
  std::string_view digits = word.substr(1);
  spec.streamed = gpu && digits.ends_with("+");
  if (spec.streamed) digits.remove_suffix(1);
  const auto layers = number_of(digits);
  RWKV_CHECK(StrategyError, layers && *layers <= kMaxLayers && (*layers > 0 || spec.streamed), "strategy '", text,
             "': expected a number of layers such as *10", gpu ? " or *10+" : "", ", found '", word, "'");
  spec.layers = *layers;
}

StageSpec parse_stage(std::string_view stage, std::string_view text, Format native) {
  const auto words = words_of(stage);
  RWKV_CHECK(StrategyError, !words.empty(), "strategy '", text, "': expected a device and a precision, found nothing");
  StageSpec spec;
  spec.device = parse_device(words[0], text);
  RWKV_CHECK(StrategyError, words.size() > 1, "strategy '", text, "': expected a precision ",
             precisions_of(spec.device), " after '", words[0], "', found nothing");
  spec.formats = parse_formats(words[1], spec.device, text, native);
  size_t next = 2;
  if (next < words.size() && words[next] == "state16") {
    RWKV_CHECK(StrategyError, spec.device != "cpu", "strategy '", text,
               "': expected state16 for cuda only, found it for cpu, whose states are float32");
    spec.state = DType::f16;
    next++;
  }
  if (next < words.size()) {
    RWKV_CHECK(StrategyError, words[next].starts_with("*"), "strategy '", text, "': expected ",
               next == 2 && spec.device != "cpu" ? "state16 or " : "", "a number of layers such as *10, found '",
               words[next], "'");
    parse_layers(words[next++], text, spec);
  }
  RWKV_CHECK(StrategyError, next >= words.size(), "strategy '", text, "': expected '->' or the end, found '",
             words[next], "'");
  return spec;
}

// The low-rank pairs of such a file are as they were, and a GPU turns its matrices anyway: they may become fp16 or
// bf16.
bool fits(const StageSpec& stage, const Formats& only) {
  const Formats& f = stage.formats;
  return f == only || (stage.device != "cpu" && f.large == only.large && f.head == only.head);
}

}  // namespace

Formats parse_precision(std::string_view word, Format native) {
  const auto formats = find_precision(word, native);
  RWKV_CHECK(StrategyError, formats, "expected a precision ", precisions_of("cpu"), ", found '", word, "'");
  return *formats;
}

std::string_view word_of(Format format) {
  switch (format) {
    case Format::f32:
      return "fp32";
    case Format::bf16:
      return "bf16";
    case Format::f16:
      return "fp16";
    case Format::i4:
      return "int4";
    case Format::i8:
      return "int8";
  }
  return "";
}

std::vector<StageSpec> parse_strategy(std::string_view text, Format native, const std::optional<Formats>& only) {
  const auto words = words_of(text);
  if (words.size() == 1 && words[0] == "auto") {
    return {{"auto", only.value_or(Formats{native, native, native})}};
  }
  std::vector<StageSpec> stages;
  for (size_t at = 0;;) {
    const size_t arrow = text.find("->", at);
    stages.push_back(parse_stage(text.substr(at, arrow == text.npos ? text.npos : arrow - at), text, native));
    RWKV_CHECK(StrategyError, !only || fits(stages.back(), *only), "strategy '", text,
               "': expected auto or the precision that the file was quantised to, ", word_of(only->large), ", found ",
               word_of(stages.back().formats.large));
    if (arrow == text.npos) return stages;
    RWKV_CHECK(StrategyError, stages.back().layers > 0, "strategy '", text,
               "': expected a number of layers such as *10 before '->', found nothing");
    at = arrow + 2;
  }
}

}  // namespace rwkv
