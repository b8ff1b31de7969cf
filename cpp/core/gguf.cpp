// Read from front to back through a small buffer. Every length is compared with what is left of the file before it is
// used, so what is kept can never be larger than a small multiple of the file.
#include "core/gguf.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "core/bounds.h"
#include "core/error.h"
#include "core/text.h"

namespace rwkv {
namespace {

constexpr uint64_t kMaxKey = 65535, kMaxTensorName = 1024;
constexpr uint64_t kMaxText = 16 << 20;   // one string
constexpr uint64_t kMaxTexts = 16 << 20;  // strings of one array
constexpr uint64_t kMaxVocabulary = 1 << 20;
constexpr int kMaxDepth = 4;  // of arrays in arrays
constexpr uint32_t kMaxDims = 4;
constexpr uint32_t kDefaultAlignment = 32, kMaxAlignment = 1 << 20;
constexpr const char *kTokens = "tokenizer.ggml.tokens", *kTokenTypes = "tokenizer.ggml.token_type";

enum ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };
constexpr std::array<uint8_t, 13> kValueBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: no fixed size
constexpr std::array<const char*, 13> kValueNames = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                     "int32",  "float32", "bool",   "string", "array",
                                                     "uint64", "int64",   "float64"};

struct TensorType {
  uint32_t number;
  DType dtype;
  BlockType blocks = BlockType::none;
};
constexpr TensorType kTensorTypes[] = {
    {0, DType::f32},
    {1, DType::f16},
    {2, DType::f32, BlockType::q4_0},
    {3, DType::f32, BlockType::q4_1},
    {6, DType::f32, BlockType::q5_0},
    {7, DType::f32, BlockType::q5_1},
    {8, DType::f32, BlockType::q8_0},
    {12, DType::f32, BlockType::q4_k},
    {13, DType::f32, BlockType::q5_k},
    {14, DType::f32, BlockType::q6_k},
    {24, DType::i8},
    {25, DType::i16},
    {26, DType::i32},
    {27, DType::i64},
    {28, DType::f64},
    {30, DType::bf16},
};

// Formats that exist but are not decoded, for the message.
struct Known {
  uint32_t number;
  const char* name;
};
constexpr Known kNotDecoded[] = {{9, "Q8_1"},    {10, "Q2_K"},    {11, "Q3_K"},  {15, "Q8_K"},   {16, "IQ2_XXS"},
                                 {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},
                                 {22, "IQ2_S"},  {23, "IQ4_XS"},  {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},
                                 {39, "MXFP4"},  {40, "NVFP4"}};

const TensorType& tensor_type(uint32_t number, std::string_view name) {
  for (const TensorType& type : kTensorTypes) {
    if (type.number == number) return type;
  }
  const auto known = std::ranges::find(kNotDecoded, number, &Known::number);
  throw ModelFormatError(
      join(shown(name), ": expected a tensor type of F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K, found ",
           known == std::end(kNotDecoded) ? join("number ", number) : known->name));
}

class Cursor {
 public:
  explicit Cursor(const File& file) : file_(file) {}

  uint64_t position() const { return at_; }
  uint64_t left() const { return file_.size() - at_; }

  // Proves that `count` things of at least `bytes` bytes each are still to come.
  void expect(uint64_t count, uint64_t bytes, std::string_view what) const {
    const auto all = checked_product(count, bytes);
    RWKV_CHECK(ModelFormatError, all && *all <= left(), shown(what), ": expected ", count,
               bytes == 1 ? " bytes" : " entries", " at byte ", at_, ", found ", left(), " bytes left in the file");
  }

  void skip(uint64_t count, uint64_t bytes, std::string_view what) {
    expect(count, bytes, what);
    at_ += count * bytes;
  }

  template <class T>
  T number(std::string_view what) {
    T value;
    bytes(&value, sizeof value, what);
    return value;
  }

  std::string string(uint64_t most, std::string_view what) {
    std::string value(size_t(length(most, what)), '\0');
    bytes(value.data(), value.size(), what);
    return value;
  }

  void skip_string(std::string_view what) { at_ += length(kMaxText, what); }

 private:
  uint64_t length(uint64_t most, std::string_view what) {
    const uint64_t n = number<uint64_t>(what);
    RWKV_CHECK(ModelFormatError, n <= most, shown(what), ": expected a string of at most ", most, " bytes at byte ",
               at_ - 8, ", found a length of ", n);
    expect(n, 1, what);
    return n;
  }

  void bytes(void* dst, size_t count, std::string_view what) {
    expect(count, 1, what);
    if (count > buffer_.size()) {
      file_.read(at_, dst, count);
    } else if (count > 0) {
      if (at_ < begin_ || at_ + count > end_) {
        begin_ = at_, end_ = at_ + std::min<uint64_t>(buffer_.size(), left());
        file_.read(begin_, buffer_.data(), size_t(end_ - begin_));
      }
      std::memcpy(dst, buffer_.data() + (at_ - begin_), count);
    }
    at_ += count;
  }

  const File& file_;
  uint64_t at_ = 0, begin_ = 0, end_ = 0;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(32 << 10);
};

