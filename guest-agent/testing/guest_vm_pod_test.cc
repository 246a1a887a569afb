// The pod, the way to the host, and the end, in a real VM.
#include <sys/socket.h>
#include <unistd.h>

#include <ctime>

#include "absl/strings/str_replace.h"
#include "guest-agent/testing/guest_vm_fixture.h"
#include "magnetar/forward.h"

namespace magnetar::guest::testing {
namespace {

class GuestPodTest : public GuestVmTest {};

TEST_F(GuestPodTest, AnswersHeartbeats) {
  const Client heart = vm_->Dial(kHeartbeatPort);
  for (int i = 0; i < 3; ++i) {
    agent::v1::BeatRequest request;
    timespec now;
    ::clock_gettime(CLOCK_REALTIME, &now);
    request.set_host_time_ns((int64_t{now.tv_sec} + int64_t{i} * 3600) * 1000000000 + now.tv_nsec);
    const auto beat =
        vm_->Call<agent::v1::BeatResponse>(heart, "magnetar.agent.v1.Heartbeat", "Beat", request);
    ASSERT_TRUE(beat.ok()) << beat.status();
    EXPECT_LT(beat->main_loop_age_ms(), 1000U);
    EXPECT_GT(beat->agent_peak_rss_bytes(), 1U << 20);
    EXPECT_LT(beat->agent_peak_rss_bytes(), 8U << 20);
    EXPECT_GT(beat->uptime_ns(), 0);
  }
  // Two hours ahead by now.
  const Client task = Sleeper("clock");
  const std::string text = ExecOutput(task, "clock", "date", {"busybox", "date", "+%s"});
  EXPECT_GT(std::stoll(text), ::time(nullptr) + 7000) << text;
  KillAndDelete(task, "clock");
}

TEST_F(GuestPodTest, ConfiguresTheNetwork) {
  const Client task = Sleeper("net");
  const std::string routes = ExecOutput(task, "net", "r", {"ip", "route"});
  EXPECT_THAT(routes, ::testing::HasSubstr("default via 10.0.2.2 dev net7"));
  const std::string routes6 = ExecOutput(task, "net", "r6", {"ip", "-6", "route"});
  EXPECT_THAT(routes6, ::testing::HasSubstr("default via fd00::1 dev net7"));
  const std::string links = ExecOutput(task, "net", "l", {"ip", "link"});
  EXPECT_THAT(links, ::testing::HasSubstr("mtu 1400"));
  EXPECT_THAT(links, ::testing::HasSubstr("lo: <LOOPBACK,UP"));
  const std::string neighbours = ExecOutput(task, "net", "n", {"ip", "neigh"});
  EXPECT_THAT(neighbours, ::testing::HasSubstr("10.0.2.77 dev net7 lladdr 02:00:00:00:00:77"));
  EXPECT_EQ(ExecOutput(task, "net", "h", {"cat", "/etc/hosts"}), "127.0.0.1 localhost\n");
  EXPECT_EQ(ExecOutput(task, "net", "s", {"cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"}),
            "80\n");
  KillAndDelete(task, "net");
}

TEST_F(GuestPodTest, ForwardsPorts) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("fwd", {"nc", "-l", "-p", "8080", "-e", "cat"});
  ASSERT_EQ(Create(task, "fwd", false, false), absl::OkStatus());
  ASSERT_EQ(Start(task, "fwd"), absl::OkStatus());
  UniqueFd connection;
  uint8_t answer = kForwardRefused;
  // The listener comes up some time after the start of its process.
  for (int i = 0; i < 50 && answer != kForwardConnected; ++i) {
    connection = vm_->DialRaw(kForwardPort);
    const uint8_t port[] = {8080 >> 8, 8080 & 0xff};
    ASSERT_EQ(::write(connection.get(), port, sizeof(port)), 2);
    ASSERT_EQ(::recv(connection.get(), &answer, 1, MSG_WAITALL), 1);
  }
  ASSERT_EQ(answer, kForwardConnected);
  ASSERT_EQ(::write(connection.get(), "hello", 5), 5);
  ::shutdown(connection.get(), SHUT_WR);
  char buffer[64];
  std::string text;
  ssize_t n = 0;
  while ((n = ::read(connection.get(), buffer, sizeof(buffer))) > 0) {
    text.append(buffer, static_cast<size_t>(n));
  }
  EXPECT_EQ(text, "hello");
  EXPECT_TRUE(Wait(task, "fwd").ok());
  EXPECT_TRUE(Delete(task, "fwd").ok());
  const UniqueFd refused = vm_->DialRaw(kForwardPort);
  const uint8_t port[] = {0, 9};
  ASSERT_EQ(::write(refused.get(), port, sizeof(port)), 2);
  ASSERT_EQ(::recv(refused.get(), &answer, 1, MSG_WAITALL), 1);
  EXPECT_EQ(answer, kForwardRefused);
}

TEST_F(GuestPodTest, SharesAPidNamespace) {
  const Client one = vm_->Dial(kTaskPort);
  for (const char* id : {"pid1", "pid2"}) {
    Prepare(id, {"sleep", "1000"});
    std::string spec = vm_->prepared[id].spec();
    const std::string own = R"({"type":"pid"})";
    spec.replace(spec.find(own), own.size(), R"({"type":"pid","path":"/run/magnetar/pod/ns/pid"})");
    vm_->prepared[id].set_spec(spec);
    ASSERT_EQ(Create(one, id, false, false), absl::OkStatus());
    ASSERT_EQ(Start(one, id), absl::OkStatus());
  }
  const std::string processes = ExecOutput(one, "pid1", "ps", {"ps", "-o", "pid,args"});
  EXPECT_THAT(processes, ::testing::HasSubstr("1 pause --pause"));
  EXPECT_EQ(ExecOutput(one, "pid2", "count", {"sh", "-c", "ps -o args | busybox grep -c '^sleep'"}),
            "2\n");
  // Who may trace the namespace's first process finds nothing of the agent's in it.
  const Client tracer = vm_->Dial(kTaskPort);
  Prepare("pid3", {"sh", "-c", "ls -a /proc/1/root/; cat /proc/1/status"});
  vm_->prepared["pid3"].set_spec(absl::StrReplaceAll(
      vm_->prepared["pid3"].spec(),
      {{R"({"type":"pid"})", R"({"type":"pid","path":"/run/magnetar/pod/ns/pid"})"},
       {R"("CAP_KILL")", R"("CAP_KILL","CAP_SYS_PTRACE")"}}));
  TestStream out(*vm_, "pid3-stdout");
  ASSERT_EQ(Create(tracer, "pid3", false, false), absl::OkStatus());
  ASSERT_EQ(Start(tracer, "pid3"), absl::OkStatus());
  const std::string pause = out.ReadAll();
  EXPECT_THAT(pause, ::testing::StartsWith(".\n..\nName:\tpause\n"));
  EXPECT_THAT(pause, ::testing::HasSubstr("CapPrm:\t0000000000000000\n"));
  EXPECT_THAT(pause, ::testing::HasSubstr("CapBnd:\t0000000000000000\n"));
  EXPECT_THAT(pause, ::testing::HasSubstr("NoNewPrivs:\t1\n"));
  EXPECT_THAT(pause, ::testing::HasSubstr("Uid:\t65534\t65534\t65534\t65534\n"));
  EXPECT_TRUE(Wait(tracer, "pid3").ok());
  EXPECT_TRUE(Delete(tracer, "pid3").ok());
  KillAndDelete(one, "pid1");
  EXPECT_EQ(State(one, "pid2")->status(), containerd::v1::types::RUNNING);
  KillAndDelete(one, "pid2");
}

TEST_F(GuestPodTest, MountsADiskBySerial) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("disk", {"sh", "-c", "echo data > /f; cat /f"});
  agent::v1::PreparedContainer& prepared = vm_->prepared["disk"];
  prepared.set_spec(absl::StrReplaceAll(
      prepared.spec(),
      {{"/run/magnetar/shared/disk/rootfs", "/run/magnetar/containers/disk/rootfs"}}));
  agent::v1::Storage& storage = *prepared.add_storages();
  storage.set_kind(agent::v1::Storage::DISK);
  storage.set_serial("testdisk");
  storage.set_fstype("ext4");
  storage.set_target("/run/magnetar/containers/disk/rootfs");
  TestStream out(*vm_, "disk-stdout");
  const absl::Status created = Create(task, "disk", false, false);
  ASSERT_EQ(created, absl::OkStatus());
  ASSERT_EQ(Start(task, "disk"), absl::OkStatus());
  EXPECT_EQ(out.ReadAll(), "data\n");
  EXPECT_TRUE(Wait(task, "disk").ok());
  EXPECT_TRUE(Delete(task, "disk").ok());
}

