// GGUF files: the block formats against values worked out by hand, strided views of blocks, and the official names of
// both versions, whose every element is compared with the one it must come from.
#include "core/gguf.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "core/error.h"
#include "core/ggml_blocks.h"
#include "model/names.h"

namespace fs = std::filesystem;
using namespace rwkv;

namespace {

template <class T>
std::string bytes_of(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string text(const std::string& value) { return bytes_of(uint64_t(value.size())) + value; }

struct Stored {
  std::string name;
  std::vector<uint64_t> shape;  // as in the file: the contiguous dimension first
  uint32_t type = 0;
  std::string data = {};  // empty: 0, 1, 2, ... as float32, or float16 for type 1
};

uint64_t count_of(const std::vector<uint64_t>& shape) {
  uint64_t n = 1;
  for (uint64_t d : shape) n *= d;
  return n;
}

// Whole numbers up to 2047 and their halves of halves, which float16 holds.
uint16_t to_f16(float value) {
  if (value == 0) return 0;
  int exponent;
  const float fraction = std::frexp(value, &exponent);
  return uint16_t(((exponent + 14) << 10) + int(fraction * 2048) - 1024);
}

std::string file_of(const std::string& architecture, uint32_t head_size, uint32_t rescale,
                    std::vector<Stored> tensors) {
  std::string out = "GGUF" + bytes_of(uint32_t(3)) + bytes_of(uint64_t(tensors.size())) + bytes_of(uint64_t(3));
  out += text("general.architecture") + bytes_of(uint32_t(8)) + text(architecture);
  out += text(architecture + ".wkv.head_size") + bytes_of(uint32_t(4)) + bytes_of(head_size);
  out += text(architecture + ".rescale_every_n_layers") + bytes_of(uint32_t(4)) + bytes_of(rescale);
  std::string data;
  for (Stored& t : tensors) {
    for (uint64_t i = 0; t.data.size() < count_of(t.shape) * (t.type == 1 ? 2 : 4) && t.type < 2; ++i)
      t.data += t.type == 1 ? bytes_of(to_f16(float(i))) : bytes_of(float(i));
    data.append((32 - data.size() % 32) % 32, '\0');
    out += text(t.name) + bytes_of(uint32_t(t.shape.size()));
    for (uint64_t d : t.shape) out += bytes_of(d);
    out += bytes_of(t.type) + bytes_of(uint64_t(data.size()));
    data += t.data;
  }
  out.append((32 - out.size() % 32) % 32, '\0');
  return out + data;
}

struct Opened {
  explicit Opened(const std::string& bytes)
      : path((fs::temp_directory_path() / join("rwkv-gguf-test-", process_id())).string()) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  }
  ~Opened() { fs::remove(path); }
  Checkpoint named() const { return with_official_names(Checkpoint::open(path)); }
  std::string path;
};

std::vector<float> all(const Checkpoint& file, const TensorInfo& t) {
  std::vector<std::byte> raw(size_t(t.count()) * size_of(t.dtype));
  file.read(t, 0, t.count(), raw.data());
  std::vector<float> out(size_t(t.count()));
  to_f32(raw.data(), t.dtype, out.size(), out.data());
  return out;
}

std::vector<float> decoded(BlockType type, std::string block) {
  CHECK(block.size() == block_bytes(type));
  std::vector<float> out(block_elements(type));
  decode_blocks(type, block.data(), 1, out.data());
  return out;
}

// The tensor of that official name has that shape, and element i is number at(i) of the stored one.
template <class At>
void expect(const Checkpoint& file, const std::string& name, const std::vector<int64_t>& shape, At at) {
  const TensorInfo* t = file.find(name);
  CHECK(t);
  if (!t) return check::fail(__FILE__, __LINE__, "no " + name);
  if (t->shape != shape) return check::fail(__FILE__, __LINE__, name + ": " + shape_text(t->shape));
  const std::vector<float> values = all(file, *t);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] != at(int64_t(i))) return check::fail(__FILE__, __LINE__, join(name, "[", i, "] = ", values[i]));
  }
}