ValueType value_type(Cursor& in, std::string_view key) {
  const auto type = in.number<uint32_t>(key);
  RWKV_CHECK(ModelFormatError, type < kValueBytes.size(), shown(key), ": expected a value type from 0 to ",
             kValueBytes.size() - 1, ", found ", type);
  return ValueType(type);
}

std::string scalar(Cursor& in, ValueType type, const std::string& key) {
  switch (type) {
    case u8:
      return join(int(in.number<uint8_t>(key)));
    case i8:
      return join(int(in.number<int8_t>(key)));
    case u16:
      return join(in.number<uint16_t>(key));
    case i16:
      return join(in.number<int16_t>(key));
    case u32:
      return join(in.number<uint32_t>(key));
    case i32:
      return join(in.number<int32_t>(key));
    case f32:
      return join(in.number<float>(key));
    case u64:
      return join(in.number<uint64_t>(key));
    case i64:
      return join(in.number<int64_t>(key));
    case f64:
      return join(in.number<double>(key));
    case boolean: {
      const auto value = in.number<uint8_t>(key);
      RWKV_CHECK(ModelFormatError, value <= 1, shown(key), ": expected a bool of 0 or 1, found ", int(value));
      return value ? "true" : "false";
    }
    default:
      break;
  }
  std::string value = in.string(kMaxText, key);
  RWKV_CHECK(ModelFormatError, is_utf8(value), shown(key), ": expected UTF-8, found '", shown(value), "'");
  return value;
}

void skip_array(Cursor& in, const std::string& key, int depth) {
  RWKV_CHECK(ModelFormatError, depth < kMaxDepth, shown(key), ": expected arrays nested at most ", kMaxDepth,
             " deep, found more");
  const ValueType type = value_type(in, key);
  const auto count = in.number<uint64_t>(key);
  if (kValueBytes[type]) return in.skip(count, kValueBytes[type], key);
  in.expect(count, type == text ? 8 : 12, key);
  RWKV_CHECK(ModelFormatError, count <= kMaxTexts, shown(key), ": expected at most ", kMaxTexts, " entries, found ",
             count);
  for (uint64_t i = 0; i < count; ++i) type == text ? in.skip_string(key) : skip_array(in, key, depth + 1);
}

uint64_t vocabulary_array(Cursor& in, ValueType wanted, const std::string& key) {
  const ValueType type = value_type(in, key);
  RWKV_CHECK(ModelFormatError, type == wanted, key, ": expected an array of ", kValueNames[wanted], ", found one of ",
             kValueNames[type]);
  const auto count = in.number<uint64_t>(key);
  in.expect(count, wanted == text ? 8 : kValueBytes[wanted], key);
  RWKV_CHECK(ModelFormatError, count <= kMaxVocabulary, key, ": expected at most ", kMaxVocabulary, " tokens, found ",
             count);
  return count;
}

// The key-values; returns the alignment of the data.
uint32_t read_values(Cursor& in, uint64_t count, GgufHeader& header) {
  constexpr const char* kAlignment = "general.alignment";
  uint32_t alignment = kDefaultAlignment;
  std::set<std::string> arrays;
  for (uint64_t i = 0; i < count; ++i) {
    const std::string key = in.string(kMaxKey, join("key ", i));
    RWKV_CHECK(ModelFormatError, !key.empty() && is_utf8(key), "key ", i, ": expected a name in UTF-8, found '",
               shown(key), "'");
    RWKV_CHECK(ModelFormatError, !header.metadata.contains(key) && !arrays.contains(key),
               "expected each key once, found ", shown(key), " twice");
    const ValueType type = value_type(in, key);
    if (key == kAlignment) {
      RWKV_CHECK(ModelFormatError, type == u32, key, ": expected a uint32, found ", kValueNames[type]);
      alignment = in.number<uint32_t>(key);
      RWKV_CHECK(ModelFormatError, std::has_single_bit(alignment) && alignment <= kMaxAlignment, key,
                 ": expected a power of two up to ", kMaxAlignment, ", found ", alignment);
      header.metadata.emplace(key, join(alignment));
    } else if (type != array) {
      header.metadata.emplace(key, scalar(in, type, key));
    } else {
      arrays.insert(key);
      if (key == kTokens) {
        const uint64_t n = vocabulary_array(in, text, key);
        for (uint64_t k = 0; k < n; ++k) header.tokens.push_back(in.string(kMaxText, key));
      } else if (key == kTokenTypes) {
        const uint64_t n = vocabulary_array(in, i32, key);
        for (uint64_t k = 0; k < n; ++k) header.token_types.push_back(in.number<int32_t>(key));
      } else {
        skip_array(in, key, 0);
      }
    }
  }
  return alignment;
}

struct Placed {
  TensorInfo info;
  uint64_t bytes = 0;
};

