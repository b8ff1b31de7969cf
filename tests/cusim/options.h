// What RWKV_CUSIM asks of the simulator when a device is opened: words, separated by commas.
//   order:fwd|rev|rand:SEED  which thread of a block runs first
//   greedy                   a thread runs on as long as it can
//   copies:eager|late        asynchronous copies of kernels happen at once, or when they are waited for
//   stream:eager|late        what a device is asked to do happens at once, or at the next synchronise
//   devices:N                there are so many
//   processors:N             of each
//   memory:BYTES             of each
//   graphs:none              there are none
//   fail:N                   the N-th call that may fail does, counted from 1
//   trace:FILE               the names of all kernels go there, as they run, and `replay`
//   allocations:FILE         the bytes of whatever is allocated or pinned go there
//   protect                  memory of the device is out of the host's reach
// and, where kernels are translated from PTX:
//   alone                    these are not compared with those that the host's compiler makes
//   counts:FILE              the same, and counts.h adds to the file what each launch asks for
#pragma once
#include <cstdint>
#include <string>

#include "cusim/fibers.h"

namespace cusim {

struct Options {
  Schedule schedule;
  bool late_stream = false, protect = false, graphs = true, alone = false;
  int devices = 1, processors = 132;
  uint64_t memory = uint64_t(8) << 30, fail = 0;
  std::string trace, allocations, counts;
};

// The word that is none of the above, or nothing.
std::string parse(const char* text, Options& options);

}  // namespace cusim
