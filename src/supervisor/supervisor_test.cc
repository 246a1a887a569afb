// The program itself, with a process that stands for the VMM. Needs root, because the
// supervisor drops its children's privileges.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <boost/asio/detached.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "src/supervisor/async_test_util.h"
#include "src/supervisor/testing/supervisor_fixture.h"

namespace magnetar::supervisor {
namespace {

TEST_F(SupervisorTest, ReadyThenStreams) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  auto stream = Dial(7);
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_EQ(::send(stream->get(), "hello", 5, 0), 5);
  ::shutdown(stream->get(), SHUT_WR);
  EXPECT_EQ(ReadToEnd(stream->get()), "hello");
  // Refused at once, not left hanging.
  EXPECT_TRUE(absl::IsUnavailable(Dial(8).status()));
}

TEST_F(SupervisorTest, StateNamesTheProcesses) {
  AddProcess("helper", {"/bin/sleep", "1000"});
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  auto state = Call<v1::StateResponse>("State", v1::StateRequest());
  ASSERT_TRUE(state.ok());
  ASSERT_EQ(state->processes_size(), 2);
  EXPECT_TRUE(state->ready());
  EXPECT_FALSE(state->has_exit());
  EXPECT_TRUE(state->processes(1).vmm());
  for (const auto& p : state->processes()) {
    auto identity = IdentifyProcess(static_cast<pid_t>(p.pid()));
    ASSERT_TRUE(identity.ok());
    EXPECT_EQ(identity->start_time_ticks, p.start_time_ticks());
    const std::string proc = ReadFile(absl::StrCat("/proc/", p.pid(), "/status")).value();
    EXPECT_TRUE(absl::StrContains(proc, "Uid:\t65534\t65534\t65534\t65534")) << proc;
    EXPECT_TRUE(absl::StrContains(proc, "Groups:\t \n")) << proc;
    EXPECT_TRUE(absl::StrContains(proc, "CapBnd:\t0000000000000000")) << proc;
    EXPECT_TRUE(absl::StrContains(proc, "CapPrm:\t0000000000000000")) << proc;
    EXPECT_TRUE(absl::StrContains(proc, "NoNewPrivs:\t1")) << proc;
  }
  v1::HelloRequest hello_request;
  EXPECT_TRUE(absl::IsInvalidArgument(Call<v1::HelloResponse>("Hello", hello_request).status()));
  hello_request.set_protocol(99);
  auto hello = Call<v1::HelloResponse>("Hello", hello_request);
  ASSERT_TRUE(hello.ok()) << hello.status();
  EXPECT_EQ(hello->protocol(), 1u);
  EXPECT_GT(hello->features_size(), 0);
  EXPECT_EQ(static_cast<pid_t>(hello->pid()), supervisor_.pid());
}

// What parses a guest's bytes has nothing that a guest could want.
TEST_F(SupervisorTest, ConfinesItself) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  const std::string proc =
      ReadFile(absl::StrCat("/proc/", supervisor_.pid(), "/status")).value_or("");
  EXPECT_TRUE(absl::StrContains(proc, "Uid:\t65534\t65534\t65534\t65534")) << proc;
  EXPECT_TRUE(absl::StrContains(proc, "Gid:\t65534\t65534\t65534\t65534")) << proc;
  EXPECT_TRUE(absl::StrContains(proc, "Groups:\t \n")) << proc;
  for (const char* set : {"CapPrm", "CapEff"}) {
    EXPECT_TRUE(absl::StrContains(proc, absl::StrCat(set, ":\t0000000000000020"))) << proc;
  }
  for (const char* set : {"CapInh", "CapBnd", "CapAmb"}) {
    EXPECT_TRUE(absl::StrContains(proc, absl::StrCat(set, ":\t0000000000000000"))) << proc;
  }
  EXPECT_TRUE(absl::StrContains(proc, "NoNewPrivs:\t1")) << proc;
  EXPECT_TRUE(absl::StrContains(proc, "Seccomp:\t2")) << proc;
}

