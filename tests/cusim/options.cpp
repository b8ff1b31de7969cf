#include "cusim/options.h"

#include <algorithm>
#include <cstdlib>

namespace cusim {

namespace {

bool number(const std::string& text, uint64_t& value) {
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) return false;
  value = std::strtoull(text.c_str(), nullptr, 10);
  return true;
}

bool apply(const std::string& word, Options& o) {
  const size_t colon = word.find(':');
  const std::string key = word.substr(0, colon), value = colon == std::string::npos ? "" : word.substr(colon + 1);
  using Order = Schedule::Order;
  uint64_t n = 0;
  if (word == "greedy") return o.schedule.greedy = true;
  if (word == "protect") return o.protect = true;
  if (word == "alone") return o.alone = true;
  if (word == "graphs:none") return !(o.graphs = false);
  if (word == "order:fwd") return o.schedule.order = Order::forward, true;
  if (word == "order:rev") return o.schedule.order = Order::reverse, true;
  if (key == "order" && value.rfind("rand:", 0) == 0)
    return o.schedule.order = Order::random, number(value.substr(5), o.schedule.seed);
  if (key == "copies" || key == "stream") {
    (key == "copies" ? o.schedule.late_copies : o.late_stream) = value == "late";
    return value == "late" || value == "eager";
  }
  if (key == "devices") return number(value, n) && n < 64 && (o.devices = int(n), true);
  if (key == "processors") return number(value, n) && n > 0 && n < 1000 && (o.processors = int(n), true);
  if (key == "memory") return number(value, o.memory);
  if (key == "trace") return !(o.trace = value).empty();
  if (key == "allocations") return !(o.allocations = value).empty();
  if (key == "counts") return !(o.counts = value).empty();
  if (key == "fail") return number(value, o.fail);
  return false;
}

}  // namespace

std::string parse(const char* text, Options& options) {
  options = {};
  const std::string all = text ? text : "";
  for (size_t begin = 0; begin < all.size();) {
    const size_t comma = std::min(all.find(',', begin), all.size());
    const std::string word = all.substr(begin, comma - begin);
    if (!apply(word, options)) return word;
    begin = comma + 1;
  }
  return {};
}

}  // namespace cusim
