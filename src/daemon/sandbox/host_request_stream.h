#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "magnetar/agent.pb.h"
#include "magnetar/co.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::daemon {

// Answers what a guest asks of its host; the answer's id is filled in by the
// caller. Called on the sandbox's strand, many at a time.
using HostRequestHandler =
    std::function<Co<agent::v1::HostResponse>(agent::v1::HostRequest request)>;

// What a guest may have in flight: a request counts until its answer is sent, so that a
// guest that does not read its answers is not listened to any further.
inline constexpr size_t kMaxHostRequests = 64;
// Events wait for containerd, one after the other; nobody waits for them, nor behind them. A guest
// keeps no more than this.
inline constexpr size_t kMaxHostEvents = 1024;
// Of each: two ids and a few numbers.
inline constexpr size_t kMaxEventBytes = 512;
// Mounts of one root file system: more than any snapshotter makes.
inline constexpr int kMaxRootfsMounts = 64;

// Serves one HostRequests stream until it ends, and cancels it. Requests are handled side
// by side, answers leave in the order in which they are ready, one Send at a time. An answer that
// is too large for a message becomes an error. OK if the guest ended the stream.
Co<absl::Status> ServeHostRequestStream(std::shared_ptr<ttrpc::Stream> stream,
                                        HostRequestHandler handler);

}  // namespace magnetar::daemon