// A copy of the guest's end here would hide that the VMM has closed its own.
TEST_F(SupervisorTest, KeepsNothingThatItsProcessesGot) {
  AddGuest("echo");
  struct stat st;
  ASSERT_EQ(::fstat(theirs_.get(), &st), 0);
  const std::string theirs = absl::StrCat("socket:[", st.st_ino, "]");
  UniqueFd netns(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  launch_.mutable_processes(0)->set_netns_fd(netns.get());
  Start();
  ASSERT_TRUE(WaitReady().ok());
  const std::string fds = absl::StrCat("/proc/", supervisor_.pid(), "/fd");
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(fds)) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    EXPECT_NE(target, theirs);
    EXPECT_FALSE(absl::StartsWith(target, "net:")) << target;
    ++seen;
  }
  EXPECT_GT(seen, 3);
}

TEST_F(SupervisorTest, ItsProtectionFromTheOomKillerIsItsOwn) {
  if (!WriteExisting("/proc/self/oom_score_adj", "-500").ok()) {
    GTEST_SKIP() << "may not lower oom_score_adj";
  }
  AddProcess("helper", {"/bin/sleep", "1000"});
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WriteExisting("/proc/self/oom_score_adj", "0").ok());
  const auto score = [](pid_t pid) {
    return ReadFile(absl::StrCat("/proc/", pid, "/oom_score_adj")).value_or("");
  };
  EXPECT_EQ(score(PidOf("vmm")), "0\n");
  EXPECT_EQ(score(PidOf("helper")), "0\n");
  EXPECT_EQ(score(supervisor_.pid()), "-500\n");
}

TEST_F(SupervisorTest, ProcessesEnterTheirNetns) {
  UniqueFd netns;
  std::string name;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    netns.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    name = std::filesystem::read_symlink("/proc/thread-self/ns/net").string();
  }).join();
  ASSERT_TRUE(netns.ok());
  AddGuest("echo");
  launch_.mutable_processes(0)->set_netns_fd(netns.get());
  Start();
  ASSERT_TRUE(WaitReady().ok());
  const auto netns_of = [](pid_t pid) {
    return std::filesystem::read_symlink(absl::StrCat("/proc/", pid, "/ns/net")).string();
  };
  EXPECT_EQ(netns_of(PidOf("vmm")), name);
  EXPECT_NE(netns_of(supervisor_.pid()), name);
}

// A process that the kernel does not let go must not keep the guest's callers waiting.
TEST_F(SupervisorTest, ALostGuestRefusesWhileAHelperStillEnds) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  // A descendant that is traced from outside stays, dead, until its tracer has let it go.
  const pid_t vmm = PidOf("vmm");
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, vmm, nullptr, PTRACE_O_TRACEEXIT), 0);
  ASSERT_EQ(::kill(vmm, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(vmm, &status, __WALL), vmm);
  ASSERT_TRUE(WIFSTOPPED(status)) << status;
  auto kill = client_->Call<v1::KillResponse>("magnetar.supervisor.v1.Supervisor", "Kill",
                                              v1::KillRequest(), std::chrono::seconds(20));
  asio::co_spawn(context_, std::move(kill), asio::detached);
  // The call is on its way; the VMM cannot end before this test lets it.
  RunUntil(context_, [this] { return !ConnectUnix(absl::StrCat(directory_, "/vm.vsock")).ok(); });
  EXPECT_TRUE(supervisor_.running());
  EXPECT_TRUE(ConnectUnix(absl::StrCat(directory_, "/supervisor.sock")).ok());
  ASSERT_EQ(::ptrace(PTRACE_DETACH, vmm, nullptr, nullptr), 0);
  EXPECT_TRUE(supervisor_.WaitBlocking().ok());
}

TEST_F(SupervisorTest, ACapabilityIsKeptOverTheUidDrop) {
  AddGuest("echo");
  v1::Process& helper = AddProcess("helper", {"/bin/sleep", "1000"});
  helper.add_capabilities("CAP_CHOWN");
  v1::Process& root = AddProcess("root", {"/bin/sleep", "1000"});
  root.set_uid(0);
  root.add_capabilities("CAP_CHOWN");
  Start();
  for (const char* name : {"helper", "root"}) {
    const std::string proc = ReadFile(absl::StrCat("/proc/", PidOf(name), "/status")).value();
    EXPECT_TRUE(absl::StrContains(proc, "CapEff:\t0000000000000001")) << proc;
    EXPECT_TRUE(absl::StrContains(proc, "CapBnd:\t0000000000000001")) << proc;
  }
}

