#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "magnetar/agent.pb.h"
#include "magnetar/files.h"
#include "magnetar/ports.h"
#include "vmm/test/vm_fixture.h"

namespace magnetar::vmm {
namespace {

using testing::Test;

bool Exists(const std::string& path) {
  struct stat st;
  return ::lstat(path.c_str(), &st) == 0;
}

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
  EXPECT_FALSE(Exists(absl::StrCat(directory_, "/vm.vsock")));
  EXPECT_FALSE(Exists(absl::StrCat(directory_, "/supervisor.sock")));
}

}  // namespace
}  // namespace magnetar::vmm
