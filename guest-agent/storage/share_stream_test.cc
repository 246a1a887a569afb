#include "guest-agent/storage/share_stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <thread>

namespace magnetar::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Pair {
  Pair() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    near.reset(fds[0]);
    far.reset(fds[1]);
  }
  bool FarClosed() const {
    pollfd polled{.fd = near.get(), .events = POLLIN, .revents = 0};
    return ::poll(&polled, 1, 0) == 1 && (polled.revents & POLLHUP) != 0;
  }
  UniqueFd near, far;
};

TEST(ShareStreamTest, MayComeFirst) {
  ShareStream stream;
  Pair pair;
  const int fd = pair.far.get();
  stream.Offer(std::move(pair.far));
  const auto taken = stream.Take(seconds(0));
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->get(), fd);
}

TEST(ShareStreamTest, IsWaitedFor) {
  ShareStream stream;
  Pair pair;
  absl::StatusOr<UniqueFd> taken = absl::InternalError("not yet");
  std::thread waiter([&] { taken = stream.Take(seconds(60)); });
  stream.Offer(std::move(pair.far));
  waiter.join();
  EXPECT_TRUE(taken.ok()) << taken.status();
}

TEST(ShareStreamTest, NoneInTimeIsAnError) {
  ShareStream stream;
  EXPECT_TRUE(absl::IsDeadlineExceeded(stream.Take(milliseconds(1)).status()));
}

TEST(ShareStreamTest, OnlyTheFirstCounts) {
  ShareStream stream;
  Pair first, second, third;
  stream.Offer(std::move(first.far));
  stream.Offer(std::move(second.far));
  EXPECT_TRUE(second.FarClosed());
  EXPECT_FALSE(first.FarClosed());
  ASSERT_TRUE(stream.Take(seconds(0)).ok());
  stream.Offer(std::move(third.far));
  EXPECT_TRUE(third.FarClosed()) << "nor later";
}

}  // namespace
}  // namespace magnetar::guest
