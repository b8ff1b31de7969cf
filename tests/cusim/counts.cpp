#include "cusim/counts.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <unordered_map>
#include <vector>

namespace cusim {

namespace {

// What lanes of a warp ask for together: at one place, each for the same time.
struct Request {
  std::vector<std::pair<unsigned, uint64_t>> lanes;  // and addresses
  uint64_t bytes = 0;                                // of a lane
};
struct Site {
  uint64_t requests = 0, passes = 0, least = 0;
};

struct Counts {
  uint64_t blocks = 0, every = 1, begun = 0, counted = 0, warps = 0, instructions = 0, mma = 0;
  const char* file = "";      // of the places
  std::map<int, Site> sites;  // by line
};
Counts counts;
// Of the running block, by line and warp and time, by line and thread, and by warp.
std::unordered_map<uint64_t, Request> requests;
std::unordered_map<uint64_t, uint32_t> times;
std::map<unsigned, ptx::Instructions> warps;

constexpr uint64_t kCounted = 8;  // blocks, or a few more

void sort_unique(std::vector<uint64_t>& all) {
  std::ranges::sort(all);
  all.erase(std::ranges::unique(all).begin(), all.end());
}

// In sectors. An address is a multiple of what is read or written there, which no sector's end divides.
void add_global(Site& site, const Request& request) {
  std::vector<uint64_t> sectors, addresses;
  for (const auto& [lane, at] : request.lanes) sectors.push_back(at / 32), addresses.push_back(at);
  sort_unique(sectors), sort_unique(addresses);
  site.passes += sectors.size(), site.least += (addresses.size() * request.bytes + 31) / 32;
}
// All lanes together, half of them where each has 8 bytes, a quarter where it has 16; lanes with the same word share
// it.
void add_shared(Site& site, const Request& request) {
  const unsigned together = request.bytes == 16 ? 8 : request.bytes == 8 ? 16 : 32;
  for (unsigned first = 0; first < 32; first += together) {
    std::vector<uint64_t> words;
    for (const auto& [lane, at] : request.lanes)
      if (lane / together == first / together)
        for (uint64_t word = at / 4; word <= (at + request.bytes - 1) / 4; word++) words.push_back(word);
    sort_unique(words);
    std::array<uint64_t, 32> banks = {};
    for (const uint64_t word : words) banks[word % 32]++;
    site.passes += std::ranges::max(banks), site.least += !words.empty();
  }
}

void add_block() {
  for (const auto& [key, request] : requests) {
    Site& site = counts.sites[int(key >> 40)];
    site.requests++;
    key >> 40 & 1 ? add_shared(site, request) : add_global(site, request);
  }
  for (const auto& [warp, done] : warps) counts.instructions += done.all, counts.mma += done.mma;
  counts.counted++, counts.warps += warps.size();
  requests.clear(), times.clear(), warps.clear();
}

}  // namespace

void ptx::count_access(bool shared, uint64_t at, uint64_t bytes, Place place) {
  const uint64_t line = (uint64_t(place.line) << 1 | shared) << 40;
  const uint32_t time = times[line | now.thread.x]++;
  if (bytes == 0) return;
  Request& request = requests[line | uint64_t(now.thread.x / 32) << 32 | time];
  request.bytes = bytes;
  request.lanes.push_back({now.thread.x % 32, at});
  counts.file = place.file;
}

// A warp has done what that of its threads has done which has done most.
void ptx::count_thread(const Instructions& done) {
  Instructions& most = warps[now.thread.x / 32];
  most = {std::max(most.all, done.all), std::max(most.mma, done.mma)};
}

void count_begin(uint64_t blocks) {
  counts = {};
  counts.blocks = blocks, counts.every = (blocks + kCounted - 1) / kCounted;
}

void count_block(bool ended) {
  if (ptx::counting) add_block();
  ptx::counting = !ended && counts.begun++ % counts.every == 0;
}

void count_end(const char* kernel, const std::string& file) {
  std::FILE* to = std::fopen(file.c_str(), "a");
  if (!to) return;
  const auto n = [](uint64_t v) { return static_cast<unsigned long long>(v); };
  std::fprintf(to, "%s file %s blocks %llu counted %llu warps %llu instructions %llu mma %llu\n", kernel,
               *counts.file ? counts.file : "-", n(counts.blocks), n(counts.counted), n(counts.warps),
               n(counts.instructions), n(counts.mma));
  for (const auto& [line, s] : counts.sites)
    std::fprintf(to, "  %d %s requests %llu passes %llu least %llu\n", line / 2, line % 2 ? "shared" : "global",
                 n(s.requests), n(s.passes), n(s.least));
  std::fclose(to);
}

}  // namespace cusim