// One description. The offset counts from the start of the data, which is not known yet.
Placed read_tensor(Cursor& in, uint64_t index, uint32_t alignment) {
  Placed tensor;
  TensorInfo& t = tensor.info;
  t.name = in.string(kMaxTensorName, join("tensor ", index));
  RWKV_CHECK(ModelFormatError, !t.name.empty() && is_utf8(t.name), "tensor ", index,
             ": expected a name in UTF-8, found '", shown(t.name), "'");
  const auto rank = in.number<uint32_t>(t.name);
  RWKV_CHECK(ModelFormatError, rank >= 1 && rank <= kMaxDims, shown(t.name), ": expected 1 to ", kMaxDims,
             " dimensions, found ", rank);
  t.shape.resize(rank);
  for (uint32_t i = rank; i-- > 0;) {  // the file begins with the contiguous dimension
    const auto n = in.number<uint64_t>(t.name);
    RWKV_CHECK(ModelFormatError, n <= uint64_t(INT64_MAX), shown(t.name), ": dimension ", n, " is too large");
    t.shape[i] = int64_t(n);
  }
  const TensorType& type = tensor_type(in.number<uint32_t>(t.name), t.name);
  t.dtype = type.dtype, t.blocks = type.blocks;
  const bool plain = t.blocks == BlockType::none;
  const uint64_t unit = plain ? 1 : block_elements(t.blocks), width = plain ? size_of(t.dtype) : block_bytes(t.blocks);
  RWKV_CHECK(ModelFormatError, uint64_t(t.shape.back()) % unit == 0, shown(t.name), ": expected rows of whole ",
             name_of(t.blocks), " blocks of ", unit, ", found ", shape_text(t.shape));
  // Counted as float32, which is what blocks become.
  const auto elements = checked_count(t.shape);
  const auto decoded = elements ? checked_product(*elements, std::max<uint64_t>(size_of(t.dtype), 4)) : std::nullopt;
  RWKV_CHECK(ModelFormatError, decoded && *decoded <= uint64_t(INT64_MAX), shown(t.name), ": the shape ",
             shape_text(t.shape), " has more elements than can be counted");
  tensor.bytes = *elements / unit * width;
  t.stride = dense_strides(t.shape);
  t.offset = in.number<uint64_t>(t.name);
  RWKV_CHECK(ModelFormatError, t.offset % alignment == 0, shown(t.name), ": expected an offset that is a multiple of ",
             alignment, ", found ", t.offset);
  return tensor;
}

void place(std::vector<Placed>& tensors, uint64_t data, uint64_t file_size) {
  for (Placed& tensor : tensors) {
    TensorInfo& t = tensor.info;
    const uint64_t room = data <= file_size ? file_size - data : 0;
    RWKV_CHECK(ModelFormatError, t.offset <= room && tensor.bytes <= room - t.offset, shown(t.name), ": expected ",
               tensor.bytes, " bytes at offset ", t.offset, " of the data, found ", room, " bytes of data");
    t.offset += data;
  }
  std::vector<const Placed*> order;
  for (const Placed& tensor : tensors) {
    if (tensor.bytes > 0) order.push_back(&tensor);
  }
  std::ranges::sort(order, {}, [](const Placed* p) { return p->info.offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Placed &before = *order[i - 1], &after = *order[i];
    RWKV_CHECK(ModelFormatError, after.info.offset - before.info.offset >= before.bytes, shown(after.info.name),
               ": expected data of its own, found data that overlaps ", shown(before.info.name));
  }
}

}  // namespace

GgufHeader read_gguf(const File& file) {
  Cursor in(file);
  in.skip(4, 1, "GGUF header");
  const auto version = in.number<uint32_t>("GGUF header");
  const bool swapped = version == 0x02000000 || version == 0x03000000;
  RWKV_CHECK(ModelFormatError, version == 2 || version == 3, "expected a GGUF file of version 2 or 3, found ",
             swapped ? "a big-endian one" : join("version ", version));
  const auto tensor_count = in.number<uint64_t>("GGUF header"), value_count = in.number<uint64_t>("GGUF header");
  RWKV_CHECK(ModelFormatError, tensor_count <= kMaxTensors && value_count <= kMaxTensors, "expected at most ",
             kMaxTensors, " tensors and as many key-values, found ", tensor_count, " and ", value_count);
  constexpr uint64_t kLeastValue = 8 + 1 + 4 + 1, kLeastTensor = 8 + 1 + 4 + 8 + 4 + 8;
  in.expect(value_count, kLeastValue, "key-values");

  GgufHeader header;
  const uint32_t alignment = read_values(in, value_count, header);
  in.expect(tensor_count, kLeastTensor, "tensors");
  std::vector<Placed> tensors;
  std::set<std::string_view> names;
  tensors.reserve(size_t(tensor_count));
  for (uint64_t i = 0; i < tensor_count; ++i) {
    tensors.push_back(read_tensor(in, i, alignment));
    const std::string& name = tensors.back().info.name;
    RWKV_CHECK(ModelFormatError, names.insert(name).second, "expected each tensor once, found ", shown(name), " twice");
  }
  // Cannot overflow: a position in a file is below 2^63.
  place(tensors, (in.position() + alignment - 1) / alignment * alignment, file.size());
  header.tensors.reserve(tensors.size());
  for (Placed& tensor : tensors) header.tensors.push_back(std::move(tensor.info));
  return header;
}

}  // namespace rwkv
