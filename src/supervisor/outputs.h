#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"
#include "src/supervisor/guest_link.h"

namespace magnetar::supervisor {

// Speaks containerd's streaming protocol for the stdout and stderr of the guest's processes, so
// that the guest only has to move bytes (magnetar/output.h). What has come and was not yet
// delivered waits here for a containerd that comes back, bounded as OutputStream has it.
//
// A stream is accepted before the guest has been asked: it will be long before its process writes.
// A guest that has no ear for it now is asked again; what it says against it ends the stream. One
// thread; always owned by a shared_ptr.
class Outputs : public std::enable_shared_from_this<Outputs> {
 public:
  using Log = std::function<void(const std::string&)>;
  // Streams at once. Those that nobody reads any more make room, the oldest first.
  static constexpr size_t kMax = 256;

  Outputs(const asio::any_io_executor& executor, std::shared_ptr<GuestLink> link, Log log)
      : executor_(executor), link_(std::move(link)), log_(std::move(log)) {}

  // Serves a client's connection, of which `received` has been read, until it is over.
  Co<void> Serve(UniqueFd client, std::string received);

  // Streams that the guest may still have something for.
  size_t size() const { return outputs_.size(); }

 private:
  struct Output;

  Co<absl::Status> Deliver(std::shared_ptr<ttrpc::Stream> peer);
  // RESOURCE_EXHAUSTED: too many are being read.
  absl::StatusOr<std::shared_ptr<Output>> Find(const std::string& id);
  bool MakeRoom();
  void Forget(const std::shared_ptr<Output>& output);
  static Co<void> Run(std::shared_ptr<Outputs> self, std::shared_ptr<Output> output);
  Co<absl::Status> Open(std::shared_ptr<Output> output);
  void ForgetIfOver(const std::shared_ptr<Output>& output);

  asio::any_io_executor executor_;
  std::shared_ptr<GuestLink> link_;
  const Log log_;
  std::map<std::string, std::shared_ptr<Output>> outputs_;
  uint64_t next_number_ = 0;
};

}  // namespace magnetar::supervisor
