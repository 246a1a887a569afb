#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <utility>

#include "containerd/sandbox.grpc.pb.h"
#include "src/daemon/controller/server.h"
#include "src/daemon/metrics/fake_metrics.h"
#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

namespace api = containerd::services::sandbox::v1;
using ::testing::HasSubstr;

// The service on its socket, as containerd sees it.
class ControllerTest : public testing::Test {
 protected:
  ControllerTest() {
    world_.env().metrics = &metrics_;
    world_.env().config.listen = world_.Directory("") + "s.sock";
    auto server = ControllerServer::Start(&world_.env(), &world_.manager());
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("unix:" + world_.env().config.listen,
                                   grpc::InsecureChannelCredentials());
    stub_ = api::Controller::NewStub(channel_);
  }
  ~ControllerTest() override { server_->Stop(); }

  grpc::Status Create(const std::string& id) {
    grpc::ClientContext context;
    context.AddMetadata("containerd-namespace", "k8s.io");
    api::ControllerCreateRequest request;
    api::ControllerCreateResponse response;
    request.set_sandbox_id(id);
    request.set_netns_path("/proc/self/ns/net");
    return stub_->Create(&context, request, &response);
  }
  grpc::Status Start(const std::string& id, api::ControllerStartResponse* response) {
    grpc::ClientContext context;
    return Start(&context, id, response);
  }
  grpc::Status Start(grpc::ClientContext* context, const std::string& id,
                     api::ControllerStartResponse* response) {
    api::ControllerStartRequest request;
    request.set_sandbox_id(id);
    return stub_->Start(context, request, response);
  }
  grpc::Status Stop(const std::string& id) {
    grpc::ClientContext context;
    api::ControllerStopRequest request;
    api::ControllerStopResponse response;
    request.set_sandbox_id(id);
    return stub_->Stop(&context, request, &response);
  }
  grpc::Status Shutdown(const std::string& id) {
    grpc::ClientContext context;
    api::ControllerShutdownRequest request;
    api::ControllerShutdownResponse response;
    request.set_sandbox_id(id);
    return stub_->Shutdown(&context, request, &response);
  }
  grpc::Status Status(const std::string& id, api::ControllerStatusResponse* response) {
    grpc::ClientContext context;
    api::ControllerStatusRequest request;
    request.set_sandbox_id(id);
    request.set_verbose(true);
    return stub_->Status(&context, request, response);
  }
  grpc::Status Wait(grpc::ClientContext* context, const std::string& id,
                    api::ControllerWaitResponse* response) {
    api::ControllerWaitRequest request;
    request.set_sandbox_id(id);
    return stub_->Wait(context, request, response);
  }
  grpc::Status Update(const std::string& id, const std::string& resources) {
    grpc::ClientContext context;
    api::ControllerUpdateRequest request;
    api::ControllerUpdateResponse response;
    request.set_sandbox_id(id);
    if (!resources.empty()) {
      (*request.mutable_sandbox()->mutable_extensions())["updated-resources"].set_value(resources);
    }
    return stub_->Update(&context, request, &response);
  }

  FakeMetrics metrics_;
  FakeWorld world_;
  std::unique_ptr<ControllerServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<api::Controller::Stub> stub_;
};

