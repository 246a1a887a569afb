#include "src/daemon/storage/spec_rewrite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "src/daemon/storage/spec_mounts.h"
#include "src/daemon/storage/testing/spec.h"

namespace magnetar::daemon {
namespace {

using ReadOnly = TreeOptions::ReadOnly;

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(SpecRewriteTest, WhatIsRewrittenAndWhatStays) {
  Json spec = Spec();
  spec["root"]["readonly"] = true;
  spec["annotations"] = {{"io.kubernetes.cri.container-name", "x"}};
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["root"]["path"], "/run/magnetar/shared/c1/rootfs");
  EXPECT_EQ(out.spec["root"]["readonly"], true);
  EXPECT_EQ(out.spec["ociVersion"], "1.0.2");  // all that the guest's crun takes
  EXPECT_EQ(out.spec["process"], spec["process"]);
  EXPECT_EQ(out.spec["annotations"], spec["annotations"]);
  EXPECT_EQ(out.spec["linux"]["cgroupsPath"], "/pod/c1");
  EXPECT_EQ(out.spec["linux"]["maskedPaths"], spec["linux"]["maskedPaths"]);
  EXPECT_THAT(out.result.binds, IsEmpty());
  EXPECT_THAT(out.result.dropped, IsEmpty());
}

TEST(SpecRewriteTest, NamespacesOfThePod) {
  Json spec = Spec();
  spec["linux"]["namespaces"][0]["path"] = "/proc/77/ns/pid";
  spec["linux"]["namespaces"][5]["path"] = "/proc/77/ns/cgroup";
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  const Json expected = Json::parse(R"([
    {"type": "pid", "path": "/run/magnetar/pod/ns/pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"},
    {"type": "uts", "path": "/proc/1/ns/uts"}, {"type": "mount"},
    {"type": "network", "path": "/proc/1/ns/net"}, {"type": "cgroup"}])");
  EXPECT_EQ(out.spec["linux"]["namespaces"], expected);
}

TEST(SpecRewriteTest, CgroupNamespaceIsAddedWhereTheHostHasNone) {
  Json spec = Spec();
  Json& namespaces = spec["linux"]["namespaces"];
  const Json cgroup = {{"type", "cgroup"}};
  namespaces.erase(5);
  const Outcome out = Rewrite(spec);
  EXPECT_EQ(out.spec["linux"]["namespaces"].back(), cgroup);
}

TEST(SpecRewriteTest, NamespacesOfItsOwnStayNew) {
  Json spec = Spec();
  for (Json& ns : spec["linux"]["namespaces"]) ns.erase("path");
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["linux"]["namespaces"], spec["linux"]["namespaces"]);
}

TEST(SpecRewriteTest, KernelFilesystemsStay) {
  Json spec = Spec();
  for (const char* type : {"proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup"}) {
    spec["mounts"].push_back({{"type", type},
                              {"source", type},
                              {"destination", std::string("/at/") + type},
                              {"options", {"nosuid", "noexec"}}});
  }
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  for (size_t i = 0; i < spec["mounts"].size(); ++i) {
    EXPECT_EQ(out.spec["mounts"][i], spec["mounts"][i]);
  }
}

