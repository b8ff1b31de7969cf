// Model files: the zip directory, the restricted pickle machine, the bounds of .pth tensors, recognising containers and
// reading strided tensors.
#include "core/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "check.h"
#include "core/error.h"
#include "core/pickle.h"
#include "core/pth.h"
#include "core/safetensors.h"
#include "core/zip.h"

namespace fs = std::filesystem;
using namespace rwkv;
using namespace std::string_literals;

namespace {

std::string number(uint64_t value, int width) {
  std::string out;
  for (int i = 0; i < width; ++i) out += char(i < 8 ? value >> (8 * i) & 0xff : 0);
  return out;
}

struct Entry {
  std::string name, payload;
  // What the directory says instead of the truth.
  int64_t size = -1;
  int64_t start = -1;
  uint16_t method = 0;
  uint16_t flags = 0x0808;
  std::string local_name = name;
};

std::string zip(const std::vector<Entry>& entries, const std::string& comment = "", int extra_count = 0) {
  std::string out, directory;
  for (const Entry& e : entries) {
    const size_t start = e.start >= 0 ? size_t(e.start) : out.size();
    const size_t size = e.size >= 0 ? size_t(e.size) : e.payload.size();
    out += "PK\3\4"s + number(0, 2) + number(e.flags, 2) + number(e.method, 2) + number(0, 16) +
           number(e.local_name.size(), 2) + number(3, 2) + e.local_name + "xyz" + e.payload;
    directory += "PK\1\2"s + number(0, 4) + number(e.flags, 2) + number(e.method, 2) + number(0, 8) + number(size, 4) +
                 number(size, 4) + number(e.name.size(), 2) + number(0, 12) + number(start, 4) + e.name;
  }
  const uint64_t count = uint64_t(int(entries.size()) + extra_count);
  return out + directory + "PK\5\6"s + number(0, 4) + number(count, 2) + number(count, 2) +
         number(directory.size(), 4) + number(out.size(), 4) + number(comment.size(), 2) + comment;
}

// pickle opcodes
std::string text(const std::string& value) { return "X" + number(value.size(), 4) + value; }
std::string integer(int64_t value) { return "\x8a\x08"s + number(uint64_t(value), 8); }
std::string numbers(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (const int64_t value : values) out += integer(value);
  return out + "t";
}
std::string view(const std::string& type, const std::string& key, int64_t elements, int64_t offset,
                 const std::vector<int64_t>& shape, const std::vector<int64_t>& stride) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + "ctorch\n" + type + "Storage\n" + text(key) +
         text("cpu") + integer(elements) + "tQ" + integer(offset) + numbers(shape) + numbers(stride) +
         "\x89"
         "ccollections\nOrderedDict\n)RtR";
}
std::string dict(const std::string& items) { return "}(" + items + "u"; }
std::string pickle(const std::string& value) { return "\x80\x02" + value + "."; }

std::string storage_of(size_t size) {
  std::string out;
  for (size_t i = 0; i < size; ++i) out += char(i * 37 + i / 256);
  return out;
}

std::string write(const std::string& bytes) {
  const std::string path = (fs::temp_directory_path() / join("rwkv-checkpoint-test-", process_id())).string();
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

// The file is open by the time its name is removed.
struct Opened {
  explicit Opened(const std::string& bytes) : checkpoint(open(bytes)) {}
  Checkpoint checkpoint;

 private:
  static Checkpoint open(const std::string& bytes) {
    struct Removed {
      std::string path;
      ~Removed() { fs::remove(path); }
    } file{write(bytes)};
    return Checkpoint::open(file.path);
  }
};

std::string pth(const std::string& data_pkl, size_t storage_size = 64) {
  return zip({{"m/data.pkl", data_pkl}, {"m/byteorder", "little"}, {"m/data/0", storage_of(storage_size)}});
}
std::string one(const std::string& tensor) { return pth(pickle(dict(text("w") + tensor))); }

}  // namespace

