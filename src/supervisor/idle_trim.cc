#include "src/supervisor/idle_trim.h"

#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace magnetar::supervisor {
namespace {

// What of the program cannot be written, and is as it is in its file.
int DropReadOnly(dl_phdr_info* program, size_t, void*) {
  const auto page = static_cast<uintptr_t>(::getpagesize());
  for (int i = 0; i < program->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = program->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
    const uintptr_t begin = (program->dlpi_addr + segment.p_vaddr) & ~(page - 1);
    const uintptr_t end = program->dlpi_addr + segment.p_vaddr + segment.p_memsz;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the loader tells addresses as numbers.
    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
  return 1;  // the program itself comes first, and is static
}

void Trim() {
  ::malloc_trim(0);
  ::dl_iterate_phdr(DropReadOnly, nullptr);
}

}  // namespace

void IdleTrim::Activity() {
  timer_.expires_after(kQuiet);
  timer_.async_wait([](boost::system::error_code error) {
    if (!error) Trim();
  });
}

}  // namespace magnetar::supervisor
