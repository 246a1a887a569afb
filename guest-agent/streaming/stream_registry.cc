#include "guest-agent/streaming/stream_registry.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/streaming/frames.h"
#include "magnetar/streaming/stream_id.h"

namespace magnetar::guest {

absl::StatusOr<StreamRegistry::Entry*> StreamRegistry::Claim(const std::string& id, bool input) {
  Entry& entry = streams_[id];
  const bool fresh = entry.input == nullptr && entry.output == nullptr;
  if (entry.claimed) {
    return absl::AlreadyExistsError(absl::StrCat("stream ", id, " belongs to another process"));
  }
  if (fresh && input) entry.input = std::make_shared<InputStream>(executor_);
  if (fresh && !input) entry.output = std::make_shared<streaming::OutputStream>(executor_);
  if (!fresh) {
    --unclaimed_;
    std::erase(left_behind_, id);
  }
  entry.claimed = true;
  return &entry;
}

absl::StatusOr<std::shared_ptr<streaming::OutputStream>> StreamRegistry::ClaimOutput(
    const std::string& id) {
  const absl::StatusOr<Entry*> entry = Claim(id, /*input=*/false);
  if (!entry.ok()) return entry.status();
  (*entry)->output->Claim();
  return (*entry)->output;
}

absl::StatusOr<std::shared_ptr<InputStream>> StreamRegistry::ClaimInput(const std::string& id) {
  const absl::StatusOr<Entry*> entry = Claim(id, /*input=*/true);
  if (!entry.ok()) return entry.status();
  return (*entry)->input;
}

void StreamRegistry::Forget(const std::string& id) {
  const auto it = streams_.find(id);
  if (it == streams_.end() || !it->second.claimed) return;
  if (it->second.output != nullptr) it->second.output->Abandon();
  if (it->second.input != nullptr) {
    it->second.input->CloseSink();
    it->second.input->End();
  }
  streams_.erase(it);
}

absl::StatusOr<StreamRegistry::Entry> StreamRegistry::Attach(const std::string& id) {
  const absl::StatusOr<streaming::StdioKind> kind = streaming::ParseStreamId(id);
  if (!kind.ok()) return kind.status();
  const auto it = streams_.find(id);
  if (it != streams_.end()) return it->second;
  if (unclaimed_ >= kMaxUnclaimed) {
    return absl::ResourceExhaustedError(
        absl::StrCat(unclaimed_, " streams are open that no task has named"));
  }
  Entry entry;
  if (*kind == streaming::StdioKind::kStdin) {
    entry.input = std::make_shared<InputStream>(executor_);
  } else {
    entry.output = std::make_shared<streaming::OutputStream>(executor_);
  }
  ++unclaimed_;
  streams_[id] = entry;
  return entry;
}

void StreamRegistry::Detached(const std::string& id, const Entry& served) {
  const auto it = streams_.find(id);
  if (it == streams_.end() || it->second.claimed) return;
  const Entry& entry = it->second;
  if (entry.output != served.output || entry.input != served.input) return;
  const bool attached = (entry.output != nullptr && entry.output->attached()) ||
                        (entry.input != nullptr && entry.input->attached());
  if (attached) return;
  if (entry.input == nullptr || !entry.input->ended()) {
    EraseUnclaimed(id);
    return;
  }
  // All of stdin may come, and its connection go, before the task that it is for.
  std::erase(left_behind_, id);
  left_behind_.push_back(id);
  if (left_behind_.size() > kMaxLeftBehind) {
    const std::string oldest = left_behind_.front();
    EraseUnclaimed(oldest);
  }
}

void StreamRegistry::EraseUnclaimed(const std::string& id) {
  std::erase(left_behind_, id);
  streams_.erase(id);
  --unclaimed_;
}

Co<absl::Status> StreamRegistry::Serve(std::shared_ptr<ttrpc::Stream> peer) {
  auto receive = peer->Receive();
  absl::StatusOr<std::optional<std::string>> first = co_await std::move(receive);
  if (!first.ok()) co_return first.status();
  if (!first->has_value()) co_return absl::InvalidArgumentError("the stream ended before its name");
  const absl::StatusOr<std::string> id = streaming::ParseStreamInit(**first);
  if (!id.ok()) co_return id.status();
  absl::StatusOr<Entry> entry = Attach(*id);
  if (!entry.ok()) co_return entry.status();
  // containerd waits for this answer without a deadline.
  auto accepted = peer->Send(streaming::AcceptedFrame());
  absl::Status status = co_await std::move(accepted);
  if (status.ok() && entry->output != nullptr) {
    auto serve = entry->output->Serve(peer);
    status = co_await std::move(serve);
  } else if (status.ok()) {
    auto serve = entry->input->Serve(peer);
    status = co_await std::move(serve);
  }
  Detached(*id, *entry);
  co_return status;
}

Co<absl::Status> StreamRegistry::HandOver(OutputConnection& connection,
                                          streaming::OutputStream& output, bool may_pass) {
  while (!output.claimed()) {
    if (connection.gone()) co_return absl::OkStatus();
    co_await output.Changed();
  }
  auto claimed = connection.SendClaimed();
  const absl::Status sent = co_await std::move(claimed);
  if (!sent.ok()) co_return sent;
  while (!connection.gone()) {
    std::optional<streaming::OutputStream::Source> source = output.Take(connection);
    if (source.has_value()) {
      auto send = connection.Send(*std::move(source), may_pass);
      co_return co_await std::move(send);
    }
    co_await output.Changed();
  }
  co_return absl::OkStatus();
}

Co<absl::Status> StreamRegistry::ServeOutput(UniqueFd socket) {
  const auto connection = std::make_shared<OutputConnection>(executor_, std::move(socket));
  auto read = connection->ReadId();
  const absl::StatusOr<std::string> id = co_await std::move(read);
  if (!id.ok()) co_return id.status();
  const absl::StatusOr<streaming::StdioKind> kind = streaming::ParseStreamId(*id);
  if (!kind.ok()) co_return kind.status();
  if (*kind == streaming::StdioKind::kStdin) {
    co_return absl::InvalidArgumentError(absl::StrCat(*id, " is no output"));
  }
  const absl::StatusOr<Entry> entry = Attach(*id);
  if (!entry.ok()) co_return entry.status();
  const std::shared_ptr<streaming::OutputStream> output = entry->output;
  output->Attach(connection);
  connection->Watch([output] { output->Wake(); });
  auto hand_over = HandOver(*connection, *output, may_pass_);
  const absl::Status status = co_await std::move(hand_over);
  if (!status.ok()) connection->Cut();
  while (!connection->gone()) co_await output->Changed();
  output->Detach(*connection);
  Detached(*id, *entry);
  co_return status;
}

}  // namespace magnetar::guest
