// POSIX: reading files, replacing files, pages of memory. No other file of the library includes its headers.
#include "core/platform.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <system_error>

#include "core/error.h"

namespace rwkv {
namespace {

#ifdef MADV_HUGEPAGE
constexpr int kHugePages = MADV_HUGEPAGE;
#else
constexpr int kHugePages = MADV_NORMAL;
#endif

std::string reason(int code) { return std::generic_category().message(code); }

struct Descriptor {
  int fd = -1;
  explicit Descriptor(int number) : fd(number) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// Calls again when a signal came between.
template <class Call>
auto retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

void check_path(const std::string& path) {
  RWKV_CHECK(Error, !path.empty(), "expected the path of a file, found an empty string");
  RWKV_CHECK(Error, path.find('\0') == std::string::npos, "expected the path of a file, found a zero byte in it after ",
             path.c_str());
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a fifo";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something else";
}

// A new file beside `path` that vanishes again unless it is renamed.
class TemporaryFile final : public PieceWriter {
 public:
  TemporaryFile(const std::string& path, const std::string& folder, Access access) : path_(path) {
    const mode_t mode = access == Access::owner ? 0600 : 0666;
    static std::atomic<uint64_t> counter{0};
    for (int attempt = 0; attempt < 100; ++attempt) {
      name_ = join(folder, "/.rwkv-", process_id(), "-", counter.fetch_add(1), ".tmp");
      fd_ = retry([&] { return ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode); });
      if (fd_ >= 0 || errno != EEXIST) break;
    }
    RWKV_CHECK(Error, fd_ >= 0, "cannot write ", path, ": cannot create a file in ", folder, ": ", reason(errno));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    ::close(fd_);
    if (!renamed_) ::unlink(name_.c_str());
  }

  void append(std::span<const std::byte> bytes) override {
    write_at(size_, bytes);
    size_ += bytes.size();
  }
  void overwrite(uint64_t offset, std::span<const std::byte> bytes) override {
    RWKV_CHECK(Error, offset <= size_ && bytes.size() <= size_ - offset, path_, ": expected to overwrite ",
               bytes.size(), " bytes at byte ", offset, " of what was written, found ", size_);
    write_at(offset, bytes);
  }

  // Once it is on the disk.
  void rename() {
    RWKV_CHECK(Error, retry([&] { return ::fsync(fd_); }) == 0, "cannot write ", path_, ": ", reason(errno));
    renamed_ = ::rename(name_.c_str(), path_.c_str()) == 0;
    RWKV_CHECK(Error, renamed_, "cannot write ", path_, ": cannot rename the new file: ", reason(errno));
  }

 private:
  void write_at(uint64_t offset, std::span<const std::byte> bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t wrote =
          retry([&] { return ::pwrite(fd_, bytes.data() + done, bytes.size() - done, off_t(offset + done)); });
      RWKV_CHECK(Error, wrote > 0, "cannot write ", path_, ": ", done, " of ", bytes.size(),
                 " bytes were written: ", wrote < 0 ? reason(errno) : "the device took no more");
      done += size_t(wrote);
    }
  }

  const std::string path_;
  std::string name_;
  int fd_ = -1;
  uint64_t size_ = 0;
  bool renamed_ = false;
};

}  // namespace

File::File(const std::string& path) : path_(path) {
  check_path(path);
  // Without O_NONBLOCK, opening a fifo that nobody writes to would wait for ever.
  const int fd = retry([&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY); });
  if (fd < 0) {
    const int code = errno;
    RWKV_CHECK(Error, code != ENOENT, "cannot open ", path, ": there is no such file");
    RWKV_CHECK(Error, code != EACCES && code != EPERM, "cannot open ", path, ": reading it is not permitted");
    RWKV_CHECK(Error, code != ENXIO, "cannot open ", path, ": expected a regular file, found a socket or a device");
    throw Error(join("cannot open ", path, ": ", reason(code)));
  }
  auto descriptor = std::make_shared<Descriptor>(fd);
  struct stat info;
  RWKV_CHECK(Error, ::fstat(fd, &info) == 0, "cannot examine ", path, ": ", reason(errno));
  RWKV_CHECK(Error, S_ISREG(info.st_mode), "cannot open ", path, ": expected a regular file, found ",
             kind_of(info.st_mode));
  size_ = uint64_t(info.st_size);
  handle_ = std::move(descriptor);
}

std::shared_ptr<const std::byte> File::map(uint64_t offset, size_t bytes, MapUse use) const {
  RWKV_CHECK(Error, offset <= size_ && bytes <= size_ - offset && bytes > 0, path_, ": expected ", bytes,
             " bytes at byte ", offset, ", found a file of ", size_);
  const auto page = uint64_t(::sysconf(_SC_PAGESIZE)), before = offset % page;
  const size_t length = bytes + size_t(before);
  const int fd = static_cast<const Descriptor*>(handle_.get())->fd;
  void* pages = ::mmap(nullptr, length, PROT_READ, MAP_PRIVATE, fd, off_t(offset - before));
  RWKV_CHECK(Error, pages != MAP_FAILED, path_, ": cannot map ", bytes, " bytes at byte ", offset, ": ", reason(errno));
  // Some file systems read what is not in the cache yet as huge pages then, and map those.
  ::madvise(pages, length, use == MapUse::some ? MADV_RANDOM : kHugePages);
  const std::shared_ptr<std::byte> owner(static_cast<std::byte*>(pages),
                                         [length](std::byte* p) { ::munmap(p, length); });
  return {owner, owner.get() + before};
}

void fetch_pages(const std::byte* mapped, size_t bytes) {
#ifdef MADV_POPULATE_READ
  const auto page = size_t(::sysconf(_SC_PAGESIZE)), before = reinterpret_cast<uintptr_t>(mapped) % page;
  ::madvise(const_cast<std::byte*>(mapped) - before, bytes + before, MADV_POPULATE_READ);
#endif
}