TEST_F(SupervisorTest, ConnectionsMadeBeforeReadyWait) {
  AddGuest("silent");
  Start();
  UniqueFd early = ConnectUnix(absl::StrCat(directory_, "/vm.vsock"));
  ASSERT_EQ(::send(early.get(), "CONNECT 7\n", 10, 0), 10);
  const timeval short_while{.tv_sec = 0, .tv_usec = 100000};
  ::setsockopt(early.get(), SOL_SOCKET, SO_RCVTIMEO, &short_while, sizeof(short_while));
  char c;
  EXPECT_EQ(::recv(early.get(), &c, 1, 0), -1);
  auto kill = Call<v1::KillResponse>("Kill", v1::KillRequest());
  EXPECT_TRUE(kill.ok()) << kill.status();
  EXPECT_EQ(::recv(early.get(), &c, 1, 0), 0);
}

TEST_F(SupervisorTest, NonsenseOnTheSocketHarmsNobody) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  for (const std::string& text : {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(100000, 'C'),
                                  std::string("CONNECT x\n"), std::string(1, '\0')}) {
    UniqueFd fd = ConnectUnix(absl::StrCat(directory_, "/vm.vsock"));
    [[maybe_unused]] const ssize_t n =
        ::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    ::shutdown(fd.get(), SHUT_WR);
    EXPECT_EQ(ReadToEnd(fd.get()), "");
  }
  EXPECT_TRUE(Dial(7).ok());
}

TEST_F(SupervisorTest, ManyStreamsAtOnce) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  std::vector<UniqueFd> streams;
  for (int i = 0; i < 100; ++i) {
    auto stream = Dial(7);
    ASSERT_TRUE(stream.ok()) << stream.status();
    streams.push_back(*std::move(stream));
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    const std::string text = absl::StrCat("stream ", i);
    ::send(streams[i].get(), text.data(), text.size(), 0);
    ::shutdown(streams[i].get(), SHUT_WR);
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_EQ(ReadToEnd(streams[i].get()), absl::StrCat("stream ", i));
  }
}

TEST_F(SupervisorTest, AVmmThatEndsIsRecordedAndAnswered) {
  AddGuest("exit");
  Start();
  auto exit = Call<v1::WaitExitResponse>("WaitExit", v1::WaitExitRequest());
  EXPECT_TRUE(supervisor_.WaitBlocking().ok());
  const nlohmann::json file = ExitFile();
  EXPECT_EQ(file.value("status", 0), 5);
  EXPECT_EQ(file.value("reason", ""), "vmm: exited with status 5");
  EXPECT_TRUE(absl::StrContains(file.value("last_lines", ""), "guest console line")) << file;
  EXPECT_TRUE(absl::StrContains(file.value("last_lines", ""), "vmm: vmm complains")) << file;
  EXPECT_GT(file.value("exited_at_ns", int64_t{0}), 1600000000000000000);
  // The call may come too late for a VM that never lived; then the file tells.
  if (exit.ok()) {
    EXPECT_EQ(exit->exit().status(), 5u);
  }
  EXPECT_TRUE(NothingListens());
}

TEST_F(SupervisorTest, WaitersHearOfAKilledVmm) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  std::optional<absl::StatusOr<v1::WaitExitResponse>> answer;
  asio::co_spawn(
      context_,
      client_->Call<v1::WaitExitResponse>("magnetar.supervisor.v1.Supervisor", "WaitExit",
                                          v1::WaitExitRequest(), std::chrono::seconds(20)),
      [&](std::exception_ptr, auto response) { answer = std::move(response); });
  // Its answer says that the call before it has arrived.
  const pid_t pid = PidOf("vmm");
  EXPECT_FALSE(answer.has_value());
  ::kill(pid, SIGKILL);
  RunUntil(context_, [&] { return answer.has_value(); });
  const auto& exit = *answer;
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->exit().status(), 137u);
  EXPECT_EQ(exit->exit().reason(), "vmm: killed by SIGKILL");
  auto ended = supervisor_.WaitBlocking();
  EXPECT_EQ(ended->status, 0u);
  EXPECT_TRUE(NothingListens());
}

TEST_F(SupervisorTest, AHelperThatDiesTakesTheVmWithIt) {
  AddProcess("helper", {"/bin/sleep", "1000"});
  AddGuest("fork");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  const auto vmm = IdentifyProcess(PidOf("vmm"));
  ::kill(PidOf("helper"), SIGTERM);
  EXPECT_TRUE(supervisor_.WaitBlocking().ok());
  EXPECT_EQ(ExitFile().value("reason", ""), "helper: killed by SIGTERM");
  EXPECT_EQ(ExitFile().value("status", 0), 137);
  EXPECT_TRUE(absl::IsNotFound(OpenProcess(*vmm).status()));
}