const auto same = [](int64_t i) { return float(i); };
// Element i of a (rows, cols) view of what is stored as (cols, rows).
auto turned(int64_t rows, int64_t cols) {
  return [=](int64_t i) { return float(i % cols * rows + i / cols); };
}

}  // namespace

TEST(blocks_of_32) {
  const std::string half = bytes_of(uint16_t(0x3800)), two = bytes_of(uint16_t(0x4000));  // 0.5, 2
  std::string low, signs;
  for (int i = 0; i < 16; ++i) low += char(i | (15 - i) << 4);
  for (int i = 0; i < 32; ++i) signs += char(i * 8 - 128);
  const std::string high = bytes_of(uint32_t(0x80000003));
  const auto q8 = decoded(BlockType::q8_0, two + signs);
  const auto q4_0 = decoded(BlockType::q4_0, half + low), q4_1 = decoded(BlockType::q4_1, half + two + low);
  const auto q5_0 = decoded(BlockType::q5_0, half + high + low);
  const auto q5_1 = decoded(BlockType::q5_1, half + two + high + low);
  for (int i = 0; i < 32; ++i) {
    const size_t k = size_t(i);
    const int q = i < 16 ? i : 31 - i;
    const int fifth = i < 2 || i == 31 ? 16 : 0;
    CHECK(q8[k] == float(i * 8 - 128) * 2);
    CHECK(q4_0[k] == float(q - 8) / 2);
    CHECK(q4_1[k] == float(q) / 2 + 2);
    CHECK(q5_0[k] == float(q + fifth - 16) / 2);
    CHECK(q5_1[k] == float(q + fifth) / 2 + 2);
  }
}

TEST(blocks_of_256) {
  // Scale 1 + run and minimum 2 * run for each run of 32, those of the last four above 15 to use their upper bits.
  const auto scale = [](int run) { return 1 + run + (run >= 4 ? 32 : 0); };
  const auto minimum = [](int run) { return 2 * run + (run >= 4 ? 16 : 0); };
  std::string packed(12, '\0');
  for (int i = 0; i < 4; ++i) {
    packed[size_t(i)] = char(scale(i) | scale(i + 4) >> 4 << 6);
    packed[size_t(i) + 4] = char(minimum(i) | minimum(i + 4) >> 4 << 6);
    packed[size_t(i) + 8] = char((scale(i + 4) & 15) | (minimum(i + 4) & 15) << 4);
  }
  const auto value = [](int i) { return (i * 7 + i / 32) % 32; };
  std::string low(128, '\0'), high(32, '\0');
  for (int i = 0; i < 256; ++i) {
    low[size_t(i / 64 * 32 + i % 32)] |= char((value(i) & 15) << (i / 32 % 2 * 4));
    high[size_t(i % 32)] |= char(value(i) >> 4 << (i / 32));
  }
  const std::string one = bytes_of(uint16_t(0x3c00)), half = bytes_of(uint16_t(0x3800));
  const auto q4 = decoded(BlockType::q4_k, one + half + packed + low);
  const auto q5 = decoded(BlockType::q5_k, one + half + packed + high + low);
  std::string low6(128, '\0'), high6(64, '\0'), scales;
  const auto six = [](int i) { return (i * 11 + i / 16) % 64; };
  for (int i = 0; i < 256; ++i) {
    const int half128 = i / 128, run = i / 32 % 4;
    low6[size_t(half128 * 64 + run % 2 * 32 + i % 32)] |= char((six(i) & 15) << (run / 2 * 4));
    high6[size_t(half128 * 32 + i % 32)] |= char(six(i) >> 4 << (run * 2));
  }
  for (int i = 0; i < 16; ++i) scales += char(i * 16 - 128);
  const auto q6 = decoded(BlockType::q6_k, low6 + high6 + scales + half);
  for (int i = 0; i < 256; ++i) {
    const size_t k = size_t(i);
    const float s = float(scale(i / 32)), m = float(minimum(i / 32)) / 2;
    CHECK(q4[k] == s * float(value(i) & 15) - m);
    CHECK(q5[k] == s * float(value(i)) - m);
    CHECK(q6[k] == float(i / 16 * 16 - 128) / 2 * float(six(i) - 32));
  }
}

