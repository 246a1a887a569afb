#include "guest-agent/task/crun.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/spec.h"
#include "guest-agent/testing/loop.h"
#include "guest-agent/testing/temp_dir.h"

namespace magnetar::guest {
namespace {

TEST(CrunLog, GivesTheReasons) {
  EXPECT_EQ(CrunLogReason(R"({"msg": "executable `x` not found", "level": "error", "time": "t"})"),
            "executable `x` not found");
  EXPECT_EQ(CrunLogReason("{\"msg\":\"careful\",\"level\":\"warning\"}\n{\"msg\":\"a\",\"level\":"
                          "\"error\"}\nnot json\n{\"msg\":\"b\",\"level\":\"error\"}\n"),
            "a: b");
  EXPECT_EQ(CrunLogReason(""), "");
  EXPECT_EQ(CrunLogReason("[1,2]\n{\"msg\":7}\n"), "");
}

// A program in crun's place that writes its arguments down.
class CrunTest : public ::testing::Test {
 protected:
  CrunTest() : reaper_(loop_.executor()) { reaper_.Start(); }
  ~CrunTest() override { reaper_.Stop(); }

  std::unique_ptr<OciRuntime> Make(const std::string& script) {
    dir_.Write("crun", "#!/bin/sh\necho \"$@\" >>" + (dir_ / "args") + "\n" + script);
    ::chmod((dir_ / "crun").c_str(), 0755);
    CrunPaths paths;
    paths.binary = dir_ / "crun";
    paths.root = "/r";
    paths.scratch = dir_.path();
    return MakeCrun(reaper_, paths);
  }

  testing::Loop loop_;
  testing::TempDir dir_;
  Reaper reaper_;
};

constexpr char kWritePid[] =
    "for a in \"$@\"; do case $a in --pid-file=*) echo 1234 >${a#--pid-file=};; esac; done\n";

TEST_F(CrunTest, PassesArgumentsAndReadsThePid) {
  auto crun = Make(kWritePid);
  const Reaper::Window window(reaper_);
  const auto pid = loop_.Run(crun->Create("id", "/bundle", ProcessStdio()));
  ASSERT_TRUE(pid.ok()) << pid.status();
  EXPECT_EQ(*pid, 1234);
  const std::string arguments = dir_.Read("args");
  EXPECT_THAT(arguments, ::testing::StartsWith("--root=/r --cgroup-manager=cgroupfs"));
  EXPECT_THAT(arguments, ::testing::ContainsRegex("create --bundle /bundle --pid-file=[^ ]* id\n"));
}

TEST_F(CrunTest, TellsTheReasonOfAFailure) {
  auto crun = Make(
      "for a in \"$@\"; do case $a in --log=*) echo '{\"msg\":\"no luck\",\"level\":\"error\"}' "
      ">${a#--log=};; esac; done\nexit 1\n");
  const absl::Status status = loop_.Run(crun->Start("id"));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(status.message(), "crun start: no luck");
  EXPECT_THAT(dir_.Read("1.log"), ::testing::StartsWith("<NOT_FOUND"));
}

// As crun does it when the container's process has died after crun looked at it.
TEST_F(CrunTest, AStartDoesNotWaitForADeadContainer) {
  CrunPaths paths;
  dir_.Write("crun", absl::StrCat("#!/bin/sh\necho >", dir_ / "root/id/exec.fifo", "\n"));
  ::chmod((dir_ / "crun").c_str(), 0755);
  dir_.Write("root/id/status", "");
  ASSERT_EQ(::mkfifo((dir_ / "root/id/exec.fifo").c_str(), 0600), 0);
  paths.binary = dir_ / "crun";
  paths.root = dir_ / "root";
  paths.scratch = dir_.path();
  const auto crun = MakeCrun(reaper_, paths);
  EXPECT_EQ(loop_.Run(crun->Start("id")), absl::OkStatus());
}

TEST_F(CrunTest, TellsAStatusWithoutAReason) {
  auto crun = Make("exit 5\n");
  EXPECT_EQ(loop_.Run(crun->Delete("id")).message(), "crun delete: crun ended with status 5");
}

TEST_F(CrunTest, RefusesAMissingPid) {
  auto crun = Make("exit 0\n");
  const Reaper::Window window(reaper_);
  EXPECT_FALSE(loop_.Run(crun->Exec("id", "/p.json", ProcessStdio())).ok());
}

TEST(Spec, TellsWhoseThePidNamespaceIs) {
  const auto own = ReadSpecFacts(
      R"({"linux":{"cgroupsPath":"/pod/x","namespaces":[{"type":"mount"},{"type":"pid"}]}})");
  ASSERT_TRUE(own.ok());
  EXPECT_FALSE(own->needs_pod_pid_namespace);
  EXPECT_EQ(own->cgroups_path, "/pod/x");
  const auto pods = ReadSpecFacts(R"({"linux":{"cgroupsPath":"/pod/x","namespaces":[{"type":"pid",)"
                                  R"("path":"/run/magnetar/pod/ns/pid"}]}})");
  ASSERT_TRUE(pods.ok());
  EXPECT_TRUE(pods->needs_pod_pid_namespace);
  const auto none = ReadSpecFacts(R"({"linux":{"cgroupsPath":"/pod/x"}})");
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->needs_pod_pid_namespace);
  EXPECT_FALSE(ReadSpecFacts(R"({"linux":[]})").ok());
  EXPECT_FALSE(ReadSpecFacts(R"({"linux":{"cgroupsPath":7}})").ok());
}

}  // namespace
}  // namespace magnetar::guest
