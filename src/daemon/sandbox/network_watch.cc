#include "src/daemon/sandbox/network_watch.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/network/news.h"
#include "src/daemon/sandbox/nic_plan.h"

namespace magnetar::daemon {
namespace {

// Whoever adds an interface takes several steps, each an event.
constexpr std::chrono::milliseconds kSettled{100};
// Somebody who never stops is followed nevertheless.
constexpr std::chrono::milliseconds kSettledAtLatest{1000};
// The guest gives a NIC ten seconds to appear.
constexpr std::chrono::seconds kTellLimit{20};
constexpr std::chrono::milliseconds kFirstPause{500};
// After that, the next change is waited for.
constexpr int kAttempts = 6;

std::string SlotName(const RecordedNic& nic) { return absl::StrCat("nic", nic.slot); }

// The netlink messages of one recv; the kernel makes none longer.
constexpr size_t kNewsBytes = 32 << 10;
// Somebody who never stops does not keep others from their turn.
constexpr int kNewsAtOnce = 64;
// A netns can hold thousands of interfaces: those that are named.
constexpr int kRefusedAtOnce = 16;

// What there is to be read, or some of it. An error: nothing will be told any more.
absl::StatusOr<PodNews> Drain(int socket) {
  const auto buffer = std::make_unique<std::array<char, kNewsBytes>>();
  PodNews news = PodNews::kNone;
  for (int i = 0; i < kNewsAtOnce; ++i) {
    const ssize_t size = ::recv(socket, buffer->data(), buffer->size(), 0);
    if (size > 0) {
      news = std::max(news, ReadPodNews(buffer->data(), static_cast<size_t>(size)));
    } else if (size == 0) {
      return absl::UnavailableError("no more news from the pod's netns");
    } else if (errno == ENOBUFS) {
      // There was more than the socket holds: what it was is found by looking.
      news = PodNews::kChange;
    } else if (errno == EAGAIN) {
      return news;
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, "read news from the pod's netns");
    }
  }
  return news;
}

}  // namespace

NetworkWatch::NetworkWatch(const Environment* environment, std::shared_ptr<RecordFile> record,
                           const asio::any_io_executor& strand, FindPeers find_peers)
    : env_(environment),
      record_(std::move(record)),
      strand_(strand),
      id_(record_->Get().id),
      find_peers_(std::move(find_peers)),
      changed_(strand),
      ended_(strand) {}

void NetworkWatch::Start(std::optional<agent::v1::Network> told) {
  if (running_ || ceased_ || record_->Get().netns_path.empty()) return;
  running_ = true;
  told_ = std::move(told);
  asio::co_spawn(strand_, Run(), asio::detached);
}

void NetworkWatch::Poke() {
  if (running_) Changed();
}

void NetworkWatch::NicGone() {
  // By a reconcile itself, which looks again.
  if (running_ && !reconciling_) Changed();
}

void NetworkWatch::Cease() {
  ceased_ = true;
  if (news_ != nullptr) news_->close();
  changed_.NotifyAll();
}

Co<void> NetworkWatch::Stop() {
  auto self = shared_from_this();
  if (!running_) co_return;
  auto wait = ended_.Wait();
  co_await std::move(wait);
}

void NetworkWatch::Changed() {
  last_change_ = Clock::now();
  if (!dirty_) first_change_ = last_change_;
  dirty_ = true;
  failures_ = 0;
  changed_.NotifyAll();
}

Co<void> NetworkWatch::Run() {
  auto self = shared_from_this();
  auto open = Open();
  const absl::Status opened = co_await std::move(open);
  if (!opened.ok()) {
    Log(LogLevel::kWarn, "changes of the pod's network will not be followed",
        {{"sandbox", id_}, {"error", opened.ToString()}});
  } else if (!ceased_) {
    asio::co_spawn(strand_, ReadNews(), asio::detached);
    Changed();
  }
  while (opened.ok() && !ceased_) {
    if (!dirty_) {
      auto wait = changed_.Wait();
      co_await std::move(wait);
      continue;
    }
    auto settle = Settle();
    co_await std::move(settle);
    if (ceased_) break;
    dirty_ = false;
    reconciling_ = true;
    auto reconcile = Reconcile();
    absl::Status status = co_await std::move(reconcile);
    if (ceased_) break;
    reconciling_ = false;
    auto rest = Rest(status);
    co_await std::move(rest);
  }
  netns_.reset();
  news_.reset();
  ended_.Set();
}

