#include "src/daemon/sandbox/pod_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "src/daemon/sandbox/status_info.h"

namespace magnetar::daemon {
namespace {

using runtime::v1::LinuxContainerResources;
using ::testing::HasSubstr;
namespace api = containerd::services::sandbox::v1;

api::ControllerCreateRequest Request(const runtime::v1::PodSandboxConfig& config) {
  api::ControllerCreateRequest request;
  request.set_sandbox_id("abc");
  request.set_netns_path("/proc/self/ns/net");
  request.mutable_options()->set_type_url("runtime.v1.PodSandboxConfig");
  request.mutable_options()->set_value(config.SerializeAsString());
  return request;
}

std::string Error(const api::ControllerCreateRequest& request) {
  const auto pod = ParseCreate(request, "/run/vmm-sandboxer");
  EXPECT_TRUE(absl::IsInvalidArgument(pod.status())) << pod.status();
  return std::string(pod.status().message());
}

TEST(PodRequestTest, TakesWhatCriSends) {
  runtime::v1::PodSandboxConfig config;
  config.set_hostname("h");
  auto request = Request(config);
  request.mutable_options()->set_type_url("type.googleapis.com/runtime.v1.PodSandboxConfig");
  (*request.mutable_sandbox()->mutable_extensions())["metadata"].set_value(
      R"({"Version":"v1","Metadata":{"RuntimeHandler":"magnetar"}})");
  const auto pod = ParseCreate(request, "/run/vmm-sandboxer");
  ASSERT_TRUE(pod.ok()) << pod.status();
  EXPECT_EQ(pod->config.hostname(), "h");
  EXPECT_EQ(pod->runtime_handler, "magnetar");
}

TEST(PodRequestTest, OptionsAndNetworkAreOptional) {
  api::ControllerCreateRequest request;
  request.set_sandbox_id("abc");
  EXPECT_TRUE(ParseCreate(request, "/run/x").ok());
}

TEST(PodRequestTest, RefusesBadIds) {
  for (const std::string& id :
       std::vector<std::string>{"", "..", "a/b", "-a", "a b", std::string(77, 'a')}) {
    auto request = Request({});
    request.set_sandbox_id(id);
    EXPECT_THAT(Error(request), HasSubstr("sandbox_id")) << id;
  }
  // A valid one whose sockets have no room.
  auto request = Request({});
  request.set_sandbox_id(std::string(76, 'a'));
  EXPECT_THAT(Error(request), HasSubstr("too long"));
}

TEST(PodRequestTest, RefusesOptionsThatAreNone) {
  auto request = Request({});
  request.mutable_options()->set_type_url("containerd.runc.v1.Options");
  EXPECT_THAT(Error(request), HasSubstr("not a runtime.v1.PodSandboxConfig"));
  request = Request({});
  request.mutable_options()->set_value("\xff\xff");
  EXPECT_THAT(Error(request), HasSubstr("does not parse"));
}

TEST(PodRequestTest, RefusesTheHostsNamespacesByName) {
  auto with = [](auto change) {
    runtime::v1::PodSandboxConfig config;
    change(config.mutable_linux()->mutable_security_context()->mutable_namespace_options());
    return Request(config);
  };
  EXPECT_THAT(Error(with([](auto* o) { o->set_network(runtime::v1::NODE); })),
              HasSubstr("namespace_options.network"));
  EXPECT_THAT(Error(with([](auto* o) { o->set_pid(runtime::v1::NODE); })),
              HasSubstr("namespace_options.pid"));
  EXPECT_THAT(Error(with([](auto* o) { o->set_ipc(runtime::v1::NODE); })),
              HasSubstr("namespace_options.ipc"));
  EXPECT_THAT(Error(with([](auto* o) { o->mutable_userns_options()->set_mode(runtime::v1::POD); })),
              HasSubstr("namespace_options.userns_options"));
  // As kubelet sends it for a pod without a user namespace.
  EXPECT_TRUE(ParseCreate(with([](auto* o) {
                            o->mutable_userns_options()->set_mode(runtime::v1::NODE);
                            o->set_pid(runtime::v1::CONTAINER);
                          }),
                          "/run/x")
                  .ok());
}

TEST(PodRequestTest, RefusesWhatWouldForgeFiles) {
  runtime::v1::PodSandboxConfig config;
  config.mutable_dns_config()->add_servers("1.1.1.1\nnameserver 6.6.6.6");
  EXPECT_THAT(Error(Request(config)), HasSubstr("dns_config.servers"));
  config.Clear();
  config.set_hostname(std::string(65, 'h'));
  EXPECT_THAT(Error(Request(config)), HasSubstr("hostname"));
  config.Clear();
  config.mutable_linux()->set_cgroup_parent("/a/../../b");
  EXPECT_THAT(Error(Request(config)), HasSubstr("cgroup_parent"));
}

TEST(PodRequestTest, NetnsMustBeOne) {
  EXPECT_TRUE(CheckNetns("/proc/self/ns/net").ok());
  for (const char* path : {"/proc/self/ns/pid", "/etc/passwd", "/tmp", "/nonexistent"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckNetns(path))) << path;
  }
  auto request = Request({});
  request.set_netns_path("relative");
  EXPECT_THAT(Error(request), HasSubstr("netns_path: relative"));
}

TEST(PodRequestTest, RefusesResourcesThatNoMachineHas) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  runtime::v1::PodSandboxConfig config;
  config.mutable_linux()->mutable_resources()->set_memory_limit_in_bytes(kMost);
  EXPECT_THAT(Error(Request(config)), HasSubstr("linux.resources.memory_limit_in_bytes"));
  config.Clear();
  config.mutable_linux()->mutable_resources()->set_cpu_quota(kMost);
  EXPECT_THAT(Error(Request(config)), HasSubstr("linux.resources.cpu_quota"));
  config.Clear();
  config.mutable_linux()->mutable_resources()->set_cpu_period(-5);
  EXPECT_THAT(Error(Request(config)), HasSubstr("linux.resources.cpu_period"));
  config.Clear();
  config.mutable_linux()->mutable_overhead()->set_cpu_shares(kMost);
  EXPECT_THAT(Error(Request(config)), HasSubstr("linux.overhead.cpu_shares"));
  config.Clear();
  config.mutable_linux()->mutable_resources()->set_cpu_quota(-1);
  EXPECT_TRUE(ParseCreate(Request(config), "/run/x").ok());
}

