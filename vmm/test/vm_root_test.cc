#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include <chrono>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "magnetar/agent.pb.h"
#include "magnetar/files.h"
#include "magnetar/ports.h"
#include "vmm/test/vm_fixture.h"

namespace magnetar::vmm {
namespace {

TEST_F(VmFixture, TheGuestKnocksAndAnswersHello) {
  const auto start = std::chrono::steady_clock::now();
  Boot();
  if (HasFatalFailure()) return;
  WaitReady();
  if (HasFatalFailure()) return;
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  RecordProperty("ready_ms", static_cast<int>(took.count()));
  std::printf("ready after %.0f ms\n", took.count());
  auto agent = DialAgent();
  agent::v1::HelloRequest request;
  request.set_protocol(kAgentProtocol);
  auto call = agent->Call<agent::v1::HelloResponse>("magnetar.agent.v1.Agent", "Hello", request,
                                                    std::chrono::seconds(10));
  auto hello = Await(std::move(call));
  ASSERT_TRUE(hello.ok()) << hello.status();
  EXPECT_EQ(hello->protocol(), kAgentProtocol);
  std::printf("guest kernel %s\n", hello->kernel_release().c_str());
}

TEST_F(VmFixture, KillEndsEverything) {
  Boot();
  if (HasFatalFailure()) return;
  auto kill = Supervisor<supervisor::v1::KillResponse>("Kill", supervisor::v1::KillRequest());
  EXPECT_TRUE(kill.ok()) << kill.status();
  const std::string exit = ExitFileAfterEnd();
  EXPECT_NE(exit.find("\"status\":137"), std::string::npos) << exit;
  EXPECT_FALSE(Listens("vm.vsock"));
  EXPECT_FALSE(Listens("supervisor.sock"));
}

// What is killed, and how exit.json tells it.
struct Victim {
  const char* name;
  bool child;  // its first child instead
  const char* reason;
};

class KillTest : public VmFixture, public testing::WithParamInterface<Victim> {};

TEST_P(KillTest, OneFate) {
  Boot();
  if (HasFatalFailure()) return;
  WaitReady();
  if (HasFatalFailure()) return;
  std::vector<UniqueFd> all;
  for (const char* name : {"qemu", "virtiofsd"}) {
    const pid_t pid = PidOf(name);
    all.push_back(*OpenProcess(*IdentifyProcess(pid)));
    const auto children = ReadFile(absl::StrCat("/proc/", pid, "/task/", pid, "/children"));
    if (const int child = std::atoi(children->c_str()); child > 0) {
      all.push_back(*OpenProcess(*IdentifyProcess(child)));
    }
  }
  UniqueFd open_stream = Dial(kAgentPort);
  ASSERT_EQ(::fcntl(open_stream.get(), F_SETFL, 0), 0);  // blocking
  const Victim& victim = GetParam();
  pid_t pid = victim.name == nullptr ? supervisor_.pid() : PidOf(victim.name);
  if (victim.child) {
    pid = std::atoi(ReadFile(absl::StrCat("/proc/", pid, "/task/", pid, "/children"))->c_str());
  }
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  const auto start = std::chrono::steady_clock::now();
  for (const UniqueFd& pidfd : all) {
    auto ended = WaitUntilEnded(pidfd.get());
    EXPECT_TRUE(Await(std::move(ended)).ok());
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  std::printf("all ended after %.1f ms\n", took.count());
  char c;
  EXPECT_EQ(::recv(open_stream.get(), &c, 1, 0), 0);
  const std::string exit = ExitFileAfterEnd();
  if (victim.reason == nullptr) {
    EXPECT_EQ(exit, "");
  } else {
    EXPECT_NE(exit.find(victim.reason), std::string::npos) << exit;
    EXPECT_FALSE(Listens("vm.vsock"));
  }
}

INSTANTIATE_TEST_SUITE_P(, KillTest,
                         testing::Values(Victim{"qemu", false, "qemu: killed by SIGKILL"},
                                         Victim{"virtiofsd", false, "virtiofsd: killed by SIGKILL"},
                                         Victim{"virtiofsd", true, "virtiofsd: "},
                                         Victim{nullptr, false, nullptr}),
                         [](const auto& info) {
                           return absl::StrCat(
                               info.param.name == nullptr ? "supervisor" : info.param.name,
                               info.param.child ? "_child" : "");
                         });

}  // namespace
}  // namespace magnetar::vmm