TEST_F(ControllerTest, ASandboxLives) {
  ASSERT_TRUE(Create("a").ok());
  EXPECT_EQ(world_.Get("a")->snapshot()->containerd_namespace, "k8s.io");
  api::ControllerStartResponse started;
  ASSERT_TRUE(Start("a", &started).ok());
  EXPECT_EQ(started.sandbox_id(), "a");
  EXPECT_EQ(started.version(), 3u);
  EXPECT_NE(started.pid(), 0u);
  EXPECT_NE(started.created_at().seconds(), 0);
  EXPECT_THAT(started.address(), HasSubstr("ttrpc+hvsock:///"));
  api::ControllerStatusResponse status;
  ASSERT_TRUE(Status("a", &status).ok());
  EXPECT_EQ(status.state(), "SANDBOX_READY");
  EXPECT_EQ(status.address(), started.address());
  EXPECT_FALSE(status.has_exited_at());
  EXPECT_EQ(status.info().count("info"), 1u);
  grpc::ClientContext platform_context;
  api::ControllerPlatformRequest platform_request;
  api::ControllerPlatformResponse platform;
  platform_request.set_sandbox_id("a");
  ASSERT_TRUE(stub_->Platform(&platform_context, platform_request, &platform).ok());
  EXPECT_EQ(platform.platform().os(), "linux");
  EXPECT_FALSE(platform.platform().architecture().empty());
  grpc::ClientContext metrics_context;
  api::ControllerMetricsRequest metrics_request;
  api::ControllerMetricsResponse metrics;
  metrics_request.set_sandbox_id("a");
  ASSERT_TRUE(stub_->Metrics(&metrics_context, metrics_request, &metrics).ok());
  EXPECT_EQ(metrics.metrics().data().type_url(), "io.containerd.cgroups.v2.Metrics");

  grpc::ClientContext context;
  api::ControllerWaitResponse exit;
  auto wait = std::async(std::launch::async, [&] { return Wait(&context, "a", &exit); });
  ASSERT_TRUE(Stop("a").ok());
  EXPECT_TRUE(wait.get().ok());
  EXPECT_NE(exit.exited_at().seconds(), 0);
  ASSERT_TRUE(Status("a", &status).ok());
  EXPECT_EQ(status.state(), "SANDBOX_NOTREADY");
  EXPECT_TRUE(status.has_exited_at());
  EXPECT_TRUE(Shutdown("a").ok());
  EXPECT_EQ(Shutdown("a").error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ControllerTest, ErrorsTravelWithTheirCode) {
  api::ControllerStartResponse started;
  EXPECT_EQ(Start("a", &started).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Stop("..").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Create("a/b").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  ASSERT_TRUE(Create("a").ok());
  EXPECT_EQ(Create("a").error_code(), grpc::StatusCode::ALREADY_EXISTS);
  world_.Fail("network.attach", absl::FailedPreconditionError("eth0 has a foreign qdisc"));
  const grpc::Status failed = Start("a", &started);
  EXPECT_EQ(failed.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(failed.error_message(), HasSubstr("eth0 has a foreign qdisc"));
}

TEST_F(ControllerTest, AStartWhoseCallerGoesIsUndone) {
  ASSERT_TRUE(Create("a").ok());
  world_.Hold("agent.setup");
  grpc::ClientContext context;
  api::ControllerStartResponse started;
  auto start = std::async(std::launch::async, [&] { return Start(&context, "a", &started); });
  world_.WaitFor("agent.setup");
  context.TryCancel();
  EXPECT_EQ(start.get().error_code(), grpc::StatusCode::CANCELLED);
  world_.Release();
  world_.WaitFor("cgroup.remove");
  // Both ways of giving it up leave nothing.
  grpc::Status gone = Shutdown("a");
  EXPECT_TRUE(gone.ok() || gone.error_code() == grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(world_.Residues().empty());
}

TEST_F(ControllerTest, AWaitThatIsCancelledEnds) {
  ASSERT_TRUE(Create("a").ok());
  grpc::ClientContext context;
  api::ControllerWaitResponse exit;
  auto wait = std::async(std::launch::async, [&] { return Wait(&context, "a", &exit); });
  context.TryCancel();
  EXPECT_EQ(wait.get().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Shutdown("a").ok());
}

TEST_F(ControllerTest, UpdateTakesResourcesAndNothingElse) {
  ASSERT_TRUE(Create("a").ok());
  api::ControllerStartResponse started;
  ASSERT_TRUE(Start("a", &started).ok());
  EXPECT_TRUE(Update("a", "").ok());
  EXPECT_EQ(world_.Count("cgroup.update"), 0);
  EXPECT_EQ(Update("a", R"({"Resources":null})").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(world_.Count("cgroup.update"), 0);
  world_.WaitFor("agent.list");
  EXPECT_TRUE(Update("a", R"({"Resources":{"memory_limit_in_bytes":1073741824}})").ok());
  EXPECT_GE(world_.Count("cgroup.update"), 1);
  EXPECT_GE(world_.updated_memory_bytes.load(), 1073741824u);
}

TEST_F(ControllerTest, CallsAreCountedByMethodAndCode) {
  ASSERT_TRUE(Create("a").ok());
  EXPECT_FALSE(Create("a").ok());
  api::ControllerStatusResponse status;
  EXPECT_FALSE(Status("b", &status).ok());
  EXPECT_TRUE(Shutdown("a").ok());
  // What is not served has no name of its own.
  grpc::ClientContext context;
  api::StoreGetRequest request;
  api::StoreGetResponse response;
  EXPECT_EQ(api::Store::NewStub(channel_)->Get(&context, request, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(metrics_.All("rpc"), (std::map<std::string, int>{{"rpc Create OK", 1},
                                                             {"rpc Create ALREADY_EXISTS", 1},
                                                             {"rpc Status NOT_FOUND", 1},
                                                             {"rpc Shutdown OK", 1},
                                                             {"rpc other UNIMPLEMENTED", 1}}));
}

TEST_F(ControllerTest, TheSocketIsThereForOne) {
  const auto second = ControllerServer::Start(&world_.env(), &world_.manager());
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
}

}  // namespace
}  // namespace magnetar::daemon