Co<absl::Status> NetworkWatch::Open() {
  const std::vector<RecordedProcess> processes = record_->Get().processes;
  const auto vmm = std::find_if(processes.begin(), processes.end(),
                                [](const RecordedProcess& process) { return process.vmm; });
  if (vmm == processes.end()) co_return absl::NotFoundError("the record names no VMM");
  auto watch = RunBlocking(*env_->blocking, [env = env_, identity = vmm->identity] {
    return env->network->Watch(identity);
  });
  absl::StatusOr<PodWatch> opened = co_await std::move(watch);
  if (!opened.ok()) co_return opened.status();
  netns_ = std::make_shared<UniqueFd>(std::move(opened->netns));
  news_ = std::make_shared<asio::posix::stream_descriptor>(strand_, opened->news.release());
  co_return absl::OkStatus();
}

Co<void> NetworkWatch::ReadNews() {
  auto self = shared_from_this();
  const auto news = news_;
  while (!ceased_) {
    auto wait = news->async_wait(asio::posix::stream_descriptor::wait_read,
                                 asio::as_tuple(asio::use_awaitable));
    const auto [error] = co_await std::move(wait);
    if (ceased_) break;
    const absl::Status heard = error ? absl::UnavailableError(error.message()) : Hear();
    if (!heard.ok()) {
      Log(LogLevel::kWarn, "changes of the pod's network are no longer followed",
          {{"sandbox", id_}, {"error", heard.ToString()}});
      break;
    }
  }
}

absl::Status NetworkWatch::Hear() {
  const absl::StatusOr<PodNews> news = Drain(news_->native_handle());
  if (!news.ok()) return news.status();
  const bool ours = reconciling_ && *news == PodNews::kUntied;
  if (*news != PodNews::kNone && !ours) Changed();
  return absl::OkStatus();
}

Co<void> NetworkWatch::Settle() {
  while (!ceased_) {
    const auto until = std::min(last_change_ + kSettled, first_change_ + kSettledAtLatest);
    if (Clock::now() >= until) co_return;
    auto wait = changed_.WaitUntil(until);
    co_await std::move(wait);
  }
}

// After a failure, until it is worth another attempt.
Co<void> NetworkWatch::Rest(const absl::Status& status) {
  if (status.ok()) {
    failures_ = 0;
    failure_.clear();
    co_return;
  }
  const std::string text = status.ToString();
  if (text != failure_) {
    Log(LogLevel::kWarn, "the VM's network is not as the pod's",
        {{"sandbox", id_}, {"error", text}});
    failure_ = text;
  }
  if (dirty_ || ++failures_ >= kAttempts) co_return;
  const auto until = Clock::now() + kFirstPause * (1 << failures_);
  while (!ceased_ && !dirty_ && Clock::now() < until) {
    auto wait = changed_.WaitUntil(until);
    co_await std::move(wait);
  }
  dirty_ = true;
}

Co<absl::StatusOr<PodState>> NetworkWatch::Read() {
  std::set<int> tied;
  const Record now = record_->Get();
  for (const RecordedNic& nic : now.nics) tied.insert(nic.interface);
  auto read = RunBlocking(*env_->blocking,
                          [env = env_, netns = netns_, uid = now.uid, tied = std::move(tied)] {
                            return env->network->Read(netns->get(), uid, tied);
                          });
  absl::StatusOr<PodState> state = co_await std::move(read);
  co_return state;
}

