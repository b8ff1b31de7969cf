// Everything the operating system is asked for. The one file of the library that knows POSIX is platform.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace rwkv {

enum class MapUse { some, all };  // of what is mapped: a few places here and there, or everything, again and again

// A regular file opened for reading. Directories, fifos and devices are refused without blocking on them.
class File {
 public:
  explicit File(const std::string& path);  // throws Error: absent, not permitted, not a regular file
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  void read(uint64_t offset, void* dst, size_t bytes) const;  // pread; throws Error when cut short
  // That part of the file as memory, read when it is looked at. Who cuts the file short meanwhile kills the process.
  std::shared_ptr<const std::byte> map(uint64_t offset, size_t bytes, MapUse use) const;

 private:
  std::string path_;
  std::shared_ptr<void> handle_;
  uint64_t size_ = 0;
};

// Has what is mapped there read now, where the system can; otherwise it is read when it is looked at.
void fetch_pages(const std::byte* mapped, size_t bytes);

// How much of the mapping that this lies in has been given huge pages so far; 0 where the system does not tell.
size_t huge_page_bytes(const std::byte* mapped);
void drop_cached(const std::string& path);  // what the system keeps of a file in memory, if it likes

// Writes a new file beside `path`, syncs it, renames it over `path` and syncs the folder: a crash leaves the old
// file or the new one, never a mixture.
enum class Access { owner, usual };  // who may read it: the owner alone, or whoever may read new files
void write_atomically(const std::string& path, Access access, std::span<const std::byte> bytes);
// For files that memory need not hold: `write` is given where the pieces go.
class PieceWriter {
 public:
  virtual void append(std::span<const std::byte> bytes) = 0;
  virtual void overwrite(uint64_t offset, std::span<const std::byte> bytes) = 0;  // of what has been appended

 protected:
  ~PieceWriter() = default;
};
void stream_atomically(const std::string& path, Access access, const std::function<void(PieceWriter&)>& write);

// Anonymous memory, zeroed, 2 MiB aligned, huge pages asked for. Throws Error saying how much was wanted.
std::shared_ptr<std::byte> map_pages(size_t bytes);

// Code that is loaded while the program runs, and stays until it ends: such libraries leave work to do at exit.
class Library {
 public:
  explicit Library(const std::string& path);  // throws Error with the system's reason
  void* find(const char* name) const;         // null: it exports nothing of that name

 private:
  void* handle_;
};

// Of the file that this function or this constant was loaded from, without a slash at the end. Throws Error.
std::string folder_of(const void* code);

int64_t process_id();

// Cores that this process may run on: its affinity, at least 1.
int usable_cores();

// The numbers of these, one of each physical core before the others that share it. Throws DeviceError where the system
// lets nobody choose.
std::vector<int> cores_to_pin_to();
void pin_thread(std::thread& thread, int core);  // keeps it there; throws DeviceError

// Asks once for AMX's tiles, which the system saves only for processes that want them. False: it does not.
bool request_tiles();

}  // namespace rwkv
