// The pool of threads: every share of every job is done once, whoever does it.
#include "cpu/threads.h"

#include <atomic>
#include <thread>

#include "check.h"
#include "core/error.h"
#include "core/platform.h"

using rwkv::cpu::ThreadPool;

TEST(every_share_of_every_job_once) {
  for (int threads : {1, 2, 3, 9}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    std::vector<int> done(size_t(threads), 0);  // only ever touched by whoever does the share
    int wrong = 0;
    for (int job = 1; job <= 3000; job++) {
      pool.run([&](int worker) {
        for (volatile int i = 0; i < job % 7 * worker * 50;) i = i + 1;  // some late, some early
        done[size_t(worker)]++;
      });
      for (int count : done) wrong += count != job;
      if (job % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // all asleep
    }
    CHECK(wrong == 0);
  }
}

TEST(the_caller_does_what_sleepers_have_not_begun) {
  // More threads than cores do not spin, and waking takes longer than such a job.
  ThreadPool pool(rwkv::usable_cores() + 1);
  std::atomic<int> helped{0};
  const auto caller = std::this_thread::get_id();
  for (int job = 0; job < 200; job++)
    pool.run([&](int worker) { helped += worker != 0 && std::this_thread::get_id() == caller; });
  CHECK(helped > 0);
}

TEST(no_more_pinned_threads_than_cores) {
  const int cores = rwkv::usable_cores();
  ThreadPool pool(cores, true);
  CHECK(pool.size() == cores && int(rwkv::cores_to_pin_to().size()) == cores);
  CHECK_THROWS(ThreadPool(cores + 1, true), rwkv::DeviceError, "pin: expected no more threads than cores");
}

CHECK_MAIN
