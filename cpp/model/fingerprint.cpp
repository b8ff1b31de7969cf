#include "model/fingerprint.h"

#include <algorithm>
#include <ranges>

#include "core/error.h"
#include "core/sha256.h"

namespace rwkv {

int64_t Fingerprint::position(int64_t i, int64_t count) {
  const int64_t n = samples(count);  // count / n * i without overflow
  return count / n * i + count % n * i / n;
}

void Fingerprint::take(std::span<float> samples, int64_t count, int64_t first, int64_t some, const void* data,
                       DType dtype) {
  const auto before = [&](int64_t element) {  // samples before it
    const auto all = std::views::iota(int64_t(0), Fingerprint::samples(count));
    return *std::ranges::lower_bound(all, element, {}, [&](int64_t i) { return position(i, count); });
  };
  for (int64_t i = before(first), end = before(first + some); i < end; i++)
    to_f32(static_cast<const std::byte*>(data) + size_t(position(i, count) - first) * size_of(dtype), dtype, 1,
           &samples[size_t(i)]);
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
