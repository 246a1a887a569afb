#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstddef>

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// Serves one forwarded connection (magnetar/forward.h) until both halves have
// ended. Runs on the caller's executor.
Co<void> ServeForward(UniqueFd connection);

// The forwarded connections of the pod, in the background and so many at a time; one more is
// closed, since each whose server stalls keeps a window's bytes in the agent (mux.h). One thread;
// outlives them.
class Forwards {
 public:
  static constexpr size_t kMax = 512;

  explicit Forwards(const asio::any_io_executor& executor, size_t max = kMax)
      : executor_(executor), max_(max) {}
  Forwards(const Forwards&) = delete;
  Forwards& operator=(const Forwards&) = delete;

  void Serve(UniqueFd connection);
  size_t size() const { return size_; }

 private:
  static Co<void> Run(Forwards* self, UniqueFd connection);

  asio::any_io_executor executor_;
  const size_t max_;
  size_t size_ = 0;
};

}  // namespace magnetar::guest
