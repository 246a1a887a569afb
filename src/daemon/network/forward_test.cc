#include "src/daemon/network/forward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

TEST(ForwardRulesTest, NamesThePortEverywhere) {
  const std::string rules = ForwardRules(40123);
  EXPECT_THAT(rules, HasSubstr("ip daddr 127.0.0.0/8 tcp dport != 40123 redirect to :40123"));
  EXPECT_THAT(rules, HasSubstr("ip6 daddr ::1 tcp dport != 40123 redirect to :40123"));
  EXPECT_THAT(rules, HasSubstr("iif != \"lo\" tcp dport 40123 drop"));
}

}  // namespace
}  // namespace magnetar::daemon
