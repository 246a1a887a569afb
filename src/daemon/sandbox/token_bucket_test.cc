#include "src/daemon/sandbox/token_bucket.h"

#include <gtest/gtest.h>

namespace magnetar::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(TokenBucketTest, ABurstIsFreeAndTheRestIsPaced) {
  TokenBucket bucket(10, 3);
  const TokenBucket::TimePoint now = TokenBucket::TimePoint() + seconds(100);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(bucket.Take(now).count(), 0);
  EXPECT_EQ(bucket.Take(now), milliseconds(100));
  EXPECT_EQ(bucket.Take(now), milliseconds(200));
  // Two tokens are owed.
  EXPECT_EQ(bucket.Take(now + milliseconds(300)).count(), 0);
  EXPECT_GT(bucket.Take(now + milliseconds(300)).count(), 0);
}

TEST(TokenBucketTest, FillsUpToItsBurst) {
  TokenBucket bucket(1, 2);
  const TokenBucket::TimePoint now = TokenBucket::TimePoint() + seconds(100);
  EXPECT_TRUE(bucket.TryTake(now));
  EXPECT_TRUE(bucket.TryTake(now));
  EXPECT_FALSE(bucket.TryTake(now));
  EXPECT_FALSE(bucket.TryTake(now + milliseconds(900)));
  EXPECT_TRUE(bucket.TryTake(now + seconds(1)));
  EXPECT_TRUE(bucket.TryTake(now + seconds(1000)));
  EXPECT_TRUE(bucket.TryTake(now + seconds(1000)));
  EXPECT_FALSE(bucket.TryTake(now + seconds(1000)));
}

}  // namespace
}  // namespace magnetar::daemon
