#pragma once

#include <cstddef>

namespace magnetar::daemon {

// In order of their weight.
enum class PodNews {
  kNone,
  kUntied,  // a tap or a filter is gone, by our hand or by another's
  kChange,  // anything else that may concern a pod
};

// The weightiest of what messages of rtnetlink tell, as one recv of PodWatch::news returns them.
// What becomes of our own taps is none, but for their end; nor are new queues and filters.
PodNews ReadPodNews(const void* messages, size_t size);

}  // namespace magnetar::daemon
