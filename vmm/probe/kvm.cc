#include "vmm/probe/kvm.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::vmm {
namespace {

#if defined(__x86_64__)

// Guest physical memory: code, GDT, and page tables that map the first 2 MiB.
constexpr size_t kMemoryBytes = 2 << 20;
constexpr uint64_t kCode = 0x1000;
constexpr uint64_t kCode64 = 0x1080;
constexpr uint64_t kPml4 = 0x2000;
constexpr uint64_t kPdpt = 0x3000;
constexpr uint64_t kPd = 0x4000;
constexpr uint64_t kGdt = 0x5000;
constexpr uint64_t kTss = 0xfffbd000;
constexpr uint8_t kAnswer = 0x42;
constexpr uint16_t kAnswerPort = 0x10;

// From 32-bit protected mode, in which PVH enters a kernel, into long mode.
constexpr uint8_t kEnterLongMode[] = {
    0xb8, 0x00, 0x20, 0x00, 0x00,              // mov  eax, kPml4
    0x0f, 0x22, 0xd8,                          // mov  cr3, eax
    0x0f, 0x20, 0xe0,                          // mov  eax, cr4
    0x83, 0xc8, 0x20,                          // or   eax, PAE
    0x0f, 0x22, 0xe0,                          // mov  cr4, eax
    0xb9, 0x80, 0x00, 0x00, 0xc0,              // mov  ecx, EFER
    0x0f, 0x32,                                // rdmsr
    0x0d, 0x00, 0x01, 0x00, 0x00,              // or   eax, LME
    0x0f, 0x30,                                // wrmsr
    0x0f, 0x20, 0xc0,                          // mov  eax, cr0
    0x0d, 0x00, 0x00, 0x00, 0x80,              // or   eax, PG
    0x0f, 0x22, 0xc0,                          // mov  cr0, eax
    0xea, 0x80, 0x10, 0x00, 0x00, 0x08, 0x00,  // jmp  8:kCode64
};
constexpr uint8_t kCountAndAnswer[] = {
    0x48, 0xc7,        0xc1, 0x00, 0x09, 0x3d, 0x00,  // mov  rcx, 4000000
    0x48, 0xff,        0xc9,                          // dec  rcx
    0x75, 0xfb,                                       // jnz  -5
    0xb0, kAnswer,                                    // mov  al, kAnswer
    0xe6, kAnswerPort,                                // out  kAnswerPort, al
    0xf4,                                             // hlt
};

template <typename T>
void Put(uint8_t* memory, uint64_t at, const T& value) {
  std::memcpy(memory + at, &value, sizeof(value));
}

// The kernel's header gives kvm_cpuid2, and with it the ioctl numbers, another size in
// C++ than in C: an empty struct before the flexible array counts there.
struct Cpuid {
  uint32_t nent;
  uint32_t padding;
  kvm_cpuid_entry2 entries[256];
};
struct CpuidHeader {
  uint32_t nent;
  uint32_t padding;
};
constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, CpuidHeader);
constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, CpuidHeader);

// What the child writes when it is done: the step that failed, or none.
struct Verdict {
  int err;
  char step[48];
};

