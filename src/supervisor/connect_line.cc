#include "src/supervisor/connect_line.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "magnetar/status.h"

namespace magnetar::supervisor {

absl::StatusOr<uint32_t> ParseConnectLine(std::string_view text) {
  // Debian's abseil has a string_view of its own.
  absl::string_view line(text.data(), text.size());
  absl::ConsumeSuffix(&line, "\r");
  uint32_t port = 0;
  if (!absl::ConsumePrefix(&line, "CONNECT ") || line.empty() || line.size() > 10 ||
      line.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(line, &port)) {
    return absl::InvalidArgumentError("expected \"CONNECT <port>\"");
  }
  return port;
}

Co<absl::StatusOr<uint32_t>> ReadConnectLine(AsyncFd& socket) {
  std::string line;
  char buffer[kMaxConnectLineBytes];
  while (true) {
    const size_t room = kMaxConnectLineBytes - line.size();
    if (room == 0) co_return absl::InvalidArgumentError("no end of the CONNECT line");
    ssize_t n = ::recv(socket.native_handle(), buffer, room, MSG_PEEK);
    if (n > 0) {
      const void* newline = std::memchr(buffer, '\n', static_cast<size_t>(n));
      const size_t take = newline == nullptr
                              ? static_cast<size_t>(n)
                              : static_cast<size_t>(static_cast<const char*>(newline) - buffer) + 1;
      n = ::recv(socket.native_handle(), buffer, take, 0);
      if (n != static_cast<ssize_t>(take)) co_return absl::DataLossError("short read");
      line.append(buffer, take);
      if (newline == nullptr) continue;
      line.pop_back();
      co_return ParseConnectLine(line);
    }
    if (n == 0) co_return absl::UnavailableError("closed before the CONNECT line");
    if (errno == EINTR) continue;
    if (errno != EAGAIN) co_return ErrnoStatus(errno, "recv");
    auto wait = WaitReadable(socket);
    absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return status;
  }
}

}  // namespace magnetar::supervisor
