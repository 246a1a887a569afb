#include "guest-agent/network/network.h"

#include <gtest/gtest.h>

#include <string>

namespace magnetar::guest {
namespace {

TEST(Network, NormalizesMacs) {
  EXPECT_EQ(*NormalizeMac("02:AB:cd:00:00:1f"), "02:ab:cd:00:00:1f");
  for (const char* mac :
       {"", "02:ab", "02:ab:cd:00:00:1f:00", "02:ab:cd:00:00:zz", "2:ab:cd:0:0:1"}) {
    EXPECT_FALSE(NormalizeMac(mac).ok()) << mac;
  }
}

TEST(Network, ChecksInterfaceNames) {
  for (const char* name : {"eth0", "net1", "a.100", "x@y"}) {
    EXPECT_TRUE(CheckInterfaceName(name).ok()) << name;
  }
  for (const char* name : {"", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "a\n"}) {
    EXPECT_FALSE(CheckInterfaceName(name).ok()) << name;
  }
}

}  // namespace
}  // namespace magnetar::guest
