// Scales are float16. The formats of 32 elements keep the low halves of bytes for the first 16 elements and the high
// halves for the rest; those of 256 do the same in runs of 32 or 64, with small integer scales per 32 or 16 elements.
#include "core/ggml_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"

namespace rwkv {
namespace {

constexpr size_t kSmall = 32, kLarge = 256;

float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof h);
  return f16_to_f32(h);
}

uint32_t word_at(const uint8_t* p) {
  uint32_t w;
  std::memcpy(&w, p, sizeof w);
  return w;
}

void decode_f16(const uint8_t* p, float* y) { *y = half_at(p); }

// Values 0..15 less 8, times the scale.
void decode_q4_0(const uint8_t* p, float* y) {
  const float d = half_at(p);
  for (size_t i = 0; i < 16; ++i) {
    const int q = p[2 + i];
    y[i] = d * float((q & 15) - 8);
    y[i + 16] = d * float((q >> 4) - 8);
  }
}

// Values 0..15 times the scale, plus the minimum.
void decode_q4_1(const uint8_t* p, float* y) {
  const float d = half_at(p), m = half_at(p + 2);
  for (size_t i = 0; i < 16; ++i) {
    const int q = p[4 + i];
    y[i] = d * float(q & 15) + m;
    y[i + 16] = d * float(q >> 4) + m;
  }
}

// As q4_0 and q4_1 with the fifth bit of element i in bit i of a word.
void decode_q5_0(const uint8_t* p, float* y) {
  const float d = half_at(p);
  const uint32_t high = word_at(p + 2);
  for (size_t i = 0; i < 16; ++i) {
    const int q = p[6 + i];
    y[i] = d * float(((q & 15) | int(high >> i & 1) << 4) - 16);
    y[i + 16] = d * float(((q >> 4) | int(high >> (i + 16) & 1) << 4) - 16);
  }
}

void decode_q5_1(const uint8_t* p, float* y) {
  const float d = half_at(p), m = half_at(p + 2);
  const uint32_t high = word_at(p + 4);
  for (size_t i = 0; i < 16; ++i) {
    const int q = p[8 + i];
    y[i] = d * float((q & 15) | int(high >> i & 1) << 4) + m;
    y[i + 16] = d * float((q >> 4) | int(high >> (i + 16) & 1) << 4) + m;
  }
}

void decode_q8_0(const uint8_t* p, float* y) {
  const float d = half_at(p);
  for (size_t i = 0; i < kSmall; ++i) y[i] = float(int8_t(p[2 + i])) * d;
}

// Scale and minimum of each run of 32 elements: 6 bits each, 16 of them in 12 bytes. The first four have theirs in the
// low six bits of a byte; the last four have four bits in the last bytes and two on top of the first ones.
struct RunScales {
  std::array<float, 8> scale, minimum;
};
RunScales run_scales(const uint8_t* p, float d, float dmin) {
  RunScales out;
  for (size_t i = 0; i < 4; ++i) {
    out.scale[i] = d * float(p[i] & 63);
    out.minimum[i] = dmin * float(p[i + 4] & 63);
    out.scale[i + 4] = d * float((p[i + 8] & 15) | (p[i] >> 2 & 48));
    out.minimum[i + 4] = dmin * float((p[i + 8] >> 4) | (p[i + 4] >> 2 & 48));
  }
  return out;
}

void decode_q4_k(const uint8_t* p, float* y) {
  const RunScales s = run_scales(p + 4, half_at(p), half_at(p + 2));
  const uint8_t* const low = p + 16;
  for (size_t i = 0; i < kLarge; ++i) {
    const size_t run = i / 32;
    const int q = low[run / 2 * 32 + i % 32] >> (run % 2 * 4) & 15;
    y[i] = s.scale[run] * float(q) - s.minimum[run];
  }
}

// As q4_k; bit `run` of byte i % 32 is the fifth bit.
void decode_q5_k(const uint8_t* p, float* y) {
  const RunScales s = run_scales(p + 4, half_at(p), half_at(p + 2));
  const uint8_t *const high = p + 16, *const low = p + 48;
  for (size_t i = 0; i < kLarge; ++i) {
    const size_t run = i / 32;
    const int q = (low[run / 2 * 32 + i % 32] >> (run % 2 * 4) & 15) | (high[i % 32] >> run & 1) << 4;
    y[i] = s.scale[run] * float(q) - s.minimum[run];
  }
}

