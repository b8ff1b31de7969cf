// The header is made in memory, the data streams through a few MiB. The names are those of gguf_names.cpp, the other
// way round, with one float32 tensor for the six mixing vectors of a layer and low-rank factors as (out, in).
#include "model/gguf_write.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <span>

#include "core/bounds.h"
#include "core/error.h"
#include "model/config.h"
#include "model/names.h"

namespace rwkv {
namespace {

constexpr size_t kAlignment = 32;
constexpr int64_t kPiece = 1 << 20;     // elements converted at a time
constexpr uint32_t kContext = 1 << 20;  // the state has no limit; what other writers say

enum Value : uint32_t { u32 = 4, i32 = 5, f32 = 6, text = 8, array = 9 };

struct Target {
  std::string_view name;
  uint32_t number, file_type;
  DType dtype;
  BlockType blocks = BlockType::none;

  int64_t unit() const { return blocks == BlockType::none ? 1 : int64_t(block_elements(blocks)); }
  int64_t unit_bytes() const { return int64_t(blocks == BlockType::none ? size_of(dtype) : block_bytes(blocks)); }
};
constexpr Target kTargets[] = {{"f32", 0, 0, DType::f32},
                               {"f16", 1, 1, DType::f32, BlockType::f16},
                               {"q4_0", 2, 2, DType::f32, BlockType::q4_0},
                               {"q8_0", 8, 7, DType::f32, BlockType::q8_0},
                               {"bf16", 30, 32, DType::bf16}};
constexpr const Target& kFull = kTargets[0];
constexpr const Target& kHalf = kTargets[1];

const Target& target_named(std::string_view name) {
  for (const Target& target : kTargets) {
    if (target.name == name) return target;
  }
  throw Error(join("type: expected f32, f16, bf16, q8_0 or q4_0, found '", name, "'"));
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_text(std::string& out, std::string_view value) {
  put(out, uint64_t(value.size()));
  out += value;
}

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

// One tensor of the new file: views of the model, one after another.
struct Output {
  std::string name;
  std::vector<TensorInfo> parts;
  std::vector<int64_t> shape;  // row-major
  Target target = kFull;
  uint64_t bytes = 0;
};

class Writer {
 public:
  Writer(const Checkpoint& file, const Target& target) : file_(file), config_(read_config(file)), target_(target) {
    RWKV_CHECK(ModelFormatError, config_.version == "7", file.path(), ": this is RWKV-", config_.version,
               "; expected RWKV-7, which is what GGUF files are written for");
    collect();
  }

  void write(const std::string& path, const std::vector<std::string>& tokens,
             const std::function<void(int64_t, int64_t)>& progress) {
    std::string head = header(tokens);
    head.append((kAlignment - head.size() % kAlignment) % kAlignment, '\0');
    int64_t total = 0, done = 0;
    for (const Output& out : outputs_) total += int64_t(out.bytes);
    stream_atomically(path, [&](const PieceWriter& put) {
      put(std::as_bytes(std::span(head)));
      for (const Output& out : outputs_) {
        for (const TensorInfo& part : out.parts) {
          write_part(part, out.target, [&](std::span<const std::byte> bytes) {
            put(bytes);
            done += int64_t(bytes.size());
            if (progress) progress(done, total);
          });
        }
        const std::byte zeros[kAlignment] = {};
        put(std::span(zeros).first((kAlignment - out.bytes % kAlignment) % kAlignment));
      }
    });
  }

 private:
  const TensorInfo& find(const std::string& name) const {
    const TensorInfo* t = file_.find(name);
    RWKV_CHECK(ModelFormatError, t, file_.path(), ": expected the tensor ", name, ", found none of that name");
    RWKV_CHECK(ModelFormatError, t->count() > 0 && is_float(t->dtype) && t->dtype != DType::f64, file_.path(), ": ",
               name, ": expected numbers as f32, f16 or bf16, found ", name_of(t->dtype), " ", shape_text(t->shape));
    return *t;
  }

  void add(const std::string& name, std::vector<TensorInfo> parts, std::vector<int64_t> shape, const Target& target) {
    const int64_t count = int64_t(checked_count(shape).value_or(0));
    outputs_.push_back(
        {name, std::move(parts), std::move(shape), target, uint64_t(count / target.unit() * target.unit_bytes())});
  }
  void vector(const std::string& name, const std::string& official) {
    const TensorInfo& t = find(official);
    add(name, {t}, {t.count()}, kFull);
  }
  void norm(const std::string& name, const std::string& official) {
    for (const char* end : {".weight", ".bias"}) vector(name + end, official + end);
  }
  void matrix(const std::string& name, const std::string& official) {
    const TensorInfo& t = find(official);
    RWKV_CHECK(ModelFormatError, t.shape.size() == 2, file_.path(), ": ", official, ": expected a matrix, found ",
               shape_text(t.shape));
    add(name, {t}, t.shape, t.shape[1] % target_.unit() == 0 ? target_ : kHalf);
  }
  int64_t factor(const std::string& name, const std::string& official) {
    TensorInfo t = find(official);
    RWKV_CHECK(ModelFormatError, t.shape.size() == 2, file_.path(), ": ", official, ": expected a matrix, found ",
               shape_text(t.shape));
    const int64_t rank = t.shape[1];
    std::swap(t.shape[0], t.shape[1]), std::swap(t.stride[0], t.stride[1]);
    add(name, {t}, t.shape, kFull);
    return rank;
  }

  void collect() {
    matrix("token_embd.weight", "emb.weight");
    norm("token_embd_norm", "blocks.0.ln0");
    for (int i = 0; i < config_.n_layer; ++i) block(i);
    norm("output_norm", "ln_out");
    matrix("output.weight", "head.weight");
  }

  void block(int i) {
    const std::string to = join("blk.", i, "."), from = join("blocks.", i, ".");
    const std::string mix = to + "time_mix_", att = from + "att.";
    norm(to + "attn_norm", from + "ln1"), norm(to + "attn_norm_2", from + "ln2");
    std::vector<TensorInfo> lerps;
    for (const char letter : std::string("rwkvag")) lerps.push_back(find(att + "x_" + letter));
    const int64_t width = lerps.front().count();
    for (const TensorInfo& t : lerps)
      RWKV_CHECK(ModelFormatError, t.count() == width, file_.path(), ": ", t.name, ": expected ", width,
                 " numbers, found ", shape_text(t.shape));
    add(mix + "lerp_fused.weight", std::move(lerps), {6, 1, 1, width}, kFull);
    for (const std::string letter : {"w", "a", "v", "g"}) {
      // The first layer has no value residual, but llama.cpp wants tensors of some kind there.
      const std::string source = att + (letter == "v" && i == 0 ? "a" : letter);
      const std::string one = mix + letter;
      if (letter != "g") vector(one + "0.weight", source + "0");
      ranks_[i == 0 || letter != "v" ? letter : "v1"] = factor(one + "1.weight", source + "1");
      factor(one + "2.weight", source + "2");
    }
    for (const std::string name : {"k_k", "k_a", "r_k"}) vector(mix + name + ".weight", att + name);
    for (const std::string name : {"receptance", "key", "value", "output"})
      matrix(mix + name + ".weight", att + name + ".weight");
    norm(mix + "ln", att + "ln_x");
    vector(to + "channel_mix_lerp_k.weight", from + "ffn.x_k");
    matrix(to + "channel_mix_key.weight", from + "ffn.key.weight");
    matrix(to + "channel_mix_value.weight", from + "ffn.value.weight");
  }

  std::string header(const std::vector<std::string>& tokens) const {
    std::string values;
    uint64_t count = 0;
    const auto key = [&](std::string_view name, Value type) {
      put_text(values, name), put(values, uint32_t(type)), ++count;
    };
    const auto number = [&](const std::string& name, int64_t value) { key(name, u32), put(values, uint32_t(value)); };
    const auto string = [&](const std::string& name, std::string_view value) {
      key(name, text), put_text(values, value);
    };
    const std::string arch = "rwkv7.", attention = arch + "attention.";
    string("general.architecture", "rwkv7");
    number("general.file_type", target_.file_type);
    number("general.quantization_version", 2);
    number(arch + "context_length", kContext);
    number(arch + "embedding_length", config_.n_embd);
    number(arch + "block_count", config_.n_layer);
    number(arch + "feed_forward_length", config_.n_ffn);
    number(arch + "wkv.head_size", config_.head_size);
    number(attention + "head_count", 0);
    number(attention + "decay_lora_rank", ranks_.at("w"));
    number(attention + "iclr_lora_rank", ranks_.at("a"));
    number(attention + "value_residual_mix_lora_rank", ranks_.at(config_.n_layer > 1 ? "v1" : "v"));
    number(attention + "gate_lora_rank", ranks_.at("g"));
    key(attention + "layer_norm_epsilon", f32), put(values, 1e-5f);
    if (tokens.empty()) {
      string("tokenizer.ggml.model", "none");
    } else {
      put_vocabulary(tokens, key, number, string, values);
    }

    std::string out = "GGUF";
    put(out, uint32_t(3)), put(out, uint64_t(outputs_.size())), put(out, count);
    out += values;
    uint64_t at = 0;
    for (const Output& tensor : outputs_) {
      put_text(out, tensor.name);
      put(out, uint32_t(tensor.shape.size()));
      for (size_t i = tensor.shape.size(); i-- > 0;) put(out, uint64_t(tensor.shape[i]));
      put(out, tensor.target.number), put(out, at);
      at += (tensor.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    return out;
  }

  template <class Key, class Number, class String>
  void put_vocabulary(const std::vector<std::string>& tokens, Key key, Number number, String string,
                      std::string& values) const {
    constexpr int32_t kNormal = 1, kControl = 3, kUnused = 5;
    RWKV_CHECK(Error, tokens.size() <= size_t(config_.n_vocab), "tokens: expected at most the model's ",
               config_.n_vocab, ", found ", tokens.size());
    const auto count = uint64_t(config_.n_vocab);
    const auto text_of = [&](uint64_t id) { return id < tokens.size() ? std::string_view(tokens[id]) : ""; };
    string("tokenizer.ggml.model", "rwkv");
    key("tokenizer.ggml.tokens", array), put(values, uint32_t(text)), put(values, count);
    for (uint64_t id = 0; id < count; ++id)
      put_text(values, !text_of(id).empty() ? escaped(text_of(id)) : id == 0 ? "<s>" : join("[PAD", id, "]"));
    key("tokenizer.ggml.token_type", array), put(values, uint32_t(i32)), put(values, count);
    for (uint64_t id = 0; id < count; ++id) put(values, !text_of(id).empty() ? kNormal : id == 0 ? kControl : kUnused);
    number("tokenizer.ggml.bos_token_id", 0);
    number("tokenizer.ggml.eos_token_id", 0);
  }

  template <class Put>
  void write_part(const TensorInfo& t, const Target& target, Put put) const {
    std::vector<std::byte> raw, made;
    std::vector<float> values;
    for (int64_t first = 0, all = t.count(); first < all;) {
      const int64_t count = std::min(kPiece, all - first);
      raw.resize(size_t(count) * size_of(t.dtype));
      values.resize(size_t(count));
      made.resize(size_t(count / target.unit() * target.unit_bytes()));
      file_.read(t, first, count, raw.data());
      to_f32(raw.data(), t.dtype, values.size(), values.data());
      const auto odd = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
      RWKV_CHECK(ModelFormatError, odd == values.end(), file_.path(), ": ", t.name, ": expected finite numbers, found ",
                 *odd);
      encode(t, target, values, made.data());
      put(std::span<const std::byte>(made));
      first += count;
    }
  }

  void encode(const TensorInfo& t, const Target& target, const std::vector<float>& values, std::byte* out) const try {
    if (target.blocks != BlockType::none) {
      encode_blocks(target.blocks, values.data(), values.size() / size_t(target.unit()), out);
    } else if (target.dtype == DType::f32) {
      std::ranges::copy(std::as_bytes(std::span(values)), out);
    } else {
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t half = f32_to_bf16(values[i]);
        std::memcpy(out + 2 * i, &half, sizeof half);
      }
    }
  } catch (const Error& error) {
    throw ModelFormatError(join(file_.path(), ": ", t.name, ": ", error.what()));
  }

  const Checkpoint& file_;
  const Config config_;
  const Target& target_;
  std::vector<Output> outputs_;
  std::map<std::string, int64_t> ranks_;
};

}  // namespace

void write_gguf(const Checkpoint& model, const std::string& path, std::string_view type,
                const std::vector<std::string>& tokens, const std::function<void(int64_t, int64_t)>& progress) {
  const Checkpoint named = with_official_names(model);
  Writer(named, target_named(type)).write(path, tokens, progress);
}

}  // namespace rwkv
