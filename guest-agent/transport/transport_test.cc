#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <string>
#include <vector>

#include "guest-agent/testing/loop.h"
#include "guest-agent/testing/temp_dir.h"
#include "guest-agent/transport/clock.h"
#include "guest-agent/transport/forward.h"
#include "guest-agent/transport/main_loop_watch.h"
#include "guest-agent/transport/mux_port.h"
#include "magnetar/descriptor_message.h"
#include "magnetar/forward.h"
#include "magnetar/mux.h"

namespace magnetar::guest {
namespace {

TEST(Clock, IsSteppedOnlyWhenFarOff) {
  EXPECT_EQ(DecideClock(0), ClockAction::kNone);
  EXPECT_EQ(DecideClock(1000000), ClockAction::kNone);
  EXPECT_EQ(DecideClock(-1000000), ClockAction::kNone);
  EXPECT_EQ(DecideClock(5000000), ClockAction::kSlew);
  EXPECT_EQ(DecideClock(-999999999), ClockAction::kSlew);
  EXPECT_EQ(DecideClock(1000000001), ClockAction::kStep);
  EXPECT_EQ(DecideClock(-3600000000000), ClockAction::kStep);
}

TEST(Clock, IsSetBackByTheFirstMessageOnly) {
  for (const bool first : {true, false}) {
    EXPECT_FALSE(MustStep(1000000, first));
    EXPECT_TRUE(MustStep(5000000, first));
    EXPECT_EQ(MustStep(-5000000, first), first);
    EXPECT_TRUE(MustStep(-3600000000000, first));
  }
}

TEST(MainLoopWatch, TellsALoopThatStandsStill) {
  asio::io_context loop;
  MainLoopWatch watch(loop.get_executor());
  EXPECT_EQ(watch.AgeMs(), 0U);
  ::usleep(20000);
  EXPECT_GE(watch.AgeMs(), 20U);
  loop.run();
  EXPECT_EQ(watch.AgeMs(), 0U);
}

TEST(MuxPort, IsFoundByItsName) {
  const testing::TempDir dir;
  dir.Write("vport1p1/name", "other\n");
  dir.Write("vport2p1/name", "io.magnetar.mux\n");
  EXPECT_EQ(*FindVirtioPort("io.magnetar.mux", dir.path(), "/dev"), "/dev/vport2p1");
  EXPECT_EQ(FindVirtioPort("none", dir.path(), "/dev").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(FindVirtioPort("none", "/no/such", "/dev").ok());
}

class ForwardTest : public ::testing::Test {
 protected:
  ForwardTest() {
    sockaddr_in address;
    listener_ = Listen(address);
    port_ = ntohs(address.sin_port);
    host_ = Connect();
  }
  static UniqueFd Listen(sockaddr_in& address) {
    UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    EXPECT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    return listener;
  }
  // As kernel vsock, it carries no descriptors.
  UniqueFd Connect() {
    sockaddr_in address;
    const UniqueFd listener = Listen(address);
    UniqueFd host(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(host.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    forwards_.Serve(UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)));
    return host;
  }
  UniqueFd ConnectMultiplexed() {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    forwards_.Serve(UniqueFd(pair[1]));
    return UniqueFd(pair[0]);
  }
  void Ask(uint16_t port) {
    const uint8_t request[] = {static_cast<uint8_t>(port >> 8), static_cast<uint8_t>(port)};
    EXPECT_EQ(::write(host_.get(), request, sizeof(request)), 2);
  }
  // What comes next; "" is the end.
  std::string Received(int fd) {
    char buffer[64];
    ssize_t n = -1;
    loop_.Until([&] {
      n = ::recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
      return n >= 0;
    });
    return std::string(buffer, static_cast<size_t>(n));
  }

  static inline const std::string kConnected = std::string(1, kForwardConnected);
  static inline const std::string kRefused = std::string(1, kForwardRefused);

  testing::Loop loop_;
  static constexpr size_t kMaxForwards = 3;
  Forwards forwards_{loop_.executor(), kMaxForwards};
  UniqueFd host_, listener_;
  uint16_t port_ = 0;
};

TEST_F(ForwardTest, ConnectsAndClosesEachHalf) {
  Ask(port_);
  ASSERT_EQ(Received(host_.get()), kConnected);
  const UniqueFd local(::accept(listener_.get(), nullptr, nullptr));
  ASSERT_TRUE(local.ok());
  ASSERT_EQ(::write(host_.get(), "ping", 4), 4);
  ::shutdown(host_.get(), SHUT_WR);
  EXPECT_EQ(Received(local.get()), "ping");
  EXPECT_EQ(Received(local.get()), "");
  ASSERT_EQ(::write(local.get(), "pong", 4), 4);
  EXPECT_EQ(Received(host_.get()), "pong");
  ::shutdown(local.get(), SHUT_WR);
  EXPECT_EQ(Received(host_.get()), "");
}

TEST_F(ForwardTest, LetsTheMultiplexerHaveTheConnection) {
  host_ = ConnectMultiplexed();
  loop_.Until([this] { return forwards_.size() == 1; });
  Ask(port_);
  UniqueFd passed;
  char message[8];
  ssize_t n = -1;
  loop_.Until([&] {
    n = ReceiveWithDescriptor(host_.get(), message, sizeof(message), passed);
    return n >= 0;
  });
  EXPECT_EQ(std::string(message, static_cast<size_t>(n)), kConnected + mux::kPassConnection);
  ASSERT_TRUE(passed.ok());
  UniqueFd local(::accept(listener_.get(), nullptr, nullptr));
  ASSERT_EQ(::send(passed.get(), "ping", 4, 0), 4);
  EXPECT_EQ(Received(local.get()), "ping");
  // It is counted until the multiplexer is done with it, and is the multiplexer's alone.
  passed.reset();
  EXPECT_EQ(Received(local.get()), "");
  EXPECT_EQ(forwards_.size(), 1U);
  host_.reset();
  loop_.Until([this] { return forwards_.size() == 0; });
}

TEST_F(ForwardTest, RefusesAMultiplexedOneWhereNobodyListens) {
  host_ = ConnectMultiplexed();
  listener_.reset();
  Ask(port_);
  EXPECT_EQ(Received(host_.get()), kRefused);
  EXPECT_EQ(Received(host_.get()), "");
}

TEST_F(ForwardTest, RefusesWhereNobodyListens) {
  listener_.reset();
  Ask(port_);
  EXPECT_EQ(Received(host_.get()), kRefused);
  EXPECT_EQ(Received(host_.get()), "");
}

TEST_F(ForwardTest, RefusesPortZero) {
  Ask(0);
  EXPECT_EQ(Received(host_.get()), kRefused);
}

TEST_F(ForwardTest, EndsWithAHostThatSaysNothing) {
  host_.reset();
  loop_.Until([this] { return forwards_.size() == 0; });
}

TEST_F(ForwardTest, KeepsABoundedNumber) {
  std::vector<UniqueFd> hosts;
  while (forwards_.size() < kMaxForwards) hosts.push_back(Connect());
  const UniqueFd more = Connect();
  EXPECT_EQ(forwards_.size(), kMaxForwards);
  char byte = 0;
  EXPECT_EQ(::recv(more.get(), &byte, 1, 0), 0);
  // Each that ends makes room for another.
  hosts.pop_back();
  loop_.Until([this] { return forwards_.size() < kMaxForwards; });
  hosts.push_back(Connect());
  EXPECT_EQ(forwards_.size(), kMaxForwards);
}

}  // namespace
}  // namespace magnetar::guest
