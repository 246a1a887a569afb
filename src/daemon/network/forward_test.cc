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

TEST(ForeignTablesTest, AreAllButOurOwn) {
  EXPECT_THAT(ParseForeignTables("table inet magnetar\ntable ip filter\ntable ip6 nat\n"),
              ::testing::ElementsAre("ip filter", "ip6 nat"));
  EXPECT_THAT(ParseForeignTables(""), ::testing::IsEmpty());
}

}  // namespace
}  // namespace magnetar::daemon
