#include "src/daemon/sandbox/host_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "containerd/events.pb.h"
#include "cri/runtime.pb.h"
#include "magnetar/files.h"
#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

class HostRequestsTest : public testing::Test {
 protected:
  HostRequestsTest() {
    EXPECT_TRUE(world_.Create("pod").ok());
    record_ = std::make_shared<RecordFile>(world_.Directory("pod"), world_.Get("pod")->record());
    requests_ =
        std::make_shared<HostRequests>(&world_.env(), record_, world_.env().io->get_executor());
    auto& container = world_.containerd.containers["c1"];
    container.set_id("c1");
    container.set_sandbox("pod");
    container.set_snapshotter("overlayfs");
    container.set_snapshot_key("c1");
    container.mutable_spec()->set_value("{}");
    containerd::types::Mount mount;
    mount.set_type("overlay");
    world_.containerd.snapshots["overlayfs/c1"] = {mount};
    world_.containerd.containers["other"].set_sandbox("another");
  }

  agent::v1::HostResponse Prepare(const std::string& id) {
    agent::v1::HostRequest request;
    request.mutable_prepare()->set_container_id(id);
    request.mutable_prepare()->add_rootfs_mount_types("overlay");
    return world_.Await(requests_->Handle(request));
  }
  agent::v1::HostResponse Release(const std::string& id) {
    agent::v1::HostRequest request;
    request.mutable_release()->set_container_id(id);
    return world_.Await(requests_->Handle(request));
  }

  // Begins it and does not wait.
  std::future<agent::v1::HostResponse> BeginPrepare(const std::string& id) {
    agent::v1::HostRequest request;
    request.mutable_prepare()->set_container_id(id);
    request.mutable_prepare()->add_rootfs_mount_types("overlay");
    return asio::co_spawn(*world_.env().io, requests_->Handle(request), asio::use_future);
  }
  void AddContainer(const std::string& id) {
    world_.containerd.containers[id] = world_.containerd.containers["c1"];
    world_.containerd.containers[id].set_id(id);
  }
  template <typename F>
  void OnStrand(F f) {
    auto run = [](F g) -> Co<bool> {
      g();
      co_return true;
    };
    world_.Await(run(std::move(f)));
  }
  size_t Journalled() { return record_->Get().container_steps.size(); }

  FakeWorld world_;
  std::shared_ptr<RecordFile> record_;
  std::shared_ptr<HostRequests> requests_;
};

TEST_F(HostRequestsTest, PreparesAndReleasesWithAJournal) {
  const auto prepared = Prepare("c1");
  EXPECT_EQ(prepared.code(), 0) << prepared.message();
  EXPECT_EQ(prepared.prepared().spec(), "{}");
  EXPECT_EQ(ReadRecord(world_.Directory("pod"))->container_steps.size(), 1u);
  EXPECT_EQ(Release("c1").code(), 0);
  EXPECT_TRUE(ReadRecord(world_.Directory("pod"))->container_steps.empty());
  EXPECT_EQ(Release("c1").code(), 0);
}

