#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "guest-agent/testing/test_vm.h"
#include "magnetar/files.h"

namespace magnetar::guest::testing {
namespace {

using Json = nlohmann::json;

Json Process(const std::vector<std::string>& args, bool terminal) {
  const Json capabilities = {"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"};
  return {{"terminal", terminal},
          {"user", {{"uid", 0}, {"gid", 0}}},
          {"args", args},
          {"env", {"PATH=/bin", "TERM=xterm"}},
          {"cwd", "/"},
          {"capabilities",
           {{"bounding", capabilities}, {"effective", capabilities}, {"permitted", capabilities}}},
          {"noNewPrivileges", true}};
}

Json Mount(const char* type, const char* destination, const Json& options) {
  return {{"type", type}, {"source", type}, {"destination", destination}, {"options", options}};
}

}  // namespace

std::string BusyboxProcess(const std::vector<std::string>& args, bool terminal) {
  return Process(args, terminal).dump();
}

std::string BusyboxSpec(const std::string& id, const std::vector<std::string>& args,
                        bool terminal) {
  Json spec = {
      {"ociVersion", "1.0.2"},
      {"process", Process(args, terminal)},
      {"root", {{"path", absl::StrCat("/run/magnetar/shared/", id, "/rootfs")}}},
      {"mounts",
       {Mount("proc", "/proc", Json::array({"nosuid", "noexec", "nodev"})),
        Mount("tmpfs", "/dev", Json::array({"nosuid", "strictatime", "mode=755", "size=65536k"})),
        Mount("devpts", "/dev/pts",
              Json::array({"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"})),
        Mount("sysfs", "/sys", Json::array({"nosuid", "noexec", "nodev", "ro"}))}},
      {"linux",
       {{"cgroupsPath", absl::StrCat("/pod/", id)},
        {"resources", {{"memory", {{"limit", 67108864}}}, {"pids", {{"limit", 100}}}}},
        {"namespaces",
         {{{"type", "pid"}},
          {{"type", "mount"}},
          {{"type", "ipc"}, {"path", "/proc/1/ns/ipc"}},
          {{"type", "uts"}, {"path", "/proc/1/ns/uts"}},
          {{"type", "network"}, {"path", "/proc/1/ns/net"}}}}}}};
  spec["mounts"].push_back({{"type", "bind"},
                            {"source", "/run/magnetar/pod/hosts"},
                            {"destination", "/etc/hosts"},
                            {"options", {"rbind", "ro"}}});
  spec["mounts"].push_back({{"type", "bind"},
                            {"source", "/run/magnetar/pod/shm"},
                            {"destination", "/dev/shm"},
                            {"options", {"rbind", "rw"}}});
  return spec.dump();
}

void MakeBusyboxRoot(const std::string& path) {
  for (const char* directory : {"bin", "dev", "proc", "sys", "tmp", "etc"}) {
    MakeDirectories(absl::StrCat(path, "/", directory), 0755).IgnoreError();
  }
  const char* program = std::getenv("MAGNETAR_BUSYBOX");
  const auto busybox = ReadFile(program != nullptr ? program : "/bin/busybox", 8 << 20);
  if (!busybox.ok()) {
    std::cerr << "no busybox for a test's container: " << busybox.status()
              << " (MAGNETAR_BUSYBOX names another)" << std::endl;
    std::abort();
  }
  const std::string binary = absl::StrCat(path, "/bin/busybox");
  WriteFileAtomically(binary, *busybox, 0755).IgnoreError();
  for (const char* applet : {"sh", "cat", "echo", "sleep", "true", "seq", "dd", "ls", "id", "kill",
                             "hostname", "ip", "stty", "head", "wc", "nc", "ps", "md5sum", "yes"}) {
    ::symlink("busybox", absl::StrCat(path, "/bin/", applet).c_str());
  }
}

std::string StreamUri(const std::string& id) {
  return absl::StrCat("ttrpc+hvsock:///run/test/vm.vsock:1024?streaming_id=", id);
}

}  // namespace magnetar::guest::testing
