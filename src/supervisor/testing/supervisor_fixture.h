#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "magnetar/child_process.h"
#include "magnetar/files.h"
#include "magnetar/hybrid_vsock.h"
#include "magnetar/supervisor_launch.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/supervisor/async_test_util.h"

namespace magnetar::supervisor {

inline constexpr int kChannelTarget = 10;
inline constexpr uint32_t kNobody = 65534;

inline UniqueFd ConnectUnix(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fd.reset();
  return fd;
}

inline std::string ReadToEnd(int fd) {
  std::string out;
  char buffer[4096];
  ssize_t n;
  while ((n = ::recv(fd, buffer, sizeof(buffer), 0)) > 0) {
    out.append(buffer, static_cast<size_t>(n));
  }
  return out;
}

class SupervisorTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    char name[] = "/tmp/supervisor.XXXXXX";
    directory_ = ::mkdtemp(name);
  }

  void TearDown() override {
    client_.reset();
    if (supervisor_.running()) {
      EXPECT_TRUE(supervisor_.Signal(SIGTERM).ok());
      EXPECT_TRUE(supervisor_.WaitBlocking().ok());
    }
    if (directory_.empty()) return;
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  v1::Process& AddProcess(const std::string& name, std::vector<std::string> argv) {
    v1::Process& process = *launch_.add_processes();
    process.set_name(name);
    for (std::string& argument : argv) process.add_argv(std::move(argument));
    process.set_uid(kNobody);
    process.set_gid(kNobody);
    return process;
  }

  void AddGuest(const std::string& what) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    ours_.reset(ends[0]);
    theirs_.reset(ends[1]);
    launch_.mutable_transport()->mutable_mux()->set_fd(ours_.get());
    v1::Process& process = AddProcess("vmm", {FAKE_GUEST, std::to_string(kChannelTarget), what});
    process.set_vmm(true);
    v1::Descriptor& d = *process.add_descriptors();
    d.set_source(theirs_.get());
    d.set_target(kChannelTarget);
  }

  void Start() {
    launch_.set_sandbox_id("test");
    launch_.set_directory(directory_);
    auto control = ListenUnix(absl::StrCat(directory_, "/supervisor.sock"));
    auto vsock = ListenUnix(absl::StrCat(directory_, "/vm.vsock"));
    ASSERT_TRUE(control.ok() && vsock.ok());
    launch_.set_control_listener_fd(control->get());
    launch_.set_vsock_listener_fd(vsock->get());
    auto started = StartSupervisor(SUPERVISOR, launch_);
    ASSERT_TRUE(started.ok()) << started.status();
    supervisor_ = *std::move(started);
    ours_.reset();
    theirs_.reset();
    client_ = ttrpc::Client::Create(context_.get_executor(),
                                    ConnectUnix(absl::StrCat(directory_, "/supervisor.sock")));
  }

  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(const std::string& method, Request request) {
    auto call = client_->Call<Response>("magnetar.supervisor.v1.Supervisor", method,
                                        std::move(request), std::chrono::seconds(20));
    return Await(context_, std::move(call));
  }
  absl::Status WaitReady() {
    return Call<v1::WaitReadyResponse>("WaitReady", v1::WaitReadyRequest()).status();
  }

  absl::StatusOr<UniqueFd> Dial(uint32_t port) {
    auto dial =
        DialHybridVsock(absl::StrCat(directory_, "/vm.vsock"), port, std::chrono::seconds(10));
    auto fd = Await(context_, std::move(dial));
    if (fd.ok()) ::fcntl(fd->get(), F_SETFL, 0);
    return fd;
  }

  nlohmann::json ExitFile() {
    auto text = ReadFile(absl::StrCat(directory_, "/exit.json"));
    EXPECT_TRUE(text.ok()) << text.status();
    return nlohmann::json::parse(text.value_or("null"), nullptr, false);
  }

  pid_t PidOf(const std::string& name) {
    auto state = Call<v1::StateResponse>("State", v1::StateRequest());
    for (const auto& p : state->processes()) {
      if (p.name() == name) return static_cast<pid_t>(p.pid());
    }
    return -1;
  }

  bool NothingListens() {
    return !ConnectUnix(absl::StrCat(directory_, "/vm.vsock")).ok() &&
           !ConnectUnix(absl::StrCat(directory_, "/supervisor.sock")).ok();
  }

  asio::io_context context_;
  std::string directory_;
  v1::Launch launch_;
  UniqueFd ours_, theirs_;
  ChildProcess supervisor_;
  std::shared_ptr<ttrpc::Client> client_;
};

}  // namespace magnetar::supervisor