TEST(pth_tensors_are_found) {
  const std::string items = text("w") + view("Float", "0", 16, 2, {2, 3}, {3, 1}) + text("p") +
                            "ctorch._utils\n_rebuild_parameter\n" + view("BFloat16", "0", 32, 0, {4, 8}, {1, 4}) +
                            "\x88)\x87R" + text("step") + integer(3) + text("n") + "N" + text("list") + "](K\1K\2e" +
                            text("scalar") + view("Long", "0", 8, 7, {}, {}) + text("none") +
                            view("Half", "0", 32, 32, {0, 5}, {5, 1});
  for (const std::string& value :
       {dict(items), "ccollections\nOrderedDict\n)R(" + items + "u}" + text("_metadata") + "Nsb",
        dict(text("epoch") + "K\1" + text("state_dict") + dict(items))}) {
    const Opened file(pth(pickle(value)));
    const Checkpoint& checkpoint = file.checkpoint;
    CHECK(checkpoint.container() == "pth" && checkpoint.tensors().size() == 4 && !checkpoint.find("step"));
    const TensorInfo* w = checkpoint.find("w");
    const TensorInfo* p = checkpoint.find("p");
    CHECK(w && w->dtype == DType::f32 && w->contiguous() && w->count() == 6 && shape_text(w->shape) == "(2, 3)");
    CHECK(p && p->dtype == DType::bf16 && !p->contiguous() && p->offset + 8 == w->offset);
    std::string got(24, '\0'), expected = storage_of(64).substr(8, 24);
    checkpoint.read(*w, 0, 6, got.data());
    CHECK(got == expected);
    checkpoint.read(*w, 4, 1, got.data());
    CHECK(got.substr(0, 4) == expected.substr(16, 4));
    CHECK(checkpoint.find("scalar")->count() == 1 && checkpoint.find("none")->count() == 0);
    CHECK_THROWS(checkpoint.read(*w, 4, 3, got.data()), Error, "within its 6 elements");
    CHECK_THROWS(checkpoint.read(*w, -1, 1, got.data()), Error, "within its 6 elements");
    CHECK_THROWS(checkpoint.read(*w, INT64_MAX, INT64_MAX, got.data()), Error, "within its 6 elements");
  }
}

TEST(pth_tensors_stay_in_their_storage) {
  CHECK(Opened(one(view("Float", "0", 16, 15, {1}, {1}))).checkpoint.tensors().size() == 1);
  const int64_t half = int64_t(1) << 32;
  const struct {
    std::string tensor;
    const char* message;
  } bad[] = {
      {view("Float", "0", 17, 0, {1}, {1}), "expected a storage of 17 f32 values, found 64 bytes"},
      {view("Double", "0", INT64_MAX, 0, {1}, {1}), "expected a storage of 9223372036854775807 f64"},
      {view("Float", "1", 16, 0, {1}, {1}), "m/data/1 in the zip archive, found none"},
      {view("Float", "../data.pkl", 1, 0, {1}, {1}), "found none"},
      {view("Float", "0", 16, 16, {1}, {1}), "reaches outside its storage"},
      {view("Float", "0", 16, 17, {0}, {1}), "reaches outside its storage"},
      {view("Float", "0", 16, 0, {2, 2}, {15, 1}), "reaches outside its storage"},
      {view("Float", "0", 16, 0, {half, half}, {0, 0}), "reaches outside its storage"},
      {view("Float", "0", 16, 0, {3, 3}, {INT64_MAX, INT64_MAX}), "reaches outside its storage"},
      {view("Float", "0", 16, INT64_MAX, {2, 2}, {INT64_MAX, 1}), "reaches outside its storage"},
      {view("Float", "0", 16, 0, {17}, {0}), "repeating them"},
      {view("Float", "0", 16, -1, {1}, {1}), "a storage offset of 0 or more, found -1"},
      {view("Float", "0", 16, 0, {-1}, {1}), "a shape of 0 or more"},
      {view("Float", "0", 16, 0, {1}, {-1}), "strides of 0 or more"},
      {view("Float", "0", -16, 0, {1}, {1}), "a storage's size of 0 or more"},
      {view("Float", "0", 16, 0, {1, 1}, {1}), "as many strides"},
      {view("Float", "0", 16, 0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}), "at most 8 dimensions"},
      {view("ComplexFloat", "0", 1, 0, {1}, {1}), "torch.ComplexFloatStorage, which is not allowed"},
  };
  for (const auto& [tensor, message] : bad) CHECK_THROWS(Opened(one(tensor)), ModelFormatError, message);

  std::string shared;
  for (int i = 0; i < 40; ++i)
    shared += text(join("w", i)) + (i ? "h\1"s : view("Float", "0", 16000, 0, {16000}, {1}) + "q\1");
  CHECK_THROWS(Opened(pth(pickle(dict(shared)), 64000)), ModelFormatError, "more than 8 times as large as the file");
}

