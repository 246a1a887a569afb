#include "guest-agent/task/cgroup_events.h"

#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::guest {

absl::Status CgroupEvents::Start() {
  const int fd = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (fd < 0) return ErrnoStatus(errno, "inotify");
  inotify_.assign(fd);
  Listen();
  return absl::OkStatus();
}

void CgroupEvents::Stop() {
  boost::system::error_code ignored;
  inotify_.close(ignored);
  watches_.clear();
}

absl::StatusOr<int> CgroupEvents::Add(const std::string& file, std::function<void()> changed) {
  // Without the second flag another watch of the same file would silently take the place of
  // the first.
  const int watch =
      ::inotify_add_watch(inotify_.native_handle(), file.c_str(), IN_MODIFY | IN_MASK_CREATE);
  if (watch < 0) return ErrnoStatus(errno, absl::StrCat("watch ", file));
  watches_[watch] = std::make_shared<std::function<void()>>(std::move(changed));
  return watch;
}

void CgroupEvents::Remove(int watch) {
  if (watches_.erase(watch) > 0) ::inotify_rm_watch(inotify_.native_handle(), watch);
}

void CgroupEvents::Listen() {
  inotify_.async_wait(asio::posix::stream_descriptor::wait_read,
                      [this](const boost::system::error_code& error) {
                        if (error) return;
                        Read();
                        Listen();
                      });
}

void CgroupEvents::Read() {
  alignas(inotify_event) char buffer[4096];
  while (true) {
    const ssize_t n = ::read(inotify_.native_handle(), buffer, sizeof(buffer));
    if (n <= 0) return;
    for (ssize_t at = 0; at < n;) {
      inotify_event event;
      std::memcpy(&event, buffer + at, sizeof(event));
      at += static_cast<ssize_t>(sizeof(event) + event.len);
      const auto it = watches_.find(event.wd);
      if (it == watches_.end()) continue;
      if ((event.mask & IN_IGNORED) != 0) {
        watches_.erase(it);
        continue;
      }
      // A copy: the call may remove its own watch.
      const std::shared_ptr<std::function<void()>> changed = it->second;
      (*changed)();
    }
  }
}

}  // namespace magnetar::guest
