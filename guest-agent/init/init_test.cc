#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

#include "guest-agent/init/kernel_command_line.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/init/reaper.h"
#include "guest-agent/testing/loop.h"
#include "guest-agent/util/notifier.h"
#include "guest-agent/util/spawn.h"

namespace magnetar::guest {
namespace {

TEST(Event, ItsWaitersDoNotEndEachOther) {
  testing::Loop loop;
  Event event(loop.executor());
  bool told = false;
  asio::co_spawn(loop.context, event.Wait(), [&](std::exception_ptr, bool set) { told = set; });
  std::optional<bool> later;
  asio::co_spawn(loop.context, event.WaitFor(std::chrono::hours(1)),
                 [&](std::exception_ptr, bool set) { later = set; });
  EXPECT_FALSE(loop.Run(event.WaitFor(std::chrono::milliseconds(1))));
  loop.Settle(std::chrono::milliseconds(10));
  EXPECT_FALSE(told);
  EXPECT_FALSE(later.has_value());
  event.Set();
  loop.Until([&] { return told && later.has_value(); });
  EXPECT_TRUE(*later);
}

TEST(KernelCommandLine, IsReadWordByWord) {
  const BootOptions mux = ParseKernelCommandLine("quiet magnetar.log=debug console=ttyS0\n");
  EXPECT_EQ(mux.transport.kind, TransportOptions::Kind::kMux);
  EXPECT_EQ(mux.log_level, "debug");
  const BootOptions vsock =
      ParseKernelCommandLine("magnetar.transport=vsock magnetar.ready=7000 x=magnetar.ready=1");
  EXPECT_EQ(vsock.transport.kind, TransportOptions::Kind::kVsock);
  EXPECT_EQ(vsock.transport.ready_port, 7000U);
  EXPECT_EQ(ParseKernelCommandLine("magnetar.ready=abc").transport.ready_port, 0U);
}

TEST(Modules, AreListedInOrder) {
  EXPECT_THAT(ParseModuleList("# these\n/a.ko\n\n  /b.ko # why\n"),
              ::testing::ElementsAre("/a.ko", "/b.ko"));
}

TEST(Modules, TheKernelAsksByNameAndAlias) {
  const std::string text = "bridge /stp.ko /bridge.ko\nrtnl_link_bridge /stp.ko /bridge.ko\n";
  EXPECT_THAT(RequestedModules(text, "bridge"), ::testing::ElementsAre("/stp.ko", "/bridge.ko"));
  EXPECT_THAT(RequestedModules(text, "rtnl-link-bridge"),
              ::testing::ElementsAre("/stp.ko", "/bridge.ko"));
  for (const char* other : {"", "brid", "/stp.ko", "rtnl-link-bridge /stp.ko"}) {
    EXPECT_THAT(RequestedModules(text, other), ::testing::IsEmpty()) << other;
  }
  EXPECT_TRUE(IsModprobe("/sbin/modprobe"));
  EXPECT_FALSE(IsModprobe("/sbin/vmm-task"));
}

class ReaperTest : public ::testing::Test {
 protected:
  ReaperTest() : reaper_(loop_.executor()) { reaper_.Start(); }
  ~ReaperTest() override { reaper_.Stop(); }

  static pid_t Shell(const std::string& command) {
    SpawnRequest request;
    request.argv = {"/bin/sh", "-c", command};
    const auto pid = Spawn(request);
    EXPECT_TRUE(pid.ok());
    return pid.value_or(-1);
  }
  void UntilReaped(pid_t pid) {
    loop_.Until([pid] { return ::kill(pid, 0) != 0; });
  }

  testing::Loop loop_;
  Reaper reaper_;
};

TEST_F(ReaperTest, TellsHowAProcessEnded) {
  // The shell may be gone before it is waited for.
  const Reaper::Window window(reaper_);
  EXPECT_EQ(loop_.Run(reaper_.Wait(Shell("exit 7"))).status, 7U);
  EXPECT_EQ(loop_.Run(reaper_.Wait(Shell("kill -TERM $$"))).status, 128U + SIGTERM);
}

TEST_F(ReaperTest, KeepsAnEndThatCameEarly) {
  const Reaper::Window window(reaper_);
  const pid_t pid = Shell("exit 3");
  UntilReaped(pid);
  EXPECT_EQ(loop_.Run(reaper_.Wait(pid)).status, 3U);
}

TEST_F(ReaperTest, ForgetsWhatNobodyAskedFor) {
  pid_t pid = 0;
  {
    const Reaper::Window window(reaper_);
    pid = Shell("exit 3");
    UntilReaped(pid);
  }
  bool told = false;
  reaper_.Watch(pid, [&](Exit) { told = true; });
  loop_.Settle();
  EXPECT_FALSE(told);
}

TEST(Spawn, GivesDescriptorsAndAFixedEnvironment) {
  testing::Loop loop;
  Reaper reaper(loop.executor());
  reaper.Start();
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  SpawnRequest request;
  request.argv = {"/usr/bin/env"};
  request.stdout_fd = fds[1];
  const Reaper::Window window(reaper);
  const auto pid = Spawn(request);
  ASSERT_TRUE(pid.ok());
  EXPECT_EQ(loop.Run(reaper.Wait(*pid)).status, 0U);
  reaper.Stop();
  char buffer[256];
  const ssize_t n = ::read(fds[0], buffer, sizeof(buffer));
  ASSERT_GT(n, 0);
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(n)), "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n");
  request.argv = {"/no/such/program"};
  EXPECT_EQ(Spawn(request).status().code(), absl::StatusCode::kNotFound);
  ::close(fds[0]);
  ::close(fds[1]);
}

}  // namespace
}  // namespace magnetar::guest
