#pragma once

#include "absl/status/status.h"
#include "magnetar/unique_fd.h"
#include "src/ninep/session.h"

namespace magnetar::ninep {

// Requests that are answered at the same time. More wait in the stream.
inline constexpr int kDefaultThreads = 8;

// Serves one client on a stream socket, with so many threads, until it closes the stream (OK) or
// sends what is no message (INVALID_ARGUMENT). Every request that came whole is answered first.
// Blocks.
absl::Status Serve(UniqueFd stream, Session& session, int threads = kDefaultThreads);

}  // namespace magnetar::ninep
