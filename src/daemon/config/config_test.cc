#include "src/daemon/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "magnetar/files.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

std::string Error(std::string_view toml) {
  return std::string(ParseConfig(toml, "c.toml").status().message());
}

TEST(ConfigTest, EmptyFileGivesTheDefaults) {
  auto config = ParseConfig("", "c.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen, "/run/vmm-sandboxer.sock");
  EXPECT_EQ(config->vm.start_timeout, std::chrono::seconds(60));
}

TEST(ConfigTest, ReadsEveryKindOfValue) {
  auto config = ParseConfig(R"(
log_level = "debug"
[vm]
vcpus = 3
start_timeout_seconds = 7
[guest]
heartbeat_seconds = 0
unkillable_after_seconds = 7
[debug]
failpoints = ["a", "b=error"]
)",
                            "c.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->log_level, "debug");
  EXPECT_EQ(config->vm.size.vcpus, 3u);
  EXPECT_EQ(config->vm.start_timeout, std::chrono::seconds(7));
  EXPECT_EQ(config->guest.heartbeat, std::chrono::seconds(0));
  EXPECT_EQ(config->guest.unkillable_after, std::chrono::seconds(7));
  EXPECT_THAT(config->debug.failpoints, testing::ElementsAre("a", "b=error"));
}

TEST(ConfigTest, ErrorsNameFileLineAndKey) {
  EXPECT_EQ(Error("\nlisten = 3\n"), "c.toml:2: listen: must be a string");
  EXPECT_EQ(Error("[vm]\nvcpu = 3\n"), "c.toml:2: vm.vcpu: unknown key");
  EXPECT_EQ(Error("[vms]\n"), "c.toml:1: vms: unknown key");
  EXPECT_EQ(Error("vm = 1\n"), "c.toml:1: vm: must be a table");
  EXPECT_EQ(Error("[vm]\n\nvcpus = 0\n"), "c.toml:3: vm.vcpus: must be between 1 and 255");
  EXPECT_EQ(Error("[vm]\nvcpus = 1.5\n"), "c.toml:2: vm.vcpus: must be an integer");
  EXPECT_EQ(Error("[vm]\naccel = \"xen\"\n"), "c.toml:2: vm.accel: must be one of auto, kvm, tcg");
  EXPECT_EQ(Error("run_dir = \"x\"\n"), "c.toml:1: run_dir: must be an absolute path");
  EXPECT_THAT(Error("run_dir = \"/a/very/long/directory/that/does/not/fit\"\n"),
              HasSubstr("c.toml:1: run_dir: must not be longer"));
  EXPECT_EQ(Error("[debug]\nfailpoints = [1]\n"),
            "c.toml:2: debug.failpoints: must be a list of strings");
  EXPECT_THAT(Error("a = \n"), HasSubstr("c.toml:1: "));
}

TEST(ConfigTest, AHandlerHasSizesOfItsOwn) {
  auto config = ParseConfig(R"(
[handlers.large]
memory_mib = 4096
annotations = ["vcpus"]
[handlers."with.dots"]
[vm]
vcpus = 3
annotations = ["memory_mib", "vcpus"]
)",
                            "c.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const Config::Sizing& large = config->SizingOf("large");
  EXPECT_EQ(large.memory_mib, 4096u);
  // What it does not say is as for all others, wherever in the file that stands.
  EXPECT_EQ(large.vcpus, 3u);
  EXPECT_THAT(large.annotations, testing::ElementsAre("vcpus"));
  EXPECT_EQ(config->SizingOf("with.dots"), config->vm.size);
  EXPECT_EQ(config->SizingOf("another"), config->vm.size);
  EXPECT_EQ(config->SizingOf(""), config->vm.size);

  EXPECT_EQ(Error("handlers = 1\n"), "c.toml:1: handlers: must be a table");
  EXPECT_EQ(Error("[handlers]\nx = 1\n"), "c.toml:2: handlers.x: must be a table");
  EXPECT_EQ(Error("[handlers.x]\nvmm = \"qemu\"\n"), "c.toml:2: handlers.x.vmm: unknown key");
  EXPECT_EQ(Error("[handlers.x]\nvcpus = 0\n"),
            "c.toml:2: handlers.x.vcpus: must be between 1 and 255");
  EXPECT_EQ(Error("[vm]\nannotations = [\"kernel\"]\n"),
            "c.toml:2: vm.annotations: may hold memory_mib, vcpus only");
}

TEST(ConfigTest, AbsentFileIsNotFound) {
  EXPECT_EQ(LoadConfig("/nonexistent/c.toml").status().code(), absl::StatusCode::kNotFound);
}

TEST(ConfigTest, RunDirIsPartOfAnAddress) {
  EXPECT_TRUE(ParseConfig("run_dir = \"/run/a-b_c.d+1\"", "c.toml").ok());
  for (const std::string& bad : std::vector<std::string>{"/run/a:b", "/run/a?b", "/run/a b"}) {
    EXPECT_THAT(Error("run_dir = \"" + bad + "\"\n"), HasSubstr("c.toml:1: run_dir: may hold"));
  }
}

TEST(ConfigTest, MetricsHaveAnAddressOrNone) {
  for (const std::string& good :
       std::vector<std::string>{"", "127.0.0.1:9100", "[::1]:9100", "localhost:1", "0.0.0.0:65535",
                                "unix:/run/magnetar/metrics.sock"}) {
    const auto config = ParseConfig("[metrics]\naddress = \"" + good + "\"\n", "c.toml");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->metrics.address, good);
  }
  for (const std::string& bad :
       std::vector<std::string>{"9100", ":9100", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0",
                                "a:65536", "a:-1", "::1:9100", "[::1]", "a]:1", "[]:1", "a:http"}) {
    EXPECT_THAT(Error("[metrics]\naddress = \"" + bad + "\"\n"),
                HasSubstr("c.toml:2: metrics.address: must be empty, \"host:port\""))
        << bad;
  }
  EXPECT_EQ(Error("[metrics]\naddress = \"unix:run/x\"\n"),
            "c.toml:2: metrics.address: must be an absolute path");
  EXPECT_EQ(Error("[metrics]\naddress = 9100\n"), "c.toml:2: metrics.address: must be a string");
}

