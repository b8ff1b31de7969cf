// Runs a fuzz target without a fuzzer: main() for any LLVMFuzzerTestOneInput.
//   fuzz FILE-OR-FOLDER...                       every file as it is
//   fuzz --sweep FILE...                         every byte changed in turn to several values, and every truncation
//   fuzz --mutate N SEED FILE-OR-FOLDER...       N random changes of the files, the same for the same SEED
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

void run(const Bytes& input) { LLVMFuzzerTestOneInput(input.data(), input.size()); }

void load(const std::filesystem::path& path, std::vector<Bytes>& seeds) {
  if (std::filesystem::is_directory(path)) {
    std::vector<std::filesystem::path> inside;
    for (const auto& entry : std::filesystem::directory_iterator(path)) inside.push_back(entry.path());
    std::sort(inside.begin(), inside.end());
    for (const auto& entry : inside) load(entry, seeds);
    return;
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

size_t sweep(const Bytes& seed) {
  size_t inputs = 0;
  for (size_t at = 0; at < seed.size(); ++at) {
    run(Bytes(seed.begin(), seed.begin() + ptrdiff_t(at)));
    Bytes changed = seed;
    const uint8_t byte = seed[at];
    const uint8_t values[] = {uint8_t(~byte),
                              uint8_t(byte + 1),
                              uint8_t(byte - 1),
                              uint8_t(byte ^ 0x80),
                              uint8_t(byte ^ 4),
                              uint8_t(byte ^ 32),
                              0x00,
                              0xff,
                              '.',
                              '\n',
                              '"',
                              '9'};
    for (const uint8_t value : values) {
      changed[at] = value;
      run(changed);
    }
    inputs += 1 + std::size(values);
  }
  return inputs;
}

class Mutator {
 public:
  Mutator(const std::vector<Bytes>& seeds, uint64_t seed) : seeds_(seeds), random_(seed) {}

  Bytes next() {
    Bytes bytes = seeds_[below(seeds_.size())];
    for (size_t changes = 1 + below(4); changes > 0 && !bytes.empty(); --changes) change(bytes);
    return bytes;
  }

 private:
  size_t below(size_t limit) { return size_t(random_() % std::max<size_t>(limit, 1)); }

  void change(Bytes& bytes) {
    const size_t at = below(bytes.size());
    const auto place = bytes.begin() + ptrdiff_t(at);
    const size_t length = std::min(bytes.size() - at, size_t(1) << below(9));
    switch (below(10)) {
      case 0:
        *place ^= uint8_t(1u << below(8));
        break;
      case 1:
        *place = uint8_t(random_());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(place, place + ptrdiff_t(length));
        break;
      case 4: {
        const Bytes copy(place, place + ptrdiff_t(length));
        bytes.insert(bytes.begin() + ptrdiff_t(below(bytes.size())), copy.begin(), copy.end());
        break;
      }
      case 5: {
        const Bytes& other = seeds_[below(seeds_.size())];
        const size_t from = below(other.size());
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + ptrdiff_t(std::min(from, other.size())), other.end());
        break;
      }
      case 6: {
        const Bytes copy(place, place + ptrdiff_t(length));
        const size_t to = below(bytes.size() - length + 1);
        std::copy(copy.begin(), copy.end(), bytes.begin() + ptrdiff_t(to));
        break;
      }
      case 7:
        binary_number(bytes, at);
        break;
      default:
        decimal_number(bytes, at);
    }
  }

  uint64_t interesting(size_t size) {
    const uint64_t one = 1;
    const uint64_t values[] = {0,
                               1,
                               2,
                               8,
                               255,
                               65535,
                               65536,
                               one << 31,
                               (one << 32) - 1,
                               one << 32,
                               one << 62,
                               (one << 62) + 1,
                               (one << 63) - 1,
                               one << 63,
                               ~one,
                               ~uint64_t(0),
                               size,
                               size - 8,
                               size + 1};
    return values[below(std::size(values))];
  }

  // A little-endian number of 1, 2, 4 or 8 bytes: somewhere extreme, or a step from what it was.
  void binary_number(Bytes& bytes, size_t at) {
    const size_t width = std::min(bytes.size() - at, size_t(1) << below(4));
    uint64_t value = 0;
    for (size_t i = width; i-- > 0;) value = value << 8 | bytes[at + i];
    value = below(2) ? interesting(bytes.size()) : value + below(17) - 8;
    for (size_t i = 0; i < width; ++i) bytes[at + i] = uint8_t(value >> (8 * i));
  }

  // The next number written in digits, as in a JSON header.
  void decimal_number(Bytes& bytes, size_t at) {
    const auto digit = [](uint8_t c) { return c >= '0' && c <= '9'; };
    const auto first = std::find_if(bytes.begin() + ptrdiff_t(at), bytes.end(), digit);
    if (first == bytes.end()) return binary_number(bytes, at);
    const auto last = std::find_if_not(first, bytes.end(), digit);
    const std::string text = std::to_string(interesting(bytes.size()));
    const auto place = bytes.erase(first, last);
    bytes.insert(place, text.begin(), text.end());
  }

  const std::vector<Bytes>& seeds_;
  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const int paths = mode == "--mutate" ? 4 : mode == "--sweep" ? 2 : 1;
  std::vector<Bytes> seeds;
  for (int i = paths; i < argc; ++i) load(argv[i], seeds);
  if (seeds.empty()) {
    std::fprintf(stderr, "expected [--sweep | --mutate N SEED] and files or folders, found no file\n");
    return 2;
  }
  size_t inputs = 0;
  for (const Bytes& seed : seeds) {
    run(seed);
    ++inputs;
    if (mode == "--sweep") inputs += sweep(seed);
  }
  if (mode == "--mutate") {
    Mutator mutator(seeds, std::strtoull(argv[3], nullptr, 10));
    const auto wanted = std::strtoull(argv[2], nullptr, 10);
    for (uint64_t i = 0; i < wanted; ++i, ++inputs) run(mutator.next());
  }
  std::printf("%zu inputs\n", inputs);
}
