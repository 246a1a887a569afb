#include "src/daemon/cgroup/systemd_scopes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <systemd/sd-bus.h>

#include <atomic>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

// A systemd of one connection at the other end of a socket pair, as far as scopes need it.
class FakeSystemd {
 public:
  int socket = -1;
  std::string job_result = "done";
  std::vector<std::string> calls;
  std::map<std::string, std::string> properties;
  bool exists = false;

  void Serve() {
    sd_bus* bus = nullptr;
    sd_id128_t id = {};
    ASSERT_GE(::sd_bus_new(&bus), 0);
    ::sd_bus_set_fd(bus, socket, socket);
    ::sd_bus_set_server(bus, 1, id);
    ::sd_bus_set_anonymous(bus, 1);
    ASSERT_GE(::sd_bus_start(bus), 0);
    ::sd_bus_add_filter(bus, nullptr, &FakeSystemd::OnMessage, this);
    while (true) {
      const int handled = ::sd_bus_process(bus, nullptr);
      if (handled < 0 || (handled == 0 && ::sd_bus_wait(bus, UINT64_MAX) < 0)) break;
    }
    ::sd_bus_unref(bus);
  }

 private:
  static int OnMessage(sd_bus_message* m, void* data, sd_bus_error*) {
    return static_cast<FakeSystemd*>(data)->Handle(m);
  }

  int Handle(sd_bus_message* m) {
    uint8_t type = 0;
    ::sd_bus_message_get_type(m, &type);
    if (type != SD_BUS_MESSAGE_METHOD_CALL) return 0;
    const std::string member = ::sd_bus_message_get_member(m);
    if (member == "StartTransientUnit") {
      if (exists) {
        return ::sd_bus_reply_method_errorf(m, "org.freedesktop.systemd1.UnitExists", "exists");
      }
      ReadUnit(m);
    } else if (member == "StopUnit") {
      const char* name = nullptr;
      const char* mode = nullptr;
      ::sd_bus_message_read(m, "ss", &name, &mode);
      calls.push_back(std::string("stop ") + name);
      if (std::string(name) == "unknown.scope") {
        return ::sd_bus_reply_method_errorf(m, "org.freedesktop.systemd1.NoSuchUnit", "none");
      }
      exists = false;
    } else {
      return 0;
    }
    // The signal first: a client must not lose it.
    sd_bus_message* signal = nullptr;
    sd_bus* bus = ::sd_bus_message_get_bus(m);
    ::sd_bus_message_new_signal(bus, &signal, "/org/freedesktop/systemd1",
                                "org.freedesktop.systemd1.Manager", "JobRemoved");
    ::sd_bus_message_set_sender(signal, "org.freedesktop.systemd1");
    ::sd_bus_message_append(signal, "uoss", 7u, "/org/freedesktop/systemd1/job/7", "u",
                            job_result.c_str());
    ::sd_bus_send(bus, signal, nullptr);
    ::sd_bus_message_unref(signal);
    ::sd_bus_reply_method_return(m, "o", "/org/freedesktop/systemd1/job/7");
    return 1;
  }

  void ReadUnit(sd_bus_message* m) {
    const char* name = nullptr;
    const char* mode = nullptr;
    EXPECT_GE(::sd_bus_message_read(m, "ss", &name, &mode), 0);
    calls.push_back(std::string("start ") + name + " " + mode);
    EXPECT_GE(::sd_bus_message_enter_container(m, 'a', "(sv)"), 0);
    while (::sd_bus_message_enter_container(m, 'r', "sv") > 0) {
      const char* key = nullptr;
      const char* contents = nullptr;
      ::sd_bus_message_read(m, "s", &key);
      ::sd_bus_message_peek_type(m, nullptr, &contents);
      const std::string type = contents;
      ::sd_bus_message_enter_container(m, 'v', contents);
      const char* text = nullptr;
      int boolean = 0;
      uint64_t number = 0;
      uint32_t pid = 0;
      std::string value;
      if (type == "s" && ::sd_bus_message_read(m, "s", &text) >= 0) value = text;
      if (type == "b" && ::sd_bus_message_read(m, "b", &boolean) >= 0) {
        value = boolean != 0 ? "yes" : "no";
      }
      if (type == "t" && ::sd_bus_message_read(m, "t", &number) >= 0) {
        value = std::to_string(number);
      }
      if (type == "au" && ::sd_bus_message_read(m, "au", 1, &pid) >= 0) {
        value = std::to_string(pid);
      }
      properties[key] = value;
      ::sd_bus_message_exit_container(m);
      ::sd_bus_message_exit_container(m);
    }
    ::sd_bus_message_exit_container(m);
  }
};