TEST_F(SupervisorTest, ASupervisorThatIsKilledTakesEverythingWithIt) {
  AddProcess("helper", {"/bin/sleep", "1000"});
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  std::vector<ProcessIdentity> all;
  for (const char* name : {"vmm", "helper"}) all.push_back(*IdentifyProcess(PidOf(name)));
  std::vector<UniqueFd> pidfds;
  for (const ProcessIdentity& id : all) pidfds.push_back(*OpenProcess(id));
  ASSERT_TRUE(supervisor_.Signal(SIGKILL).ok());
  for (const UniqueFd& pidfd : pidfds) {
    auto ended = WaitUntilEnded(pidfd.get());
    EXPECT_TRUE(Await(context_, std::move(ended)).ok());
  }
  EXPECT_TRUE(supervisor_.WaitBlocking().ok());
  EXPECT_TRUE(NothingListens());
}

TEST_F(SupervisorTest, SigtermKillsTheVm) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  ASSERT_TRUE(supervisor_.Signal(SIGTERM).ok());
  EXPECT_EQ(supervisor_.WaitBlocking()->status, 0u);
  EXPECT_EQ(ExitFile().value("reason", ""), "vmm: killed with its supervisor");
}

TEST_F(SupervisorTest, AProgramThatIsMissingIsNamed) {
  AddProcess("helper", {"/nonexistent/helper"});
  AddGuest("echo");
  Start();
  EXPECT_FALSE(WaitReady().ok());
  EXPECT_TRUE(supervisor_.WaitBlocking().ok());
  EXPECT_EQ(ExitFile().value("reason", ""),
            "helper: exec /nonexistent/helper: No such file or directory");
}

// What the supervisor itself costs: not a limit that holds on any machine, but printed.
TEST_F(SupervisorTest, MemoryAndThroughput) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  const auto pss = [this] {
    const std::string rollup =
        ReadFile(absl::StrCat("/proc/", supervisor_.pid(), "/smaps_rollup")).value_or("");
    const size_t at = rollup.find("\nPss:");
    return at == std::string::npos ? -1 : std::atoi(rollup.c_str() + at + 5);
  };
  std::printf("PSS when ready: %d kB\n", pss());
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Dial(7).ok());
  auto state = Call<v1::StateResponse>("State", v1::StateRequest());
  std::printf("PSS after a few calls: %d kB\n", pss());
  auto stream = Dial(7);
  ASSERT_TRUE(stream.ok()) << stream.status();
  constexpr size_t kBytes = 256 << 20;
  const auto start = std::chrono::steady_clock::now();
  std::thread writer([&] {
    const std::string chunk(64 << 10, 'x');
    for (size_t sent = 0; sent < kBytes;) {
      const ssize_t n = ::send(stream->get(), chunk.data(), chunk.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += static_cast<size_t>(n);
    }
    ::shutdown(stream->get(), SHUT_WR);
  });
  const size_t received = [&] {
    std::vector<char> buffer(256 << 10);
    size_t sum = 0;
    ssize_t n;
    while ((n = ::recv(stream->get(), buffer.data(), buffer.size(), 0)) > 0) {
      sum += static_cast<size_t>(n);
    }
    return sum;
  }();
  writer.join();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(received, kBytes);
  std::printf("echo: %.0f MiB/s each way\n", 256 / took.count());
  stream->reset();
  std::printf("PSS after it: %d kB\n", pss());
  if (std::getenv("MAGNETAR_SLOW_TESTS") != nullptr) {
    std::this_thread::sleep_for(std::chrono::seconds(12));
    std::printf("PSS when idle: %d kB\n", pss());
  }
}

TEST_F(SupervisorTest, TheConsoleIsKept) {
  AddGuest("echo");
  Start();
  ASSERT_TRUE(WaitReady().ok());
  auto console = Call<v1::ConsoleResponse>("Console", v1::ConsoleRequest());
  ASSERT_TRUE(console.ok());
  EXPECT_TRUE(absl::StrContains(console->data(), "guest console line\n")) << console->data();
  EXPECT_TRUE(absl::StrContains(console->data(), "vmm: vmm complains\n")) << console->data();
}

}  // namespace
}  // namespace magnetar::supervisor
