// A unit test in one header: TEST(name) { CHECK(a == b); CHECK_THROWS(f(), Error, "expected"); }
#pragma once
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace check {

// A sanitizer takes ten times as long: what counts there is that every path is taken.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline int failures = 0;
struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};
inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::printf("%s:%d: %s\n", file, line, what.c_str());
}
// Runs the tests whose name contains argv[1], or all. What is said is written line by line, so that of a program that
// is killed it is known in which test.
inline int run(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  int ran = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    ++ran;
    std::printf("%s\n", test.name);
    try {
      test.body();
    } catch (const std::exception& e) {
      fail(test.name, 0, std::string("unexpected exception: ") + e.what());
    }
  }
  std::printf("%d tests, %d failures\n", ran, failures);
  return failures != 0 || ran == 0;
}

}  // namespace check

#define TEST(name) \
  static void name(); \
  static check::Register register_##name(#name, name); \
  static void name()
#define CHECK(condition) \
  do { \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition); \
  } while (false)
#define CHECK_THROWS(expression, kind, text) \
  do { \
    try { \
      (void)(expression); \
      check::fail(__FILE__, __LINE__, #expression " did not throw"); \
    } catch (const kind& e) { \
      if (!std::strstr(e.what(), text)) check::fail(__FILE__, __LINE__, std::string("message is: ") + e.what()); \
    } \
  } while (false)
#define CHECK_MAIN \
  int main(int argc, char** argv) { return check::run(argc, argv); }
