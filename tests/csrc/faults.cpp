// Faults that the sanitizers must report: test_sanitize.py builds and runs each once.
#include <cstdint>
#include <cstdlib>
#include <thread>

namespace {
int64_t counted = 0;
}

#pragma GCC visibility push(default)
extern "C" {

int write_past_the_end(int count) {
  volatile char* bytes = static_cast<char*>(std::malloc(count));
  bytes[count] = 1;
  std::free(const_cast<char*>(bytes));
  return 0;
}

int overflow(int largest) { return largest + 1; }

int race(int count) {
  const auto increment = [count] {
    for (int i = 0; i < count; ++i) ++counted;
  };
  std::thread other(increment);
  increment();
  other.join();
  return static_cast<int>(counted);
}

}  // extern "C"
