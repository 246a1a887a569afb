#pragma once

#include <grpcpp/server_builder.h>

#include "src/daemon/metrics/metrics.h"

namespace magnetar::daemon {

// Has the server that is being built tell `metrics`, which outlives it, of each call that it has
// answered.
void CountRpcs(DaemonMetrics* metrics, grpc::ServerBuilder& builder);

}  // namespace magnetar::daemon
