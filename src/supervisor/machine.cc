#include "src/supervisor/machine.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/start_process.h"

namespace magnetar::supervisor {
namespace {

// The end of what the VM has said. A guest's kernel tells why it panics before a long trace: that
// line comes first.
std::string LastWords(const Ring& ring) {
  std::string end = ring.Tail(8, 1024);
  const std::string more = ring.Tail(200, 32 << 10);
  const size_t panic = more.rfind("Kernel panic");
  if (panic == std::string::npos || end.find("Kernel panic") != std::string::npos) return end;
  const size_t begin = more.rfind('\n', panic) + 1;  // npos + 1 is 0
  return absl::StrCat(more.substr(begin, more.find('\n', panic) - begin), "\n", end);
}

constexpr uint32_t kDefaultRingBytes = 64 << 10;
constexpr uint32_t kMaxRingBytes = 4 << 20;

// For a VMM to end after a helper that had nothing more to do.
constexpr std::chrono::seconds kVmmFollows{1};
// For helpers and what they left to end, once the VMM has.
constexpr std::chrono::seconds kHelpersEnd{5};

uint32_t RingBytes(const v1::Launch& launch) {
  if (launch.ring_bytes() == 0) return kDefaultRingBytes;
  return std::min(launch.ring_bytes(), kMaxRingBytes);
}

// Buffers that one pump reads before others get their turn.
constexpr int kReadsInARow = 8;

// Shared by the pumps; holds nothing while one is suspended.
std::array<char, 16 << 10> pump_buffer;

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// ISO 8601, UTC, milliseconds. Not by absl::FormatTime, which brings the whole time
// zone library into a program that is to be small.
std::string TimeNow() {
  const int64_t now = NowNs();
  const time_t seconds = now / 1'000'000'000;
  tm parts{};
  ::gmtime_r(&seconds, &parts);
  char text[64];
  std::snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", parts.tm_year + 1900,
                parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                static_cast<int>(now / 1'000'000 % 1000));
  return text;
}

// The processes in an open "children" file of /proc. Safe by number: a child stays a zombie until
// it is reaped here.
std::vector<pid_t> Children(int fd) {
  std::string text;
  char buffer[4096];
  ssize_t n;
  while ((n = ::pread(fd, buffer, sizeof(buffer), static_cast<off_t>(text.size()))) > 0) {
    text.append(buffer, static_cast<size_t>(n));
  }
  std::vector<pid_t> pids;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    pid_t pid = 0;
    if (absl::SimpleAtoi(word, &pid)) pids.push_back(pid);
  }
  return pids;
}

}  // namespace

Machine::Machine(const asio::any_io_executor& executor, const v1::Launch& launch,
                 ExitFile exit_file)
    : executor_(executor),
      launch_(launch),
      ring_(RingBytes(launch)),
      exit_file_(std::move(exit_file)),
      children_(::open(absl::StrCat("/proc/self/task/", ::getpid(), "/children").c_str(),
                       O_RDONLY | O_CLOEXEC)),
      ready_(executor),
      ending_(executor),
      ready_or_ending_(executor),
      ended_(executor),
      ready_or_ended_(executor),
      finished_(executor) {}

