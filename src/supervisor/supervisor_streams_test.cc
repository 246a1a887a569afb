// Ways into and out of the guest that the supervisor itself opens: streams of the host for ports of
// the guest, and the loopback of the pod.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/supervisor/testing/supervisor_fixture.h"

namespace magnetar::supervisor {
namespace {

// A socketpair of which the supervisor gets one end, for a port of the guest.
UniqueFd AddGuestStream(v1::Launch& launch, UniqueFd& theirs, uint32_t port) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
  theirs.reset(ends[1]);
  v1::GuestStream& stream = *launch.add_guest_streams();
  stream.set_fd(theirs.get());
  stream.set_port(port);
  return UniqueFd(ends[0]);
}

TEST_F(SupervisorTest, AGuestStreamLeadsIntoTheGuest) {
  AddGuest("echo");
  UniqueFd theirs;
  const UniqueFd ours = AddGuestStream(launch_, theirs, 7);
  Start();
  theirs.reset();
  const std::string text(1 << 20, 'x');
  std::thread writer([&] {
    EXPECT_EQ(::send(ours.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
    ::shutdown(ours.get(), SHUT_WR);
  });
  EXPECT_EQ(ReadToEnd(ours.get()).size(), text.size());
  writer.join();
  ASSERT_TRUE(WaitReady().ok());
}

TEST_F(SupervisorTest, AGuestThatTakesNoStreamLosesItsVm) {
  AddGuest("echo");
  UniqueFd theirs;
  const UniqueFd ours = AddGuestStream(launch_, theirs, 9);
  Start();
  theirs.reset();
  EXPECT_TRUE(supervisor_.WaitBlocking().ok());
  const std::string reason = ExitFile().value("reason", "");
  EXPECT_TRUE(
      absl::StrContains(reason, "the stream to port 9: connect to the guest: nothing listens"))
      << reason;
  EXPECT_EQ(ReadToEnd(ours.get()), "");
}

class ForwardTest : public SupervisorTest {
 protected:
  // Runs `f` on a thread that is in a netns of its own; all such share one.
  template <typename F>
  void InNetns(F f) {
    std::thread([&] {
      if (netns_.ok()) {
        ASSERT_EQ(::setns(netns_.get(), CLONE_NEWNET), 0);
      } else {
        ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
        netns_.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
      }
      f();
    }).join();
  }

  // A dual-stack listener to which all of loopback is redirected.
  void Redirect() {
    InNetns([this] {
      listener_.reset(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
      sockaddr_in6 any{};
      any.sin6_family = AF_INET6;
      socklen_t size = sizeof(any);
      ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&any), size), 0);
      ASSERT_EQ(::listen(listener_.get(), 10), 0);
      ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&any), &size);
      const std::string port = std::to_string(ntohs(any.sin6_port));
      const std::string commands = absl::StrCat(
          "ip link set lo up && nft 'add table inet t; add chain inet t o { type nat hook output "
          "priority -100 ; }; add rule inet t o tcp dport != ",
          port, " redirect to :", port, "'");
      ASSERT_EQ(std::system(commands.c_str()), 0);
    });
  }

  // What comes back after "hello" and the end; nullopt if the connection breaks.
  std::optional<std::string> Ask(int family, uint16_t port) {
    std::optional<std::string> answer;
    InNetns([&] {
      UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
      sockaddr_in v4{
          .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {}, .sin_zero = {}};
      v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      sockaddr_in6 v6{};
      v6.sin6_family = AF_INET6;
      v6.sin6_port = htons(port);
      v6.sin6_addr = in6addr_loopback;
      const int result = family == AF_INET
                             ? ::connect(fd.get(), reinterpret_cast<sockaddr*>(&v4), sizeof(v4))
                             : ::connect(fd.get(), reinterpret_cast<sockaddr*>(&v6), sizeof(v6));
      ASSERT_EQ(result, 0);
      if (::send(fd.get(), "hello", 5, MSG_NOSIGNAL) != 5) return;
      ::shutdown(fd.get(), SHUT_WR);
      std::string text;
      char buffer[100];
      ssize_t n;
      while ((n = ::recv(fd.get(), buffer, sizeof(buffer), 0)) > 0) {
        text.append(buffer, static_cast<size_t>(n));
      }
      if (n == 0) answer = text;
    });
    return answer;
  }

  UniqueFd netns_, listener_;
};

TEST_F(ForwardTest, LoopbackOfThePodReachesTheGuest) {
  Redirect();
  if (HasFatalFailure()) return;
  launch_.set_forward_listener_fd(listener_.get());
  launch_.set_forward_port(1026);
  AddGuest("echo");
  Start();
  listener_.reset();
  ASSERT_TRUE(WaitReady().ok());
  EXPECT_EQ(Ask(AF_INET, 8080), "hello");
  EXPECT_EQ(Ask(AF_INET6, 8080), "hello");
  // Where nothing listens in the guest: a reset, as a closed port gives.
  EXPECT_EQ(Ask(AF_INET, 8081), std::nullopt);
  EXPECT_EQ(Ask(AF_INET6, 8081), std::nullopt);
}

}  // namespace
}  // namespace magnetar::supervisor
