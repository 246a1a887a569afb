#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"

namespace magnetar::streaming {

// stdout or stderr of a process: from a pipe (or a terminal's master) to whoever
// is attached, within the window that the peer grants. What is read and not yet
// sent is at most kBufferBytes, and as much again in frames on their way out;
// beyond that the writer blocks, attached or not.
// It reads and sends as much at a time as there is: in an emulated guest each
// switch between a container and the agent costs as much as copying 100 KiB.
// The end is sent once the source has ended, and again to every later peer.
//
// Frames as containerd's core/transfer/streaming (2.1.9) reads them: WindowUpdate
// comes in, Data of at most 32 KiB goes out, an empty Data frame ends. Having sent that is not to
// have been read: containerd drops what it has not read when it hears of the process's end
// (client/task.go, Delete: io.Cancel). It ends its own side once it has read all.
//
// A Reader may take the source itself, and read it in this object's place.
//
// One thread; always owned by a shared_ptr.
class OutputStream : public std::enable_shared_from_this<OutputStream> {
 public:
  static constexpr size_t kBufferBytes = 128 << 10;
  static constexpr size_t kFrameBytes = 32 << 10;

  class Reader {
   public:
    virtual ~Reader() = default;
    // It has to let go of the source, and to detach.
    virtual void Cut() = 0;
  };
  struct Source {
    // Was read and comes first.
    std::string unsent;
    // Not ok(): that was all.
    UniqueFd fd;
  };

  explicit OutputStream(const asio::any_io_executor& executor);

  // A process has it.
  void Claim();
  bool claimed() const { return claimed_; }
  // Begins to read. Once.
  void SetSource(UniqueFd source);
  // No more will come: what was read is still sent, then the end.
  void EndSource();
  // Nobody will ever read this: the source is drained to nowhere from here on.
  void Discard();
  // Ends and forgets everything; a peer gets the end without the rest.
  void Abandon();
  // The same, and a peer gets the error.
  void Break(absl::Status why);

  bool attached() const { return peer_ != nullptr || reader_ != nullptr; }
  // The peer has got the end, and ended its side.
  bool delivered() const { return delivered_; }
  // The last peer ended its side before it had got the end: it wants no more.
  bool withdrawn() const { return withdrawn_; }
  // Returns when it is delivered, or at `deadline`, or when nobody is attached to whom it could be.
  // Somebody who never was may be on the way until `opening`.
  Co<void> WaitDelivered(std::chrono::steady_clock::time_point opening,
                         std::chrono::steady_clock::time_point deadline);
  // Returns at the next change of any of this.
  Co<void> Changed() { return changed_.Wait(); }
  void Wake() { changed_.NotifyAll(); }

  // Takes over from whoever is attached.
  void Attach(std::shared_ptr<Reader> reader);
  // For an attached reader, once. nullopt: nothing is there to be taken yet.
  std::optional<Source> Take(const Reader& reader);
  // The reader is through with it. A source at its end counts as delivered; any other one is read
  // here again.
  void Detach(const Reader& reader);

  // Serves one attachment until it is over. A new one takes over from the old
  // (which ends with CANCELLED) and from its first unsent byte. FAILED_PRECONDITION: a reader has
  // it.
  Co<absl::Status> Serve(std::shared_ptr<ttrpc::Stream> peer);

 private:
  struct Attachment;
  static Co<void> ReadSource(std::shared_ptr<OutputStream> self);
  static Co<void> ReadWindow(std::shared_ptr<OutputStream> self,
                             std::shared_ptr<Attachment> attachment);
  Co<absl::Status> SendTo(std::shared_ptr<Attachment> attachment);
  // As read(2), into buffer_ unless that is for nobody.
  ssize_t ReadSome();
  // What has been read and not been sent.
  absl::string_view Unsent() const { return absl::string_view(buffer_).substr(sent_); }
  // Frames of what is unsent, within the window.
  std::vector<std::string> NextFrames(int64_t window) const;
  void DropSent(size_t bytes);
  void DropAll();
  void ReplacePeer();
  // Small frames in quick succession are held back for a moment, so that a
  // reader that pauses does not find too many of them.
  bool HoldBack(const Attachment& attachment) const;

  asio::any_io_executor executor_;
  asio::posix::stream_descriptor source_;
  Event changed_;
  std::string buffer_;
  size_t sent_ = 0;  // of buffer_
  bool sending_ = false;
  bool ended_ = false;
  bool delivered_ = false;
  bool withdrawn_ = false;
  bool discard_ = false;
  bool claimed_ = false;
  bool was_attached_ = false;
  absl::Status broken_;
  std::shared_ptr<Attachment> peer_;
  std::shared_ptr<Reader> reader_;
  const Reader* taken_by_ = nullptr;
};

}  // namespace magnetar::streaming