// A pod as a kubelet makes it.
TEST(SpecRewriteTest, KubeletsMounts) {
  const std::string pod = "/var/lib/kubelet/pods/0c1e/";
  Json spec = Spec();
  spec["mounts"] = {
      {{"type", "proc"}, {"source", "proc"}, {"destination", "/proc"}, {"options", {"nosuid"}}},
      Bind(pod + "etc-hosts", "/etc/hosts"),
      Bind(pod + "containers/c/1f", "/dev/termination-log"),
      Bind(std::string(kSandboxFiles) + "shm", "/dev/shm"),
      Bind(pod + "volumes/kubernetes.io~projected/kube-api-access",
           "/var/run/secrets/kubernetes.io/serviceaccount", {"rbind", "rprivate", "ro"}),
      Bind("/srv/data", "/data", {"rbind", "rslave", "rw"}),
  };
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;

  ASSERT_EQ(out.result.binds.size(), 4u);
  const HostBind& hosts = out.result.binds[0];
  EXPECT_EQ(hosts.name, "m1");
  EXPECT_EQ(hosts.source, pod + "etc-hosts");
  EXPECT_TRUE(hosts.recursive);
  EXPECT_EQ(hosts.read_only, ReadOnly::kNo);
  EXPECT_FALSE(hosts.follow_host);
  EXPECT_EQ(out.result.binds[1].name, "m2");
  EXPECT_EQ(out.result.binds[2].name, "m4");
  EXPECT_EQ(out.result.binds[2].read_only, ReadOnly::kTop);
  EXPECT_TRUE(out.result.binds[3].follow_host);

  EXPECT_EQ(out.MountAt("/etc/hosts")["source"], "/run/magnetar/shared/c1/m1");
  EXPECT_EQ(out.MountAt("/dev/termination-log")["source"], "/run/magnetar/shared/c1/m2");
  EXPECT_EQ(out.MountAt("/dev/shm"),
            Bind("/run/magnetar/pod/shm", "/dev/shm", {"rbind", "rprivate", "rw"}));
  EXPECT_EQ(out.MountAt("/var/run/secrets/kubernetes.io/serviceaccount"),
            Bind("/run/magnetar/shared/c1/m4", "/var/run/secrets/kubernetes.io/serviceaccount",
                 {"rbind", "rprivate", "ro"}));
  EXPECT_EQ(out.MountAt("/data"),
            Bind("/run/magnetar/shared/c1/m5", "/data", {"rbind", "rprivate", "rw"}));
  // The kubelet's /etc/hosts wins; the other two are the pod's.
  EXPECT_EQ(out.spec["mounts"].size(), 8u);
  EXPECT_EQ(out.MountAt("/etc/hostname")["source"], "/run/magnetar/pod/hostname");
  EXPECT_EQ(out.MountAt("/etc/resolv.conf")["source"], "/run/magnetar/pod/resolv.conf");
}

