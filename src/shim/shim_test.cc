#include "src/shim/shim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "containerd/task.pb.h"
#include "containerd/types.pb.h"
#include "src/shim/delete_task.h"
#include "src/shim/testing.h"

namespace magnetar::shim {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

class ShimTest : public DirectoryTest {
 protected:
  int Call(std::vector<std::string> words) {
    CaptureStdout();
    CaptureStderr();
    const int status = shim::Run(words, directory_ + "/run");
    out_ = GetCapturedStdout();
    err_ = GetCapturedStderr();
    return status;
  }
  std::string out_, err_;
};

TEST_F(ShimTest, StartRefusesAndSaysWhatToDo) {
  EXPECT_EQ(Call({"-namespace", "k8s.io", "-id", "c1", "start"}), 1);
  EXPECT_EQ(out_, "");
  EXPECT_THAT(err_, HasSubstr("sandboxer"));
}

TEST_F(ShimTest, DeleteOfWhatNobodyKnows) {
  EXPECT_EQ(Call({"-namespace", "k8s.io", "-id", "c1", "-bundle", directory_, "delete"}), 0);
  EXPECT_EQ(err_, "");
  containerd::task::v3::DeleteResponse response;
  ASSERT_TRUE(response.ParseFromString(out_));
  EXPECT_EQ(response.exit_status(), kUnknownExit);
  EXPECT_GT(response.exited_at().seconds(), 0);
}

TEST_F(ShimTest, DeleteLooksIntoTheSandboxsDirectory) {
  Put("bundle/sandbox", "s1");
  Put("run/s1/exit.json", R"({"exited_at_ns":5000000000})");
  EXPECT_EQ(Call({"-id", "c1", "-bundle", directory_ + "/bundle", "delete"}), 0);
  containerd::task::v3::DeleteResponse response;
  ASSERT_TRUE(response.ParseFromString(out_));
  EXPECT_EQ(response.exited_at().seconds(), 5);
}

TEST_F(ShimTest, InfoTellsNameVersionAndFeatures) {
  EXPECT_EQ(Call({"-info"}), 0);
  containerd::types::RuntimeInfo info;
  ASSERT_TRUE(info.ParseFromString(out_));
  EXPECT_EQ(info.name(), "io.containerd.magnetar.v1");
  EXPECT_THAT(info.features().type_url(), HasSubstr("features/Features"));
  EXPECT_THAT(info.features().value(), HasSubstr("ociVersionMin"));
}

TEST_F(ShimTest, BadCallsAreErrors) {
  EXPECT_EQ(Call({"-id", "../x", "delete"}), 1);
  EXPECT_EQ(Call({"-what"}), 1);
  EXPECT_EQ(Call({"serve"}), 1);
  EXPECT_EQ(Call({}), 1);
  EXPECT_EQ(Call({"-v"}), 0);
}

}  // namespace
}  // namespace magnetar::shim