TEST_F(GuestPodTest, StaysSmall) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("rss", {"cat", "/hostproc/1/status"});
  std::string spec = vm_->prepared["rss"].spec();
  spec = absl::StrReplaceAll(
      spec,
      {{R"("mounts":[)", R"("mounts":[{"type":"bind","source":"/proc","destination":"/hostproc",)"
                         R"("options":["rbind","ro"]},)"}});
  vm_->prepared["rss"].set_spec(spec);
  TestStream out(*vm_, "rss-stdout");
  ASSERT_EQ(Create(task, "rss", false, false), absl::OkStatus());
  ASSERT_EQ(Start(task, "rss"), absl::OkStatus());
  const std::string text = out.ReadAll();
  std::cerr << text << std::endl;
  const size_t at = text.find("VmRSS:");
  ASSERT_NE(at, std::string::npos);
  EXPECT_LE(std::atoi(text.c_str() + at + 6), 4096);
  EXPECT_TRUE(Wait(task, "rss").ok());
  EXPECT_TRUE(Delete(task, "rss").ok());
}

TEST_F(GuestPodTest, DeletesWithoutADaemonAndTellsTheNext) {
  const Client task = Sleeper("away");
  vm_->DisconnectDaemon();
  EXPECT_EQ(ExecOutput(task, "away", "still", {"echo", "works"}), "works\n");
  KillAndDelete(task, "away");
  EXPECT_THAT(vm_->released, ::testing::Not(::testing::Contains("away")));
  vm_->ConnectDaemon();
  agent::v1::ListContainersRequest list;
  const auto containers = vm_->Call<agent::v1::ListContainersResponse>(
      vm_->agent(), "magnetar.agent.v1.Agent", "ListContainers", list);
  ASSERT_TRUE(containers.ok());
  EXPECT_EQ(containers->containers_size(), 0);
  // A round trip behind the stream's.
  const Client after = Sleeper("after");
  KillAndDelete(after, "after");
  EXPECT_THAT(vm_->released, ::testing::Contains("away"));
}

TEST_F(GuestPodTest, ZEndsWithTheHost) {
  const Client task = Sleeper("last");
  agent::v1::ShutdownRequest shutdown;
  shutdown.set_timeout_ms(2000);
  const auto done = vm_->Call<agent::v1::ShutdownResponse>(vm_->agent(), "magnetar.agent.v1.Agent",
                                                           "Shutdown", shutdown);
  EXPECT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(Wait(task, "last")->exit_status(), 137U);
  EXPECT_EQ(Create(task, "late", false, false).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace magnetar::guest::testing
