// Which container a file is, and its tensors by name; the files of a folder as one.
#include "core/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "core/bounds.h"
#include "core/error.h"
#include "core/folder.h"
#include "core/gguf.h"
#include "core/pth.h"
#include "core/safetensors.h"
#include "core/strided_read.h"
#include "core/text.h"

namespace rwkv {
namespace {

using namespace std::string_view_literals;

// What people pass by mistake, by its first bytes.
struct Known {
  std::string_view magic, what;
};
constexpr Known kRefused[] = {
    {"fmgg"sv, "an rwkv.cpp file"},
    {"\x80\x02\x8a\x0a\x6c\xfc"sv, "a file of torch before 1.6 (load it there and save it again with a newer torch)"},
    {"\x80\x02"sv, "a bare pickle"},
    {"\x80\x04"sv, "a bare pickle"},
    {"\x80\x05"sv, "a bare pickle"},
    {"version https://git-lfs"sv, "a Git LFS pointer (the weights themselves were not downloaded)"},
    {"<"sv, "a web page"},
    {"\x1f\x8b"sv, "a gzip archive"},
    {"7z\xbc\xaf"sv, "a 7z archive"},
};

bool begins_as_safetensors(std::string_view head) {
  // A length of header below 2^40, then the header's brace; the exact bounds are the reader's.
  return head.size() > 8 && head[8] == '{' && head.substr(5, 3) == "\0\0\0"sv;
}

// Exact: the values were divided by the same power of two when the file was written.
void scale(void* values, DType dtype, size_t count, int exponent) {
  auto* bytes = static_cast<std::byte*>(values);
  const size_t width = size_of(dtype);
  RWKV_CHECK(Error, dtype == DType::f32 || dtype == DType::bf16, "expected f32 or bf16 to scale, found ",
             name_of(dtype));
  for (size_t i = 0; i < count; ++i, bytes += width) {
    float value;
    to_f32(bytes, dtype, 1, &value);
    value = std::ldexp(value, exponent);
    const uint16_t half = f32_to_bf16(value);
    dtype == DType::f32 ? std::memcpy(bytes, &value, width) : std::memcpy(bytes, &half, width);
  }
}

}  // namespace

int64_t TensorInfo::count() const {
  int64_t product = 1;
  for (const int64_t n : shape) product *= n;
  return product;
}

bool TensorInfo::contiguous() const {
  if (!parts.empty() || derived) return false;
  if (count() == 0) return true;
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && stride[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

TensorInfo TensorInfo::bytes() const {
  return {.name = name,
          .dtype = DType::u8,
          .shape = {int64_t(packed_bytes)},
          .stride = {1},
          .offset = offset,
          .file = file};
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + ")";
}

Checkpoint::Checkpoint(std::string path, std::vector<File> files, std::string container,
                       std::vector<TensorInfo> tensors, std::map<std::string, std::string> metadata)
    : path_(std::move(path)),
      files_(std::move(files)),
      container_(std::move(container)),
      tensors_(std::move(tensors)),
      metadata_(std::move(metadata)) {
  for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

Checkpoint Checkpoint::open(const std::string& path) { return is_folder(path) ? open_folder(path) : open_file(path); }

Checkpoint Checkpoint::open_folder(const std::string& path) {
  const FolderIndex index = find_model(path);
  std::vector<File> files;
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  std::map<std::string, size_t> where;
  std::string container;
  for (const std::string& name : index.files) {
    Checkpoint part = open_file(path + "/" + name);
    RWKV_CHECK(ModelFormatError, files.empty() || part.container_ == container, part.path_, ": expected a ", container,
               " file like the one before it, found ", part.container_);
    container = part.container_;
    if (files.empty()) metadata = std::move(part.metadata_);
    for (TensorInfo& t : part.tensors_) {
      const auto [other, added] = where.emplace(t.name, files.size());
      RWKV_CHECK(ModelFormatError, added, part.path_, ": expected each tensor once, found ", shown(t.name), " also in ",
                 index.files[other->second]);
      t.file = files.size();
      tensors.push_back(std::move(t));
    }
    RWKV_CHECK(ModelFormatError, tensors.size() <= kMaxTensors, path, ": expected at most ", kMaxTensors,
               " tensors, found more");
    files.push_back(std::move(part.files_.front()));
  }
  for (const auto& [name, file] : index.tensors) {
    const auto found = where.find(name);
    RWKV_CHECK(ModelFormatError, found != where.end() && found->second == file, path, ": expected ", shown(name),
               " in ", index.files[file], ", as the index says, found ",
               found == where.end() ? "it nowhere" : join("it in ", index.files[found->second]));
  }
  metadata.merge(read_folder_config(path));
  return Checkpoint(path, std::move(files), std::move(container), std::move(tensors), std::move(metadata));
}

Checkpoint Checkpoint::open_file(const std::string& path) try {
  File file(path);
  std::string head(size_t(std::min<uint64_t>(file.size(), 32)), '\0');
  file.read(0, head.data(), head.size());
  RWKV_CHECK(ModelFormatError, !head.empty(),
             "expected a PyTorch .pth, a safetensors or a GGUF file, found an empty one");

  if (head.starts_with("PK\x03\x04")) {
    std::vector<TensorInfo> tensors = read_pth_index(file);
    return Checkpoint(path, {std::move(file)}, "pth", std::move(tensors), {});
  }
  if (begins_as_safetensors(head)) {
    std::byte length[8];
    file.read(0, length, sizeof length);
    std::vector<std::byte> header(size_t(safetensors_header_end(length, file.size())));
    file.read(0, header.data(), header.size());
    SafetensorsHeader parsed = parse_safetensors(header, file.size());
    return Checkpoint(path, {std::move(file)}, "safetensors", std::move(parsed.tensors),
                      {parsed.metadata.begin(), parsed.metadata.end()});
  }
  if (head.starts_with("GGUF")) {
    GgufHeader header = read_gguf(file);
    return Checkpoint(path, {std::move(file)}, "gguf", std::move(header.tensors), std::move(header.metadata));
  }
  for (const Known& known : kRefused) {
    RWKV_CHECK(ModelFormatError, !head.starts_with(known.magic),
               "expected a PyTorch .pth, a safetensors or a GGUF file, found ", known.what);
  }
  throw ModelFormatError(join("expected a PyTorch .pth, a safetensors or a GGUF file, found one that begins with '",
                              shown(std::string_view(head).substr(0, 16)), "'"));
} catch (const ModelFormatError& error) {
  throw ModelFormatError(join(path, ": ", error.what()));
}

Checkpoint Checkpoint::with(std::vector<TensorInfo> tensors) const {
  return Checkpoint(path_, files_, container_, std::move(tensors), metadata_);
}

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto at = index_.find(name);
  return at == index_.end() ? nullptr : &tensors_[at->second];
}

void Checkpoint::read(const TensorInfo& tensor, int64_t first, int64_t count, void* dst) const {
  const int64_t all = tensor.count();
  RWKV_CHECK(Error, first >= 0 && count >= 0 && first <= all && count <= all - first, shown(tensor.name),
             ": expected a range within its ", all, " elements, found ", count, " from ", first);
  RWKV_CHECK(Error, tensor.packed.empty(), shown(tensor.name), ": expected numbers, found a matrix packed as ",
             tensor.packed);
  if (count == 0) return;
  if (tensor.derived) return tensor.derived->read(first, count, static_cast<float*>(dst));
  if (!tensor.parts.empty()) return read_joined(tensor, first, count, static_cast<std::byte*>(dst));
  read_strided(files_[tensor.file], tensor, first, count, dst);
  if (tensor.exponent != 0) scale(dst, tensor.dtype, size_t(count), tensor.exponent);
}

std::shared_ptr<const std::byte> Checkpoint::map(const TensorInfo& tensor) const {
  const size_t width = size_of(tensor.dtype);
  const bool plain = tensor.contiguous() && tensor.blocks == BlockType::none && tensor.exponent == 0;
  if (!plain || tensor.count() == 0 || tensor.offset % width != 0) return nullptr;
  return files_[tensor.file].map(tensor.offset, size_t(tensor.count()) * width, MapUse::some);
}

std::shared_ptr<const std::byte> Checkpoint::map_file(const TensorInfo& tensor) const {
  const File& file = files_[tensor.file];
  return file.map(0, size_t(file.size()), MapUse::all);
}

// Whole indices of the axes before the joined one, as many as fit a block, of which only what was asked for is kept.
void Checkpoint::read_joined(const TensorInfo& tensor, int64_t first, int64_t count, std::byte* dst) const {
  constexpr int64_t kBlock = int64_t(1) << 20;  // bytes
  const auto width = int64_t(size_of(tensor.dtype));
  int64_t outer = 1;
  for (size_t i = 0; i < tensor.joined; ++i) outer *= tensor.shape[i];
  const int64_t row = tensor.count() / outer, end = first + count;
  const int64_t step = std::max<int64_t>(1, kBlock / (row * width));
  std::vector<std::byte> block, piece;
  for (int64_t at = first / row; at * row < end; at += step) {
    const int64_t rows = std::min(step, (end + row - 1) / row - at);
    block.resize(size_t(rows * row * width));
    int64_t offset = 0;
    for (const TensorInfo& part : tensor.parts) {
      const int64_t run = part.count() / outer;
      piece.resize(size_t(rows * run * width));
      read(part, at * run, rows * run, piece.data());
      for (int64_t i = 0; i < rows; ++i)
        std::memcpy(&block[size_t((i * row + offset) * width)], &piece[size_t(i * run * width)], size_t(run * width));
      offset += run;
    }
    const int64_t from = std::max(first, at * row), to = std::min(end, (at + rows) * row);
    std::memcpy(dst + (from - first) * width, &block[size_t((from - at * row) * width)], size_t((to - from) * width));
  }
}

}  // namespace rwkv