// Goes on after an error and returns the first one.
Co<absl::Status> NetworkWatch::Reconcile() {
  const Peers peers = find_peers_();
  // Whoever comes last tells.
  if (peers.vm == nullptr || peers.agent == nullptr) co_return absl::OkStatus();
  auto read = Read();
  absl::StatusOr<PodState> state = co_await std::move(read);
  if (!state.ok()) co_return Annotate(state.status(), "read the pod's netns");
  LogRefused(*state);
  if (record_->Get().nics.empty() && !state->taps.empty()) {
    MAGNETAR_CO_RETURN_IF_ERROR(
        record_->Update([&](Record& record) { record.nics = AdoptNics(*state); }));
  }
  absl::Status result;
  bool moved = false;
  for (const RecordedNic& nic : ObsoleteNics(record_->Get().nics, *state)) {
    if (ceased_) co_return result;
    auto unplug = Unplug(peers, nic);
    const absl::Status status = co_await std::move(unplug);
    result.Update(Annotate(status, absl::StrCat("unplug ", SlotName(nic), " of ", nic.name)));
    moved = true;
  }
  for (const int index : StrayTaps(record_->Get().nics, *state)) {
    if (ceased_) co_return result;
    auto untie = Untie(index);
    const absl::Status status = co_await std::move(untie);
    result.Update(Annotate(status, absl::StrCat("untie interface ", index)));
  }
  for (const RecordedNic& nic : MissingNics(record_->Get().nics, *state)) {
    if (ceased_) co_return result;
    auto plug = Plug(peers, nic, *FindInterface(*state, nic.interface));
    const absl::Status status = co_await std::move(plug);
    moved = true;
    result.Update(Annotate(status, absl::StrCat("plug in ", nic.name)));
  }
  if (ceased_) co_return result;
  // From here on nothing is untied by this side, and what was has been told of.
  result.Update(Hear());
  reconciling_ = false;
  if (moved) {
    // A new NIC is to be set up, even if all it carries is what another one carried.
    told_.reset();
    auto again = Read();
    state = co_await std::move(again);
    if (!state.ok()) co_return Annotate(state.status(), "read the pod's netns");
    // Somebody else has untied one meanwhile.
    if (result.ok() && !ObsoleteNics(record_->Get().nics, *state).empty()) Changed();
  }
  auto follow = FollowMtus(*state);
  const absl::Status followed = co_await std::move(follow);
  result.Update(followed);
  if (ceased_) co_return result;
  auto tell = Tell(peers, NetworkOf(record_->Get().nics, *state));
  const absl::Status told = co_await std::move(tell);
  result.Update(told);
  co_return result;
}

Co<absl::Status> NetworkWatch::Unplug(Peers peers, RecordedNic nic) {
  const auto is_it = [slot = nic.slot](const RecordedNic& n) { return n.slot == slot; };
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) {
    const auto it = std::find_if(record.nics.begin(), record.nics.end(), is_it);
    if (it != record.nics.end()) it->plugged = false;
  }));
  auto remove = peers.vm->RemoveNic(SlotName(nic));
  absl::Status removed = co_await std::move(remove);
  // An earlier attempt got this far.
  if (absl::IsNotFound(removed)) removed = absl::OkStatus();
  // Even if the guest holds on to it: it is the pod's no longer.
  auto untie = Untie(nic.interface);
  const absl::Status untied = co_await std::move(untie);
  MAGNETAR_CO_RETURN_IF_ERROR(removed);
  MAGNETAR_CO_RETURN_IF_ERROR(untied);
  const absl::Status noted =
      record_->Update([&](Record& record) { std::erase_if(record.nics, is_it); });
  Log(LogLevel::kInfo, "NIC unplugged",
      {{"sandbox", id_}, {"nic", SlotName(nic)}, {"interface", nic.name}, {"mac", nic.mac}});
  co_return noted;
}