TEST(float16_is_rounded_to_nearest_even) {
  for (uint32_t h = 0; h < 0x7c00; ++h) {
    const float value = f16_to_f32(uint16_t(h)), next = h + 1 < 0x7c00 ? f16_to_f32(uint16_t(h + 1)) : 65536.0f;
    const float middle = (value + next) / 2;
    CHECK(f32_to_f16(value) == h && f32_to_f16(-value) == (h | 0x8000));
    CHECK(f32_to_f16(middle) == h + (h & 1));
    CHECK(f32_to_f16(std::nextafter(middle, 0.0f)) == h && f32_to_f16(std::nextafter(middle, 1e9f)) == h + 1);
  }
  CHECK(f32_to_f16(INFINITY) == 0x7c00 && f32_to_f16(-1e30f) == 0xfc00 && std::isnan(f16_to_f32(f32_to_f16(NAN))));
}

TEST(ranges_of_blocks) {
  // 8 rows of 64 in Q8_0 with scale 1: any range of it, and of its transpose, is that part of the whole.
  std::string data;
  for (int block = 0; block < 16; ++block) {
    data += bytes_of(uint16_t(0x3c00));
    for (int i = 0; i < 32; ++i) data += char(block * 37 + i * 5);
  }
  const Opened file(
      file_of("rwkv7", 4, 0, {{"blk.1.time_mix_w1.weight", {64, 8}, 8, data}, {"output.weight", {64, 8}, 8, data}}));
  const Checkpoint named = file.named();
  for (const TensorInfo& t : named.tensors()) {
    const std::vector<float> whole = all(named, t);
    for (int64_t first = 0; first < 512; first += 13) {
      for (int64_t count = 0; first + count <= 512; count += 29) {
        std::vector<float> part(static_cast<size_t>(count));
        named.read(t, first, count, part.data());
        CHECK(std::equal(part.begin(), part.end(), whole.begin() + first));
      }
    }
  }
  const auto turned_back = all(named, *named.find("blocks.1.att.w1")), head = all(named, *named.find("head.weight"));
  for (size_t i = 0; i < 512; ++i) {
    CHECK(head[i] == float(int8_t(i / 32 * 37 + i % 32 * 5)));
    CHECK(turned_back[i % 64 * 8 + i / 64] == head[i]);
  }
}