// In each half of 128 elements: 64 bytes of low halves, 32 bytes of pairs of high bits; a signed scale per 16 elements.
void decode_q6_k(const uint8_t* p, float* y) {
  const uint8_t *const low = p, *const high = p + 128, *const scale = p + 192;
  const float d = half_at(p + 208);
  for (size_t i = 0; i < kLarge; ++i) {
    const size_t half = i / 128, run = i / 32 % 4;
    const int l = low[half * 64 + run % 2 * 32 + i % 32] >> (run / 2 * 4) & 15;
    const int h = high[half * 32 + i % 32] >> (run * 2) & 3;
    y[i] = d * float(int8_t(scale[i / 16])) * float((l | h << 4) - 32);
  }
}

void encode_f16(const float* x, uint8_t* p) {
  const uint16_t h = f32_to_f16(*x);
  RWKV_CHECK(Error, (h & 0x7fff) < 0x7c00, "expected a number that float16 can hold, found ", *x);
  std::memcpy(p, &h, sizeof h);
}

// The value farthest from zero becomes -8, whatever its sign.
void encode_q4_0(const float* x, uint8_t* p) {
  float extreme = 0;
  for (size_t i = 0; i < kSmall; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  const float d = extreme / -8, inverse = d != 0 ? 1 / d : 0;
  encode_f16(&d, p);
  const auto level = [&](float value) { return std::min(15, int(value * inverse + 8.5f)); };
  for (size_t i = 0; i < 16; ++i) p[2 + i] = uint8_t(level(x[i]) | level(x[i + 16]) << 4);
}

void encode_q8_0(const float* x, uint8_t* p) {
  float largest = 0;
  for (size_t i = 0; i < kSmall; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127, inverse = d != 0 ? 1 / d : 0;
  encode_f16(&d, p);
  for (size_t i = 0; i < kSmall; ++i) p[2 + i] = uint8_t(int8_t(std::round(x[i] * inverse)));
}

struct Format {
  std::string_view name;
  size_t elements, bytes;
  void (*decode)(const uint8_t*, float*);
  void (*encode)(const float*, uint8_t*) = nullptr;
};
constexpr Format kFormats[] = {{"none", 1, 1, nullptr},
                               {"f16", 1, 2, decode_f16, encode_f16},
                               {"q4_0", kSmall, 18, decode_q4_0, encode_q4_0},
                               {"q4_1", kSmall, 20, decode_q4_1},
                               {"q5_0", kSmall, 22, decode_q5_0},
                               {"q5_1", kSmall, 24, decode_q5_1},
                               {"q8_0", kSmall, 34, decode_q8_0, encode_q8_0},
                               {"q4_K", kLarge, 144, decode_q4_k},
                               {"q5_K", kLarge, 176, decode_q5_k},
                               {"q6_K", kLarge, 210, decode_q6_k}};

const Format& format_of(BlockType type) {
  RWKV_CHECK(Error, type != BlockType::none && size_t(type) < std::size(kFormats),
             "expected a block format, found number ", int(type));
  return kFormats[size_t(type)];
}

}  // namespace

size_t block_elements(BlockType type) { return format_of(type).elements; }
size_t block_bytes(BlockType type) { return format_of(type).bytes; }
std::string_view name_of(BlockType type) { return format_of(type).name; }

void encode_blocks(BlockType type, const float* src, size_t blocks, void* dst) {
  const Format& format = format_of(type);
  RWKV_CHECK(Error, format.encode, "expected a block format that can be written, found ", format.name);
  auto* p = static_cast<uint8_t*>(dst);
  for (size_t i = 0; i < blocks; ++i) format.encode(src + i * format.elements, p + i * format.bytes);
}

void decode_blocks(BlockType type, const void* src, size_t blocks, float* dst) {
  const Format& format = format_of(type);
  const auto* p = static_cast<const uint8_t*>(src);
  for (size_t i = 0; i < blocks; ++i) format.decode(p + i * format.bytes, dst + i * format.elements);
}

}  // namespace rwkv
