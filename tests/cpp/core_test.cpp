// The floor under everything but the containers: element types, files, pages, SHA-256, JSON, safetensors headers.
#include <sys/resource.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>

#include "check.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/json.h"
#include "core/platform.h"
#include "core/safetensors.h"
#include "core/sha256.h"
#include "core/text.h"

namespace fs = std::filesystem;
using namespace rwkv;

namespace {

// A folder that vanishes with its files.
struct Folder {
  fs::path path = fs::temp_directory_path() / join("rwkv-core-test-", process_id());
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  size_t files() const { return size_t(std::distance(fs::directory_iterator(path), fs::directory_iterator())); }
};

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST(names_and_sizes_of_dtypes) {
  CHECK(name_of(DType::bf16) == "bf16" && name_of(DType::boolean) == "bool" && name_of(DType::i16) == "i16");
  CHECK(size_of(DType::f64) == 8 && size_of(DType::f32) == 4 && size_of(DType::f16) == 2 && size_of(DType::u8) == 1);
}

TEST(f16_is_converted_exactly) {
  CHECK(f16_to_f32(0x3c00) == 1.0f && f16_to_f32(0xc000) == -2.0f && f16_to_f32(0x7bff) == 65504.0f);
  CHECK(f16_to_f32(0x0001) == 0x1p-24f && f16_to_f32(0x83ff) == -1023 * 0x1p-24f && f16_to_f32(0x0400) == 0x1p-14f);
  CHECK(f16_to_f32(0x7c00) == INFINITY && f16_to_f32(0xfc00) == -INFINITY && std::isnan(f16_to_f32(0x7e01)));
  CHECK(std::bit_cast<uint32_t>(f16_to_f32(0x8000)) == 0x80000000);
  for (uint32_t h = 0; h < 0x7c00; ++h) {
    const double expected = std::ldexp(h < 0x400 ? h : 0x400 | (h & 0x3ff), int(h < 0x400 ? 1 : h >> 10) - 25);
    CHECK(f16_to_f32(uint16_t(h)) == float(expected) && f16_to_f32(uint16_t(h | 0x8000)) == float(-expected));
  }
}

TEST(values_become_f32_from_any_address) {
  const uint16_t half[] = {0x3c00, 0xc000};
  const uint16_t brain[] = {0x3f80, 0xc000};
  const double wide[] = {1.0, -2.0};
  const float plain[] = {1.0f, -2.0f};
  const auto convert = [](const void* src, DType dtype) {
    char shifted[1 + 2 * sizeof(double)];
    std::memcpy(shifted + 1, src, 2 * size_of(dtype));
    float out[2];
    to_f32(shifted + 1, dtype, 2, out);
    return out[0] == 1.0f && out[1] == -2.0f;
  };
  CHECK(convert(half, DType::f16) && convert(brain, DType::bf16) && convert(wide, DType::f64));
  CHECK(convert(plain, DType::f32));
  float out[1];
  CHECK_THROWS(to_f32(plain, DType::i32, 1, out), Error, "found i32");
}

TEST(only_regular_files_open) {
  const Folder folder;
  CHECK_THROWS(File(""), Error, "empty");
  CHECK_THROWS(File(folder / "absent"), Error, "no such file");
  CHECK_THROWS(File(folder / "absent" + std::string("\0x", 2)), Error, "zero byte");
  CHECK_THROWS(File(folder.path.string()), Error, "found a directory");
  CHECK_THROWS(File("/dev/zero"), Error, "found a device");
  CHECK(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CHECK_THROWS(File(folder / "fifo"), Error, "found a fifo");  // and does not wait for a writer
}

TEST(reads_stay_inside_the_file) {
  const Folder folder;
  write_atomically(folder / "a", Access::owner, bytes_of("0123456789"));
  const File file(folder / "a");
  char buffer[8] = {};
  file.read(3, buffer, 4);
  CHECK(file.size() == 10 && std::string(buffer) == "3456");
  file.read(10, buffer, 0);
  CHECK_THROWS(file.read(8, buffer, 3), Error, "expected 3 bytes at byte 8, found a file of 10");
  CHECK_THROWS(file.read(UINT64_MAX, buffer, 2), Error, "expected 2 bytes");
  fs::resize_file(folder / "a", 5);
  CHECK_THROWS(file.read(3, buffer, 4), Error, "ends after 2");
}

TEST(files_are_replaced_whole_or_not_at_all) {
  const Folder folder;
  const std::string path = folder / "state";
  write_atomically(path, Access::owner, bytes_of("first"));
  write_atomically(path, Access::owner, bytes_of("second"));
  CHECK(content(path) == "second" && folder.files() == 1);
  CHECK((fs::status(path).permissions() & fs::perms::all) == (fs::perms::owner_read | fs::perms::owner_write));
  write_atomically(folder / "empty", Access::owner, {});
  CHECK(fs::file_size(folder / "empty") == 0);

  CHECK_THROWS(write_atomically(folder / "none/state", Access::owner, bytes_of("x")), Error, "No such file");
  fs::create_directory(folder / "taken");
  CHECK_THROWS(write_atomically(folder / "taken", Access::owner, bytes_of("x")), Error, "cannot rename");

  // A full disk, as far as a test may go: no file of this process may grow over 4096 bytes.
  rlimit before;
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{4096, before.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  CHECK_THROWS(write_atomically(path, Access::owner, bytes_of(std::string(10000, 'x'))), Error,
               "4096 of 10000 bytes were written");
  ::setrlimit(RLIMIT_FSIZE, &before);
  CHECK(content(path) == "second" && folder.files() == 3);
}

TEST(what_was_written_can_be_written_over) {
  const Folder folder;
  stream_atomically(folder / "a", Access::usual, [](PieceWriter& out) {
    out.append(bytes_of("header, "));
    out.append(bytes_of("data"));
    out.overwrite(2, bytes_of("AD"));
    out.append(bytes_of("."));
    CHECK_THROWS(out.overwrite(12, bytes_of("xx")), Error, "2 bytes at byte 12 of what was written, found 13");
    CHECK_THROWS(out.overwrite(UINT64_MAX, bytes_of("x")), Error, "found 13");
  });
  CHECK(content(folder / "a") == "heADer, data.");
}

TEST(pages_are_aligned_zeroed_and_refused_by_size) {
  for (const size_t size : {size_t(1), size_t(1) << 21, (size_t(5) << 20) + 3}) {
    const auto pages = map_pages(size);
    CHECK(reinterpret_cast<uintptr_t>(pages.get()) % (size_t(2) << 20) == 0);
    CHECK(pages.get()[0] == std::byte{0} && pages.get()[size - 1] == std::byte{0});
    std::memset(pages.get(), 1, size);
  }
  CHECK_THROWS(map_pages(size_t(1) << 60), DeviceError, "1152921504606846976 bytes");
  CHECK_THROWS(map_pages(SIZE_MAX), DeviceError, "18446744073709551615 bytes");
}

TEST(code_that_is_loaded_while_the_program_runs) {
  const Library c("libc.so.6");
  using Length = size_t (*)(const char*);
  const auto length = reinterpret_cast<Length>(c.find("strlen"));
  CHECK(length && length("four") == 4);
  CHECK(c.find("nothing_of_that_name") == nullptr);
  Folder folder;
  CHECK_THROWS(Library(folder / "absent.so"), Error, "cannot load ");
  CHECK_THROWS(Library(folder / "absent.so"), Error, "No such file");
  write_atomically(folder / "text.so", Access::usual, bytes_of("not code, whatever its name says"));
  CHECK_THROWS(Library(folder / "text.so"), Error, "text.so");
  CHECK_THROWS(Library(""), Error, "found an empty string");

  const std::string here = folder_of(reinterpret_cast<const void*>(&map_pages));
  CHECK(fs::equivalent(fs::path(here), fs::read_symlink("/proc/self/exe").parent_path()));
  CHECK(fs::exists(fs::path(folder_of(c.find("fopen"))) / "libc.so.6"));
  CHECK_THROWS(folder_of(nullptr), Error, "expected the address of code");
}

TEST(sha256_of_known_texts) {
  const auto sha = [](const std::string& text) {
    Sha256 hash;
    hash.update(bytes_of(text));
    return hash.hex();
  };
  CHECK(sha("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(sha(std::string(119, 'a')) == "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb");
  CHECK(sha(std::string(64, 'a')) == "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

TEST(sha256_in_pieces_is_sha256) {
  std::mt19937 random(1);
  std::string text(1000, '\0');
  for (char& c : text) c = char(random());
  Sha256 whole;
  whole.update(bytes_of(text));
  const std::string expected = whole.hex();
  for (size_t step = 1; step < 200; ++step) {
    Sha256 hash;
    for (size_t at = 0; at < text.size(); at += step) hash.update(text.data() + at, std::min(step, text.size() - at));
    CHECK(hash.hex() == expected);
  }
}

TEST(text_is_judged_as_utf8) {
  for (const char* good : {"", "a", "\u00e4", "\u20ac", "\U0001f600", "\uffff", "\U0010ffff"}) CHECK(is_utf8(good));
  for (const char* bad : {"\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80",
                          "\xe2\x82", "\xf0\x9f\x98", "\xff", "\xc3(", "\xe2\x28\xa1"}) {
    CHECK(!is_utf8(bad));
  }
  CHECK(shown("a\n\xff") == "a\\x0a\\xff" && shown(std::string(100, 'x')) == std::string(80, 'x') + "...");
}

TEST(json_takes_what_is_valid) {
  for (const char* text :
       {"{}", "[]", " [ 1 , -2.5e+10 , 0.0 , 1E5, -0 ] ", "{\"a\":{\"b\":[true,false,null]},\"c\":\"\"}", "\"\\u0041\"",
        "123", "[[[]]]", "\"\\ud83d\\ude00\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "{\"\\u0061\":1,\"A\":2}"}) {
    JsonReader json(text);
    json.skip();
    json.finish();
  }
  CHECK(JsonReader("\"\\ud83d\\ude00\\u20ac\\u00e4\\n\\\"\"").string() == "\U0001f600\u20ac\u00e4\n\"");
  CHECK(JsonReader(" 18446744073709551615 ").natural() == UINT64_MAX);
  CHECK(JsonReader(json_quoted("\"\\\n\x01\u00e4\x7f")).string() == "\"\\\n\x01\u00e4\x7f");
  CHECK_THROWS(json_quoted("\xff"), Error, "UTF-8");
}

TEST(json_refuses_what_is_not) {
  for (const char* text : {"",
                           "{",
                           "[",
                           "[1,]",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{\"a\" 1}",
                           "[1 2]",
                           "01",
                           "+1",
                           "1.",
                           ".5",
                           "1e",
                           "-",
                           "tru",
                           "nul",
                           "'a'",
                           "\"a",
                           "\"\n\"",
                           "\"\\x\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "[] x",
                           "[]\n",
                           "{\"a\":1,\"a\":2}",
                           "{\"a\":1,\"\\u0061\":2}",
                           "[{\"b\":1,\"c\":1,\"b\":1}]",
                           "\"\xff\"",
                           "\"\xed\xa0\x80\"",
                           "NaN",
                           "1 1",
                           "]",
                           "\"\\"}) {
    CHECK_THROWS(
        [&] {
          JsonReader json(text);
          json.skip();
          json.finish();
        }(),
        ModelFormatError, "JSON: expected");
  }
  CHECK_THROWS(JsonReader(std::string(100000, '[')).skip(), ModelFormatError, "nesting");
  for (const char* text : {"-1", "1.0", "1e2", "18446744073709551616", "99999999999999999999", "\"1\"", "true"}) {
    CHECK_THROWS(JsonReader(text).natural(), ModelFormatError, "JSON: expected");
  }
}

namespace {

SafetensorsHeader parse(const std::string& json, uint64_t data, uint64_t lie = 0) {
  std::string head;
  for (int i = 0; i < 8; ++i) head += char((json.size() + lie) >> (8 * i) & 0xff);
  head += json;
  return parse_safetensors(bytes_of(head), head.size() + data);
}

}  // namespace

TEST(safetensors_headers_come_back) {
  const std::vector<TensorInfo> tensors = {{"b", DType::f32, {2, 3}, {}, 0},
                                           {"none", DType::i64, {4, 0}, {}, 0},
                                           {"a \"\u00e4\"", DType::bf16, {}, {}, 0},
                                           {"u", DType::boolean, {5}, {}, 0}};
  const std::vector<std::pair<std::string, std::string>> metadata = {{"z", "1"}, {"a", "\n\"\\"}};
  const std::string head = write_safetensors_header(metadata, tensors);
  CHECK(head.size() % 64 == 0 && head.find("{\"__metadata__\":{\"z\":\"1\",\"a\":") == 8);
  const SafetensorsHeader back = parse_safetensors(bytes_of(head), head.size() + 31);
  CHECK(back.metadata == metadata && back.tensors.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    const TensorInfo& tensor = back.tensors[i];
    CHECK(tensor.name == tensors[i].name && tensor.dtype == tensors[i].dtype && tensor.shape == tensors[i].shape);
    CHECK(tensor.contiguous());
  }
  CHECK(back.tensors[0].offset == head.size() && back.tensors[2].offset == head.size() + 24);
  CHECK(back.tensors[3].offset == head.size() + 26);
  CHECK(write_safetensors_header({}, {}).size() == 64);
  CHECK_THROWS(write_safetensors_header({}, {{"__metadata__", DType::f32, {1}, {}, 0}}), Error, "cannot be called");
  CHECK_THROWS(write_safetensors_header({}, {{"a", DType::f32, {INT64_MAX, 4}, {}, 0}}), Error, "too large");
}

TEST(safetensors_headers_are_proven) {
  const char* good = R"({"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},"a":{"shape":[],"data_offsets":[0,4],)"
                     R"("dtype":"F32","extra":[{}]}}  )";
  const SafetensorsHeader header = parse(good, 8);
  CHECK(header.tensors.size() == 2 && header.tensors[0].name == "a" && header.tensors[1].name == "b");
  CHECK_THROWS(parse(good, 9), ModelFormatError, "expected 8 bytes of data");
  CHECK_THROWS(parse(good, 7), ModelFormatError, "expected 8 bytes of data");
  CHECK_THROWS(parse(good, 8, 100), ModelFormatError, "it was cut short");
  CHECK_THROWS(parse(good, 8, uint64_t(1) << 40), ModelFormatError, "at most 100000000");
  CHECK_THROWS(parse(good, 8, ~uint64_t(0) - 500), ModelFormatError, "at most 100000000");

  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "{\"w\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  };
  CHECK(parse(one("F32", "[0,4611686018427387904]", "[0,0]"), 0).tensors[0].count() == 0);
  const struct {
    std::string json;
    const char* message;
  } bad[] = {
      {one("F8_E4M3", "[8]", "[0,8]"), "w: expected a dtype of"},
      {one("F32", "[2]", "[0,4]"), "expected data_offsets 8 bytes apart"},
      {one("F32", "[2]", "[8,0]"), "expected data_offsets 8 bytes apart"},
      {one("F32", "[2]", "[1,9]"), "nothing describes the bytes between"},
      {one("F32", "[2]", "[0,8,8]"), "expected two data_offsets"},
      {one("F32", "[2]", "[0]"), "1 data_offsets"},
      {one("F32", "[-2]", "[0,8]"), "expected an integer"},
      {one("F32", "[2.0]", "[0,8]"), "expected an integer"},
      {one("F32", "[9223372036854775808]", "[0,8]"), "too large"},
      {one("F32", "[4294967296,4294967296]", "[0,0]"), "more elements than can be counted"},
      {one("F32", "[0,4294967296,4294967296]", "[0,0]"), "more elements than can be counted"},
      {one("F32", "[4611686018427387905]", "[0,4]"), "more elements than can be counted"},
      {one("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), "at most 8 dimensions"},
      {one("F32", "2", "[0,8]"), "expected an array"},
      {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", "0 data_offsets"},
      {"{\"w\":[]}", "expected an object"},
      {"[]", "expected an object"},
      {"{\"__metadata__\":{\"a\":1}}", "expected a string"},
      {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", "twice"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       "twice"},
      {R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       "overlaps"},
      {R"({"a":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}})", "twice"},
      {one("U8", "[8]", "[0,8]") + "x", "nothing but spaces"},
  };
  for (const auto& [json, message] : bad) CHECK_THROWS(parse(json, 8), ModelFormatError, message);
}

CHECK_MAIN