// For another sandboxer than its own, containerd leaves the default.
TEST(SpecRewriteTest, TheDefaultSharedMemoryIsThePods) {
  const Json shm = {{"type", "tmpfs"},
                    {"source", "shm"},
                    {"destination", "/dev/shm"},
                    {"options", {"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}};
  Json spec = Spec();
  spec["mounts"].push_back(shm);
  EXPECT_EQ(Rewrite(spec).MountAt("/dev/shm"),
            Bind("/run/magnetar/pod/shm", "/dev/shm", {"rbind", "rprivate", "rw"}));

  // What was asked for: a size, read-only, or an IPC namespace of its own.
  Json sized = spec;
  sized["mounts"].back()["options"][4] = "size=1g";
  EXPECT_EQ(Rewrite(sized).MountAt("/dev/shm"), sized["mounts"].back());
  Json read_only = spec;
  read_only["mounts"].back()["options"].push_back("ro");
  EXPECT_EQ(Rewrite(read_only).MountAt("/dev/shm"), read_only["mounts"].back());
  for (Json& ns : spec["linux"]["namespaces"]) ns.erase("path");
  EXPECT_EQ(Rewrite(spec).MountAt("/dev/shm"), shm);
}

TEST(SpecRewriteTest, PodFilesFollowTheRootFilesystemsAccess) {
  Json spec = Spec();
  EXPECT_EQ(Rewrite(spec).MountAt("/etc/hosts")["options"], Json({"rbind", "rprivate", "rw"}));
  spec["root"]["readonly"] = true;
  EXPECT_EQ(Rewrite(spec).MountAt("/etc/hosts")["options"], Json({"rbind", "rprivate", "ro"}));
}

TEST(SpecRewriteTest, PodFilesAreAddedOnlyWhereNothingIs) {
  Json spec = Spec();
  spec["mounts"].push_back(Bind("/srv/resolv", "/etc//resolv.conf/"));
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["mounts"].size(), 3u);
  EXPECT_TRUE(out.MountAt("/etc/resolv.conf").is_null());
}

TEST(SpecRewriteTest, PodFilesOfContainerdAreTheGuests) {
  Json spec = Spec();
  for (const char* file : {"hostname", "hosts", "resolv.conf"}) {
    spec["mounts"].push_back(Bind(std::string(kSandboxFiles) + file, std::string("/etc/") + file,
                                  {"rbind", "rprivate", "ro"}));
  }
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_THAT(out.result.binds, IsEmpty());
  EXPECT_EQ(out.spec["mounts"].size(), 3u);
  EXPECT_EQ(out.MountAt("/etc/hosts"),
            Bind("/run/magnetar/pod/hosts", "/etc/hosts", {"rbind", "rprivate", "ro"}));
}

TEST(SpecRewriteTest, FilesOfAnotherSandboxAreJustHostPaths) {
  Json spec = Spec();
  spec["mounts"].push_back(Bind("/run/containerd/sandboxes/other/shm", "/dev/shm"));
  const Outcome out = Rewrite(spec);
  ASSERT_EQ(out.result.binds.size(), 1u);
  EXPECT_EQ(out.MountAt("/dev/shm")["source"], "/run/magnetar/shared/c1/m0");
}

TEST(SpecRewriteTest, WithoutPodFiles) {
  SpecRequest request = Request();
  request.guest_hostname = request.guest_hosts = request.guest_resolv_conf = request.guest_shm = "";
  const Outcome out = Rewrite(Spec(), request);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_THAT(out.spec["mounts"], IsEmpty());
}

TEST(SpecRewriteTest, VolumesOfTheGuest) {
  Json spec = Spec();
  spec["mounts"] = {Bind("/srv/a", "/a"), Bind("/srv/b", "/b", {"rbind", "rprivate", "ro"})};
  SpecRequest request = Request();
  request.guest_volumes[1] = "/run/magnetar/pod/volumes/b";
  const Outcome out = Rewrite(spec, request);
  ASSERT_TRUE(out.status.ok()) << out.status;
  ASSERT_EQ(out.result.binds.size(), 1u);
  EXPECT_EQ(out.result.binds[0].name, "m0");
  EXPECT_EQ(out.MountAt("/b"),
            Bind("/run/magnetar/pod/volumes/b", "/b", {"rbind", "rprivate", "ro"}));
}

TEST(SpecRewriteTest, ProcessesOfAnotherContainer) {
  Json spec = Spec();
  SpecRequest request = Request();
  request.pod_shares_pids = false;
  EXPECT_TRUE(Rewrite(spec, request).status.ok());
  spec["linux"]["namespaces"][0]["path"] = "/proc/77/ns/pid";
  const Outcome out = Rewrite(spec, request);
  EXPECT_TRUE(absl::IsFailedPrecondition(out.status)) << out.status;
  EXPECT_THAT(std::string(out.status.message()), HasSubstr("linux.namespaces: pid"));
  EXPECT_THAT(std::string(out.status.message()), HasSubstr("namespace_options.target_id"));
  request.target_pid_namespace = "/run/magnetar/containers/c1/pid-namespace";
  Outcome joined = Rewrite(spec, request);
  ASSERT_TRUE(joined.status.ok()) << joined.status;
  EXPECT_EQ(joined.spec["linux"]["namespaces"][0]["path"], request.target_pid_namespace);
}

struct OptionsCase {
  std::vector<std::string> options;
  bool recursive;
  ReadOnly read_only;
  bool follow_host;
  std::vector<std::string> guest;
};

TEST(SpecRewriteTest, BindOptions) {
  const OptionsCase cases[] = {
      {{"bind"}, false, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
      {{"rbind"}, true, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
      {{"rbind", "ro"}, true, ReadOnly::kTop, false, {"rbind", "rprivate", "ro"}},
      {{"rbind", "rro"}, true, ReadOnly::kAll, false, {"rbind", "rprivate", "rro"}},
      {{"rbind", "ro", "rw"}, true, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
      {{"bind", "slave"}, false, ReadOnly::kNo, true, {"rbind", "rprivate", "rw"}},
      {{"rbind", "rslave", "rprivate"}, true, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
      {{"rbind", "nosuid", "nodev", "noexec", "ro"},
       true,
       ReadOnly::kTop,
       false,
       {"rbind", "rprivate", "nosuid", "nodev", "noexec", "ro"}},
      {{"rbind", "rro", "ro"}, true, ReadOnly::kAll, false, {"rbind", "rprivate", "rro"}},
      {{"rbind", "rro", "rw"}, true, ReadOnly::kAll, false, {"rbind", "rprivate", "rro"}},
      {{"rbind", "rro", "rrw"}, true, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
      {{"rbind", "rslave", "ro"}, true, ReadOnly::kTop, false, {"rbind", "rprivate", "ro"}},
      {{"rbind", "rslave", "rro"}, true, ReadOnly::kAll, false, {"rbind", "rprivate", "rro"}},
      {{"rbind", "z"}, true, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
      {{}, false, ReadOnly::kNo, false, {"rbind", "rprivate", "rw"}},
  };
  for (const OptionsCase& c : cases) {
    Json spec = Spec();
    spec["mounts"].push_back(Bind("/srv/x", "/x", c.options));
    const Outcome out = Rewrite(spec);
    SCOPED_TRACE(spec["mounts"].dump());
    ASSERT_TRUE(out.status.ok()) << out.status;
    ASSERT_EQ(out.result.binds.size(), 1u);
    EXPECT_EQ(out.result.binds[0].recursive, c.recursive);
    EXPECT_EQ(out.result.binds[0].read_only, c.read_only);
    EXPECT_EQ(out.result.binds[0].follow_host, c.follow_host);
    EXPECT_EQ(out.MountAt("/x")["options"], Json(c.guest));
  }
}

TEST(SpecRewriteTest, BindIsKnownByItsOptionToo) {
  Json spec = Spec();
  spec["mounts"].push_back({{"source", "/srv/x"}, {"destination", "/x"}, {"options", {"rbind"}}});
  spec["mounts"].push_back(
      {{"source", "/srv/y"}, {"destination", "/y"}, {"type", "none"}, {"options", {"bind"}}});
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.result.binds.size(), 2u);
  EXPECT_EQ(out.MountAt("/y")["type"], "bind");
}

TEST(SpecRewriteTest, ResourcesAreReduced) {
  Json spec = Spec();
  spec["linux"]["resources"] = {{"cpu", {{"cpus", "2-3"}, {"shares", 2}}}};
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["linux"]["resources"], Json::parse(R"({"cpu": {"shares": 2}})"));
  EXPECT_THAT(out.result.dropped, ElementsAre("linux.resources.cpu.cpus"));
}

TEST(SpecRewriteTest, AnnotationsThatCommandTheGuestsRuntimeAreDropped) {
  Json spec = Spec();
  spec["annotations"] = {{"io.kubernetes.cri.container-name", "x"},
                         {"run.oci.hooks.stdout", "/run/x"},
                         {"run.oci.seccomp.receiver", "/run/x"},
                         {"run.oci.seccomp_bpf_data", "AA=="},
                         {"org.criu.config", "/run/x"}};
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["annotations"], Json({{"io.kubernetes.cri.container-name", "x"}}));
  EXPECT_THAT(out.result.dropped, ElementsAre("annotations.run.oci.*", "annotations.org.criu.*"));
}

TEST(SpecRewriteTest, LabelsOfTheHostAreDropped) {
  Json spec = Spec();
  spec["process"]["apparmorProfile"] = "cri-containerd.apparmor.d";
  spec["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0";
  spec["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0";
  spec["linux"]["intelRdt"] = {{"closID", "x"}};
  spec["windows"] = {{"layerFolders", {"c:"}}};
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["process"], Spec()["process"]);
  EXPECT_FALSE(out.spec["linux"].contains("mountLabel"));
  EXPECT_FALSE(out.spec["linux"].contains("intelRdt"));
  EXPECT_FALSE(out.spec.contains("windows"));
  EXPECT_THAT(out.result.dropped, ElementsAre("linux.mountLabel", "linux.intelRdt",
                                              "process.apparmorProfile", "process.selinuxLabel"));
}

TEST(SpecRewriteTest, EmptyHooksGoSilently) {
  Json spec = Spec();
  spec["hooks"] = {{"prestart", Json::array()}};
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_FALSE(out.spec.contains("hooks"));
}

struct RefusalCase {
  const char* what;
  std::function<void(Json&)> change;
  absl::StatusCode code;
  const char* message;
};

TEST(SpecRewriteTest, Refusals) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kRefused = absl::StatusCode::kFailedPrecondition;
  const auto mount = [](Json m) {
    return [m](Json& s) { s["mounts"] = {Bind("/srv/ok", "/ok"), m}; };
  };
  const RefusalCase cases[] = {
      {"root as hostPath", mount(Bind("/", "/host")), kRefused,
       "mounts[1] /host: the host's root directory"},
      {"root in disguise", mount(Bind("//./srv/..", "/host")), kRefused, "mounts[1] /host"},
      {"relative source", mount(Bind("srv", "/x")), kInvalid, "mounts[1] /x: source \"srv\""},
      {"no source", mount(Bind("", "/x")), kInvalid, "mounts[1] /x: source"},
      {"NUL in source", mount(Bind(std::string("/a\0b", 4), "/x")), kInvalid, "mounts[1] /x"},
      {"no destination", mount(Bind("/srv", "")), kInvalid, "mounts[1] : no destination"},
      {"bidirectional", mount(Bind("/srv", "/x", {"rbind", "rshared"})), kRefused,
       "mounts[1] /x: mount propagation \"rshared\""},
      {"id-mapped option", mount(Bind("/srv", "/x", {"rbind", "ridmap"})), kRefused, "id-mapped"},
      {"id-mapped mount",
       mount({{"type", "bind"},
              {"source", "/srv"},
              {"destination", "/x"},
              {"uidMappings", Json::parse("[{}]")}}),
       kRefused, "id-mapped"},
      {"overlay mount", mount({{"type", "overlay"}, {"source", "overlay"}, {"destination", "/x"}}),
       kInvalid, "mounts[1] /x: mount type \"overlay\""},
      {"no mount type", mount({{"source", "/srv"}, {"destination", "/x"}}), kInvalid,
       "mount type \"\""},
      {"mount is no object", mount(Json(7)), kInvalid, "mounts[1] is no object"},
      {"options are no strings", mount({{"type", "bind"}, {"destination", "/x"}, {"options", {1}}}),
       kInvalid, "mounts[1].options"},
      {"mounts are no array", [](Json& s) { s["mounts"] = "x"; }, kInvalid, "mounts is no array"},
      {"hooks",
       [](Json& s) {
         s["hooks"]["createRuntime"] = {{{"path", "/bin/x"}}};
       },
       kRefused, "hooks.createRuntime"},
      {"hooks are no object", [](Json& s) { s["hooks"] = {1}; }, kInvalid, "hooks is no object"},
      {"host device",
       [](Json& s) {
         s["linux"]["devices"] =
             Json::parse(R"([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}])");
       },
       kRefused,
       "linux.devices[0] /dev/kvm: of the host's devices only block devices can be given to a VM, "
       "as disks; for privileged containers the handler needs privileged_without_host_devices"},
      {"block device that nobody asked for, with a harmless number",
       [](Json& s) {
         s["linux"]["devices"] =
             Json::parse(R"([{"path": "/dev/ram3", "type": "b", "major": 1, "minor": 3}])");
       },
       kRefused, "linux.devices[0] /dev/ram3: a block device of the host is given to a VM only if"},
      {"block device without numbers",
       [](Json& s) {
         s["linux"]["devices"] = Json::parse(R"([{"path": "/dev/x", "type": "b", "major": 8}])");
       },
       kInvalid, "linux.devices[0] /dev/x: no numbers"},
      {"block device with numbers that none has",
       [](Json& s) {
         s["linux"]["devices"] =
             Json::parse(R"([{"path": "/dev/x", "type": "b", "major": 8, "minor": -1}])");
       },
       kInvalid, "linux.devices[0] /dev/x: no numbers"},
      {"devices are no objects", [](Json& s) { s["linux"]["devices"] = {1}; }, kInvalid,
       "linux.devices[0] is no object"},
      {"device rules are no objects", [](Json& s) { s["linux"]["resources"]["devices"] = {1}; },
       kInvalid, "linux.resources.devices"},
      {"device without numbers",
       [](Json& s) { s["linux"]["devices"] = Json::parse(R"([{"path": "/dev/x", "type": "c"}])"); },
       kRefused, "/dev/x"},
      {"user namespace",
       [](Json& s) {
         s["linux"]["namespaces"].push_back({{"type", "user"}});
       },
       kRefused, "user namespaces"},
      {"uid mappings", [](Json& s) { s["linux"]["uidMappings"] = Json::parse("[{}]"); }, kRefused,
       "linux.uidMappings"},
      {"host's pids", [](Json& s) { s["linux"]["namespaces"].erase(0); }, kRefused,
       "linux.namespaces: pid"},
      {"host's mounts", [](Json& s) { s["linux"]["namespaces"].erase(3); }, kRefused,
       "linux.namespaces: mount"},
      {"a mount namespace of the host",
       [](Json& s) { s["linux"]["namespaces"][3]["path"] = "/proc/1/ns/mnt"; }, kRefused,
       "linux.namespaces: mount"},
      {"no namespaces", [](Json& s) { s["linux"].erase("namespaces"); }, kRefused,
       "linux.namespaces"},
      {"unknown namespace", [](Json& s) { s["linux"]["namespaces"][0]["type"] = "astral"; },
       kInvalid, "linux.namespaces[0]: namespace type \"astral\""},
      {"namespace twice",
       [](Json& s) {
         s["linux"]["namespaces"].push_back({{"type", "pid"}});
       },
       kInvalid, "a second pid namespace"},
      {"namespace is no object", [](Json& s) { s["linux"]["namespaces"][0] = 1; }, kInvalid,
       "linux.namespaces[0] is no object"},
      {"seccomp listener", [](Json& s) { s["linux"]["seccomp"]["listenerPath"] = "/run/s"; },
       kRefused, "linux.seccomp.listenerPath"},
      {"no linux", [](Json& s) { s.erase("linux"); }, kInvalid, "no linux section"},
      {"no root", [](Json& s) { s.erase("root"); }, kInvalid, "no root section"},
      {"root is no object", [](Json& s) { s["root"] = "x"; }, kInvalid, "root is no object"},
      {"process is no object", [](Json& s) { s["process"] = 1; }, kInvalid, "process is no object"},
      {"resources are no object", [](Json& s) { s["linux"]["resources"] = 1; }, kInvalid,
       "linux.resources is no object"},
      {"hugepage limit is no object",
       [](Json& s) { s["linux"]["resources"]["hugepageLimits"] = {1}; }, kInvalid,
       "hugepageLimits"},
  };
  for (const RefusalCase& c : cases) {
    Json spec = Spec();
    c.change(spec);
    SCOPED_TRACE(c.what);
    const Outcome out = Rewrite(spec);
    EXPECT_EQ(out.status.code(), c.code) << out.status;
    EXPECT_THAT(std::string(out.status.message()), HasSubstr(c.message));
  }
}

TEST(SpecRewriteTest, NoSpecAtAll) {
  for (const std::string text :
       {"", "{", "[]", "7", "null", "\"x\"", "{} {}", "{\"a\":\"\xff\"}"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(RewriteSpec(text, Request()).status())) << text;
  }
}

TEST(SpecRewriteTest, BottomlessNesting) {
  const std::string deep(1 << 20, '[');
  EXPECT_TRUE(absl::IsInvalidArgument(RewriteSpec(deep, Request()).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      RewriteSpec("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", Request())
          .status()));
  // Brackets in strings do not nest.
  Json spec = Spec();
  spec["process"]["args"] = {std::string(1000, '['), "\"[\\"};
  EXPECT_TRUE(Rewrite(spec).status.ok());
}

TEST(CleanPathTest, Cases) {
  EXPECT_EQ(CleanPath("/"), "/");
  EXPECT_EQ(CleanPath("//a/./b//c/"), "/a/b/c");
  EXPECT_EQ(CleanPath("/a/../../b"), "/b");
  EXPECT_EQ(CleanPath(""), "/");
}

}  // namespace
}  // namespace magnetar::daemon
