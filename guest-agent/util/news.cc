#include "guest-agent/util/news.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

namespace magnetar::guest {

bool WaitForNews(int socket, std::chrono::steady_clock::time_point deadline) {
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd waiting = {socket, POLLIN, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    char message[8192];
    while (::recv(socket, message, sizeof(message), MSG_DONTWAIT) > 0) {
    }
    return true;
  }
}

}  // namespace magnetar::guest
