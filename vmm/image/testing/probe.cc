// Stands in for vmm-task when the guest image itself is tested: loads every module that the image
// lists, mounts the root image by its disk's serial, switches to it, runs crun, and reports on the
// console. Each line begins with PROBE; the last one is "PROBE done".

#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string>

namespace {

constexpr char kSerial[] = "magnetar-root";
constexpr char kLists[] = "/etc/magnetar/modules.d";

// Since the kernel's start.
long Milliseconds() {
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

[[noreturn]] void Finish() {
  fflush(stdout);
  reboot(RB_AUTOBOOT);
  _exit(1);
}

void Load(const std::string& list) {
  std::ifstream file(list);
  std::string path;
  while (file >> path) {
    if (path[0] != '/') continue;  // a name that the kernel asks by
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const bool ok = fd >= 0 && (syscall(SYS_finit_module, fd, "", 0) == 0 || errno == EEXIST);
    printf("PROBE module %s %s\n", path.c_str(), ok ? "ok" : strerror(errno));
    if (fd >= 0) close(fd);
  }
  printf("PROBE list %s %s at %ld ms\n", list.c_str(), file.eof() ? "ok" : "missing",
         Milliseconds());
}

std::string RootDisk() {
  DIR* dir = opendir("/sys/block");
  std::string found;
  while (const dirent* entry = dir == nullptr ? nullptr : readdir(dir)) {
    std::string serial;
    std::ifstream(std::string("/sys/block/") + entry->d_name + "/serial") >> serial;
    if (serial == kSerial) found = std::string("/dev/") + entry->d_name;
  }
  if (dir != nullptr) closedir(dir);
  return found;
}

void BootFromInitrd() {
  mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  mount("proc", "/proc", "proc", 0, nullptr);
  mount("sysfs", "/sys", "sysfs", 0, nullptr);
  const int console = open("/dev/console", O_RDWR);
  for (int fd = 0; fd < 3; ++fd) dup2(console, fd);
  setvbuf(stdout, nullptr, _IOLBF, 0);
  printf("PROBE init at %ld ms\n", Milliseconds());
  Load("/etc/magnetar/modules.boot");
  const std::string disk = RootDisk();
  if (mount(disk.c_str(), "/sysroot", "erofs", MS_RDONLY, nullptr) != 0) {
    printf("PROBE cannot mount '%s': %s\n", disk.c_str(), strerror(errno));
    Finish();
  }
  printf("PROBE root ok at %ld ms\n", Milliseconds());
  mount("/dev", "/sysroot/dev", nullptr, MS_MOVE, nullptr);
  mount("/proc", "/sysroot/proc", nullptr, MS_MOVE, nullptr);
  mount("/sys", "/sysroot/sys", nullptr, MS_MOVE, nullptr);
  if (chdir("/sysroot") != 0 || mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 || chroot(".") != 0)
    Finish();
  execl("/sbin/vmm-task", "/sbin/vmm-task", nullptr);
  printf("PROBE cannot exec /sbin/vmm-task: %s\n", strerror(errno));
  Finish();
}

void RunCrun() {
  const pid_t child = fork();
  if (child == 0) {
    execl("/usr/bin/crun", "crun", "--version", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  printf("PROBE crun %s\n", status == 0 ? "ok" : "failed");
}

}  // namespace

int main(int, char** argv) {
  if (getpid() != 1) return 1;
  if (strcmp(argv[0], "/sbin/vmm-task") != 0) BootFromInitrd();
  setvbuf(stdout, nullptr, _IOLBF, 0);
  Load("/etc/magnetar/modules");
  DIR* dir = opendir(kLists);
  while (const dirent* entry = dir == nullptr ? nullptr : readdir(dir)) {
    if (entry->d_name[0] != '.') Load(std::string(kLists) + "/" + entry->d_name);
  }
  Load("/etc/magnetar/modules.request");
  RunCrun();
  printf("PROBE done\n");
  Finish();
}
