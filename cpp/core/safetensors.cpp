// The header is taken as a claim: every number is checked against the shape and the size of the file before it is used.
#include "core/safetensors.h"

#include <algorithm>

#include "core/bounds.h"
#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace rwkv {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr std::string_view kMetadata = "__metadata__";

struct NamedDType {
  std::string_view name;
  DType dtype;
};
constexpr NamedDType kDTypes[] = {
    {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16}, {"F64", DType::f64}, {"I64", DType::i64},
    {"I32", DType::i32}, {"I16", DType::i16}, {"I8", DType::i8},     {"U8", DType::u8},   {"BOOL", DType::boolean}};

DType dtype_named(std::string_view name, std::string_view tensor) {
  for (const NamedDType& known : kDTypes) {
    if (known.name == name) return known.dtype;
  }
  throw ModelFormatError(
      join(shown(tensor), ": expected a dtype of F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL, found ", shown(name)));
}

std::string_view name_in_file(DType dtype) {
  for (const NamedDType& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  throw Error(join("safetensors has no name for ", name_of(dtype)));
}

// A tensor as its entry in the header describes it; begin and end count from the end of the header.
struct Entry {
  TensorInfo info;
  uint64_t begin = 0;
  uint64_t end = 0;
};

std::vector<int64_t> read_shape(JsonReader& json, std::string_view tensor) {
  std::vector<int64_t> shape;
  json.array([&] {
    const uint64_t n = json.natural();
    RWKV_CHECK(ModelFormatError, n <= uint64_t(INT64_MAX), shown(tensor), ": dimension ", n, " is too large");
    RWKV_CHECK(ModelFormatError, shape.size() < kMaxRank, shown(tensor), ": expected at most ", kMaxRank,
               " dimensions, found more");
    shape.push_back(int64_t(n));
  });
  return shape;
}

Entry read_entry(JsonReader& json, std::string name) {
  RWKV_CHECK(ModelFormatError, name.size() <= kMaxName, shown(name), ": expected a name of at most ", kMaxName,
             " bytes, found ", name.size());
  Entry entry;
  std::string dtype;
  std::vector<uint64_t> range;
  bool has_shape = false;
  json.object([&](std::string&& key) {
    if (key == "dtype") {
      dtype = json.string();
    } else if (key == "shape") {
      entry.info.shape = read_shape(json, name);
      has_shape = true;
    } else if (key == "data_offsets") {
      json.array([&] {
        RWKV_CHECK(ModelFormatError, range.size() < 2, shown(name), ": expected two data_offsets, found more");
        range.push_back(json.natural());
      });
    } else {
      json.skip();
    }
  });
  RWKV_CHECK(ModelFormatError, !dtype.empty() && has_shape && range.size() == 2, shown(name),
             ": expected dtype, shape and two data_offsets, found ", dtype.empty() ? "no dtype" : "a dtype", ", ",
             has_shape ? "a shape" : "no shape", " and ", range.size(), " data_offsets");
  entry.info.dtype = dtype_named(dtype, name);
  entry.begin = range[0];
  entry.end = range[1];

  const auto count = checked_count(entry.info.shape);
  const auto bytes = count ? checked_product(*count, size_of(entry.info.dtype)) : std::nullopt;
  RWKV_CHECK(ModelFormatError, bytes.has_value(), shown(name), ": the shape ", shape_text(entry.info.shape),
             " has more elements than can be counted");
  RWKV_CHECK(ModelFormatError, entry.begin <= entry.end && entry.end - entry.begin == *bytes, shown(name),
             ": expected data_offsets ", *bytes, " bytes apart for ", dtype, " ", shape_text(entry.info.shape),
             ", found ", entry.begin, " and ", entry.end);
  entry.info.stride = dense_strides(entry.info.shape);
  entry.info.name = std::move(name);
  return entry;
}

}  // namespace