TEST(names_of_version_7) {
  std::vector<Stored> tensors = {{"token_embd.weight", {8, 5}}, {"token_embd_norm.weight", {8}},
                                 {"token_embd_norm.bias", {8}}, {"output_norm.weight", {8}},
                                 {"output_norm.bias", {8}},     {"output.weight", {8, 5}}};
  for (const std::string b : {"blk.0.", "blk.1."}) {
    for (const char* name :
         {"attn_norm.weight", "attn_norm.bias", "attn_norm_2.weight", "attn_norm_2.bias", "time_mix_ln.weight",
          "time_mix_ln.bias", "time_mix_w0.weight", "time_mix_a0.weight", "time_mix_v0.weight", "time_mix_k_k.weight",
          "time_mix_k_a.weight", "time_mix_r_k.weight", "channel_mix_lerp_k.weight"})
      tensors.push_back({b + name, {8}});
    for (const char* name : {"w1", "a1", "v1", "g1"}) tensors.push_back({b + "time_mix_" + name + ".weight", {8, 3}});
    for (const char* name : {"w2", "a2", "v2", "g2"}) tensors.push_back({b + "time_mix_" + name + ".weight", {3, 8}});
    for (const char* name : {"receptance", "key", "value", "output"})
      tensors.push_back({b + "time_mix_" + name + ".weight", {8, 8}});
    tensors.push_back({b + "time_mix_lerp_fused.weight", {8, 1, 1, 6}});
    tensors.push_back({b + "channel_mix_key.weight", {8, 12}});
    tensors.push_back({b + "channel_mix_value.weight", {12, 8}});
  }
  const Opened file(file_of("rwkv7", 4, 0, tensors));
  const Checkpoint named = file.named();
  expect(named, "emb.weight", {5, 8}, same), expect(named, "head.weight", {5, 8}, same);
  for (const char* name : {"blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias"})
    expect(named, name, {8}, same);
  size_t seen = 6;
  for (const std::string b : {"blocks.0.", "blocks.1."}) {
    for (const char* name : {"ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "att.ln_x.weight", "att.ln_x.bias",
                             "att.w0", "att.a0", "att.k_k", "att.k_a", "ffn.x_k"})
      expect(named, b + name, {8}, same), ++seen;
    expect(named, b + "att.r_k", {2, 4}, same), ++seen;
    for (size_t i = 0; i < 6; ++i)
      expect(
          named, b + "att.x_" + "rwkvag" [i], { 1, 1, 8 }, [=](int64_t k) { return float(i * 8) + float(k); }),
          ++seen;
    for (const char* name : {"att.w1", "att.a1", "att.g1"}) expect(named, b + name, {8, 3}, turned(8, 3)), ++seen;
    for (const char* name : {"att.w2", "att.a2", "att.g2"}) expect(named, b + name, {3, 8}, turned(3, 8)), ++seen;
    for (const char* name : {"att.receptance", "att.key", "att.value", "att.output"})
      expect(named, b + name + ".weight", {8, 8}, same), ++seen;
    expect(named, b + "ffn.key.weight", {12, 8}, same), expect(named, b + "ffn.value.weight", {8, 12}, same), seen += 2;
  }
  expect(named, "blocks.1.att.v0", {8}, same), expect(named, "blocks.1.att.v1", {8, 3}, turned(8, 3));
  expect(named, "blocks.1.att.v2", {3, 8}, turned(3, 8));
  CHECK(!named.find("blocks.0.att.v0") && !named.find("blocks.0.att.v1") && !named.find("blocks.0.att.v2"));
  CHECK(named.tensors().size() == seen + 3);
}

TEST(names_of_version_6) {
  std::vector<Stored> tensors = {{"token_embd.weight", {8, 5}}};
  const std::string b = "blk.0.";
  tensors.push_back({b + "time_mix_lerp_fused.weight", {8, 1, 1, 5}});
  tensors.push_back({b + "time_mix_w1.weight", {8, 10}});
  tensors.push_back({b + "time_mix_w2.weight", {2, 8, 5}});
  tensors.push_back({b + "time_mix_decay_w1.weight", {8, 3}});
  tensors.push_back({b + "time_mix_decay_w2.weight", {3, 8}});
  tensors.push_back({b + "time_mix_first.weight", {4, 2}});
  for (const char* name : {"time_mix_lerp_x", "time_mix_decay", "channel_mix_lerp_k", "channel_mix_lerp_r"})
    tensors.push_back({b + name + ".weight", {8}});
  for (const char* name : {"time_mix_gate", "channel_mix_receptance"})
    tensors.push_back({b + name + ".weight", {8, 8}});
  // An older file has its five vectors one by one.
  for (const char letter : std::string("wkvrg"))
    tensors.push_back({std::string("blk.1.time_mix_lerp_") + letter + ".weight", {8}});
  const Opened file(file_of("rwkv6", 4, 0, tensors));
  const Checkpoint named = file.named();
  const std::string a = "blocks.0.att.";
  for (size_t i = 0; i < 5; ++i) {
    expect(named, a + "time_maa_" + "wkvrg" [i], { 1, 1, 8 }, [=](int64_t k) { return float(i * 8) + float(k); });
    expect(named, std::string("blocks.1.att.time_maa_") + "wkvrg" [i], { 8 }, same);
  }
  expect(named, a + "time_maa_w1", {8, 10}, turned(8, 10));
  expect(named, a + "time_maa_w2", {5, 2, 8}, [](int64_t i) {
    const int64_t part = i / 16, row = i / 8 % 2, col = i % 8;
    return float(part * 16 + col * 2 + row);
  });
  expect(named, a + "time_decay_w1", {8, 3}, turned(8, 3)), expect(named, a + "time_decay_w2", {3, 8}, turned(3, 8));
  expect(named, a + "time_faaaa", {2, 4}, same);
  for (const char* name : {"att.time_maa_x", "att.time_decay", "ffn.time_maa_k", "ffn.time_maa_r"})
    expect(named, std::string("blocks.0.") + name, {8}, same);
  expect(named, a + "gate.weight", {8, 8}, same), expect(named, "blocks.0.ffn.receptance.weight", {8, 8}, same);
  CHECK(named.tensors().size() == 1 + 5 + 5 + 11);
}

