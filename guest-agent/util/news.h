#pragma once

#include <chrono>

namespace magnetar::guest {

// Waits on a socket of the kernel's announcements and takes what has come: that there was something
// matters, and the caller looks again. False at `deadline`. Blocks.
bool WaitForNews(int socket, std::chrono::steady_clock::time_point deadline);

}  // namespace magnetar::guest