TEST(pickles_can_do_nothing_else) {
  const auto read = [](const std::string& bytes) { return read_pickled_state_dict(bytes); };
  const std::string w = text("w") + view("Float", "0", 16, 0, {1}, {1});
  CHECK(read(pickle(dict(w))).size() == 1);
  // As protocol 4 says it: frames, short texts, numbers of the memo by counting.
  CHECK(
      read("\x80\x04\x95"s + number(99, 8) + "}\x94(\x8c\1a\x94" + view("Half", "0", 1, 0, {}, {}) + "h\1Nu.").size() ==
      1);
  const struct {
    std::string bytes;
    const char* message;
  } bad[] = {
      {pickle("cos\nsystem\n" + text("echo owned") + "\x85R"), "os.system, which is not allowed"},
      {pickle(text("os") + text("system") + "\x93"), "os.system, which is not allowed"},
      {pickle("cbuiltins\neval\n"), "builtins.eval, which is not allowed"},
      {pickle("c\n\n"), "which is not allowed"},
      {pickle("ctorch"), "found no end of it"},
      {pickle("}\x81"), "found number 129"},                // NEWOBJ
      {pickle("(cos\nsystem\no"), "os.system"},             // OBJ
      {pickle("(S'x'\nios\nsystem\n"), "found number 83"},  // STRING, INST
      {pickle("\x82\1"), "found number 130"},               // EXT1
      {pickle("ctorch\nFloatStorage\n)R"), "found it called"},
      {pickle("ccollections\nOrderedDict\n](K\1e\x85R"), "an empty OrderedDict"},
      {pickle("K\1)R"), "expected a known function"},
      {pickle("K\1Q"), "expected a reference to a storage"},
      {pickle("ctorch._utils\n_rebuild_parameter\nNNN\x87R"), "expected a tensor"},
      {pickle("ctorch._utils\n_rebuild_tensor_v2\n)R"), "expected 6 arguments for a tensor, found 0"},
      {pickle(dict(text("w") + "ctorch._utils\n_rebuild_tensor\n(NK\0K\0K\0tR"s)),
       "expected a tensor made of a storage"},
      {pickle("R"), "expected a value on the stack"},
      {pickle("(R"), "expected a value on the stack"},
      {pickle("K\1(a"), "expected a value on the stack"},
      {pickle("}t"), "expected a mark"},
      {pickle("K\1(\x85"), "too few"},
      {pickle("}(K\1u"), "expected a dict with keys and values"},
      {pickle("(u"), "expected a dict with keys and values"},
      {pickle("]K\1K\1s"), "expected a dict to put values into"},
      {pickle("}K\1a"), "expected a list"},
      {pickle("K\1}b"), "expected attributes of a dict"},
      {pickle("h\5"), "was never set"},
      {pickle("}r\xff\xff\xff\xff"), "memo number below"},
      {pickle("}r\x0a\0\0\0"s), "memo number below 9, found 10"},
      {pickle("X\xff\xff\xff\xff"), "expected 4294967295 more bytes"},
      {pickle(text("\xff")), "UTF-8"},
      {pickle(""), "found 0 values"},
      {pickle("}}"), "found 2 values"},
      {pickle("}") + "x", "1 more bytes"},
      {pickle("K\1"), "expected a dict of tensors"},
      {"\x80\x02}", "more bytes, found 0"},
      {"\x80\x01}.", "protocol 2 to 5, found 1"},
      {"}.", "another beginning"},
      {"", "another beginning"},
  };
  for (const auto& [bytes, message] : bad) CHECK_THROWS(read(bytes), ModelFormatError, message);
  // A dict that is its own state dict, and tuples that double at every step, are values like others.
  CHECK(read(pickle("}q\1" + text("state_dict") + "h\1s")).empty());
  std::string doubling = "K\1";
  for (int i = 0; i < 200; ++i) doubling += "q\1h\1\x86";
  CHECK(read(pickle("}" + text("x") + doubling + "s")).empty());
  CHECK_THROWS(read(pickle("N" + std::string(100000, '\x85'))), ModelFormatError, "more values than");
  CHECK_THROWS(read(pickle(std::string(100000, '}'))), ModelFormatError, "more values than");
}

