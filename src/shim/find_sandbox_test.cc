#include "src/shim/find_sandbox.h"

#include <gtest/gtest.h>

#include "src/shim/testing.h"

namespace magnetar::shim {
namespace {

using FindSandboxTest = DirectoryTest;

TEST_F(FindSandboxTest, ByTheAddressThatContainerdWroteDown) {
  Put("bootstrap.json",
      R"({"version":3,"address":"hvsock:///run/x/s1/vm.vsock:1024","protocol":"ttrpc"})");
  Put("sandbox", "other");
  EXPECT_EQ(*FindSandbox(directory_, "/run/default"), "/run/x/s1");
}

TEST_F(FindSandboxTest, ByTheSandboxsId) {
  Put("sandbox", "s1");
  EXPECT_EQ(*FindSandbox(directory_, "/run/default"), "/run/default/s1");
  for (const char* broken :
       {"", "{", "[]", R"({"address":7})", R"({"address":"unix:///x"})",
        R"({"address":"hvsock://vm.vsock:1"})", R"({"address":"hvsock:///run/x/vm.sock:1"})"}) {
    Put("bootstrap.json", broken);
    EXPECT_EQ(*FindSandbox(directory_, "/run/default"), "/run/default/s1") << broken;
  }
}

TEST_F(FindSandboxTest, NothingToGoBy) {
  EXPECT_TRUE(absl::IsNotFound(FindSandbox(directory_, "/run/default").status()));
  Put("sandbox", "../../etc");
  EXPECT_TRUE(absl::IsNotFound(FindSandbox(directory_, "/run/default").status()));
  EXPECT_TRUE(absl::IsNotFound(FindSandbox("/nonexistent", "/run/default").status()));
}

}  // namespace
}  // namespace magnetar::shim