void Machine::Log(const std::string& line) {
  NamedLines(ring_, "supervisor").Append(absl::StrCat(line, "\n"));
  // A pipe that can be written takes this much without blocking, and whoever reads stderr must
  // not be able to stop the VM's streams.
  const std::string text = absl::StrCat(TimeNow(), " info ", line.substr(0, PIPE_BUF / 2),
                                        " sandbox=", launch_.sandbox_id(), "\n");
  pollfd polled{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (::poll(&polled, 1, 0) != 1 || (polled.revents & POLLOUT) == 0) return;
  [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, text.data(), text.size());
}

void Machine::SetReady() {
  ready_.Open();
  ready_or_ending_.Open();
  ready_or_ended_.Open();
}

void Machine::SetEnding() {
  ending_.Open();
  ready_or_ending_.Open();
}

void Machine::SetReason(std::string reason) {
  if (!reason_.empty()) return;
  reason_ = std::move(reason);
  ended_at_ns_ = NowNs();
}

void Machine::Kill(const std::string& reason, bool unkillable) {
  if (ending_.is_open()) return;
  unkillable_ = unkillable;
  SetReason(absl::StrCat(VmmName(), ": ", reason));
  SetEnding();
}

std::string Machine::VmmName() const {
  for (const v1::Process& p : launch_.processes()) {
    if (p.vmm()) return p.name();
  }
  return "vmm";
}

void Machine::Begin(Co<void> coroutine, int& counter) {
  ++counter;
  asio::co_spawn(executor_, std::move(coroutine), [this, &counter](std::exception_ptr) {
    --counter;
    finished_.NotifyAll();
  });
}

Co<void> Machine::WaitForVmm(Deadline deadline) {
  const auto runs = [this] {
    return std::any_of(processes_.begin(), processes_.end(),
                       [](const Running& r) { return r.vmm && r.process.running(); });
  };
  while (runs() && Event::Clock::now() < deadline) {
    auto wait = finished_.WaitUntil(deadline);
    co_await std::move(wait);
  }
}

Co<void> Machine::WaitForZero(const int& counter, Deadline deadline) {
  while (counter > 0 && Event::Clock::now() < deadline) {
    auto wait = finished_.WaitUntil(deadline);
    co_await std::move(wait);
  }
}

absl::Status Machine::StartAll() {
  processes_.reserve(static_cast<size_t>(launch_.processes_size()));
  for (const v1::Process& spec : launch_.processes()) {
    auto started = StartProcess(spec);
    if (!started.ok()) {
      return absl::Status(started.status().code(),
                          absl::StrCat(spec.name(), ": ", started.status().message()));
    }
    Running running;
    running.name = spec.name();
    running.vmm = spec.vmm();
    running.process = std::move(started->process);
    if (auto identity = IdentifyProcess(running.process.pid()); identity.ok()) {
      running.start_time_ticks = identity->start_time_ticks;
    }
    Begin(PumpOutput(spec.name(), spec.vmm(), std::move(started->out)), pumps_);
    Begin(PumpOutput(spec.name(), false, std::move(started->err)), pumps_);
    processes_.push_back(std::move(running));
  }
  return absl::OkStatus();
}

// A copy that stayed here would keep up what belongs to a process: the far end of the guest's
// port, the guest's memory, a tap's queue, the VMM's control socket.
void Machine::CloseWhatChildrenGot() const {
  std::set<int> fds;
  for (const v1::Process& spec : launch_.processes()) {
    for (const v1::Descriptor& d : spec.descriptors()) fds.insert(d.source());
    fds.insert(spec.cgroup_procs_fds().begin(), spec.cgroup_procs_fds().end());
    if (spec.netns_fd() > 0) fds.insert(spec.netns_fd());
  }
  for (const int fd : fds) ::close(fd);
}

void Machine::Start() {
  const absl::Status started = StartAll();
  CloseWhatChildrenGot();
  if (started.ok()) return;
  SetReason(std::string(started.message()));
  SetEnding();
}

Co<void> Machine::Watch(size_t index) {
  Running& running = processes_[index];
  auto wait = running.process.Wait();
  absl::StatusOr<ExitStatus> exit = co_await std::move(wait);
  if (exit.ok() && exit->status == 0 && !running.vmm) {
    // A file server ends because the VMM lets go of it while it ends itself: then the VMM's end is
    // the reason, and must not become one by our signal.
    auto vmm = WaitForVmm(Event::Clock::now() + kVmmFollows);
    co_await std::move(vmm);
  }
  if (exit.ok()) {
    if (running.vmm) vmm_status_ = exit->status;
    SetReason(absl::StrCat(running.name, ": ", exit->Describe()));
  } else {
    SetReason(absl::StrCat(running.name, ": ", exit.status().message()));
  }
  SetEnding();
}

Co<void> Machine::PumpOutput(std::string name, bool console, UniqueFd pipe) {
  AsyncFd fd(executor_, pipe.release());
  NamedLines lines(ring_, std::move(name));
  int reads = 0;
  while (true) {
    if (++reads == kReadsInARow) {
      reads = 0;
      auto turn = asio::post(executor_, asio::use_awaitable);
      co_await std::move(turn);
    }
    const ssize_t n = ::read(fd.native_handle(), pump_buffer.data(), pump_buffer.size());
    if (n > 0) {
      const std::string_view data(pump_buffer.data(), static_cast<size_t>(n));
      console ? ring_.Append(data) : lines.Append(data);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n == 0 || errno != EAGAIN) break;
    reads = 0;
    auto wait = WaitReadable(fd);
    absl::Status status = co_await std::move(wait);
    if (!status.ok()) break;
  }
  lines.Flush();
}

Co<void> Machine::ReapDescendants(Deadline deadline) {
  // What our children left behind has become ours (PR_SET_CHILD_SUBREAPER).
  asio::signal_set child_ended(executor_);
  while (Event::Clock::now() < deadline) {
    // Armed before looking, so that no end is missed.
    boost::system::error_code ignored;
    child_ended.add(SIGCHLD, ignored);
    child_ended.async_wait([this](boost::system::error_code error, int) {
      if (!error) finished_.NotifyAll();
    });
    for (const pid_t pid : Children(children_.get())) ::kill(pid, SIGKILL);
    pid_t reaped;
    do {
      reaped = ::waitpid(-1, nullptr, WNOHANG);
    } while (reaped > 0);
    if (reaped < 0) break;  // ECHILD
    auto wait = finished_.WaitUntil(deadline);
    co_await std::move(wait);
  }
}

Co<void> Machine::Run() {
  for (size_t i = 0; i < processes_.size(); ++i) Begin(Watch(i), watchers_);
  auto ending = ending_.Wait();
  co_await std::move(ending);

  for (const Running& running : processes_) {
    if (!running.process.running()) continue;
    if (absl::Status s = running.process.Signal(SIGKILL); !s.ok()) Log(std::string(s.message()));
  }
  auto vmm = WaitForVmm(Deadline::max());
  co_await std::move(vmm);
  const Deadline deadline = Event::Clock::now() + kHelpersEnd;
  auto watched = WaitForZero(watchers_, deadline);
  co_await std::move(watched);
  auto reaped = ReapDescendants(deadline);
  co_await std::move(reaped);
  auto pumped = WaitForZero(pumps_, deadline);
  co_await std::move(pumped);
  if (Event::Clock::now() >= deadline) Log("a helper does not end; the VM is recorded as ended");

  v1::ExitRecord record;
  record.set_status(vmm_status_);
  record.set_exited_at_ns(ended_at_ns_);
  record.set_reason(reason_);
  record.set_last_lines(LastWords(ring_));
  record.set_unkillable(unkillable_);
  const absl::Status written = exit_file_.Write(record);
  Log(absl::StrCat("VM ended: ", reason_));
  if (!written.ok()) Log(std::string(written.message()));
  exit_ = std::move(record);
  ended_.Open();
  ready_or_ended_.Open();
}

void Machine::FillState(v1::StateResponse& state) const {
  for (const Running& running : processes_) {
    v1::ProcessState& out = *state.add_processes();
    out.set_name(running.name);
    out.set_pid(static_cast<uint32_t>(running.process.pid()));
    out.set_start_time_ticks(running.start_time_ticks);
    out.set_vmm(running.vmm);
  }
  state.set_ready(ready_.is_open());
  if (exit_.has_value()) *state.mutable_exit() = *exit_;
}

std::string Machine::Epitaph() const {
  if (!exit_.has_value()) return "VM runs";
  return absl::StrCat("VM ended: ", exit_->reason(),
                      exit_->last_lines().empty() ? "" : "; its last lines:\n",
                      exit_->last_lines());
}

}  // namespace magnetar::supervisor