TEST(pth_lists_hold_nothing_but_tensors) {
  const auto list = [](const std::string& value) {
    const std::string path = write(pth(pickle(value)));
    struct Removed {
      std::string path;
      ~Removed() { fs::remove(path); }
    } removed{path};
    return PthList(path);
  };
  const std::string w = view("Float", "0", 16, 2, {2, 3}, {3, 1}), turned = view("Float", "0", 16, 2, {3, 2}, {1, 3});
  for (const std::string& value : {"](" + w + turned + "e", "]" + w + "a" + turned + "a", w + turned + "\x86",
                                   "](" + w + "e(" + turned + "e", "(" + w + turned + "t"}) {
    const PthList found = list(value);
    CHECK(found.tensors().size() == 2 && found.tensors()[1].name == "[1]");
    const auto whole = found.read(0), columns = found.read(1);
    std::vector<float> expected(6);
    std::memcpy(expected.data(), storage_of(64).data() + 8, 24);
    CHECK(whole == expected);
    CHECK(columns[1] == expected[3] && columns[2] == expected[1] && columns[5] == expected[5]);
  }
  const struct {
    std::string value;
    const char* message;
  } bad[] = {
      {"]", "found no tensor"},
      {")", "found no tensor"},
      {"}", "expected a list of tensors"},
      {"N", "expected a list of tensors"},
      {dict(text("w") + w), "expected a list of tensors"},
      {w, "expected a list of tensors"},
      {"](" + w + "Ne", "nothing but tensors"},
      {"](" + w + "]e", "nothing but tensors"},
      {"]q\1" + w + "ah\1a", "nothing but tensors"},
      {w + "K\1\x86", "nothing but tensors"},
      {"](" + w + "e](" + w + "e", "found 2 values"},
      {"](" + view("Float", "0", 16, 12, {2, 3}, {3, 1}) + "e", "[0]: the shape (2, 3)"},
      {"](" + w + view("Float", "1", 16, 2, {2, 3}, {3, 1}) + "e", "[1]: expected its storage"},
      {"(a", "expected a value"},
      {"N" + w + "a", "expected a list to append to"},
  };
  for (const auto& [value, message] : bad) CHECK_THROWS(list(value), ModelFormatError, message);
  std::string many = "](" + view("Float", "0", 16, 0, {0}, {1}) + "q\1";
  for (int i = 0; i < 511; ++i) many += "h\1";
  CHECK(list(many + "e").tensors().size() == 512);
  CHECK_THROWS(list(many + "h\1e"), ModelFormatError, "at most 512 tensors");
}

TEST(zip_directories_are_proven) {
  const auto names = [](const std::string& bytes) {
    const std::string path = write(bytes);
    struct Removed {
      std::string path;
      ~Removed() { fs::remove(path); }
    } removed{path};
    return read_zip_directory(File(path)).size();
  };
  CHECK(names(zip({{"b", "1"}, {"a", ""}, {"c", "333"}})) == 3);
  CHECK(names(zip({{"a", "1"}}, "a comment with PK\5\6 in it, long enough for a record")) == 1);
  CHECK(names(zip({})) == 0);
  const struct {
    std::string bytes;
    const char* message;
  } bad[] = {
      {zip({{"a", "1"}, {"a", "2"}}), "found a twice"},
      {zip({{"a", "1", -1, -1, 8}}), "compressed one (method 8)"},
      {zip({{"a", "1", -1, -1, 0, 0x0809}}), "an encrypted one"},
      {zip({{"a", "1", 2}, {"b", "2"}}), "overlap"},
      {zip({{"a", "1", 1000}}), "expected 1000 bytes"},
      {zip({{"a", "1", 0xffffffff}}), "expected a zip64 field"},
      {zip({{"a", "1"}, {"a", "1", -1, 0}}), "overlap"},
      {zip({{"a", "1", -1, 3}}), "expected its local zip header at byte 3"},
      {zip({{"a", "1", -1, 5000}}), "found it at byte 5000"},
      {zip({{"a", "1", -1, -1, 0, 0x0808, "b"}}), "expected its local zip header"},
      {zip({{"a", "1", -1, -1, 0, 0}}), "found 0 in its local header"},
      {zip({{"a", "1"}}, "", 1), "expected 2 entries"},
      {"junk" + zip({{"a", "1"}}), "expected the zip directory to end"},
      {zip({{"a", "1"}}) + "x", "it was cut short"},
      {zip({{"a", "1"}}).substr(0, 40), "it was cut short"},
      {"PK\3\4", "found a file of 4 bytes"},
  };
  for (const auto& [bytes, message] : bad) CHECK_THROWS(names(bytes), ModelFormatError, message);
}

TEST(archives_must_be_checkpoints) {
  const std::string good = pickle(dict(text("w") + view("Byte", "0", 1, 0, {1}, {1})));
  CHECK_THROWS(Opened(zip({{"m/data", "x"}})), ModelFormatError, "found none");
  CHECK_THROWS(Opened(zip({{"m/data.pkl", good}, {"n/data.pkl", good}})), ModelFormatError, "expected one data.pkl");
  CHECK_THROWS(Opened(zip({{"m/data.pkl", good}, {"m/byteorder", "big"}, {"m/data/0", "x"}})), ModelFormatError,
               "byte order 'big'");
  CHECK_THROWS(Opened(pth(pickle("}"))), ModelFormatError, "found no tensor");
  const std::string w = text("w") + view("Byte", "0", 1, 0, {1}, {1});
  CHECK_THROWS(Opened(pth(pickle(dict(w + w)))), ModelFormatError, "found w twice");
}