uint64_t safetensors_header_end(std::span<const std::byte, 8> length_field, uint64_t file_size) {
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | uint64_t(length_field[i]);
  RWKV_CHECK(ModelFormatError, length <= kMaxHeader, "expected a safetensors header of at most ", kMaxHeader,
             " bytes, found a length of ", length);
  RWKV_CHECK(ModelFormatError, file_size >= 8 && length <= file_size - 8, "expected a safetensors header of ", length,
             " bytes, found a file of ", file_size, ": it was cut short");
  return 8 + length;
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> head, uint64_t file_size) {
  RWKV_CHECK(ModelFormatError, head.size() >= 8, "expected a safetensors file, found ", head.size(), " bytes");
  const uint64_t header_end = safetensors_header_end(head.first<8>(), file_size);
  RWKV_CHECK(ModelFormatError, head.size() >= header_end, "expected a safetensors header of ", header_end - 8,
             " bytes, found ", head.size() - 8);
  JsonReader json({reinterpret_cast<const char*>(head.data()) + 8, size_t(header_end - 8)});

  SafetensorsHeader header;
  std::vector<Entry> entries;
  json.object([&](std::string&& key) {
    if (key == kMetadata) {
      json.object([&](std::string&& name) {
        RWKV_CHECK(ModelFormatError, header.metadata.size() < kMaxTensors, "expected at most ", kMaxTensors,
                   " metadata entries, found more");
        header.metadata.emplace_back(std::move(name), json.string());
      });
    } else {
      RWKV_CHECK(ModelFormatError, entries.size() < kMaxTensors, "expected at most ", kMaxTensors,
                 " tensors, found more");
      entries.push_back(read_entry(json, std::move(key)));
    }
  });
  json.finish();

  // In the order of the data each tensor must begin where the one before it ended: no hole, no overlap.
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = 0;
  for (Entry& entry : entries) {
    RWKV_CHECK(ModelFormatError, entry.begin == at, shown(entry.info.name), ": expected its data at offset ", at,
               entry.begin < at ? " (it overlaps another tensor)" : " (nothing describes the bytes between)",
               ", found ", entry.begin);
    at = entry.end;
    entry.info.offset = header_end + entry.begin;
    header.tensors.push_back(std::move(entry.info));
  }
  RWKV_CHECK(ModelFormatError, at == file_size - header_end, "expected ", at, " bytes of data after the header, found ",
             file_size - header_end);
  return header;
}

std::string write_safetensors_header(const std::vector<std::pair<std::string, std::string>>& metadata,
                                     const std::vector<TensorInfo>& tensors) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += json_quoted(kMetadata) + ":{";
    for (const auto& [key, value] : metadata) json += json_quoted(key) + ":" + json_quoted(value) + ",";
    json.back() = '}';
    json += ',';
  }
  uint64_t at = 0;
  for (const TensorInfo& tensor : tensors) {
    RWKV_CHECK(Error, tensor.name != kMetadata, "a tensor cannot be called ", kMetadata);
    const auto count = checked_count(tensor.shape);
    const auto bytes = count ? checked_product(*count, size_of(tensor.dtype)) : std::nullopt;
    RWKV_CHECK(Error, bytes && *bytes <= uint64_t(INT64_MAX) - at, tensor.name, ": ", shape_text(tensor.shape),
               " is too large to write");
    json += json_quoted(tensor.name) + ":{\"dtype\":\"" + std::string(name_in_file(tensor.dtype)) + "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) json += (i ? "," : "") + std::to_string(tensor.shape[i]);
    json += join("],\"data_offsets\":[", at, ",", at + *bytes, "]},");
    at += *bytes;
  }
  if (json.back() == ',') json.pop_back();
  json += '}';

  constexpr size_t kAlign = 64;
  json.append((kAlign - (8 + json.size()) % kAlign) % kAlign, ' ');
  RWKV_CHECK(Error, json.size() <= kMaxHeader, "expected a safetensors header of at most ", kMaxHeader,
             " bytes, it would have ", json.size());
  std::string out;
  for (int i = 0; i < 8; ++i) out += char(uint64_t(json.size()) >> (8 * i) & 0xff);
  return out + json;
}

}  // namespace rwkv