TEST(PodRequestTest, RefusesAConfigurationThatNoRecordHolds) {
  runtime::v1::PodSandboxConfig config;
  (*config.mutable_annotations())["a"] = std::string(1 << 20, 'x');
  EXPECT_THAT(Error(Request(config)), HasSubstr("options: PodSandboxConfig is longer"));
  (*config.mutable_annotations())["a"] = std::string(900 << 10, 'x');
  EXPECT_TRUE(ParseCreate(Request(config), "/run/x").ok());
}

TEST(PodRequestTest, Files) {
  runtime::v1::DNSConfig dns;
  dns.add_servers("10.0.0.10");
  dns.add_searches("a.local");
  dns.add_searches("b.local");
  dns.add_options("ndots:5");
  EXPECT_EQ(ResolvConf(dns), "search a.local b.local\nnameserver 10.0.0.10\noptions ndots:5\n");
  const std::string hosts = HostsFile("web", {"10.0.0.2/24", "fe80::1/64", "fd00::2/64"});
  EXPECT_THAT(hosts, HasSubstr("10.0.0.2\tweb\n"));
  EXPECT_THAT(hosts, HasSubstr("fd00::2\tweb\n"));
  EXPECT_THAT(hosts, testing::Not(HasSubstr("fe80::1")));
}

TEST(PodRequestTest, UpdatedResources) {
  const auto updated = ParseUpdatedResources(
      R"({"Overhead":null,"Resources":{"cpu_shares":512,"memory_limit_in_bytes":1048576}})");
  ASSERT_TRUE(updated.ok());
  EXPECT_EQ(updated->resources.cpu_shares(), 512);
  EXPECT_EQ(updated->resources.memory_limit_in_bytes(), 1048576);
  for (const char* json :
       {"[", "{}", R"({"Resources":null})", R"({"Resources":{"cpu_quota":9223372036854775807}})",
        R"({"Resources":{"cpu_quota":18446744073709551615}})",
        R"({"Resources":{"memory_limit_in_bytes":"1Gi"}})",
        R"({"Resources":{},"Overhead":{"cpu_shares":-1}})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseUpdatedResources(json).status())) << json;
  }
}

TEST(StatusInfoTest, IsAlwaysJson) {
  runtime::v1::PodSandboxConfig pod;
  pod.mutable_metadata()->set_name("n");
  (*pod.mutable_labels())["k"] = "v\"\n";
  Record record;
  record.id = "a";
  record.pod_config = pod.SerializeAsString();
  record.runtime_handler = "magnetar";
  SandboxSnapshot snapshot;
  snapshot.state = SandboxState::kReady;
  snapshot.pid = 7;
  const auto json = nlohmann::json::parse(StatusInfoJson(snapshot, record), nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["pid"], 7);
  EXPECT_EQ(json["config"]["metadata"]["name"], "n");
  EXPECT_EQ(json["runtimeType"], "io.containerd.magnetar.v1");
  record.vcpus = 1;
  record.wanted_vcpus = 3;
  record.memory_bytes = 10;
  const auto vm = nlohmann::json::parse(VmInfoJson(snapshot, record), nullptr, false);
  ASSERT_TRUE(vm.is_object());
  EXPECT_EQ(vm["vcpus"], 1);
  EXPECT_EQ(vm["wantedVcpus"], 3);
  EXPECT_EQ(vm["wantedMemoryBytes"], 10);
  record.pod_config = "\xff";
  EXPECT_FALSE(
      nlohmann::json::parse(StatusInfoJson(snapshot, record), nullptr, false).is_discarded());
}

}  // namespace
}  // namespace magnetar::daemon
