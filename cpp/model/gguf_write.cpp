// The header is made in memory, the data streams through a few MiB. gguf_tensors.cpp says what there is to write.
#include "model/gguf_write.h"

#include <span>

#include "core/error.h"
#include "model/encode.h"
#include "model/gguf_tensors.h"
#include "model/model.h"
#include "model/names.h"
#include "model/packed.h"

namespace rwkv {
namespace {

constexpr size_t kAlignment = 32;
constexpr uint32_t kContext = 1 << 20;  // the state has no limit; what other writers say

enum Value : uint32_t { u32 = 4, i32 = 5, f32 = 6, text = 8, array = 9 };

struct Target {
  std::string_view name;
  uint32_t number, file_type;
  Encoding encoding;
};
constexpr Target kTargets[] = {{"f32", 0, 0, {DType::f32}},
                               {"f16", 1, 1, {DType::f16}},
                               {"q4_0", 2, 2, {DType::f32, BlockType::q4_0}},
                               {"q8_0", 8, 7, {DType::f32, BlockType::q8_0}},
                               {"bf16", 30, 32, {DType::bf16}}};
constexpr const Target& kFull = kTargets[0];
constexpr const Target& kHalf = kTargets[1];  // of matrices whose rows are no whole blocks

const Target& target_named(std::string_view name) {
  for (const Target& target : kTargets) {
    if (target.name == name) return target;
  }
  throw Error(join("type: expected f32, f16, bf16, q8_0 or q4_0, found '", name, "'"));
}

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// As Python prints it in a bytes literal, which is what llama.cpp reads back.
std::string escaped(std::string_view bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    const auto byte = uint8_t(c);
    if (c == '\\')
      out += "\\\\";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (byte < 0x20 || byte > 0x7e)
      (out += "\\x") += {kDigits[byte >> 4], kDigits[byte & 15]};
    else
      out += c;
  }
  return out;
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_text(std::string& out, std::string_view value) {
  put(out, uint64_t(value.size()));
  out += value;
}

// Keys with their values, in the order in which they come.
class Values {
 public:
  void number(std::string_view name, int64_t value) { key(name, u32), put(bytes_, uint32_t(value)); }
  void real(std::string_view name, float value) { key(name, f32), put(bytes_, value); }
  void string(std::string_view name, std::string_view value) { key(name, text), put_text(bytes_, value); }
  void vocabulary(const std::vector<std::string>& tokens, int n_vocab);

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(std::string_view name, Value type) { put_text(bytes_, name), put(bytes_, uint32_t(type)), ++count_; }
  void list(std::string_view name, Value type, int size) {
    key(name, array), put(bytes_, uint32_t(type)), put(bytes_, uint64_t(size));
  }