size_t huge_page_bytes(const std::byte* mapped) {
  std::ifstream maps("/proc/self/smaps");
  const auto place = reinterpret_cast<uintptr_t>(mapped);
  bool here = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0, end = 0;
    size_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) here = begin <= place && place < end;
    if (here && std::sscanf(line.c_str(), "FilePmdMapped: %zu kB", &kilobytes) == 1) return kilobytes << 10;
  }
  return 0;
}

void drop_cached(const std::string& path) {
  const Descriptor file(retry([&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY); }));
  if (file.fd >= 0) ::posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
}

void File::read(uint64_t offset, void* dst, size_t bytes) const {
  RWKV_CHECK(Error, offset <= size_ && bytes <= size_ - offset, path_, ": expected ", bytes, " bytes at byte ", offset,
             ", found a file of ", size_);
  const int fd = static_cast<const Descriptor*>(handle_.get())->fd;
  auto* to = static_cast<std::byte*>(dst);
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = retry([&] { return ::pread(fd, to + done, bytes - done, off_t(offset + done)); });
    RWKV_CHECK(Error, got >= 0, path_, ": cannot read ", bytes, " bytes at byte ", offset, ": ", reason(errno));
    RWKV_CHECK(Error, got > 0, path_, ": expected ", bytes, " bytes at byte ", offset, ", the file ends after ", done,
               ": it was cut short while in use");
    done += size_t(got);
  }
}

void write_atomically(const std::string& path, Access access, std::span<const std::byte> bytes) {
  stream_atomically(path, access, [&](PieceWriter& file) { file.append(bytes); });
}

void stream_atomically(const std::string& path, Access access, const std::function<void(PieceWriter&)>& write) {
  check_path(path);
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/." : path.substr(0, slash);
  {
    TemporaryFile file(path, folder, access);
    write(file);
    file.rename();
  }
  // The new name itself survives a crash only once the folder is on the disk.
  const Descriptor parent(retry([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  // Write-only folders cannot be opened and some file systems cannot sync one: the file itself is written.
  if (parent.fd < 0 && errno == EACCES) return;
  const bool synced = parent.fd >= 0 && (retry([&] { return ::fsync(parent.fd); }) == 0 || errno == EINVAL);
  RWKV_CHECK(Error, synced, "wrote ", path, ", but cannot sync its folder ", folder, ": ", reason(errno));
}

std::shared_ptr<std::byte> map_pages(size_t bytes) {
  constexpr size_t kHuge = size_t(2) << 20;
  RWKV_CHECK(DeviceError, bytes <= SIZE_MAX - 2 * kHuge, "cannot allocate ", bytes, " bytes of memory");
  const size_t size = std::max(kHuge, (bytes + kHuge - 1) / kHuge * kHuge);
  // One huge page more than needed, so that an aligned start lies inside; the rest is given back at once.
  void* mapped = ::mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  RWKV_CHECK(DeviceError, mapped != MAP_FAILED, "cannot allocate ", bytes, " bytes of memory: ", reason(errno));
  auto* raw = static_cast<std::byte*>(mapped);
  const size_t skip = (kHuge - reinterpret_cast<uintptr_t>(raw) % kHuge) % kHuge;
  if (skip > 0) ::munmap(raw, skip);
  if (skip < kHuge) ::munmap(raw + skip + size, kHuge - skip);
  if (bytes >= kHuge) ::madvise(raw + skip, size, kHugePages);
  return {raw + skip, [size](std::byte* pages) { ::munmap(pages, size); }};
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return std::max(1, int(sysconf(_SC_NPROCESSORS_ONLN)));
}

#ifdef __linux__
std::vector<int> cores_to_pin_to() {
  cpu_set_t set;
  CPU_ZERO(&set);
  RWKV_CHECK(DeviceError, sched_getaffinity(0, sizeof set, &set) == 0,
             "pin: cannot tell which cores may be used: ", reason(errno));
  std::map<std::string, int> taken;              // of each physical core, as the list of what shares it
  std::vector<std::pair<int, int>> rank_number;  // of one core: how many of the same physical one come before it
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &set)) continue;
    std::string physical = join(core);
    std::ifstream siblings(join("/sys/devices/system/cpu/cpu", core, "/topology/thread_siblings_list"));
    std::getline(siblings, physical);
    rank_number.emplace_back(taken[physical]++, core);
  }
  std::ranges::sort(rank_number);
  std::vector<int> cores;
  for (const auto& [rank, core] : rank_number) cores.push_back(core);
  return cores;
}

void pin_thread(std::thread& thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  const int code = pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
  RWKV_CHECK(DeviceError, code == 0, "pin: cannot keep a thread on core ", core, ": ", reason(code));
}
#else
std::vector<int> cores_to_pin_to() { throw DeviceError("pin: this system keeps no thread on a core"); }
void pin_thread(std::thread&, int) { cores_to_pin_to(); }
#endif

bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, as old headers lack it
  static const bool granted = ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

Library::Library(const std::string& path) {
  check_path(path);
  handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_) return;
  const char* why = ::dlerror();
  throw Error(join("cannot load ", path, ": ", why ? why : "the system gives no reason"));
}

void* Library::find(const char* name) const { return ::dlsym(handle_, name); }

std::string folder_of(const void* code) {
  Dl_info info;
  RWKV_CHECK(Error, ::dladdr(code, &info) != 0 && info.dli_fname,
             "expected the address of code of a file, found another");
  return std::filesystem::absolute(info.dli_fname).parent_path().string();
}

int64_t process_id() { return ::getpid(); }

}  // namespace rwkv
