#include "vmm/qemu/fake_qmp.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "magnetar/files.h"
#include "magnetar/supervisor_launch.h"

namespace magnetar::vmm::qemu {

using nlohmann::json;

FakeQmp::FakeQmp(Script script, std::string after_negotiation)
    : script_(std::move(script)), after_negotiation_(std::move(after_negotiation)) {
  char name[] = "/tmp/fake-qmp.XXXXXX";
  directory_ = ::mkdtemp(name);
  path_ = directory_ + "/qmp.sock";
  listener_ = *ListenUnix(path_);
  thread_ = std::thread([this] { Serve(); });
}

FakeQmp::~FakeQmp() {
  ::shutdown(listener_.get(), SHUT_RDWR);
  Disconnect();
  thread_.join();
  (void)RemoveTree(directory_);
}

std::vector<FakeQmp::Command> FakeQmp::commands() const {
  std::lock_guard lock(mutex_);
  return commands_;
}

void FakeQmp::Send(const std::string& text) {
  std::lock_guard lock(mutex_);
  [[maybe_unused]] const ssize_t n =
      ::send(connection_.get(), text.data(), text.size(), MSG_NOSIGNAL);
}

void FakeQmp::Disconnect() {
  std::lock_guard lock(mutex_);
  if (connection_.ok()) ::shutdown(connection_.get(), SHUT_RDWR);
}

std::string FakeQmp::ReadLine(bool* with_fd) {
  *with_fd = false;
  while (true) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos) {
      std::string line = buffer_.substr(0, newline);
      buffer_.erase(0, newline + 1);
      return line;
    }
    char data[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    iovec iov{.iov_base = data, .iov_len = sizeof(data)};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t n = ::recvmsg(connection_.get(), &message, MSG_CMSG_CLOEXEC);
    if (n <= 0) return "";
    if (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
      ::close(fd);
      *with_fd = true;
    }
    buffer_.append(data, static_cast<size_t>(n));
  }
}

void FakeQmp::Serve() {
  UniqueFd fd(::accept(listener_.get(), nullptr, nullptr));
  {
    std::lock_guard lock(mutex_);
    connection_ = std::move(fd);
  }
  Send("{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": []}}\r\n");
  while (true) {
    bool with_fd = false;
    const json request = json::parse(ReadLine(&with_fd), nullptr, false);
    if (!request.is_object()) return;
    Command command{.name = request.value("execute", ""),
                    .arguments = request.value("arguments", json()),
                    .with_fd = with_fd};
    {
      std::lock_guard lock(mutex_);
      commands_.push_back(command);
    }
    std::vector<json> replies = {{{"return", json::object()}}};
    const bool negotiation = command.name == "qmp_capabilities";
    if (!negotiation) replies = script_(command);
    for (json& reply : replies) {
      if (!reply.contains("event")) reply["id"] = request["id"];
      Send(reply.dump() + "\r\n" + (negotiation ? after_negotiation_ : ""));
    }
  }
}

}  // namespace magnetar::vmm::qemu
