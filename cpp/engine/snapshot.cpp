#include "engine/snapshot.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/safetensors.h"
#include "core/sha256.h"
#include "core/text.h"
#include "engine/utf8.h"

namespace rwkv {

namespace {

constexpr std::string_view kFormatKey = "format", kFormat = "rwkv-state 1", kHalfFormat = "rwkv-state 2";
constexpr std::string_view kLogits = "last_logits", kTokens = "sampler.tokens", kWeights = "sampler.weights";
// How every snapshot begins, after the eight bytes of length.
constexpr std::string_view kPrefix = "{\"__metadata__\":{\"digest\":\"";
constexpr size_t kDigestAt = 8 + kPrefix.size(), kDigestSize = 64;
static_assert(kSnapshotHead == kDigestAt + kDigestSize);
constexpr uint64_t kMaxHeader = 1 << 20;
constexpr float kBeyondHalf = 65520;  // from here on to float16's infinity

std::string digest_of(std::span<const std::byte> bytes) {
  const std::string zeros(kDigestSize, '0');
  Sha256 hash;
  hash.update(bytes.first(kDigestAt));
  hash.update(zeros.data(), zeros.size());
  hash.update(bytes.subspan(kDigestAt + kDigestSize));
  return hash.hex();
}

// The numbers a state must share with its model.
std::vector<std::pair<std::string, std::string>> shape_fields(const Config& c) {
  return {{"model_version", c.version},
          {"n_layer", std::to_string(c.n_layer)},
          {"n_embd", std::to_string(c.n_embd)},
          {"n_head", std::to_string(c.n_head)},
          {"head_size", std::to_string(c.head_size)},
          {"n_vocab", std::to_string(c.n_vocab)}};
}

const std::string& field(const SafetensorsHeader& header, std::string_view key) {
  const auto found = std::ranges::find(header.metadata, key, &std::pair<std::string, std::string>::first);
  RWKV_CHECK(StateError, found != header.metadata.end(), "state: expected the metadata field ", key, ", found none");
  return found->second;
}

bool has_tensor(const SafetensorsHeader& header, std::string_view name) {
  return std::ranges::any_of(header.tensors, [&](const TensorInfo& t) { return t.name == name; });
}

template <class Int>
Int number(const SafetensorsHeader& header, std::string_view key, Int least, Int most) {
  const std::string& text = field(header, key);
  Int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  RWKV_CHECK(StateError, error == std::errc() && end == text.data() + text.size() && value >= least && value <= most,
             "state: expected ", key, " from ", least, " to ", most, ", found '", shown(text), "'");
  return value;
}

// A number is finite unless its exponent is all ones.
template <class Bits>
bool all_finite(std::span<const std::byte> bytes, Bits exponent) {
  bool finite = true;
  for (size_t i = 0; i < bytes.size(); i += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i, sizeof(Bits));
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

bool all_finite(std::span<const std::byte> bytes, DType dtype) {
  return dtype == DType::f16 ? all_finite<uint16_t>(bytes, 0x7c00) : all_finite<uint32_t>(bytes, 0x7f800000);
}

std::string hex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    text += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return text;
}

// Bytes that begin a character and are not a whole one, or none.
std::string pending_of(const SafetensorsHeader& header) {
  const std::string& text = field(header, "sampler_pending");
  std::string bytes;
  for (size_t i = 0; i + 1 < text.size() && bytes.size() < 4; i += 2) {
    int byte = 0;
    if (std::from_chars(text.data() + i, text.data() + i + 2, byte, 16).ptr == text.data() + i + 2)
      bytes += static_cast<char>(byte);
  }
  bool good = hex(bytes) == text;
  if (good && !bytes.empty()) {
    const Utf8Part part = first_utf8_part(bytes);
    good = part.kind == Utf8Kind::cut && part.length == bytes.size();
  }
  RWKV_CHECK(StateError, good, "state: expected sampler_pending to be the beginning of a character in hex, found '",
             shown(text), "'");
  return bytes;
}

// Null if the state belongs to no text. The weights are still to come.
std::shared_ptr<SamplerState> sampler_of(const SafetensorsHeader& header) {
  if (std::ranges::none_of(header.metadata, [](const auto& m) { return m.first == "sampler_seed"; })) return nullptr;
  auto sampler = std::make_shared<SamplerState>();
  sampler->seed = number<uint64_t>(header, "sampler_seed", 0, UINT64_MAX);
  const std::string& style = field(header, "sampler_style");
  const auto known = penalty_style_of(style);
  RWKV_CHECK(StateError, known, "state: expected sampler_style rwkv, rapid or openai, found '", shown(style), "'");
  sampler->style = *known;
  sampler->pending = pending_of(header);
  sampler->tail = field(header, "sampler_tail");
  RWKV_CHECK(StateError, sampler->tail.size() <= SamplingParams::kMaxStopBytes,
             "state: expected a sampler_tail of at most ", SamplingParams::kMaxStopBytes, " bytes, found ",
             sampler->tail.size());
  return sampler;
}

// How many penalties a file says it holds; no more than there are tokens.
int64_t weight_count(const SafetensorsHeader& header, int n_vocab) {
  for (const TensorInfo& t : header.tensors) {
    if (t.name != kTokens) continue;
    RWKV_CHECK(StateError, t.shape.size() == 1 && t.shape[0] >= 1 && t.shape[0] <= n_vocab, "state: ", kTokens,
               ": expected 1 to ", n_vocab, " tokens, found ", shape_text(t.shape));
    return t.shape[0];
  }
  return 0;
}

void check_weights_of(const SamplerState& sampler, int n_vocab) {
  int64_t last = -1;
  for (const TokenWeight& w : sampler.weights) {
    RWKV_CHECK(StateError, w.token > last && w.token < n_vocab, "state: ", kTokens,
               ": expected ascending ids from 0 to ", n_vocab - 1, ", found ", w.token);
    RWKV_CHECK(StateError, std::isfinite(w.weight), "state: ", kWeights, ": expected finite numbers, found ", w.weight);
    last = w.token;
  }
}

}  // namespace

DType snapshot_type(std::string_view word) {
  if (word == "fp32") return DType::f32;
  if (word == "fp16") return DType::f16;
  throw Error(join("dtype: expected 'fp32' or 'fp16', found '", shown(word), "'"));
}

std::string_view snapshot_word(DType type) { return type == DType::f16 ? "fp16" : "fp32"; }

std::string_view snapshot_format(DType type) { return type == DType::f16 ? kHalfFormat : kFormat; }

std::vector<TensorInfo> snapshot_tensors(const Config& config, bool with_logits, int64_t weights, DType type) {
  std::vector<TensorInfo> tensors;
  for (const StatePart& part : state_parts(config)) {
    TensorInfo& t = tensors.emplace_back();
    t.name = part.name;
    t.dtype = std::abs(part.initial) < kBeyondHalf ? type : DType::f32;
    t.shape = {config.n_layer};
    t.shape.insert(t.shape.end(), part.shape.begin(), part.shape.end());
  }
  if (with_logits) {
    TensorInfo& t = tensors.emplace_back();
    t.name = kLogits;
    t.shape = {config.n_vocab};
  }
  if (weights > 0) {
    for (const auto& [name, dtype] : {std::pair(kTokens, DType::i32), std::pair(kWeights, DType::f64)}) {
      TensorInfo& t = tensors.emplace_back();
      t.name = name;
      t.dtype = dtype;
      t.shape = {weights};
    }
  }
  return tensors;
}

void store(const TensorInfo& part, std::span<const float> values, std::byte* to) {
  if (part.dtype == DType::f32) {
    std::memcpy(to, values.data(), values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); i++) {
    RWKV_CHECK(StateError, std::abs(values[i]) < kBeyondHalf, "state: ", part.name,
               ": expected numbers below 65520, which fp16 holds, found ", values[i], ": fp32 holds it");
    const uint16_t half = f32_to_f16(values[i]);
    std::memcpy(to + i * sizeof half, &half, sizeof half);
  }
}

void SnapshotPart::load(size_t first, std::span<float> values) const {
  to_f32(bytes.data() + first * size_of(dtype), dtype, values.size(), values.data());
}

SnapshotPlan plan_snapshot(const SnapshotModel& model, const SnapshotInfo& info, bool with_logits, DType type) {
  std::vector<std::pair<std::string, std::string>> metadata = {
      {"digest", std::string(kDigestSize, '0')},
      {std::string(kFormatKey), std::string(snapshot_format(type))},
      {"fingerprint", model.fingerprint}};
  for (auto& pair : shape_fields(model.config)) metadata.push_back(std::move(pair));
  metadata.emplace_back("tokens_seen", std::to_string(info.tokens_seen));
  metadata.emplace_back("last_token", std::to_string(info.last_token));
  if (info.sampler) {
    metadata.emplace_back("sampler_seed", std::to_string(info.sampler->seed));
    metadata.emplace_back("sampler_style", name_of(info.sampler->style));
    metadata.emplace_back("sampler_pending", hex(info.sampler->pending));
    metadata.emplace_back("sampler_tail", info.sampler->tail);
  }
  auto tensors = snapshot_tensors(model.config, with_logits, info.weights(), type);
  std::string header = write_safetensors_header(metadata, tensors);
  size_t size = header.size();
  for (const TensorInfo& t : tensors) size += size_t(t.count()) * size_of(t.dtype);
  return {std::move(header), std::move(tensors), size};
}

void finish_snapshot(std::span<std::byte> snapshot, const SnapshotPlan& plan, const SnapshotInfo& info,
                     std::span<const float> last_logits) {
  std::memcpy(snapshot.data(), plan.header.data(), plan.header.size());
  const size_t weights = size_t(info.weights());
  std::byte* to = snapshot.data() + plan.size - weights * (sizeof(int32_t) + sizeof(double)) - last_logits.size_bytes();
  const auto append = [&](const void* from, size_t bytes) {
    std::memcpy(to, from, bytes);
    to += bytes;
  };
  if (!last_logits.empty()) append(last_logits.data(), last_logits.size_bytes());
  for (size_t i = 0; i < weights; i++) append(&info.sampler->weights[i].token, sizeof(int32_t));
  for (size_t i = 0; i < weights; i++) append(&info.sampler->weights[i].weight, sizeof(double));
  seal_snapshot(snapshot);
}

void seal_snapshot(std::span<std::byte> snapshot) {
  const std::string digest = digest_of(snapshot);
  std::memcpy(snapshot.data() + kDigestAt, digest.data(), kDigestSize);
}

void check_snapshot_head(std::span<const std::byte> head, uint64_t file_size) {
  RWKV_CHECK(StateError, file_size > kSnapshotHead && head.size() >= kSnapshotHead, "state: expected more than ",
             kSnapshotHead, " bytes, found ", file_size);
  RWKV_CHECK(StateError, std::memcmp(head.data(), "PK\3\4", 4) != 0,
             "state: expected a saved state, found a zip archive: state_from_rwkv() reads lists that torch.save wrote");
  uint64_t header_size;
  std::memcpy(&header_size, head.data(), 8);
  RWKV_CHECK(StateError, header_size <= kMaxHeader && header_size <= file_size - 8,
             "state: expected a header of at most ", std::min<uint64_t>(kMaxHeader, file_size - 8),
             " bytes, found one of ", header_size);
  RWKV_CHECK(StateError, std::memcmp(head.data() + 8, kPrefix.data(), kPrefix.size()) == 0,
             "state: expected a file that begins with ", kPrefix, ", found other bytes: not a saved state");
}

namespace {

// Length, header size, digest and format are right.
SafetensorsHeader read_header(std::span<const std::byte> bytes) {
  check_snapshot_head(bytes, bytes.size());
  const std::string written(reinterpret_cast<const char*>(bytes.data()) + kDigestAt, kDigestSize);
  const std::string found = digest_of(bytes);
  RWKV_CHECK(StateError, written == found, "state: damaged: expected the digest ", shown(written), ", found ", found);

  SafetensorsHeader header;
  try {
    header = parse_safetensors(bytes, bytes.size());
  } catch (const ModelFormatError& e) {
    throw StateError(join("state: ", e.what()));
  }
  const std::string& format = field(header, kFormatKey);
  RWKV_CHECK(StateError, format == kFormat || format == kHalfFormat, "state: expected the format '", kFormat, "' or '",
             kHalfFormat, "', found '", shown(format), "'");
  return header;
}

// The numbers of the model that the header names; its shapes are still to be compared.
SnapshotModel read_model(const SafetensorsHeader& header) {
  SnapshotModel model;
  Config& c = model.config;
  c.version = field(header, "model_version");
  RWKV_CHECK(StateError, is_version(c.version), "state: expected the model_version of a model that this release runs",
             ", found '", shown(c.version), "'");
  model.fingerprint = field(header, "fingerprint");
  RWKV_CHECK(
      StateError,
      model.fingerprint.size() == 64 && model.fingerprint.find_first_not_of("0123456789abcdef") == std::string::npos,
      "state: expected a fingerprint of 64 hex digits, found '", shown(model.fingerprint), "'");
  const bool heads = c.version != "4";
  c.n_layer = number<int>(header, "n_layer", 1, INT32_MAX);
  c.n_embd = number<int>(header, "n_embd", 1, INT32_MAX);
  c.n_head = number<int>(header, "n_head", heads, heads ? INT32_MAX : 0);
  c.head_size = number<int>(header, "head_size", heads, heads ? INT32_MAX : 0);
  c.n_vocab = number<int>(header, "n_vocab", 1, INT32_MAX);
  // Only the parts of RWKV-4 say how wide its recurrence is.
  for (const TensorInfo& t : header.tensors)
    if (t.name == "att.aa" && t.shape.size() == 2) c.n_att = int(std::min<int64_t>(t.shape[1], INT32_MAX));
  return model;
}

SnapshotView read_numbers(std::span<const std::byte> bytes, const SafetensorsHeader& header, const Config& config) {
  SnapshotView view;
  view.type = field(header, kFormatKey) == kHalfFormat ? DType::f16 : DType::f32;
  view.info.tokens_seen = number<int64_t>(header, "tokens_seen", 0, int64_t{1} << 62);
  view.info.last_token = number<int32_t>(header, "last_token", -1, config.n_vocab - 1);
  auto sampler = sampler_of(header);
  const int64_t weights = sampler ? weight_count(header, config.n_vocab) : 0;
  const auto expected = snapshot_tensors(config, has_tensor(header, kLogits), weights, view.type);
  RWKV_CHECK(StateError, header.tensors.size() == expected.size(), "state: expected ", expected.size(),
             " tensors, found ", header.tensors.size());
  for (const TensorInfo& want : expected) {
    const auto t = std::ranges::find_if(header.tensors, [&](const TensorInfo& t) { return t.name == want.name; });
    RWKV_CHECK(StateError, t != header.tensors.end(), "state: expected the tensor ", want.name,
               ", found none of that name");
    RWKV_CHECK(StateError, t->shape == want.shape && t->dtype == want.dtype, "state: ", want.name, ": expected ",
               name_of(want.dtype), " ", shape_text(want.shape), ", found ", name_of(t->dtype), " ",
               shape_text(t->shape));
    const auto data = bytes.subspan(size_t(t->offset), size_t(t->count()) * size_of(t->dtype));
    if (want.name == kTokens) {
      sampler->weights.resize(size_t(weights));
      for (size_t i = 0; i < sampler->weights.size(); i++)
        std::memcpy(&sampler->weights[i].token, data.data() + i * sizeof(int32_t), sizeof(int32_t));
      continue;
    }
    if (want.name == kWeights) {  // they come behind the tokens
      for (size_t i = 0; i < sampler->weights.size(); i++)
        std::memcpy(&sampler->weights[i].weight, data.data() + i * sizeof(double), sizeof(double));
      check_weights_of(*sampler, config.n_vocab);
      continue;
    }
    RWKV_CHECK(StateError, all_finite(data, t->dtype), "state: ", want.name,
               ": expected finite numbers, found NaN or infinity");
    if (want.name == kLogits)
      view.last_logits = data;
    else
      view.parts.push_back({t->dtype, data});
  }
  view.info.sampler = std::move(sampler);
  return view;
}

}  // namespace

SnapshotView read_snapshot(std::span<const std::byte> bytes, const Config& config,
                           std::span<const std::string> fingerprints, bool check_weights) {
  const SafetensorsHeader header = read_header(bytes);
  const auto described = shape_fields(config);
  const auto check = [&](const std::pair<std::string, std::string>& pair) {
    const auto& [key, expected] = pair;
    RWKV_CHECK(StateError, field(header, key) == expected, "state of another model: expected ", key, " ", expected,
               ", found ", shown(field(header, key)));
  };
  check(described.front());  // the version: what follows must not offer to accept another's state
  const std::string& maker = field(header, "fingerprint");
  RWKV_CHECK(StateError, !check_weights || std::ranges::find(fingerprints, maker) != fingerprints.end(),
             "state of other weights: expected the fingerprint ", fingerprints.front(),
             fingerprints.size() > 1 ? join(" or one of ", fingerprints.size() - 1, " loaded adapters") : "",
             ", found ", shown(maker),
             " (load_adapter() first for one that an adapter made; check_weights=False accepts one of the same shape)");
  std::ranges::for_each(described, check);
  SnapshotView view = read_numbers(bytes, header, config);
  view.fingerprint = maker;
  return view;
}

std::pair<SnapshotModel, SnapshotView> read_snapshot(std::span<const std::byte> bytes) {
  const SafetensorsHeader header = read_header(bytes);
  SnapshotModel model = read_model(header);
  SnapshotView view = read_numbers(bytes, header, model.config);
  return {std::move(model), std::move(view)};
}

}  // namespace rwkv
