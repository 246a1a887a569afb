#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Errors are absl::Status everywhere. Its codes are gRPC's, so that an error can
// travel from a guest to containerd unchanged. Context is added on the way up:
//   return Annotate(status, "attach disk vdb to sandbox 3f2a");
// gives "attach disk vdb to sandbox 3f2a: QMP device_add: ...".

namespace magnetar {

// "<context>: <strerror(err)>" with the code that fits errno.
absl::Status ErrnoStatus(int err, std::string_view context);

// Prefixes a failed status with "<context>: "; an OK status stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

}  // namespace magnetar

// Not usable around a co_await: name its result first (see co.h).
#define MAGNETAR_RETURN_IF_ERROR(expr)                  \
  do {                                                  \
    if (absl::Status status_ = (expr); !status_.ok()) { \
      return status_;                                   \
    }                                                   \
  } while (false)

#define MAGNETAR_CO_RETURN_IF_ERROR(expr)               \
  do {                                                  \
    if (absl::Status status_ = (expr); !status_.ok()) { \
      co_return status_;                                \
    }                                                   \
  } while (false)
