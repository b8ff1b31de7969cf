// What the fuzz targets of model files share: counted memory, the input as a file. To be included by one file of a
// program.
#pragma once
#include <malloc.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <string>

#include "core/error.h"
#include "core/platform.h"

namespace {

std::atomic<size_t> live{0}, peak{0};

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "expected %s\n", what);
  std::abort();
}

}  // namespace

void* operator new(size_t size, const std::nothrow_t&) noexcept {
  void* memory = std::malloc(size);
  const size_t now = live += ::malloc_usable_size(memory);
  if (now > peak) peak = now;
  return memory;
}
void* operator new(size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory) live -= ::malloc_usable_size(memory);
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

namespace {

// In memory where the system has such a folder. Left behind by a crash: it is the input that caused it.
const std::string& input_path() {
  static const std::string path = [] {
    const std::filesystem::path shared = "/dev/shm";
    const auto folder = std::filesystem::is_directory(shared) ? shared : std::filesystem::temp_directory_path();
    return (folder / rwkv::join("rwkv-fuzz-model-", rwkv::process_id())).string();
  }();
  return path;
}

// The input as a file for `body`, which must throw rwkv::Error or nothing, and give back all memory it takes. Besides a
// multiple of the input there is some small change, such as the end of a zip archive.
template <class Body>
void with_input(const uint8_t* data, size_t size, bool bounded, Body body) {
  std::FILE* file = std::fopen(input_path().c_str(), "wb");
  const bool written = file && (size == 0 || std::fwrite(data, 1, size, file) == size) && std::fclose(file) == 0;
  require(written, "the input in a file");
  const size_t before = live;
  peak = before;
  try {
    body(input_path());
  } catch (const rwkv::Error& error) {
    require(error.what()[0] != '\0', "a message");
  }
  require(!bounded || peak - before <= 64 * size + (size_t(256) << 10), "memory within 64 times the size of the file");
  require(live == before, "all memory given back");
  std::filesystem::remove(input_path());
}

}  // namespace
