#include "src/daemon/sandbox/task_event.h"

#include <gtest/gtest.h>

#include "containerd/events.pb.h"

namespace magnetar::daemon {
namespace {

using agent::v1::GuestEvent;

constexpr int64_t kNow = 1700000000123456789;

GuestEvent EventOf(GuestEvent::Kind kind, const std::string& exec_id = "") {
  GuestEvent event;
  event.set_kind(kind);
  event.set_container_id("c");
  event.set_exec_id(exec_id);
  event.set_exit_status(3);
  event.set_exited_at_ns(kNow - 5);
  return event;
}

TEST(TaskEventTest, EachKindHasItsTopicAndType) {
  const struct {
    GuestEvent::Kind kind;
    const char* exec;
    const char* topic;
    const char* type;
  } cases[] = {
      {GuestEvent::OOM, "", "/tasks/oom", "containerd.events.TaskOOM"},
      {GuestEvent::CREATED, "", "/tasks/create", "containerd.events.TaskCreate"},
      {GuestEvent::STARTED, "", "/tasks/start", "containerd.events.TaskStart"},
      {GuestEvent::EXITED, "", "/tasks/exit", "containerd.events.TaskExit"},
      {GuestEvent::DELETED, "", "/tasks/delete", "containerd.events.TaskDelete"},
      {GuestEvent::EXEC_ADDED, "e", "/tasks/exec-added", "containerd.events.TaskExecAdded"},
      {GuestEvent::EXEC_STARTED, "e", "/tasks/exec-started", "containerd.events.TaskExecStarted"},
      {GuestEvent::PAUSED, "", "/tasks/paused", "containerd.events.TaskPaused"},
      {GuestEvent::RESUMED, "", "/tasks/resumed", "containerd.events.TaskResumed"},
  };
  for (const auto& c : cases) {
    const auto event = ToTaskEvent(EventOf(c.kind, c.exec), 7, kNow);
    ASSERT_TRUE(event.ok()) << c.topic << ": " << event.status();
    EXPECT_EQ(event->topic, c.topic);
    EXPECT_EQ(event->type_url, c.type);
    // Field 1 of each.
    EXPECT_EQ(event->body.substr(0, 3),
              "\x0a\x01"
              "c");
  }
}

TEST(TaskEventTest, AnExitSaysWhoseItIsAndWhen) {
  containerd::events::TaskExit exit;
  ASSERT_TRUE(exit.ParseFromString(ToTaskEvent(EventOf(GuestEvent::EXITED), 7, kNow)->body));
  EXPECT_EQ(exit.id(), "c");
  EXPECT_EQ(exit.pid(), 7u);
  EXPECT_EQ(exit.exit_status(), 3u);
  EXPECT_EQ(exit.exited_at().seconds(), 1700000000);
  EXPECT_EQ(exit.exited_at().nanos(), 123456784);
  ASSERT_TRUE(exit.ParseFromString(ToTaskEvent(EventOf(GuestEvent::EXITED, "e"), 7, kNow)->body));
  EXPECT_EQ(exit.id(), "e");
  EXPECT_EQ(exit.container_id(), "c");
}

TEST(TaskEventTest, AGuestsNonsenseDoesNotPass) {
  EXPECT_TRUE(absl::IsInvalidArgument(ToTaskEvent(GuestEvent(), 7, kNow).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(ToTaskEvent(EventOf(GuestEvent::EXEC_ADDED), 7, kNow).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(ToTaskEvent(EventOf(GuestEvent::EXITED, "../e"), 7, kNow).status()));
  GuestEvent future = EventOf(GuestEvent::DELETED);
  future.set_exited_at_ns(INT64_MAX);
  containerd::events::TaskDelete deleted;
  ASSERT_TRUE(deleted.ParseFromString(ToTaskEvent(future, 7, kNow)->body));
  EXPECT_EQ(deleted.exited_at().seconds(), 1700000000);
  future.set_exited_at_ns(-1);
  ASSERT_TRUE(deleted.ParseFromString(ToTaskEvent(future, 7, kNow)->body));
  EXPECT_EQ(deleted.exited_at().seconds(), 0);
}

}  // namespace
}  // namespace magnetar::daemon