TEST(containers_are_told_by_their_content) {
  TensorInfo tensor;
  tensor.name = "w", tensor.dtype = DType::u8, tensor.shape = {3};
  const Opened file(write_safetensors_header({{"k", "v"}}, {tensor}) + "abc");
  std::string got(2, '\0');
  file.checkpoint.read(*file.checkpoint.find("w"), 1, 2, got.data());
  CHECK(got == "bc" && file.checkpoint.container() == "safetensors" && file.checkpoint.metadata().at("k") == "v");
  const struct {
    std::string bytes;
    const char* message;
  } bad[] = {
      {"", "found an empty one"},
      {"GGUF\3\0\0\0"s, "GGUF header: expected 8 bytes"},
      {"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "found a file of torch before 1.6"},
      {"\x80\x04}.", "found a bare pickle"},
      {"<!DOCTYPE html>", "found a web page"},
      {"version https://git-lfs.github.com/spec/v1", "were not downloaded"},
      {"\xff\xff\xff\xff\xff\xff\xff\xff{}", "begins with '\\xff"},
      {"\x10\0\0\0\0\0\0\0{}"s, "a safetensors header of 16 bytes, found a file of 10"},
      {"PK", "begins with 'PK'"},
  };
  for (const auto& [bytes, message] : bad) CHECK_THROWS(Opened(bytes), ModelFormatError, message);
}

// Every reading of a strided tensor against the definition: element i is where the strides say.
TEST(strided_tensors_are_read_in_any_pieces) {
  const struct {
    std::vector<int64_t> shape, stride;
  } views[] = {
      {{6, 5}, {5, 1}},
      {{6, 5}, {1, 6}},
      {{6, 5}, {7, 1}},
      {{6, 5}, {2, 12}},
      {{4, 3, 5}, {1, 4, 12}},
      {{4, 3, 5}, {5, 20, 1}},
      {{1, 7, 1}, {9, 3, 1}},
      {{2, 3, 2, 3}, {1, 2, 18, 6}},
      {{3, 2}, {100, 30}},
      {{}, {}},
      {{4, 0}, {1, 1}},
      {{5}, {13}},
      {{1000, 500}, {1, 1000}},
      {{300, 7, 200}, {7, 1, 2100}},
      {{40, 3}, {20000, 1}},
      {{30, 4}, {15000, 5000}},
      {{3, 2, 4}, {4, 100000, 1}},
      {{1 << 22, 2}, {1, 1 << 22}},
  };
  std::mt19937 random(1);
  for (const auto& v : views) {
    const size_t width = v.shape.size() == 2 && v.shape[0] > 1000 ? 1 : size_t(1) << random() % 3;
    const DType dtype = width == 1 ? DType::u8 : width == 2 ? DType::i16 : DType::f32;
    uint64_t elements = 1;
    for (size_t i = 0; i < v.shape.size(); ++i)
      elements += uint64_t(std::max<int64_t>(v.shape[i] - 1, 0) * v.stride[i]);
    const std::string storage = storage_of(elements * width);
    const std::string type = width == 1 ? "Byte" : width == 2 ? "Short" : "Float";
    const Opened file(
        zip({{"m/data.pkl", pickle(dict(text("w") + view(type, "0", int64_t(elements), 0, v.shape, v.stride)))},
             {"m/data/0", storage}}));
    const TensorInfo& tensor = file.checkpoint.tensors()[0];
    CHECK(tensor.dtype == dtype);
    const int64_t count = tensor.count();
    std::string expected;
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, at = 0;
      for (size_t axis = v.shape.size(); axis-- > 0; rest /= v.shape[axis]) at += rest % v.shape[axis] * v.stride[axis];
      expected += storage.substr(size_t(at) * width, width);
    }
    const auto same = [&](int64_t first, int64_t some) {
      std::string got(size_t(some) * width + 2, '#');
      file.checkpoint.read(tensor, first, some, got.data() + 1);
      return got == "#" + expected.substr(size_t(first) * width, size_t(some) * width) + "#";
    };
    CHECK(same(0, count));
    for (int i = 0; i < 50; ++i) {
      const int64_t first = int64_t(random() % uint64_t(count + 1));
      CHECK(same(first, int64_t(random() % uint64_t(count - first + 1))));
    }
  }
}

CHECK_MAIN
