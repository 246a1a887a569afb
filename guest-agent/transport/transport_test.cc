#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>

#include "guest-agent/testing/loop.h"
#include "guest-agent/testing/temp_dir.h"
#include "guest-agent/transport/clock.h"
#include "guest-agent/transport/forward.h"
#include "guest-agent/transport/main_loop_watch.h"
#include "guest-agent/transport/mux_port.h"
#include "magnetar/forward.h"

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
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    host_.reset(pair[0]);
    asio::co_spawn(loop_.context, ServeForward(UniqueFd(pair[1])), asio::detached);
    listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  void Ask(uint16_t port) {
    const uint8_t request[] = {static_cast<uint8_t>(port >> 8), static_cast<uint8_t>(port)};
    EXPECT_EQ(::write(host_.get(), request, sizeof(request)), 2);
    loop_.Settle();
  }
  int Answer() {
    uint8_t answer = 0xff;
    return ::recv(host_.get(), &answer, 1, MSG_DONTWAIT) == 1 ? answer : -1;
  }

  testing::Loop loop_;
  UniqueFd host_, listener_;
  uint16_t port_ = 0;
};

TEST_F(ForwardTest, ConnectsAndClosesEachHalf) {
  Ask(port_);
  ASSERT_EQ(Answer(), kForwardConnected);
  const UniqueFd local(::accept(listener_.get(), nullptr, nullptr));
  ASSERT_TRUE(local.ok());
  ASSERT_EQ(::write(host_.get(), "ping", 4), 4);
  ::shutdown(host_.get(), SHUT_WR);
  loop_.Settle();
  char buffer[16];
  EXPECT_EQ(::read(local.get(), buffer, sizeof(buffer)), 4);
  EXPECT_EQ(::read(local.get(), buffer, sizeof(buffer)), 0);
  ASSERT_EQ(::write(local.get(), "pong", 4), 4);
  loop_.Settle();
  EXPECT_EQ(::recv(host_.get(), buffer, sizeof(buffer), MSG_DONTWAIT), 4);
  ::shutdown(local.get(), SHUT_WR);
  loop_.Settle();
  EXPECT_EQ(::recv(host_.get(), buffer, sizeof(buffer), MSG_DONTWAIT), 0);
}

TEST_F(ForwardTest, RefusesWhereNobodyListens) {
  listener_.reset();
  Ask(port_);
  EXPECT_EQ(Answer(), kForwardRefused);
  loop_.Settle();
  char byte = 0;
  EXPECT_EQ(::recv(host_.get(), &byte, 1, MSG_DONTWAIT), 0);
}

TEST_F(ForwardTest, RefusesPortZero) {
  Ask(0);
  EXPECT_EQ(Answer(), kForwardRefused);
}

TEST_F(ForwardTest, EndsWithAHostThatSaysNothing) {
  host_.reset();
  loop_.Settle();
}

}  // namespace
}  // namespace magnetar::guest
