#include "src/supervisor/idle_trim.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

// Of the linker (end(3)).
extern "C" const char __executable_start;
extern "C" const char etext;

namespace magnetar::supervisor {
namespace {

void Trim() {
  ::malloc_trim(0);
  const auto page = static_cast<uintptr_t>(::getpagesize());
  const uintptr_t begin = reinterpret_cast<uintptr_t>(&__executable_start) & ~(page - 1);
  const uintptr_t end = reinterpret_cast<uintptr_t>(&etext) & ~(page - 1);
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

void IdleTrim::Activity() {
  timer_.expires_after(kQuiet);
  timer_.async_wait([](boost::system::error_code error) {
    if (!error) Trim();
  });
}

}  // namespace magnetar::supervisor
