#include "src/shim/arguments.h"

#include <gtest/gtest.h>

namespace magnetar::shim {
namespace {

TEST(ParseArgumentsTest, AsContainerdCallsDelete) {
  auto a =
      ParseArguments({"-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary",
                      "/usr/bin/containerd", "-id", "c1", "-bundle", "/run/b", "-debug", "delete"});
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(a->containerd_namespace, "k8s.io");
  EXPECT_EQ(a->id, "c1");
  EXPECT_EQ(a->bundle, "/run/b");
  EXPECT_EQ(a->publish_binary, "/usr/bin/containerd");
  EXPECT_TRUE(a->debug);
  EXPECT_EQ(a->action, "delete");
}

TEST(ParseArgumentsTest, GoFlagForms) {
  auto a = ParseArguments({"--id=c1", "-debug=false", "-namespace=", "--", "start"});
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(a->id, "c1");
  EXPECT_FALSE(a->debug);
  EXPECT_EQ(a->action, "start");
  EXPECT_TRUE(ParseArguments({"-v"})->version);
  EXPECT_TRUE(ParseArguments({"-info"})->info);
  EXPECT_TRUE(ParseArguments({})->action.empty());
}

TEST(ParseArgumentsTest, Errors) {
  EXPECT_TRUE(absl::IsInvalidArgument(ParseArguments({"-what"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ParseArguments({"-id"}).status()));
}

}  // namespace
}  // namespace magnetar::shim
