// What translated kernels ask of a GPU, counted as they run: instructions, sectors of 32 bytes of the device's memory,
// and passes over the 32 banks of shared memory. How long any of it takes is not known here.
#pragma once
#include <cstdint>
#include <string>

#include "cusim/fibers.h"

namespace cusim {

// Of a launch. Of many blocks some are counted, which lie evenly.
void count_begin(uint64_t blocks);
void count_block(bool ended);                                 // before each of them, and after the last one
void count_end(const char* kernel, const std::string& file);  // adds to the file what counts.py reads

namespace ptx {

struct Instructions {
  uint32_t all = 0, mma = 0;
};
inline bool counting = false;
// Of the running thread.
void count_access(bool shared, uint64_t at, uint64_t bytes, Place place);
void count_thread(const Instructions& done);

}  // namespace ptx

}  // namespace cusim