// In the child: async-signal-safe calls only. Returns the step that failed, or nullptr.
const char* RunGuest(int kvm) {
  static Cpuid cpuid;
  const int vm = ::ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) return "create a VM";
  // As every VMM does. Old Intel processors need the pages for unpaged code.
  ::ioctl(vm, KVM_SET_TSS_ADDR, kTss);
  if (::ioctl(vm, KVM_CREATE_IRQCHIP, 0) != 0) return "create interrupt controllers";
  void* mapped =
      ::mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return "map memory";
  auto* memory = static_cast<uint8_t*>(mapped);
  kvm_userspace_memory_region region{};
  region.memory_size = kMemoryBytes;
  region.userspace_addr = reinterpret_cast<uintptr_t>(memory);
  if (::ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) return "give it memory";
  const int cpu = ::ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) return "create a vCPU";
  const int run_bytes = ::ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_bytes <= 0) return "ask for the vCPU's size";
  void* run_mapped =
      ::mmap(nullptr, static_cast<size_t>(run_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  if (run_mapped == MAP_FAILED) return "map the vCPU";
  auto* run = static_cast<kvm_run*>(run_mapped);
  cpuid.nent = std::size(cpuid.entries);
  // Without CPUID the vCPU has no long mode.
  if (::ioctl(kvm, kGetSupportedCpuid, &cpuid) != 0 || ::ioctl(cpu, kSetCpuid2, &cpuid) != 0) {
    return "set CPUID";
  }

  std::memcpy(memory + kCode, kEnterLongMode, sizeof(kEnterLongMode));
  std::memcpy(memory + kCode64, kCountAndAnswer, sizeof(kCountAndAnswer));
  constexpr uint64_t kPresentWritable = 3;
  constexpr uint64_t kLargePage = 0x80;
  Put(memory, kPml4, kPdpt | kPresentWritable);
  Put(memory, kPdpt, kPd | kPresentWritable);
  Put(memory, kPd, kLargePage | kPresentWritable);
  Put(memory, kGdt + 8, uint64_t{0x00af9b000000ffff});   // 64-bit code
  Put(memory, kGdt + 16, uint64_t{0x00cf93000000ffff});  // data

  kvm_sregs sregs;
  if (::ioctl(cpu, KVM_GET_SREGS, &sregs) != 0) return "read registers";
  kvm_segment code{};
  code.limit = 0xffffffff;
  code.selector = 8;
  code.type = 11;
  code.present = code.db = code.s = code.g = 1;
  kvm_segment data = code;
  data.selector = 16;
  data.type = 3;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.gdt.base = kGdt;
  sregs.gdt.limit = 23;
  sregs.cr0 |= 1;
  kvm_regs regs{};
  regs.rip = kCode;
  regs.rflags = 2;
  if (::ioctl(cpu, KVM_SET_SREGS, &sregs) != 0 || ::ioctl(cpu, KVM_SET_REGS, &regs) != 0) {
    return "set registers";
  }
  int result;
  do {
    result = ::ioctl(cpu, KVM_RUN, 0);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result != 0) return "run a guest";
  errno = 0;
  if (run->exit_reason != KVM_EXIT_IO || run->io.port != kAnswerPort ||
      reinterpret_cast<uint8_t*>(run)[run->io.data_offset] != kAnswer) {
    return "run a guest into long mode";
  }
  return nullptr;
}

// As a VMM does, whose user is none in particular and has at most the device's group, if that is
// not root's. By system calls: the library's functions would speak to threads that a fork has not
// taken along.
int OpenAsVmm(const char* device) {
  struct stat st;
  if (::stat(device, &st) != 0) return -1;
  if (::geteuid() == 0) {
    constexpr uid_t kNobody = 65534;
    const gid_t group = st.st_gid;
    if (::syscall(SYS_setgroups, group == 0 ? 0 : 1, &group) != 0 ||
        ::syscall(SYS_setresgid, kNobody, kNobody, kNobody) != 0 ||
        ::syscall(SYS_setresuid, kNobody, kNobody, kNobody) != 0) {
      return -1;
    }
  }
  return ::open(device, O_RDWR | O_CLOEXEC);
}

const char* OpenAndRun(const char* device) {
  const int kvm = OpenAsVmm(device);
  const int error = errno;
  // Only now: a change of uid clears it.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  errno = error;
  if (kvm < 0) return "open it as a VMM's user";
  errno = 0;
  if (::ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) return "speak KVM to it";
  return RunGuest(kvm);
}

[[noreturn]] void Child(const char* device, int report) {
  Verdict verdict{};
  const char* failed = OpenAndRun(device);
  if (failed != nullptr) {
    verdict.err = errno;
    std::memcpy(verdict.step, failed, std::min(std::strlen(failed), sizeof(verdict.step) - 1));
  }
  [[maybe_unused]] const ssize_t n = ::write(report, &verdict, sizeof(verdict));
  ::_exit(0);
}

absl::Status Run(const std::string& device, std::chrono::milliseconds limit) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd read_end(fds[0]);
  UniqueFd write_end(fds[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) Child(device.c_str(), write_end.get());
  write_end.reset();
  pollfd polled{.fd = read_end.get(), .events = POLLIN, .revents = 0};
  const int ready = ::poll(&polled, 1, static_cast<int>(limit.count()));
  Verdict verdict{};
  const ssize_t n = ready == 1 ? ::read(read_end.get(), &verdict, sizeof(verdict)) : 0;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  if (n != static_cast<ssize_t>(sizeof(verdict))) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a guest of four million instructions did not end within ", limit.count(), " ms"));
  }
  if (verdict.step[0] == '\0') return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot ", verdict.step, verdict.err == 0 ? "" : ": ",
                   verdict.err == 0 ? "" : ::strerror(verdict.err)));
}

#else

absl::Status Run(const std::string&, std::chrono::milliseconds) {
  return absl::FailedPreconditionError("no test for this processor");
}

#endif

}  // namespace

absl::Status CheckKvm(const std::string& device, std::chrono::milliseconds limit) {
  return Annotate(Run(device, limit), device);
}

}  // namespace magnetar::vmm
