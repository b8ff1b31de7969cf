#include "model/packed.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <span>
#include <vector>

#include "core/bounds.h"
#include "core/error.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "core/text.h"
#include "model/encode.h"
#include "model/fingerprint.h"
#include "model/model.h"
#include "model/names.h"

namespace rwkv {
namespace {

constexpr const char* kPackedKey = "rwkv_packed";
constexpr uint64_t kLayout = 1;                   // grows with every change of what lies in a packed matrix
constexpr uint64_t kMaxSize = uint64_t(1) << 24;  // of a dimension
constexpr size_t kWritePiece = size_t(4) << 20;   // bytes between two reports of progress

constexpr uint64_t kProbe = uint64_t(32) << 20;  // of a mapping, to see what pages it gets

struct Matrix {
  std::string format;
  std::vector<int64_t> shape;
};

struct Description {
  std::string precision, small;
  std::map<std::string, Matrix> matrices;
};

Matrix read_matrix(JsonReader& json, const std::string& name) {
  Matrix matrix;
  json.object([&](std::string&& key) {
    if (key == "format") {
      matrix.format = json.string();
    } else if (key == "shape") {
      json.array([&] {
        const uint64_t size = json.natural();
        RWKV_CHECK(ModelFormatError, matrix.shape.size() < 3 && size > 0 && size <= kMaxSize, shown(name),
                   ": expected a shape of up to three dimensions from 1 to ", kMaxSize, ", found another");
        matrix.shape.push_back(int64_t(size));
      });
    } else {
      json.skip();
    }
  });
  RWKV_CHECK(ModelFormatError, matrix.shape.size() > 1 && checked_count(matrix.shape) && !matrix.format.empty(),
             shown(name), ": expected a format and a shape of two or three dimensions, found ", shown(matrix.format),
             " and ", shape_text(matrix.shape));
  return matrix;
}

Description read_description(const Checkpoint& file) try {
  JsonReader json(file.metadata().at(kPackedKey));
  Description found;
  uint64_t layout = 0;
  json.object([&](std::string&& key) {
    if (key == "layout") {
      layout = json.natural();
    } else if (key == "precision") {
      found.precision = json.string();
    } else if (key == "small") {
      found.small = json.string();
    } else if (key == "matrices") {
      json.object([&](std::string&& name) {
        RWKV_CHECK(ModelFormatError, file.find(name), "expected tensors of the file, found ", shown(name));
        found.matrices[name] = read_matrix(json, name);
      });
    } else {
      json.skip();
    }
  });
  json.finish();
  RWKV_CHECK(ModelFormatError, layout == kLayout, "expected matrices in packed layout ", kLayout, ", found ", layout,
             ": quantize the original weights again");
  return found;
} catch (const ModelFormatError& error) {
  throw ModelFormatError(join(file.path(), ": ", kPackedKey, ": ", error.what()));
}

std::string description_of(const Checkpoint& file, const Model& model, std::string_view precision) {
  std::string text = join("{\"layout\":", kLayout, ",\"precision\":", json_quoted(precision),
                          ",\"small\":", json_quoted(word_of(model.formats().small)), ",\"matrices\":{");
  for (const auto& [name, matrix] : model.matrices()) {
    text += join(json_quoted(name), ":{\"format\":", json_quoted(word_of(matrix.format)), ",\"shape\":[");
    for (const int64_t size : file.find(name)->shape) text += join(size, ",");
    text.back() = ']';
    text += "},";
  }
  if (text.back() == ',') text.pop_back();
  return text + "}}";
}

bool is_digest(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

}  // namespace

void expect_unpacked(const Checkpoint& file) {
  RWKV_CHECK(ModelFormatError, !is_packed(file), file.path(),
             ": expected the original weights, found a file that was quantised already: use what it was made of");
}

bool is_packed(const Checkpoint& file) { return file.metadata().contains(kPackedKey); }

std::optional<Packed> packed_in(const Checkpoint& file) {
  if (!is_packed(file)) return std::nullopt;
  const Description said = read_description(file);
  const auto fingerprint = file.metadata().find(kFingerprintKey);
  RWKV_CHECK(ModelFormatError, fingerprint != file.metadata().end() && is_digest(fingerprint->second), file.path(),
             ": ", kFingerprintKey, ": expected the fingerprint of the original weights, 64 hex digits, found ",
             fingerprint == file.metadata().end() ? "none" : shown(fingerprint->second));
  try {
    const Format small = parse_precision(said.small, Format::f32).large;
    return Packed{said.precision, parse_precision(said.precision, small), fingerprint->second};
  } catch (const StrategyError& error) {
    throw ModelFormatError(join(file.path(), ": ", kPackedKey, ": ", error.what()));
  }
}

Checkpoint with_packed_matrices(const Checkpoint& file) {
  Description said = read_description(file);
  std::vector<TensorInfo> tensors = file.tensors();
  for (TensorInfo& t : tensors) {
    const auto matrix = said.matrices.find(t.name);
    if (matrix == said.matrices.end()) continue;
    RWKV_CHECK(ModelFormatError, t.dtype == DType::u8, file.path(), ": ", shown(t.name),
               ": expected packed bytes, as the metadata say, found ", name_of(t.dtype));
    t.packed = std::move(matrix->second.format);
    t.packed_bytes = uint64_t(t.count());
    t.shape = std::move(matrix->second.shape);
    t.stride = dense_strides(t.shape);
  }
  return file.with(std::move(tensors));
}

std::shared_ptr<const std::byte> map_packed(const Checkpoint& file) {
  const auto in_file = [](const TensorInfo& t) { return t.packed_bytes > 0 && t.file == 0; };
  const auto first = std::ranges::find_if(file.tensors(), in_file);
  const bool whole = std::ranges::all_of(file.tensors(), [](const TensorInfo& t) { return t.file == 0; });
  const char* wish = std::getenv("RWKV_MAP");
  if (!whole || first == file.tensors().end() || std::string_view(wish ? wish : "") == "0") return nullptr;
  auto mapping = file.map_file(*first);
  if (wish && std::string_view(wish) == "1") return mapping;
  uint64_t begin = first->offset, end = begin;
  for (const TensorInfo& t : file.tensors())
    if (in_file(t)) begin = std::min(begin, t.offset), end = std::max(end, t.offset + t.packed_bytes);
  const auto some = size_t(std::min(end - begin, kProbe));
  fetch_pages(mapping.get() + begin, some);
  return huge_page_bytes(mapping.get()) >= some / 2 ? mapping : nullptr;
}

void write_packed(const Checkpoint& opened, const std::string& path, std::string_view precision,
                  const std::function<void(int64_t, int64_t)>& progress) {
  expect_unpacked(opened);
  const Checkpoint file = with_official_names(opened);
  int64_t bytes_read = 0;  // half of the work
  const auto model = Model::load(opened, join("cpu ", precision), {}, [&](int64_t done, int64_t all) {
    bytes_read = all;
    if (progress) progress(done, 2 * all);
  });

  // The matrices first, each of a multiple of 64 bytes, then ever narrower numbers: all are aligned.
  std::vector<TensorInfo> written = file.tensors();
  uint64_t total = 0;
  for (TensorInfo& t : written) {
    if (const auto w = model->matrices().find(t.name); w != model->matrices().end()) {
      t.dtype = DType::u8, t.shape = {int64_t(w->second.bytes.size())};
    } else {
      RWKV_CHECK(ModelFormatError, is_float(t.dtype) && t.dtype != DType::f64, file.path(), ": ", shown(t.name),
                 ": expected numbers as f32, f16 or bf16, found ", name_of(t.dtype));
    }
    total += uint64_t(t.count()) * size_of(t.dtype);
  }
  const auto place = [](const TensorInfo& t) { return t.dtype == DType::u8 ? -8 : -int(size_of(t.dtype)); };
  std::ranges::stable_sort(written, {}, place);
  const std::string header = write_safetensors_header({{kFingerprintKey, model->fingerprint()},
                                                       {kPackedKey, description_of(file, *model, precision)},
                                                       {"format", "pt"}},
                                                      written);

  uint64_t done = 0;
  stream_atomically(path, Access::usual, [&](PieceWriter& out) {
    const auto put = [&](std::span<const std::byte> bytes) {
      out.append(bytes);
      done += bytes.size();
      if (progress) progress(bytes_read + int64_t(double(bytes_read) * double(done) / double(total)), 2 * bytes_read);
    };
    out.append(std::as_bytes(std::span(header)));
    for (const TensorInfo& t : written) {
      if (t.dtype != DType::u8) {
        encode_tensor(file, *file.find(t.name), {t.dtype}, put);
        continue;
      }
      const std::span<const std::byte> bytes = model->matrices().at(t.name).bytes;
      for (size_t at = 0; at < bytes.size(); at += kWritePiece)
        put(bytes.subspan(at, std::min(kWritePiece, bytes.size() - at)));
    }
  });
  // What was written lies in the cache in small pages; who opens the file next reads it into huge ones, if it can be.
  drop_cached(path);
}

}  // namespace rwkv