TEST(rescaling_is_undone) {
  std::vector<Stored> tensors;
  for (const char* block : {"blk.0.", "blk.1.", "blk.2.", "blk.5."}) {
    tensors.push_back({std::string(block) + "time_mix_output.weight", {8, 8}, 1});
    tensors.push_back({std::string(block) + "channel_mix_value.weight", {8, 8}, 0});
    tensors.push_back({std::string(block) + "time_mix_key.weight", {8, 8}, 1});
  }
  std::string brain;  // bf16
  for (int i = 0; i < 64; ++i) brain += bytes_of(f32_to_bf16(float(i)));
  tensors.push_back({"blk.4.time_mix_output.weight", {8, 8}, 30, brain});
  const Opened file(file_of("rwkv6", 4, 2, tensors));
  const Checkpoint named = file.named();
  const auto scaled = [&](int block, float factor) {
    const auto times = [=](int64_t i) { return factor * float(i); };
    expect(named, join("blocks.", block, ".att.output.weight"), {8, 8}, times);
    expect(named, join("blocks.", block, ".ffn.value.weight"), {8, 8}, times);
    expect(named, join("blocks.", block, ".att.key.weight"), {8, 8}, same);
  };
  scaled(0, 1), scaled(1, 1), scaled(2, 2), scaled(5, 4);
  expect(named, "blocks.4.att.output.weight", {8, 8}, [](int64_t i) { return 4 * float(i); });
  CHECK(named.find("blocks.4.att.output.weight")->dtype == DType::bf16);
  CHECK(named.find("blocks.0.att.output.weight")->dtype == DType::f16);
  // Version 7 has no such key; one of the other version says nothing.
  const Opened seven(file_of("rwkv7", 4, 1, {{"blk.3.time_mix_output.weight", {8, 8}}}));
  expect(seven.named(), "blocks.3.att.output.weight", {8, 8}, same);
  const Opened absurd(file_of("rwkv6", 4, 1, {{"blk.65.time_mix_output.weight", {8, 8}}}));
  CHECK_THROWS(absurd.named(), ModelFormatError, "at most 64 halvings, found 65");
}

TEST(shapes_of_views) {
  const auto refused = [](const std::string& name, std::vector<uint64_t> shape, const char* words) {
    const Opened file(file_of("rwkv7", 4, 0, {{name, shape}}));
    CHECK_THROWS(file.named(), ModelFormatError, words);
  };
  refused("blk.0.time_mix_lerp_fused.weight", {8, 1, 1, 5}, "6 rows, found (5, 1, 1, 8)");
  refused("blk.0.time_mix_lerp_fused.weight", {8, 2, 1, 6}, "6 rows, found (6, 1, 2, 8)");
  refused("blk.0.time_mix_lerp_fused.weight", {6}, "6 rows, found (6)");
  refused("blk.0.time_mix_w1.weight", {24}, "a matrix, found (24)");
  refused("blk.0.time_mix_r_k.weight", {7}, "head size 4, found (7)");
  const Opened odd(file_of("rwkv7", 4, 0,
                           {{"blk.99999999999.attn_norm.bias", {8}}, {"blk.-1.attn_norm.bias", {8}}, {"blk..x", {8}}}));
  CHECK(odd.named().find("blk.99999999999.attn_norm.bias") && odd.named().find("blk.-1.attn_norm.bias"));
}

CHECK_MAIN
