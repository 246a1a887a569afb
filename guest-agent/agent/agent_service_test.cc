#include "guest-agent/agent/agent_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "guest-agent/testing/loop.h"
#include "magnetar/ports.h"

namespace magnetar::guest {
namespace {

class AgentServiceTest : public ::testing::Test {
 protected:
  AgentServiceTest()
      : services_(MakeAgentServices(AgentParts{.tasks = &tasks_,
                                               .pod = &pod_,
                                               .configure_network = nullptr,
                                               .unmount_shared =
                                                   [this] {
                                                     ++unmounts_;
                                                     return unmount_status_;
                                                   },
                                               .version = "1"})) {}

  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(const std::string& method, const Request& request) {
    const auto* handler = services_->FindUnary("magnetar.agent.v1.Agent", method);
    const auto payload = loop_.Run((*handler)(ttrpc::CallContext(), request.SerializeAsString()));
    if (!payload.ok()) return payload.status();
    Response response;
    EXPECT_TRUE(response.ParseFromString(*payload));
    return response;
  }

  testing::Loop loop_;
  TaskManager tasks_{loop_.executor(), TaskEnvironment()};
  ShareStream share_stream_;
  Pod pod_{PodPaths(), nullptr, &share_stream_};
  int unmounts_ = 0;
  absl::Status unmount_status_;
  std::shared_ptr<const ttrpc::Services> services_;
};

TEST_F(AgentServiceTest, GreetsADaemonThatItUnderstands) {
  agent::v1::HelloRequest request;
  EXPECT_EQ(Call<agent::v1::HelloResponse>("Hello", request).status().code(),
            absl::StatusCode::kFailedPrecondition);
  // A later one knows this agent's protocol, too.
  for (const uint32_t protocol : {kAgentProtocol, kAgentProtocol + 1}) {
    request.set_protocol(protocol);
    const auto response = Call<agent::v1::HelloResponse>("Hello", request);
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->protocol(), kAgentProtocol);
    EXPECT_EQ(response->agent_version(), "1");
    EXPECT_THAT(response->features(), ::testing::Contains("shutdown-deadline"));
  }
}

TEST_F(AgentServiceTest, ShutsDownAndTellsWhatIsLeft) {
  agent::v1::ShutdownRequest request;
  request.set_timeout_ms(60000);
  EXPECT_TRUE(Call<agent::v1::ShutdownResponse>("Shutdown", request).ok());
  unmount_status_ = absl::UnavailableError("busy");
  EXPECT_EQ(Call<agent::v1::ShutdownResponse>("Shutdown", request).status(), unmount_status_);
  EXPECT_EQ(unmounts_, 2);
}

}  // namespace
}  // namespace magnetar::guest
