// A random model of any version and size, written as safetensors.
#pragma once
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/safetensors.h"

namespace tiny {

struct Shape {
  int layers = 2, heads = 2, head_size = 16, ffn = 96, vocab = 40, rank = 8;
  rwkv::DType dtype = rwkv::DType::f32;
  std::string version = "7";
};
inline const char* const kVersions[] = {"4", "5.0", "5.1", "5.2", "6", "7", "7a"};

class Model {
 public:
  explicit Model(const Shape& s, unsigned seed = 1) : shape_(s), random_(seed) {
    const int64_t c = s.heads * s.head_size, f = s.ffn;
    add("emb.weight", {s.vocab, c}, 0.5f);
    norm("blocks.0.ln0", c), norm("ln_out", c);
    for (int i = 0; i < s.layers; i++) {
      const std::string block = rwkv::join("blocks.", i, "."), att = block + "att.", ffn = block + "ffn.";
      norm(block + "ln1", c), norm(block + "ln2", c);
      for (const char* q : {"receptance", "key", "value", "output"}) add(att + q + ".weight", {c, c}, 0.8f / float(c));
      add(ffn + "key.weight", {f, c}, 0.2f), add(ffn + "value.weight", {c, f}, 0.1f);
      if (s.version != "4") norm(att + "ln_x", c);
      s.version.starts_with("7") ? rwkv7(i, att, ffn, c) : older(att, ffn, c);
    }
    add("head.weight", {s.vocab, c}, 0.4f);
  }

  // Every value of the named tensor.
  void fill(const std::string& name, float value) {
    for (size_t i = 0; i < tensors_.size(); i++)
      if (tensors_[i].name == name) std::fill(values_[i].begin(), values_[i].end(), value);
  }

  std::string write(const std::string& path) const {
    std::ofstream out(path, std::ios::binary);
    const std::string header = rwkv::write_safetensors_header({}, tensors_);
    out.write(header.data(), std::streamsize(header.size()));
    for (const auto& values : values_) {
      if (shape_.dtype == rwkv::DType::f32) {
        out.write(reinterpret_cast<const char*>(values.data()), std::streamsize(values.size() * 4));
      } else {
        for (float v : values) {
          const uint16_t h = rwkv::f32_to_bf16(v);
          out.write(reinterpret_cast<const char*>(&h), 2);
        }
      }
    }
    return path;
  }

 private:
  void rwkv7(int layer, const std::string& att, const std::string& ffn, int64_t c) {
    const Shape& s = shape_;
    for (const char* q : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) add(att + q, {1, 1, c}, 0.3f, 0.5f);
    for (const char* q : {"w", "a", "v", "g"}) {
      if (layer == 0 && *q == 'v') continue;
      if (*q != 'g') add(att + q + "0", {1, 1, c}, 0.5f);
      add(att + q + "1", {c, s.rank}, 0.2f);
      add(att + q + "2", {s.rank, c}, 0.2f);
    }
    add(att + "k_k", {1, 1, c}, 0.1f, 0.85f), add(att + "k_a", {1, 1, c}, 0.1f, 1);
    add(att + "r_k", {s.heads, s.head_size}, 0.1f);
    add(ffn + "x_k", {1, 1, c}, 0.3f, 0.5f);
    if (s.version != "7a") return;
    add(ffn + "s_emb.weight", {s.vocab, s.rank * s.rank}, 0.5f),
        add(ffn + "s_emb_x.weight", {s.rank * s.rank, c}, 0.2f);
    add(ffn + "s0", {1, 1, s.ffn}, 0.1f, 1), add(ffn + "s1", {c, s.rank}, 0.2f), add(ffn + "s2", {s.rank, s.ffn}, 0.1f);
  }
  void older(const std::string& att, const std::string& ffn, int64_t c) {
    const Shape& s = shape_;
    const bool v6 = s.version == "6", gated = s.version > "5.0";
    const std::string mix = v6 ? "time_maa_" : "time_mix_";
    for (const char* q : {"r", "k", "v", "g", "w", "x"})
      if (*q < 'k' ? gated : *q < 'w' || v6) add(att + mix + q, {1, 1, c}, 0.3f, 0.5f);
    for (const char* q : {"k", "r"}) add(ffn + mix + q, {1, 1, c}, 0.3f, 0.5f);
    add(ffn + "receptance.weight", {c, c}, 0.2f);
    if (gated) add(att + "gate.weight", {c, c}, 0.2f);
    std::vector<int64_t> each = {s.heads, s.head_size};  // 5.2 and 6
    if (s.version == "4") each = {c};
    if (s.version == "5.0" || s.version == "5.1") each = {s.heads};
    add(att + "time_decay", v6 ? std::vector<int64_t>{1, 1, c} : each, 0.5f);
    add(att + (gated ? "time_faaaa" : "time_first"), each, 0.3f);
    if (!v6) return;
    add(att + "time_maa_w1", {c, 5 * s.rank}, 0.2f), add(att + "time_maa_w2", {5, s.rank, c}, 0.2f);
    add(att + "time_decay_w1", {c, s.rank}, 0.2f), add(att + "time_decay_w2", {s.rank, c}, 0.2f);
  }
  void norm(const std::string& name, int64_t c) {
    add(name + ".weight", {c}, 0.1f, 1), add(name + ".bias", {c}, 0.05f);
  }
  void add(const std::string& name, std::vector<int64_t> shape, float scale, float mean = 0) {
    rwkv::TensorInfo t;
    t.name = name, t.dtype = shape_.dtype, t.shape = std::move(shape);
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float>& v = values_.emplace_back(size_t(t.count()));
    for (float& x : v) x = normal(random_);
    tensors_.push_back(std::move(t));
  }

  Shape shape_;
  std::mt19937 random_;
  std::vector<rwkv::TensorInfo> tensors_;
  std::vector<std::vector<float>> values_;
};

// A file that disappears with the test.
class TempFile {
 public:
  explicit TempFile(const std::string& name)
      : path_((std::filesystem::temp_directory_path() / rwkv::join("rwkv-", rwkv::process_id(), "-", name)).string()) {}
  ~TempFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  operator const std::string&() const { return path_; }

 private:
  std::string path_;
};

}  // namespace tiny