Co<absl::Status> NetworkWatch::Plug(Peers peers, RecordedNic nic, PodInterface interface) {
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) { record.nics.push_back(nic); }));
  auto tie = RunBlocking(*env_->blocking,
                         [env = env_, netns = netns_, uid = record_->Get().uid, interface] {
                           return env->network->Tie(netns->get(), interface, uid);
                         });
  absl::StatusOr<PodTap> tap = co_await std::move(tie);
  absl::Status status = tap.status();
  if (status.ok()) {
    // It may have changed since it was looked at.
    nic.mac = tap->mac;
    nic.mtu = tap->mtu;
    vmm::NicSpec spec{SlotName(nic), nic.mac, nic.mtu, tap->fd.get()};
    auto add = peers.vm->AddNic(std::move(spec));
    status = co_await std::move(add);
  }
  nic.plugged = status.ok();
  if (status.ok()) {
    status = record_->Update([&](Record& record) {
      for (RecordedNic& recorded : record.nics) {
        if (recorded.slot == nic.slot) recorded = nic;
      }
    });
  }
  if (status.ok()) {
    Log(LogLevel::kInfo, "NIC plugged in",
        {{"sandbox", id_}, {"nic", SlotName(nic)}, {"interface", nic.name}, {"mac", nic.mac}});
    co_return status;
  }
  // Whose fault it was does not matter here; what stays is tried again, since the record has it.
  auto undo = Unplug(peers, nic);
  const absl::Status undone = co_await std::move(undo);
  // What is gone again is told of by an event of its own.
  if (absl::IsNotFound(tap.status())) co_return undone;
  if (undone.ok()) co_return status;
  co_return absl::Status(
      status.code(), absl::StrCat(status.message(), "; and undoing it failed: ", undone.message()));
}

Co<absl::Status> NetworkWatch::Untie(int index) {
  auto untie =
      RunBlocking(*env_->blocking, [env = env_, netns = netns_, index, uid = record_->Get().uid] {
        return env->network->Untie(netns->get(), index, uid);
      });
  const absl::Status status = co_await std::move(untie);
  co_return status;
}

// Before the guest is told: what it sends must pass.
Co<absl::Status> NetworkWatch::FollowMtus(const PodState& state) {
  absl::Status result;
  for (const PodInterface& interface : state.interfaces) {
    const auto tap = state.taps.find(interface.index);
    if (tap == state.taps.end() || tap->second == interface.mtu) continue;
    auto set = RunBlocking(*env_->blocking, [env = env_, netns = netns_, interface] {
      return env->network->SetMtu(netns->get(), interface);
    });
    const absl::Status status = co_await std::move(set);
    // It is gone again.
    if (absl::IsNotFound(status)) continue;
    result.Update(Annotate(status, absl::StrCat("the MTU of ", interface.name)));
  }
  co_return result;
}

Co<absl::Status> NetworkWatch::Tell(Peers peers, agent::v1::Network network) {
  if (told_.has_value() && told_->SerializeAsString() == network.SerializeAsString()) {
    co_return absl::OkStatus();
  }
  // If it fails, what the guest has is not known.
  told_.reset();
  agent::v1::Network copy = network;
  auto configure = peers.agent->ConfigureNetwork(std::move(copy), kTellLimit);
  const absl::Status status = co_await std::move(configure);
  if (!status.ok()) co_return Annotate(status, "configure the guest's network");
  told_ = std::move(network);
  co_return status;
}

void NetworkWatch::LogRefused(const PodState& state) {
  std::set<std::pair<int, std::string>> refused;
  int said = 0;
  size_t unsaid = 0;
  for (const RefusedInterface& interface : state.refused) {
    const std::pair<int, std::string> key(interface.index, interface.status.message());
    if (!refused_.contains(key) && said++ >= kRefusedAtOnce) {
      ++unsaid;
    } else if (!refused_.contains(key)) {
      Log(LogLevel::kWarn, "an interface of the pod's netns is not given to its VM",
          {{"sandbox", id_},
           {"interface", interface.name},
           {"reason", std::string(interface.status.message())}});
    }
    refused.insert(key);
  }
  if (unsaid != 0) {
    Log(LogLevel::kWarn, "more interfaces of the pod's netns are not given to its VM",
        {{"sandbox", id_}, {"interfaces", absl::StrCat(unsaid)}});
  }
  refused_ = std::move(refused);
}

}  // namespace magnetar::daemon
