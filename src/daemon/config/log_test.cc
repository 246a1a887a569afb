#include "src/daemon/config/log.h"

#include <gtest/gtest.h>

#include <string>

namespace magnetar::daemon {
namespace {

TEST(LogTest, ValuesCannotForgeLines) {
  EXPECT_EQ(FormatLogLine("started", {{"sandbox", "abc"}}), "started sandbox=abc");
  EXPECT_EQ(FormatLogLine("x", {{"error", "a b"}}), "x error=\"a b\"");
  EXPECT_EQ(FormatLogLine("x", {{"error", "a\nb\"c"}}), "x error=\"a\\nb\\\"c\"");
  EXPECT_EQ(FormatLogLine("x", {{"empty", ""}}), "x empty=\"\"");
  EXPECT_EQ(FormatLogLine("a\nb", {}), "a\\nb");
  EXPECT_EQ(FormatLogLine("x", {{"error", std::string(5000, 'y')}}),
            "x error=\"" + std::string(4096, 'y') + "...\"");
}

}  // namespace
}  // namespace magnetar::daemon
