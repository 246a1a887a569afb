#include "magnetar/child_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "magnetar/files.h"

namespace magnetar {
namespace {

struct Pipe {
  Pipe() {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0) std::abort();
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
  // All of it; the writers must be gone.
  std::string Contents() {
    write.reset();
    std::string out;
    char buffer[4096];
    ssize_t n;
    while ((n = ::read(read.get(), buffer, sizeof(buffer))) > 0) {
      out.append(buffer, static_cast<size_t>(n));
    }
    return out;
  }
  UniqueFd read, write;
};

TEST(StartTime, SurvivesAnyName) {
  char state = 0;
  EXPECT_EQ(ParseStartTime("12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 0 0\n",
                           &state)
                .value(),
            4242u);
  EXPECT_EQ(state, 'S');
  for (const char* bad : {"", "12 (a", "12 (a) S 1 2",
                          "12 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 "
                          "15 16 17 18 x 0"}) {
    EXPECT_FALSE(ParseStartTime(bad).ok()) << bad;
  }
}

TEST(Spawn, PassesDescriptorsThatCollideAndClosesTheRest) {
  Pipe a, b, out;
  UniqueFd stray(::fcntl(a.read.get(), F_DUPFD, 40));  // not close-on-exec
  SpawnOptions options;
  // Crosswise: each target is the other's source.
  options.argv = {"/bin/sh", "-c", "echo first >&$A; echo second >&$B; cd /proc/self/fd && echo *"};
  options.env = {"A=" + std::to_string(a.write.get()), "B=" + std::to_string(b.write.get())};
  options.descriptors = {{.source = a.write.get(), .target = b.write.get()},
                         {.source = b.write.get(), .target = a.write.get()},
                         {.source = out.write.get(), .target = 1}};
  ASSERT_LT(a.write.get(), 10);
  ASSERT_LT(b.write.get(), 10);
  auto child = Spawn(options);
  ASSERT_TRUE(child.ok()) << child.status();
  auto exit = child->WaitBlocking();
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->status, 0u);
  EXPECT_EQ(a.Contents(), "second\n");
  EXPECT_EQ(b.Contents(), "first\n");
  EXPECT_EQ(out.Contents().find(" 40"), std::string::npos);
}

TEST(Spawn, AMissingProgramIsNamed) {
  SpawnOptions options;
  options.argv = {"/nonexistent/program"};
  auto child = Spawn(options);
  ASSERT_TRUE(absl::IsNotFound(child.status())) << child.status();
  EXPECT_NE(child.status().ToString().find("/nonexistent/program"), std::string::npos);
}

TEST(ChildProcess, TellsHowItEnded) {
  SpawnOptions options;
  options.argv = {"/bin/sh", "-c", "exit 3"};
  auto exit = Spawn(options)->WaitBlocking();
  EXPECT_EQ(exit->status, 3u);
  EXPECT_EQ(exit->Describe(), "exited with status 3");
  options.argv = {"/bin/sh", "-c", "kill -KILL $$"};
  exit = Spawn(options)->WaitBlocking();
  EXPECT_EQ(exit->status, 137u);
  EXPECT_EQ(exit->Describe(), "killed by SIGKILL");
}

TEST(ChildProcess, WaitsWithoutBlocking) {
  asio::io_context context;
  SpawnOptions options;
  options.argv = {"/bin/sleep", "1000"};
  auto child = Spawn(options);
  ASSERT_TRUE(child.ok());
  std::optional<ExitStatus> result;
  asio::co_spawn(context, child->Wait(),
                 [&](std::exception_ptr, absl::StatusOr<ExitStatus> exit) { result = *exit; });
  context.run_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(result.has_value());
  ASSERT_TRUE(child->Signal(SIGTERM).ok());
  context.restart();
  context.run();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->signal, SIGTERM);
}

TEST(ProcessIdentity, NamesOneProcessForEver) {
  SpawnOptions options;
  options.argv = {"/bin/sleep", "1000"};
  auto child = Spawn(options);
  auto identity = IdentifyProcess(child->pid());
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_EQ(*identity, *IdentifyProcess(child->pid()));
  auto pidfd = OpenProcess(*identity);
  ASSERT_TRUE(pidfd.ok()) << pidfd.status();

  ProcessIdentity other = *identity;
  ++other.start_time_ticks;
  EXPECT_TRUE(absl::IsNotFound(OpenProcess(other).status()));
  other = *identity;
  other.boot_id = "another";
  EXPECT_TRUE(absl::IsNotFound(OpenProcess(other).status()));

  ASSERT_TRUE(SignalProcess(pidfd->get(), SIGKILL).ok());
  asio::io_context context;
  bool ended = false;
  asio::co_spawn(context, WaitUntilEnded(pidfd->get()),
                 [&](std::exception_ptr, absl::Status status) { ended = status.ok(); });
  context.run();
  EXPECT_TRUE(ended);
  // A zombie has ended, too.
  EXPECT_TRUE(absl::IsNotFound(OpenProcess(*identity).status()));
  ASSERT_TRUE(child->WaitBlocking().ok());
  EXPECT_TRUE(absl::IsNotFound(IdentifyProcess(identity->pid).status()));
  EXPECT_TRUE(SignalProcess(pidfd->get(), SIGKILL).ok());
}

// A process may look for another just when it has no descriptors left.
TEST(ProcessIdentity, AFailureToLookIsNoEnd) {
  const auto self = IdentifyProcess(::getpid());
  ASSERT_TRUE(self.ok()) << self.status();
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status identified = IdentifyProcess(::getpid()).status();
  const absl::Status opened = OpenProcess(*self).status();
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(identified.code(), absl::StatusCode::kResourceExhausted) << identified;
  EXPECT_EQ(opened.code(), absl::StatusCode::kResourceExhausted) << opened;
}

}  // namespace
}  // namespace magnetar
