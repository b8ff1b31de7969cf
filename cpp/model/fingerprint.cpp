#include "model/fingerprint.h"

#include "core/error.h"
#include "core/sha256.h"

namespace rwkv {

int64_t Fingerprint::position(int64_t i, int64_t count) {
  const int64_t n = samples(count);  // count / n * i without overflow
  return count / n * i + count % n * i / n;
}

void Fingerprint::take(std::vector<float>& samples, int64_t count, int64_t first, int64_t some, const void* data,
                       DType dtype) {
  while (int64_t(samples.size()) < Fingerprint::samples(count)) {
    const int64_t at = position(int64_t(samples.size()), count);
    if (at >= first + some) break;
    to_f32(static_cast<const std::byte*>(data) + size_t(at - first) * size_of(dtype), dtype, 1,
           &samples.emplace_back());
  }
}

void Fingerprint::add(const std::string& name, const std::vector<int64_t>& shape, std::span<const float> samples) {
  // Dimensions of one say nothing: containers store (1, 1, C) and (C) for the same vector.
  std::vector<int64_t> squeezed;
  for (int64_t d : shape)
    if (d != 1) squeezed.push_back(d);
  Sha256 hash;
  const std::string head = join(name, "\n", shape_text(squeezed), "\n");
  hash.update(head.data(), head.size());
  hash.update(samples.data(), samples.size_bytes());
  tensors_[name] = hash.hex();
}

std::string Fingerprint::hex(const Config& c) const {
  Sha256 hash;
  const std::string head = join("rwkv fingerprint 1\n", c.version, " ", c.n_layer, " ", c.n_embd, " ", c.n_head, " ",
                                c.head_size, " ", c.n_ffn, " ", c.n_vocab, "\n");
  hash.update(head.data(), head.size());
  for (const auto& [name, digest] : tensors_) hash.update(digest.data(), digest.size());
  return hash.hex();
}

}  // namespace rwkv