TEST_F(HostRequestsTest, GivesAGuestNothingOfOthers) {
  EXPECT_EQ(Prepare("other").code(), static_cast<int>(absl::StatusCode::kPermissionDenied));
  EXPECT_EQ(Prepare("unknown").code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_EQ(Prepare("../c1").code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Release("..").code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(world_.Count("storage.prepare"), 0);
}

TEST_F(HostRequestsTest, PublishesOomOfItsOwnContainersOnly) {
  agent::v1::HostRequest request;
  request.mutable_event()->set_kind(agent::v1::GuestEvent::OOM);
  request.mutable_event()->set_container_id("c1");
  world_.Await(requests_->Handle(request));
  EXPECT_TRUE(world_.containerd.events.empty());
  ASSERT_EQ(Prepare("c1").code(), 0);
  world_.Await(requests_->Handle(request));
  ASSERT_EQ(world_.containerd.events.size(), 1u);
  EXPECT_EQ(world_.containerd.events[0].topic, "/tasks/oom");
  EXPECT_EQ(world_.containerd.events[0].ns, "k8s.io");
}

TEST_F(HostRequestsTest, PublishesInOrderWhateverFollows) {
  ASSERT_EQ(Prepare("c1").code(), 0);
  std::vector<std::future<agent::v1::HostResponse>> answers;
  const auto begin = [&](const agent::v1::HostRequest& request) {
    answers.push_back(
        asio::co_spawn(*world_.env().io, requests_->Handle(request), asio::use_future));
  };
  agent::v1::HostRequest request;
  request.mutable_event()->set_container_id("c1");
  for (const auto kind : {agent::v1::GuestEvent::STARTED, agent::v1::GuestEvent::EXITED,
                          agent::v1::GuestEvent::DELETED}) {
    request.mutable_event()->set_kind(kind);
    begin(request);
  }
  agent::v1::HostRequest release;
  release.mutable_release()->set_container_id("c1");
  begin(release);
  for (auto& answer : answers) EXPECT_EQ(answer.get().code(), 0);
  std::vector<std::string> topics;
  for (const auto& event : world_.containerd.events) topics.push_back(event.topic);
  EXPECT_THAT(topics, testing::ElementsAre("/tasks/start", "/tasks/exit", "/tasks/delete"));
}

TEST_F(HostRequestsTest, KnowsTheLimitsOfItsContainers) {
  int changes = 0;
  requests_->OnLimitsChanged([&] { ++changes; });
  auto& spec = *world_.containerd.containers["c1"].mutable_spec();
  spec.set_value(R"({"linux":{"resources":{"memory":{"limit":1000}}}})");
  ASSERT_EQ(Prepare("c1").code(), 0);
  ASSERT_EQ(record_->Get().container_limits.size(), 1u);
  EXPECT_EQ(record_->Get().container_limits[0].memory_bytes, 1000u);
  EXPECT_EQ(changes, 1);
  // An update went past the daemon, which believes containerd and not the guest.
  spec.set_value(
      R"({"linux":{"resources":{"memory":{"limit":2000},"cpu":{"quota":1,"period":2}}}})");
  agent::v1::HostRequest request;
  request.mutable_event()->set_kind(agent::v1::GuestEvent::UPDATED);
  request.mutable_event()->set_container_id("c1");
  EXPECT_EQ(world_.Await(requests_->Handle(request)).code(), 0);
  EXPECT_EQ(ReadRecord(world_.Directory("pod"))->container_limits[0].memory_bytes, 2000u);
  EXPECT_EQ(record_->Get().container_limits[0].millicpus, 500u);
  EXPECT_EQ(changes, 2);
  EXPECT_TRUE(world_.containerd.events.empty());
  request.mutable_event()->set_container_id("other");
  EXPECT_NE(world_.Await(requests_->Handle(request)).code(), 0);
  EXPECT_EQ(Release("c1").code(), 0);
  EXPECT_TRUE(record_->Get().container_limits.empty());
  EXPECT_EQ(changes, 3);
}

TEST_F(HostRequestsTest, AnEventThatContainerdDoesNotTakeIsAnError) {
  ASSERT_EQ(Prepare("c1").code(), 0);
  world_.containerd.failure = absl::InternalError("no");
  agent::v1::HostRequest request;
  request.mutable_event()->set_container_id("c1");
  request.mutable_event()->set_kind(agent::v1::GuestEvent::STARTED);
  const auto answer = world_.Await(requests_->Handle(request));
  EXPECT_EQ(answer.code(), static_cast<int>(absl::StatusCode::kInternal));
  EXPECT_EQ(answer.message(), "/tasks/start: no");
}

TEST_F(HostRequestsTest, AnEventWaitsForContainerd) {
  ASSERT_EQ(Prepare("c1").code(), 0);
  world_.containerd.failure = absl::UnavailableError("away");
  agent::v1::HostRequest request;
  request.mutable_event()->set_container_id("c1");
  request.mutable_event()->set_kind(agent::v1::GuestEvent::STARTED);
  auto begun = asio::co_spawn(*world_.env().io, requests_->Handle(request), asio::use_future);
  OnStrand([this] { world_.containerd.failure = absl::OkStatus(); });
  EXPECT_EQ(begun.get().code(), 0);
  EXPECT_EQ(world_.containerd.events.size(), 1u);
  // It keeps no sandbox from ending.
  OnStrand([this] { world_.containerd.failure = absl::UnavailableError("away"); });
  begun = asio::co_spawn(*world_.env().io, requests_->Handle(request), asio::use_future);
  OnStrand([this] { requests_->Refuse(); });
  EXPECT_EQ(begun.get().code(), static_cast<int>(absl::StatusCode::kUnavailable));
}

TEST_F(HostRequestsTest, AnEventThatIsSentAgainIsPublishedOnce) {
  ASSERT_EQ(Prepare("c1").code(), 0);
  agent::v1::HostRequest request;
  request.set_id(7);
  request.mutable_event()->set_container_id("c1");
  request.mutable_event()->set_kind(agent::v1::GuestEvent::STARTED);
  EXPECT_EQ(world_.Await(requests_->Handle(request)).code(), 0);
  EXPECT_EQ(world_.Await(requests_->Handle(request)).code(), 0);
  EXPECT_EQ(world_.containerd.events.size(), 1u);
  request.set_id(8);
  EXPECT_EQ(world_.Await(requests_->Handle(request)).code(), 0);
  EXPECT_EQ(world_.containerd.events.size(), 2u);
}

TEST_F(HostRequestsTest, AVmsEndIsTheEndOfItsContainers) {
  agent::v1::HostRequest request;
  auto& event = *request.mutable_event();
  const auto tell = [&](const char* id, std::initializer_list<agent::v1::GuestEvent::Kind> kinds) {
    event.set_container_id(id);
    for (const auto kind : kinds) {
      event.set_kind(kind);
      EXPECT_EQ(world_.Await(requests_->Handle(request)).code(), 0);
    }
  };
  for (const char* id : {"c1", "c2", "c3", "c4"}) {
    world_.containerd.containers[id] = world_.containerd.containers["c1"];
    ASSERT_EQ(Prepare(id).code(), 0);
  }
  using agent::v1::GuestEvent;
  event.set_exit_status(7);
  tell("c1", {GuestEvent::CREATED, GuestEvent::STARTED});
  tell("c2", {GuestEvent::CREATED, GuestEvent::STARTED, GuestEvent::EXITED});
  tell("c3", {GuestEvent::CREATED, GuestEvent::EXITED, GuestEvent::DELETED});
  world_.containerd.events.clear();
  OnStrand([this] {
    requests_->Refuse();
    requests_->TellEnds(5);
  });
  // c3 was deleted, and of c4 there never was a task.
  std::vector<std::string> told;
  for (const auto& published : world_.containerd.events) {
    if (published.topic == "/tasks/exit") {
      containerd::events::TaskExit exit;
      ASSERT_TRUE(exit.ParseFromString(published.event));
      told.push_back(absl::StrCat("exit ", exit.container_id(), " ", exit.exit_status(), " ",
                                  exit.exited_at().nanos()));
    } else {
      containerd::events::TaskDelete deleted;
      ASSERT_TRUE(deleted.ParseFromString(published.event));
      told.push_back(absl::StrCat("delete ", deleted.container_id(), " ", deleted.exit_status()));
    }
  }
  EXPECT_THAT(told, testing::ElementsAre("exit c1 255 5", "delete c1 255", "delete c2 7"));
  // Once.
  OnStrand([this] { requests_->TellEnds(5); });
  EXPECT_EQ(world_.containerd.events.size(), 3u);
}

TEST_F(HostRequestsTest, RefusesOnceTheSandboxIsStopped) {
  requests_->Refuse();
  EXPECT_EQ(Prepare("c1").code(), static_cast<int>(absl::StatusCode::kUnavailable));
}

TEST_F(HostRequestsTest, ReleasesWhatTheGuestNoLongerHolds) {
  ASSERT_EQ(Prepare("c1").code(), 0);
  auto reconcile = [](std::shared_ptr<HostRequests> r, std::set<std::string> held) -> Co<bool> {
    auto once = r->Reconcile(std::move(held));
    co_await std::move(once);
    co_return true;
  };
  world_.Await(reconcile(requests_, {"c1"}));
  EXPECT_EQ(world_.Count("storage.release"), 0);
  world_.Await(reconcile(requests_, {}));
  EXPECT_EQ(world_.Count("storage.release"), 1);
  EXPECT_TRUE(record_->Get().container_steps.empty());
}

TEST_F(HostRequestsTest, StepsOfALaterDaemonStay) {
  const auto later = [](Record& r) { r.container_steps.push_back({"zoned", "c1", "/x", "", ""}); };
  ASSERT_TRUE(record_->Update(later).ok());
  ASSERT_EQ(Prepare("c1").code(), 0);
  EXPECT_EQ(Release("c1").code(), 0);
  const auto record = ReadRecord(world_.Directory("pod"));
  ASSERT_TRUE(record.ok()) << record.status();
  ASSERT_EQ(record->container_steps.size(), 1u);
  EXPECT_EQ(record->container_steps[0].kind, "zoned");
}

TEST_F(HostRequestsTest, AJournalThatCannotBeWrittenLeavesNothingInMemory) {
  ASSERT_TRUE(RemoveTree(world_.Directory("pod")).ok());
  EXPECT_NE(Prepare("c1").code(), 0);
  (void)Release("c1");
  EXPECT_TRUE(record_->Get().container_steps.empty());
}

TEST_F(HostRequestsTest, TellsWhoseAPidNamespaceIs) {
  runtime::v1::PodSandboxConfig pod;
  const auto prepare = [&](runtime::v1::NamespaceMode mode) {
    pod.mutable_linux()->mutable_security_context()->mutable_namespace_options()->set_pid(mode);
    const auto store = [&pod](Record& r) { r.pod_config = pod.SerializeAsString(); };
    EXPECT_TRUE(record_->Update(store).ok());
    EXPECT_EQ(Prepare("c1").code(), 0);
    return world_.pod_shares_pids.load();
  };
  EXPECT_TRUE(prepare(runtime::v1::POD));
  EXPECT_FALSE(prepare(runtime::v1::CONTAINER));
}

TEST_F(HostRequestsTest, TellsWhoseProcessesAContainerIsToSee) {
  const auto prepare = [&](const std::string& options) {
    (*world_.containerd.containers["c1"]
          .mutable_extensions())["io.cri-containerd.container.metadata"]
        .set_value(absl::StrCat(R"({"Version":"v1","Metadata":{"Config":{"linux":)",
                                R"({"security_context":{"namespace_options":)", options, "}}}}}"));
    const int code = Prepare("c1").code();
    return code == 0 ? world_.pid_namespace_of : absl::StrCat("code ", code);
  };
  EXPECT_EQ(prepare(R"({"pid":3,"target_id":"c7"})"), "c7");
  EXPECT_EQ(prepare(R"({"pid":1,"target_id":"c7"})"), "");
  EXPECT_EQ(prepare(R"({"pid":3})"), "");
  EXPECT_EQ(prepare(R"({"pid":3,"target_id":"../c7"})"), "code 3");
  for (const char* odd : {"[]", "null", "7", "{", R"({"pid":3,"target_id":[]})"}) {
    EXPECT_EQ(prepare(odd), "") << odd;
  }
}

TEST_F(HostRequestsTest, TellsWhichDevicesAContainerAsksFor) {
  const auto prepare = [&](const std::string& config) {
    (*world_.containerd.containers["c1"]
          .mutable_extensions())["io.cri-containerd.container.metadata"]
        .set_value(absl::StrCat(R"({"Version":"v1","Metadata":{"Config":)", config, "}}"));
    EXPECT_EQ(Prepare("c1").code(), 0);
    return world_.devices.size();
  };
  EXPECT_EQ(prepare(R"({"devices":[{"container_path":"/dev/x","host_path":"/dev/loop1",
                        "permissions":"r"},{"host_path":[]}]})"),
            2u);
  EXPECT_EQ(world_.devices[0].container_path, "/dev/x");
  EXPECT_EQ(world_.devices[0].host_path, "/dev/loop1");
  EXPECT_EQ(world_.devices[0].permissions, "r");
  EXPECT_EQ(world_.devices[1].host_path, "");
  for (const char* odd : {"[]", "null", "7", "{", R"({"devices":{}})", R"({"devices":null})"}) {
    EXPECT_EQ(prepare(odd), 0u) << odd;
  }
}