FakeSystemd* fake = nullptr;
std::vector<std::thread>* servers = nullptr;

int OpenFake(sd_bus** bus) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) return -errno;
  // One call after the other: a connection's server is done when the next is opened.
  for (std::thread& server : *servers) server.join();
  servers->clear();
  fake->socket = fds[1];
  servers->emplace_back([] { fake->Serve(); });
  int result = ::sd_bus_new(bus);
  if (result >= 0) result = ::sd_bus_set_fd(*bus, fds[0], fds[0]);
  if (result >= 0) result = ::sd_bus_start(*bus);
  return result;
}

class SystemdScopesTest : public ::testing::Test {
 protected:
  SystemdScopesTest() {
    fake = &fake_;
    servers = &servers_;
  }
  ~SystemdScopesTest() override { Join(); }
  void Join() {
    for (std::thread& server : servers_) server.join();
    servers_.clear();
  }

  FakeSystemd fake_;
  std::vector<std::thread> servers_;
  std::unique_ptr<SystemdScopes> scopes_ = CreateSystemdScopes(&OpenFake);
};

TEST_F(SystemdScopesTest, StartsADelegatedScope) {
  const absl::Status status = scopes_->Start("magnetar-s1.scope", "kubepods-pod1.slice", 4711);
  EXPECT_TRUE(status.ok()) << status;
  Join();
  EXPECT_THAT(fake_.calls, ::testing::ElementsAre("start magnetar-s1.scope fail"));
  EXPECT_EQ(fake_.properties["Slice"], "kubepods-pod1.slice");
  EXPECT_EQ(fake_.properties["Delegate"], "yes");
  EXPECT_EQ(fake_.properties["DefaultDependencies"], "no");
  EXPECT_EQ(fake_.properties["PIDs"], "4711");
  EXPECT_EQ(fake_.properties["TasksMax"], std::to_string(UINT64_MAX));
}

TEST_F(SystemdScopesTest, ReplacesWhatACrashLeft) {
  fake_.exists = true;
  const absl::Status status = scopes_->Start("magnetar-s1.scope", "a.slice", 1);
  EXPECT_TRUE(status.ok()) << status;
  Join();
  EXPECT_THAT(fake_.calls,
              ::testing::ElementsAre("stop magnetar-s1.scope", "start magnetar-s1.scope fail"));
}

TEST_F(SystemdScopesTest, AFailedJobIsAnError) {
  fake_.job_result = "failed";
  const absl::Status status = scopes_->Start("magnetar-s1.scope", "a.slice", 1);
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("job failed"));
}

TEST_F(SystemdScopesTest, Stops) {
  EXPECT_TRUE(scopes_->Stop("magnetar-s1.scope").ok());
  EXPECT_TRUE(scopes_->Stop("unknown.scope").ok());
}

TEST(SystemdScopesNoBusTest, IsUnavailable) {
  auto scopes = CreateSystemdScopes([](sd_bus**) { return -ENOENT; });
  EXPECT_TRUE(absl::IsUnavailable(scopes->Start("a.scope", "a.slice", 1)));
}

}  // namespace
}  // namespace magnetar::daemon
