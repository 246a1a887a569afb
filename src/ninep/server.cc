#include "src/ninep/server.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::ninep {
namespace {

constexpr size_t kReadBytes = 64 << 10;

uint8_t TypeOf(const std::string& message) { return static_cast<uint8_t>(message[4]); }

uint16_t TagOf(const std::string& message) {
  Reader in(std::string_view(message).substr(5));
  return in.U16();
}

// One client's stream. Each thread in turn takes the next message off it and answers that, while
// another one takes the one after it.
class Server {
 public:
  Server(UniqueFd stream, Session& session) : stream_(std::move(stream)), session_(session) {}

  // The calling thread only waits: its parent-death signal would go with its first change of user.
  absl::Status Run(int threads) {
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back([this] { Work(); });
    for (std::thread& thread : workers) thread.join();
    return end_.value_or(absl::OkStatus());
  }

 private:
  void Work() {
    while (std::optional<std::string> message = Next()) {
      if (TypeOf(*message) == kTflush) {
        Flush(*message);
        continue;
      }
      Answer(TagOf(*message), session_.Answer(*message));
    }
  }

  // Of the thread whose turn it is; nothing: the stream is over.
  std::optional<std::string> Next() {
    const std::lock_guard lock(reading_);
    while (!end_.has_value()) {
      if (input_.size() >= kHeaderBytes) {
        Reader in(input_);
        const uint32_t size = in.U32();
        if (size < kHeaderBytes || size > session_.message_bytes()) {
          End(absl::InvalidArgumentError(absl::StrCat("a message of ", size, " bytes")));
          break;
        }
        if (input_.size() >= size) {
          std::string message = input_.substr(0, size);
          input_.erase(0, size);
          if (TypeOf(message) != kTflush) Begin(TagOf(message));
          return message;
        }
      }
      Receive();
    }
    return std::nullopt;
  }

  void Receive() {
    char piece[kReadBytes];
    const ssize_t n = ::recv(stream_.get(), piece, sizeof(piece), 0);
    const int error = errno;
    if (n > 0) input_.append(piece, static_cast<size_t>(n));
    if (n == 0) End(absl::OkStatus());
    if (n < 0 && error != EINTR) End(ErrnoStatus(error, "read the stream"));
  }

  void End(absl::Status status) {
    if (!end_.has_value()) end_ = std::move(status);
  }

  // `writing_` is held.
  void Write(std::string_view message) {
    while (!message.empty()) {
      const ssize_t n = ::send(stream_.get(), message.data(), message.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      // The client is gone: whoever reads hears of it.
      if (n < 0) return;
      message.remove_prefix(static_cast<size_t>(n));
    }
  }

  // What is being answered, and who wants to hear of its end.
  void Begin(uint16_t tag) {
    const std::lock_guard lock(flushing_);
    under_way_[tag] = std::nullopt;
  }

  // With the answer the client may use the tag again, so it is forgotten before; and a flush that
  // does not find it any more is answered after it, since that waits for `writing_`.
  void Answer(uint16_t tag, const std::string& answer) {
    const std::lock_guard lock(writing_);
    const std::optional<uint16_t> waiting = TakeWaiting(tag);
    Write(answer);
    if (waiting.has_value()) Write(Flushed(*waiting));
  }

  std::optional<uint16_t> TakeWaiting(uint16_t tag) {
    const std::lock_guard lock(flushing_);
    const auto it = under_way_.find(tag);
    if (it == under_way_.end()) return std::nullopt;  // a client that uses a tag twice
    const std::optional<uint16_t> waiting = it->second;
    under_way_.erase(it);
    return waiting;
  }

  // A request is never given up: its answer comes before that to its flush. Of several flushes the
  // last is answered, which by flush(5) answers all before it, so that no client fills a list here.
  void Flush(const std::string& message) {
    Reader in(std::string_view(message).substr(kHeaderBytes));
    const uint16_t flushed = in.U16();
    {
      const std::lock_guard lock(flushing_);
      const auto it = under_way_.find(flushed);
      if (it != under_way_.end()) {
        it->second = TagOf(message);
        return;
      }
    }
    const std::lock_guard lock(writing_);
    Write(Flushed(TagOf(message)));
  }

  static std::string Flushed(uint16_t tag) { return Writer(kTflush + 1, tag).Finish(); }

  const UniqueFd stream_;
  Session& session_;
  std::mutex reading_;  // input_, end_
  std::string input_;
  std::optional<absl::Status> end_;
  std::mutex writing_;   // taken before flushing_
  std::mutex flushing_;  // under_way_
  std::map<uint16_t, std::optional<uint16_t>> under_way_;
};

}  // namespace

absl::Status Serve(UniqueFd stream, Session& session, int threads) {
  return Server(std::move(stream), session).Run(threads);
}

}  // namespace magnetar::ninep
