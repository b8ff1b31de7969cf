#include "model/strategy.h"

#include <charconv>

#include "core/error.h"

namespace rwkv {

namespace {

constexpr int kMaxLayers = 1 << 16;

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

constexpr std::string_view kPrecisions = "(fp32, fp16, bf16, int8, int4)";

Formats parse_formats(std::string_view word, std::string_view text, Format native) try {
  return parse_precision(word, native);
} catch (const StrategyError& error) {
  throw StrategyError(join("strategy '", text, "': ", error.what()));
}

int parse_layers(std::string_view word, std::string_view text) {
  const std::string_view digits = word.substr(1);
  int layers = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layers);
  RWKV_CHECK(StrategyError,
             error == std::errc() && end == digits.data() + digits.size() && layers > 0 && layers <= kMaxLayers,
             "strategy '", text, "': expected a number of layers such as *10, found '", word, "'");
  return layers;
}

StageSpec parse_stage(std::string_view stage, std::string_view text, Format native) {
  const auto words = words_of(stage);
  RWKV_CHECK(StrategyError, !words.empty(), "strategy '", text, "': expected a device and a precision, found nothing");
  StageSpec spec;
  spec.device = words[0];
  RWKV_CHECK(StrategyError, words[0] == "cpu" || words[0].starts_with("cuda"), "strategy '", text,
             "': expected a device (cpu, cuda, cuda:N), found '", words[0], "'");
  RWKV_CHECK(DeviceError, words[0] == "cpu", "strategy '", text, "': this build has no CUDA backend, so '", words[0],
             "' cannot be used; cpu can");
  RWKV_CHECK(StrategyError, words.size() > 1, "strategy '", text, "': expected a precision ", kPrecisions, " after '",
             words[0], "', found nothing");
  spec.formats = parse_formats(words[1], text, native);
  if (words.size() > 2) {
    RWKV_CHECK(StrategyError, words[2].starts_with("*"), "strategy '", text,
               "': expected a number of layers such as *10, found '", words[2], "'");
    spec.layers = parse_layers(words[2], text);
  }
  RWKV_CHECK(StrategyError, words.size() <= 3, "strategy '", text, "': expected '->' or the end, found '", words[3],
             "'");
  return spec;
}

}  // namespace

Formats parse_precision(std::string_view word, Format native) {
  const auto all = [](Format f) { return Formats{f, f, f}; };
  if (word == "fp32") return all(Format::f32);
  if (word == "fp16") return all(Format::f16);
  if (word == "bf16") return all(Format::bf16);
  if (word == "int8") return {Format::i8, native, Format::i8};
  if (word == "int4") return {Format::i4, native, Format::i8};
  throw StrategyError(join("expected a precision ", kPrecisions, ", found '", word, "'"));
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
  if (words.size() == 1 && words[0] == "auto") return {{"cpu", only.value_or(Formats{native, native, native}), 0}};
  std::vector<StageSpec> stages;
  for (size_t at = 0;;) {
    const size_t arrow = text.find("->", at);
    stages.push_back(parse_stage(text.substr(at, arrow == text.npos ? text.npos : arrow - at), text, native));
    RWKV_CHECK(StrategyError, !only || stages.back().formats == *only, "strategy '", text,
               "': expected auto or the precision that the file was quantised to, ", word_of(only->large), ", found ",
               word_of(stages.back().formats.large));
    if (arrow == text.npos) return stages;
    RWKV_CHECK(StrategyError, stages.back().layers > 0, "strategy '", text,
               "': expected a number of layers such as *10 before '->', found nothing");
    at = arrow + 2;
  }
}

}  // namespace rwkv