TEST(ConfigTest, TheCommandLineIsHeldToTheSameRules) {
  Config config;
  EXPECT_TRUE(SetConfigText(&config, "log_level", "debug").ok());
  EXPECT_EQ(config.log_level, "debug");
  EXPECT_TRUE(absl::IsInvalidArgument(SetConfigText(&config, "log_level", "bogus")));
  EXPECT_TRUE(absl::IsInvalidArgument(SetConfigText(&config, "listen", "relative.sock")));
  EXPECT_TRUE(absl::IsInvalidArgument(SetConfigText(&config, "run_dir", std::string(99, '/'))));
}

// The shipped file shows each key with its default.
TEST(ConfigTest, ShippedFileNamesEveryKeyWithItsDefault) {
  auto text = ReadFile(MAGNETAR_SOURCE_DIR "/config/vmm-sandboxer.toml");
  ASSERT_TRUE(text.ok()) << text.status();
  auto config = ParseConfig(*text, "vmm-sandboxer.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, Config());
  for (const char* key : {"listen",
                          "run_dir",
                          "log_level",
                          "address",
                          "orphan_after_seconds",
                          "kernel",
                          "initrd",
                          "image",
                          "extra_cmdline",
                          "memory_reserve_mib",
                          "heartbeat_seconds",
                          "unkillable_after_seconds",
                          "vmm",
                          "accel",
                          "transport",
                          "file_share",
                          "vcpus",
                          "memory_mib",
                          "overhead_mib",
                          "annotations",
                          "qemu_path",
                          "virtiofsd_path",
                          "vmm_9p_path",
                          "supervisor_path",
                          "start_timeout_seconds",
                          "stop_timeout_ms",
                          "uid_base",
                          "uid_count",
                          "console_ring_kib",
                          "failpoints"}) {
    EXPECT_THAT(*text, HasSubstr(std::string("\n") + key + " = ")) << key;
  }
}

// The key's value where the shipped file sets it.
std::string ShippedDefault(const std::string& shipped, const std::string& section,
                           const std::string& key) {
  bool inside = section.empty();
  for (const absl::string_view line : absl::StrSplit(shipped, '\n')) {
    if (absl::StartsWith(line, "[")) inside = line == absl::StrCat("[", section, "]");
    absl::string_view rest = line;
    if (inside && absl::ConsumePrefix(&rest, absl::StrCat(key, " = "))) return std::string(rest);
  }
  return "";
}

// The reference has a row "| `key` | `default` |" in each section, for each key of the code.
TEST(ConfigTest, TheReferenceHasEveryKeyWithItsDefault) {
  auto code = ReadFile(MAGNETAR_SOURCE_DIR "/src/daemon/config/config.cc");
  auto shipped = ReadFile(MAGNETAR_SOURCE_DIR "/config/vmm-sandboxer.toml");
  auto reference = ReadFile(MAGNETAR_SOURCE_DIR "/docs/configuration.md");
  ASSERT_TRUE(code.ok() && shipped.ok() && reference.ok());
  // {"section", {{"key", Kind(...)}, ...
  const std::regex entry(R"re(\{"(\w*)",\s*(\{|[A-Z]\w+\())re");
  // Those of Sizing come first.
  std::string section = "vm";
  int keys = 0;
  for (std::sregex_iterator it(code->begin(), code->end(), entry), end; it != end; ++it) {
    if ((*it)[2] == "{") {
      section = (*it)[1];
      continue;
    }
    const std::string key = (*it)[1];
    const std::string value = ShippedDefault(*shipped, section, key);
    EXPECT_NE(value, "") << section << "." << key << " is not in the shipped file";
    const std::string heading = section.empty() ? "At the top" : absl::StrCat("[", section, "]");
    const size_t start = reference->find(absl::StrCat("\n## ", heading, "\n"));
    ASSERT_NE(start, std::string::npos) << section;
    const std::string part = reference->substr(start, reference->find("\n## ", start + 4) - start);
    EXPECT_THAT(part, HasSubstr(absl::StrCat("\n| `", key, "` | `", value, "` |"))) << section;
    ++keys;
  }
  EXPECT_GE(keys, 29);
}

}  // namespace
}  // namespace magnetar::daemon
