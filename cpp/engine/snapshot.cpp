#include "engine/snapshot.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/safetensors.h"
#include "core/sha256.h"
#include "core/text.h"

namespace rwkv {

namespace {

constexpr std::string_view kFormat = "rwkv-state 1";
constexpr std::string_view kLogits = "last_logits";
// How every snapshot begins, after the eight bytes of length.
constexpr std::string_view kPrefix = "{\"__metadata__\":{\"digest\":\"";
constexpr size_t kDigestAt = 8 + kPrefix.size(), kDigestSize = 64;
constexpr uint64_t kMaxHeader = 1 << 20;

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
  for (const auto& [name, value] : header.metadata)
    if (name == key) return value;
  throw StateError(join("state: expected the metadata field ", key, ", found none"));
}

int64_t number(const SafetensorsHeader& header, std::string_view key, int64_t least, int64_t most) {
  const std::string& text = field(header, key);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  RWKV_CHECK(StateError, error == std::errc() && end == text.data() + text.size() && value >= least && value <= most,
             "state: expected ", key, " from ", least, " to ", most, ", found '", shown(text), "'");
  return value;
}

bool all_finite(std::span<const std::byte> bytes) {
  // A float is finite unless its exponent is all ones.
  bool finite = true;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    uint32_t bits;
    std::memcpy(&bits, bytes.data() + i, 4);
    finite &= (bits & 0x7f800000) != 0x7f800000;
  }
  return finite;
}

}  // namespace

std::vector<TensorInfo> snapshot_tensors(const Config& config, const StateLayout& layout, bool with_logits) {
  std::vector<TensorInfo> tensors;
  for (const StatePart& part : layout.parts) {
    TensorInfo& t = tensors.emplace_back();
    t.name = part.name;
    t.shape = {layout.layers};
    t.shape.insert(t.shape.end(), part.shape.begin(), part.shape.end());
  }
  if (with_logits) {
    TensorInfo& t = tensors.emplace_back();
    t.name = kLogits;
    t.shape = {config.n_vocab};
  }
  return tensors;
}

std::string snapshot_header(const Config& config, const std::string& fingerprint, const SnapshotInfo& info,
                            const std::vector<TensorInfo>& tensors) {
  std::vector<std::pair<std::string, std::string>> metadata = {
      {"digest", std::string(kDigestSize, '0')}, {"format", std::string(kFormat)}, {"fingerprint", fingerprint}};
  for (auto& pair : shape_fields(config)) metadata.push_back(std::move(pair));
  metadata.emplace_back("tokens_seen", std::to_string(info.tokens_seen));
  metadata.emplace_back("last_token", std::to_string(info.last_token));
  return write_safetensors_header(metadata, tensors);
}

void seal_snapshot(std::span<std::byte> snapshot) {
  const std::string digest = digest_of(snapshot);
  std::memcpy(snapshot.data() + kDigestAt, digest.data(), kDigestSize);
}

SnapshotView read_snapshot(std::span<const std::byte> bytes, const Config& config, const std::string& fingerprint,
                           const StateLayout& layout, bool check_weights) {
  RWKV_CHECK(StateError, bytes.size() > kDigestAt + kDigestSize, "state: expected more than ", kDigestAt + kDigestSize,
             " bytes, found ", bytes.size());
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), 8);
  RWKV_CHECK(StateError, header_size <= kMaxHeader && header_size <= bytes.size() - 8,
             "state: expected a header of at most ", std::min<uint64_t>(kMaxHeader, bytes.size() - 8),
             " bytes, found one of ", header_size);
  RWKV_CHECK(StateError, std::memcmp(bytes.data() + 8, kPrefix.data(), kPrefix.size()) == 0,
             "state: expected a file that begins with ", kPrefix, ", found other bytes: not a saved state");
  const std::string written(reinterpret_cast<const char*>(bytes.data()) + kDigestAt, kDigestSize);
  const std::string found = digest_of(bytes);
  RWKV_CHECK(StateError, written == found, "state: damaged: expected the digest ", written, ", found ", found);

  SafetensorsHeader header;
  try {
    header = parse_safetensors(bytes, bytes.size());
  } catch (const ModelFormatError& e) {
    throw StateError(join("state: ", e.what()));
  }
  RWKV_CHECK(StateError, field(header, "format") == kFormat, "state: expected the format '", kFormat, "', found '",
             shown(field(header, "format")), "'");
  RWKV_CHECK(StateError, !check_weights || field(header, "fingerprint") == fingerprint,
             "state of other weights: expected the fingerprint ", fingerprint, ", found ",
             shown(field(header, "fingerprint")), " (check_weights=False accepts it)");
  for (const auto& [key, expected] : shape_fields(config))
    RWKV_CHECK(StateError, field(header, key) == expected, "state of another model: expected ", key, " ", expected,
               ", found ", shown(field(header, key)));

  SnapshotView view;
  view.info.tokens_seen = number(header, "tokens_seen", 0, int64_t(1) << 62);
  view.info.last_token = int32_t(number(header, "last_token", -1, config.n_vocab - 1));
  const bool with_logits = std::ranges::any_of(header.tensors, [](const TensorInfo& t) { return t.name == kLogits; });
  const auto expected = snapshot_tensors(config, layout, with_logits);
  RWKV_CHECK(StateError, header.tensors.size() == expected.size(), "state: expected ", expected.size(),
             " tensors, found ", header.tensors.size());
  for (const TensorInfo& want : expected) {
    const auto t = std::ranges::find_if(header.tensors, [&](const TensorInfo& t) { return t.name == want.name; });
    RWKV_CHECK(StateError, t != header.tensors.end(), "state: expected the tensor ", want.name,
               ", found none of that name");
    RWKV_CHECK(StateError, t->shape == want.shape && t->dtype == DType::f32, "state: ", want.name, ": expected f32 ",
               shape_text(want.shape), ", found ", name_of(t->dtype), " ", shape_text(t->shape));
    const auto data = bytes.subspan(size_t(t->offset), size_t(t->count()) * 4);
    RWKV_CHECK(StateError, all_finite(data), "state: ", want.name, ": expected finite numbers, found NaN or infinity");
    (want.name == kLogits ? view.last_logits : view.parts.emplace_back()) = data;
  }
  return view;
}

}  // namespace rwkv