  std::string bytes_;
  uint64_t count_ = 0;
};

void Values::vocabulary(const std::vector<std::string>& tokens, int n_vocab) {
  if (tokens.empty()) return string("tokenizer.ggml.model", "none");
  constexpr int32_t kNormal = 1, kControl = 3, kUnused = 5;
  RWKV_CHECK(Error, tokens.size() <= size_t(n_vocab), "tokens: expected at most the model's ", n_vocab, ", found ",
             tokens.size());
  const auto text_of = [&](int id) { return size_t(id) < tokens.size() ? std::string_view(tokens[size_t(id)]) : ""; };
  string("tokenizer.ggml.model", "rwkv");
  list("tokenizer.ggml.tokens", text, n_vocab);
  for (int id = 0; id < n_vocab; ++id)
    put_text(bytes_, !text_of(id).empty() ? escaped(text_of(id)) : id == 0 ? "<s>" : join("[PAD", id, "]"));
  list("tokenizer.ggml.token_type", i32, n_vocab);
  for (int id = 0; id < n_vocab; ++id) put(bytes_, !text_of(id).empty() ? kNormal : id == 0 ? kControl : kUnused);
  number("tokenizer.ggml.bos_token_id", 0);
  number("tokenizer.ggml.eos_token_id", 0);
}

Values values_of(const GgufModel& model, const Config& config, const Target& target,
                 const std::vector<std::string>& tokens) {
  const std::string prefix = model.architecture + ".";
  Values values;
  values.string("general.architecture", model.architecture);
  values.number("general.file_type", target.file_type);
  values.number("general.quantization_version", 2);
  values.number(prefix + "context_length", kContext);
  values.number(prefix + "embedding_length", config.n_embd);
  values.number(prefix + "block_count", config.n_layer);
  values.number(prefix + "vocab_size", config.n_vocab);  // what there is to know of a model without a vocabulary
  values.number(prefix + "feed_forward_length", config.n_ffn);
  values.number(prefix + "wkv.head_size", config.head_size);
  values.number(prefix + "attention.head_count", 0);  // asked for, not used
  values.real(prefix + "attention.layer_norm_epsilon", 1e-5f);
  if (config.version == "6") values.number(prefix + "rescale_every_n_layers", 0);
  for (const auto& [key, size] : model.sizes) values.number(prefix + key, size);
  values.vocabulary(tokens, config.n_vocab);
  return values;
}

const Target& target_of(const GgufTensor& tensor, const Target& large) {
  if (!tensor.large) return kFull;
  return tensor.shape.back() % large.encoding.unit() == 0 ? large : kHalf;
}

uint64_t bytes_of(const GgufTensor& tensor, const Target& large) {
  uint64_t bytes = 0;
  for (const TensorInfo& part : tensor.parts) bytes += target_of(tensor, large).encoding.bytes(part.count());
  return bytes;
}

std::string header_of(const GgufModel& model, const Values& values, const Target& large) {
  std::string out = "GGUF";
  put(out, uint32_t(3)), put(out, uint64_t(model.tensors.size())), put(out, values.count());
  out += values.bytes();
  uint64_t at = 0;
  for (const GgufTensor& tensor : model.tensors) {
    put_text(out, tensor.name);
    put(out, uint32_t(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) put(out, uint64_t(tensor.shape[i]));
    put(out, target_of(tensor, large).number), put(out, at);
    at += aligned(bytes_of(tensor, large));
  }
  out.resize(aligned(out.size()), '\0');
  return out;
}

}  // namespace

void write_gguf(const Checkpoint& opened, const std::string& path, std::string_view type,
                const std::vector<std::string>& tokens, const std::function<void(int64_t, int64_t)>& progress) {
  const Target& large = target_named(type);
  expect_unpacked(opened);
  const Checkpoint file = with_official_names(opened);
  const Config config = read_config(file);
  RWKV_CHECK(ModelFormatError, !config.is_embedding(), file.path(), ": expected a language model for a GGUF file, ",
             "which cannot hold the heads of EmbeddingRWKV; a safetensors file can");
  Model::check(file);
  const GgufModel model = gguf_model(file, config);
  const std::string header = header_of(model, values_of(model, config, large, tokens), large);
  int64_t total = 0, done = 0;
  for (const GgufTensor& tensor : model.tensors) total += int64_t(bytes_of(tensor, large));
  stream_atomically(path, Access::usual, [&](PieceWriter& out) {
    const PutBytes put = [&](std::span<const std::byte> bytes) {
      out.append(bytes);
      done += int64_t(bytes.size());
      if (progress) progress(done, total);
    };
    out.append(std::as_bytes(std::span(header)));
    for (const GgufTensor& tensor : model.tensors) {
      for (const TensorInfo& part : tensor.parts) {
        if (tensor.turned)
          encode_turned(file, part, put);
        else
          encode_tensor(file, part, target_of(tensor, large).encoding, put);
      }
      const std::byte zeros[kAlignment] = {};
      const uint64_t bytes = bytes_of(tensor, large);
      out.append(std::span(zeros).first(aligned(bytes) - bytes));
    }
  });
}

}  // namespace rwkv