TEST_F(HostRequestsTest, StepsOfEachKindAreReleased) {
  for (const char* kind : {"mount", "disk", "volume-disk", "volume-use"}) {
    const auto add = [kind](Record& r) { r.container_steps.push_back({kind, "c1", "/x", "", ""}); };
    ASSERT_TRUE(record_->Update(add).ok());
  }
  EXPECT_EQ(Release("c1").code(), 0);
  EXPECT_EQ(Journalled(), 0u);
}

TEST_F(HostRequestsTest, WithoutContainerdNothingIsPreparedAndNothingLeft) {
  world_.containerd.failure = absl::UnavailableError("away");
  EXPECT_EQ(Prepare("c1").code(), static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_EQ(world_.Count("storage.prepare"), 0);
  EXPECT_EQ(Journalled(), 0u);
  world_.containerd.failure = absl::OkStatus();
  EXPECT_EQ(Prepare("c1").code(), 0);
}

// The guest gives up a Prepare after its own deadline, and then releases the container.
TEST_F(HostRequestsTest, AReleaseUndoesAPrepareThatIsStillUnderWay) {
  world_.Hold("storage.prepare");
  auto prepare = BeginPrepare("c1");
  world_.WaitFor("storage.prepare");
  agent::v1::HostRequest request;
  request.mutable_release()->set_container_id("c1");
  auto release = asio::co_spawn(*world_.env().io, requests_->Handle(request), asio::use_future);
  world_.Release();
  EXPECT_EQ(prepare.get().code(), 0);
  EXPECT_EQ(release.get().code(), 0);
  EXPECT_EQ(Journalled(), 0u);
}

TEST_F(HostRequestsTest, AReleaseThatFailedIsTriedAgain) {
  AddContainer("c2");
  AddContainer("c3");
  ASSERT_EQ(Prepare("c1").code(), 0);
  world_.Fail("storage.release", absl::DeadlineExceededError("the guest keeps it"));
  EXPECT_NE(Release("c1").code(), 0);
  EXPECT_EQ(Journalled(), 1u);
  world_.Heal();
  // With the next container of the sandbox.
  ASSERT_EQ(Prepare("c2").code(), 0);
  world_.WaitFor("storage.release", 2);
  ASSERT_EQ(Prepare("c3").code(), 0);
  EXPECT_EQ(Journalled(), 2u);
  // And when the guest has let go of a disk.
  world_.Fail("storage.release", absl::DeadlineExceededError("the guest keeps it"));
  EXPECT_NE(Release("c2").code(), 0);
  world_.Heal();
  OnStrand([this] { requests_->RetryReleases(); });
  world_.WaitFor("storage.release", 4);
  EXPECT_EQ(Release("c3").code(), 0);
  EXPECT_EQ(Journalled(), 0u);
}

TEST_F(HostRequestsTest, AContainerThatIsPreparedAgainIsNotReleased) {
  ASSERT_EQ(Prepare("c1").code(), 0);
  world_.Fail("storage.release", absl::DeadlineExceededError("the guest keeps it"));
  EXPECT_NE(Release("c1").code(), 0);
  world_.Heal();
  world_.Hold("storage.prepare");
  auto prepare = BeginPrepare("c1");
  world_.Release();
  EXPECT_EQ(prepare.get().code(), 0);
  const int released = world_.Count("storage.release");
  OnStrand([this] { requests_->RetryReleases(); });
  ASSERT_EQ(Prepare("c1").code(), 0);
  EXPECT_EQ(world_.Count("storage.release"), released);
}

TEST_F(HostRequestsTest, ASandboxHasAFewOperationsAtOnce) {
  world_.Hold("storage.prepare");
  std::vector<std::future<agent::v1::HostResponse>> prepares;
  for (int i = 0; i < 6; ++i) {
    const std::string id = "p" + std::to_string(i);
    AddContainer(id);
    prepares.push_back(BeginPrepare(id));
  }
  world_.WaitFor("storage.prepare", 4);
  OnStrand([] {});
  EXPECT_EQ(world_.Count("storage.prepare"), 4);
  world_.Release();
  for (auto& prepare : prepares) EXPECT_EQ(prepare.get().code(), 0);
}

TEST_F(HostRequestsTest, AStuckPrepareDoesNotKeepTheTeardownAndIsUndone) {
  world_.Hold("storage.prepare");
  auto prepare = BeginPrepare("c1");
  world_.WaitFor("storage.prepare");
  OnStrand([this] { requests_->Refuse(); });
  EXPECT_FALSE(world_.Await(requests_->Drain(std::chrono::milliseconds(10))));
  world_.Release();
  EXPECT_EQ(prepare.get().code(), static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(world_.Await(requests_->Drain(std::chrono::seconds(60))));
  EXPECT_EQ(Journalled(), 0u);
}

TEST_F(HostRequestsTest, WhileTheVmmIsAwayContainersWait) {
  OnStrand([this] { requests_->LoseVm(); });
  auto prepare = BeginPrepare("c1");
  OnStrand([] {});
  EXPECT_EQ(world_.Count("storage.prepare"), 0);
  OnStrand([this] { requests_->SetVm(nullptr); });
  EXPECT_EQ(prepare.get().code(), 0);
}

TEST_F(HostRequestsTest, UnknownRequestsAreAnswered) {
  EXPECT_EQ(world_.Await(requests_->Handle({})).code(),
            static_cast<int>(absl::StatusCode::kUnimplemented));
}

}  // namespace
}  // namespace magnetar::daemon
