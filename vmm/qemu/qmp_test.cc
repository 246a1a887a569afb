#include "vmm/qemu/qmp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <optional>
#include <random>

#include "vmm/qemu/fake_qmp.h"
#include "vmm/qemu/qmp_wire.h"
#include "vmm/qemu/vm.h"

namespace magnetar::vmm::qemu {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using Command = FakeQmp::Command;

json Return(json value = json::object()) { return {{"return", std::move(value)}}; }
json Error(const std::string& kind, const std::string& text) {
  return {{"error", {{"class", kind}, {"desc", text}}}};
}
json Deleted(const std::string& device) {
  return {{"event", "DEVICE_DELETED"}, {"data", {{"device", device}, {"path", "/x"}}}};
}

template <typename T>
T Await(asio::io_context& context, Co<T> coroutine) {
  std::optional<T> result;
  asio::co_spawn(context, std::move(coroutine), [&](std::exception_ptr error, T value) {
    if (error) std::rethrow_exception(error);
    result.emplace(std::move(value));
  });
  context.restart();
  while (!result.has_value()) context.run_one();
  return *std::move(result);
}

TEST(QmpWire, Messages) {
  auto greeting = ParseQmp("{\"QMP\": {\"version\": {}}}");
  EXPECT_EQ(greeting->kind, QmpMessage::Kind::kGreeting);
  auto reply = ParseQmp("{\"return\": {\"fdset-id\": 3}, \"id\": 7}\r");
  EXPECT_EQ(reply->kind, QmpMessage::Kind::kReply);
  EXPECT_EQ(reply->id, 7u);
  EXPECT_TRUE(reply->status.ok());
  EXPECT_EQ(NumberAt(reply->data, "fdset-id"), 3u);
  auto error =
      ParseQmp("{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no x\"}, \"id\": 8}");
  EXPECT_TRUE(absl::IsNotFound(error->status));
  auto event = ParseQmp("{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}");
  EXPECT_EQ(event->event, "SHUTDOWN");
  EXPECT_EQ(StringAt(event->data, "reason"), "guest-reset");
  for (const char* bad : {"", "[]", "{", "{}", "null", "{\"id\": 1}"}) {
    EXPECT_FALSE(ParseQmp(bad).ok()) << bad;
  }
  // Members of the wrong type are none.
  EXPECT_EQ(StringAt(json({{"a", 1}}), "a"), "");
  EXPECT_EQ(NumberAt(json({{"a", "1"}}), "a"), 0u);
  EXPECT_EQ(NumberAt(json::array(), "a"), 0u);
}

TEST(QmpWire, AnyBytesAreAMessageOrAnError) {
  std::mt19937 random(3);
  const std::string seed =
      "{\"error\": {\"class\": \"X\", \"desc\": \"d\"}, \"id\": 18, \"data\": []}";
  for (int i = 0; i < 20000; ++i) {
    std::string text = seed;
    for (int n = random() % 6; n >= 0; --n)
      text[random() % text.size()] = static_cast<char>(random());
    (void)ParseQmp(text);
  }
}

class QmpTest : public testing::Test {
 protected:
  std::shared_ptr<QmpClient> Connect(FakeQmp& server,
                                     std::chrono::milliseconds timeout = std::chrono::seconds(5)) {
    QmpClient::Handlers handlers;
    handlers.event = [this](const std::string& name, const json&) { events_.push_back(name); };
    handlers.closed = [this] { closed_ = true; };
    auto client = Await(context_, QmpClient::Connect(server.path(), timeout, std::move(handlers)));
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }
  absl::StatusOr<json> Execute(QmpClient& client, const std::string& command) {
    return Await(context_, client.Execute(command, json(), UniqueFd()));
  }
  std::vector<std::string> events_;
  bool closed_ = false;
  asio::io_context context_;
};

TEST_F(QmpTest, NobodyThere) {
  auto client =
      Await(context_, QmpClient::Connect("/nonexistent/qmp.sock", std::chrono::seconds(1), {}));
  EXPECT_TRUE(absl::IsUnavailable(client.status()));
}

TEST_F(QmpTest, CommandsEventsAndErrors) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "bad") return {Error("GenericError", "nothing doing")};
    return {{{"event", "STOP"}}, Return({{"name", c.name}})};
  });
  auto client = Connect(server);
  EXPECT_EQ(StringAt(*Execute(*client, "one"), "name"), "one");
  EXPECT_THAT(events_, ElementsAre("STOP"));
  const absl::Status bad = Execute(*client, "bad").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(bad));
  EXPECT_EQ(bad.message(), "QMP bad: nothing doing");
  EXPECT_EQ(StringAt(*Execute(*client, "two"), "name"), "two");
}

// QEMU's last words may come in one read with the answer that ends the negotiation.
TEST_F(QmpTest, EventsAndTheEndAreNotLostToTheNegotiation) {
  FakeQmp server([](const Command&) { return std::vector<json>(); }, "{\"event\": \"SHUTDOWN\"}\n");
  auto client = Connect(server);
  EXPECT_THAT(events_, ElementsAre("SHUTDOWN"));
  server.Disconnect();
  EXPECT_TRUE(absl::IsUnavailable(Execute(*client, "x").status()));
  EXPECT_TRUE(closed_);
}

// A VMM that never stops sending does not keep the thread.
TEST_F(QmpTest, AFloodOfEventsLeavesOthersTheirTurn) {
  FakeQmp server([](const Command&) { return std::vector<json>(); });
  auto client = Connect(server);
  std::atomic<bool> stop = false;
  std::thread flood([&] {
    std::string many;
    while (many.size() < 32 << 10) many += "{\"event\": \"FLOOD\"}\n";
    while (!stop) server.Send(many);
  });
  // The reader finds more each time, and still lets go after eight buffers of 16 KiB.
  size_t longest_turn = 0;
  while (events_.size() < 100000) {
    const size_t before = events_.size();
    context_.restart();
    context_.run_one();
    longest_turn = std::max(longest_turn, events_.size() - before);
  }
  EXPECT_LT(longest_turn, size_t{8000});
  stop = true;
  client->Close();
  // The sender may be waiting for room.
  while (!closed_) {
    context_.restart();
    context_.run_one();
  }
  flood.join();
}

TEST_F(QmpTest, SilenceIsADeadline) {
  FakeQmp server([](const Command&) { return std::vector<json>(); });
  auto client = Connect(server, std::chrono::milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(Execute(*client, "hang").status()));
}

TEST_F(QmpTest, GarbageEndsTheConnection) {
  FakeQmp server([](const Command&) { return std::vector<json>(); });
  auto client = Connect(server);
  server.Send("no JSON\n");
  EXPECT_TRUE(absl::IsUnavailable(Execute(*client, "x").status()));
  EXPECT_TRUE(closed_);
  EXPECT_TRUE(absl::IsUnavailable(Execute(*client, "y").status()));
}

TEST_F(QmpTest, AnEndlessLineEndsTheConnection) {
  FakeQmp server([](const Command&) { return std::vector<json>(); });
  auto client = Connect(server);
  std::thread flood([&] {
    const std::string piece(1 << 16, 'x');
    for (int i = 0; i < 64; ++i) server.Send(piece);
  });
  EXPECT_TRUE(absl::IsUnavailable(Execute(*client, "x").status()));
  flood.join();
}

class VmTest : public QmpTest {
 protected:
  std::unique_ptr<Vm> Attach(FakeQmp& server) {
    auto vm = Await(context_, AttachVm(server.path(), options_));
    EXPECT_TRUE(vm.ok()) << vm.status();
    return *std::move(vm);
  }
  std::vector<std::string> Names(const FakeQmp& server) {
    std::vector<std::string> names;
    for (const Command& c : server.commands()) {
      if (c.name != "qmp_capabilities") names.push_back(c.name);
    }
    return names;
  }
  VmOptions options_;
  UniqueFd disk_{::memfd_create("disk", MFD_CLOEXEC)};
};

TEST_F(VmTest, AddsADisk) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "add-fd") return {Return({{"fdset-id", 4}, {"fd", 30}})};
    return {Return()};
  });
  auto vm = Attach(server);
  absl::Status status =
      Await(context_, vm->AddDisk({.serial = "c1-rootfs", .fd = disk_.get(), .read_only = true}));
  EXPECT_TRUE(status.ok()) << status;
  const auto commands = server.commands();
  EXPECT_THAT(Names(server), ElementsAre("add-fd", "blockdev-add", "device_add"));
  EXPECT_TRUE(commands[1].with_fd);
  EXPECT_EQ(commands[1].arguments, json({{"opaque", "disk-c1-rootfs"}}));
  EXPECT_EQ(commands[2].arguments["file"]["filename"], "/dev/fdset/4");
  EXPECT_EQ(commands[2].arguments["file"]["driver"], "file");
  EXPECT_EQ(commands[2].arguments["read-only"], true);
  EXPECT_EQ(commands[3].arguments, json({{"driver", "scsi-hd"},
                                         {"id", "disk-c1-rootfs"},
                                         {"bus", "scsi0.0"},
                                         {"drive", "disk-c1-rootfs"},
                                         {"serial", "c1-rootfs"},
                                         {"rerror", "report"},
                                         {"werror", "report"},
                                         {"logical_block_size", 512},
                                         {"physical_block_size", 512}}));
}

TEST_F(VmTest, ADiskThatFailsLeavesNothing) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "add-fd") return {Return({{"fdset-id", 4}})};
    if (c.name == "device_add") return {Error("GenericError", "no slot")};
    if (c.name == "query-fdsets") {
      return {
          Return(json::array({{{"fdset-id", 4}, {"fds", {{{"fd", 3}, {"opaque", "disk-d"}}}}}}))};
    }
    return {Return()};
  });
  auto vm = Attach(server);
  absl::Status status = Await(context_, vm->AddDisk({.serial = "d", .fd = disk_.get()}));
  EXPECT_THAT(std::string(status.message()), HasSubstr("no slot"));
  EXPECT_THAT(Names(server), ElementsAre("add-fd", "blockdev-add", "device_add", "query-fdsets",
                                         "blockdev-del", "remove-fd"));
}

TEST_F(VmTest, RemovingADiskWaitsForTheGuest) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "device_del") return {Return(), Deleted("other"), Deleted("disk-d")};
    if (c.name == "query-fdsets") {
      return {Return(json::array(
          {"nonsense", {{"fdset-id", 9}, {"fds", {{{"fd", 3}, {"opaque", "disk-d"}}}}}}))};
    }
    return {Return()};
  });
  auto vm = Attach(server);
  std::vector<std::string> deleted;
  vm->OnEvent([&](const vmm::Event& e) {
    if (e.kind == vmm::Event::Kind::kDeviceDeleted) deleted.push_back(e.detail);
  });
  absl::Status status = Await(context_, vm->RemoveDisk("d"));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(deleted, ElementsAre("other", "disk-d"));
  EXPECT_THAT(Names(server),
              ElementsAre("device_del", "query-fdsets", "blockdev-del", "remove-fd"));
  EXPECT_EQ(server.commands().back().arguments, json({{"fdset-id", 9}}));
}

TEST_F(VmTest, RemovingWhatIsNotThere) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "device_del") return {Error("DeviceNotFound", "no disk-d")};
    if (c.name == "query-fdsets") return {Return(json::array())};
    if (c.name == "query-named-block-nodes") {
      return {Return(json::array({{{"node-name", "root"}}}))};
    }
    return {Error("GenericError", "no node")};
  });
  auto vm = Attach(server);
  EXPECT_TRUE(absl::IsNotFound(Await(context_, vm->RemoveDisk("d"))));
}

TEST_F(VmTest, ANodeThatStaysKeepsItsFile) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "device_del") return {Return(), Deleted("disk-d")};
    if (c.name == "query-fdsets") {
      return {
          Return(json::array({{{"fdset-id", 4}, {"fds", {{{"fd", 3}, {"opaque", "disk-d"}}}}}}))};
    }
    if (c.name == "query-named-block-nodes") {
      return {Return(json::array({{{"node-name", "root"}}, {{"node-name", "disk-d"}}}))};
    }
    return {Error("GenericError", "node is in use")};
  });
  auto vm = Attach(server);
  const absl::Status status = Await(context_, vm->RemoveDisk("d"));
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("node is in use"));
  EXPECT_THAT(Names(server),
              ElementsAre("device_del", "query-fdsets", "blockdev-del", "query-named-block-nodes"));
}

// An attempt that got as far as the node; what is left is the descriptor.
TEST_F(VmTest, ADescriptorWithoutItsNodeIsRemoved) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "device_del") return {Error("DeviceNotFound", "no disk-d")};
    if (c.name == "query-fdsets") {
      return {
          Return(json::array({{{"fdset-id", 4}, {"fds", {{{"fd", 3}, {"opaque", "disk-d"}}}}}}))};
    }
    if (c.name == "query-named-block-nodes") return {Return(json::array())};
    if (c.name == "blockdev-del") return {Error("GenericError", "no node")};
    return {Return()};
  });
  auto vm = Attach(server);
  EXPECT_TRUE(Await(context_, vm->RemoveDisk("d")).ok());
  EXPECT_EQ(server.commands().back().name, "remove-fd");
}

TEST_F(VmTest, WhatCameBeforeTheHandlerIsToldToIt) {
  FakeQmp server([](const Command&) { return std::vector<json>(); },
                 "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n");
  auto vm = Attach(server);
  server.Disconnect();
  EXPECT_TRUE(absl::IsUnavailable(Await(context_, vm->Pause())));
  std::vector<vmm::Event::Kind> kinds;
  vm->OnEvent([&](const vmm::Event& e) { kinds.push_back(e.kind); });
  EXPECT_THAT(kinds, ElementsAre(vmm::Event::Kind::kShutdown, vmm::Event::Kind::kClosed));
}

TEST_F(VmTest, AHandlerMayLetGoOfTheVm) {
  FakeQmp server([](const Command&) { return std::vector<json>(); });
  auto vm = Attach(server);
  const std::string text(100, 'x');  // on the heap, with the handler
  std::string seen;
  vm->OnEvent([&vm, &seen, text](const vmm::Event&) {
    vm.reset();
    seen = text;
  });
  server.Disconnect();
  while (seen.empty()) {
    context_.restart();
    context_.run_one();
  }
  EXPECT_EQ(seen, text);
}

TEST_F(VmTest, AGuestThatRefusesToLetGo) {
  FakeQmp server([](const Command&) -> std::vector<json> {
    return {Return(), {{"event", "DEVICE_UNPLUG_GUEST_ERROR"}, {"data", {{"device", "nic1"}}}}};
  });
  auto vm = Attach(server);
  EXPECT_TRUE(absl::IsFailedPrecondition(Await(context_, vm->RemoveNic("nic1"))));
  // It leads nowhere any more.
  EXPECT_THAT(Names(server), ElementsAre("device_del", "netdev_del"));
}

TEST_F(VmTest, WhatWasLeftOfANicGoes) {
  FakeQmp server([](const Command& c) -> std::vector<json> {
    if (c.name == "device_del") return {Error("DeviceNotFound", "no nic1")};
    if (c.name == "netdev_del") return {Error("DeviceNotFound", "no nic1-tap")};
    if (c.arguments["fdname"] == "nic1-vhost") return {Error("GenericError", "no nic1-vhost")};
    return {Return()};
  });
  auto vm = Attach(server);
  EXPECT_TRUE(absl::IsNotFound(Await(context_, vm->RemoveNic("nic1"))));
  EXPECT_THAT(Names(server), ElementsAre("device_del", "netdev_del", "closefd", "closefd"));
  EXPECT_EQ(server.commands()[3].arguments, json({{"fdname", "nic1-tap"}}));
}

TEST_F(VmTest, AVmThatDiesMeanwhile) {
  FakeQmp* pointer = nullptr;
  FakeQmp server([&](const Command& c) -> std::vector<json> {
    if (c.name == "device_del") {
      pointer->Send("{\"return\": {}, \"id\": 2}\n");
      pointer->Disconnect();
    }
    return {};
  });
  pointer = &server;
  auto vm = Attach(server);
  bool closed = false;
  vm->OnEvent([&](const vmm::Event& e) { closed |= e.kind == vmm::Event::Kind::kClosed; });
  EXPECT_TRUE(absl::IsUnavailable(Await(context_, vm->RemoveNic("nic1"))));
  EXPECT_TRUE(closed);
}

TEST_F(VmTest, AddsANic) {
  FakeQmp server([](const Command&) -> std::vector<json> { return {Return()}; });
  auto vm = Attach(server);
  absl::Status status = Await(
      context_,
      vm->AddNic({.id = "nic2", .mac = "02:00:00:00:00:02", .mtu = 9000, .tap_fd = disk_.get()}));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(Names(server), ElementsAre("getfd", "netdev_add", "device_add"));
  EXPECT_TRUE(server.commands()[1].with_fd);
  EXPECT_EQ(server.commands()[3].arguments["bus"], "nicport2");
  EXPECT_EQ(server.commands()[3].arguments["host_mtu"], 9000);
}

TEST_F(VmTest, PauseResumeQuit) {
  FakeQmp server([](const Command&) -> std::vector<json> { return {Return()}; });
  auto vm = Attach(server);
  EXPECT_TRUE(Await(context_, vm->Pause()).ok());
  EXPECT_TRUE(Await(context_, vm->Resume()).ok());
  EXPECT_TRUE(Await(context_, vm->Quit()).ok());
  EXPECT_THAT(Names(server), ElementsAre("stop", "cont", "quit"));
}

constexpr int64_t kGiB = 1 << 30;

// A QEMU with two of its four processors and 1 of 4 GiB, of which `added` bytes came later.
std::vector<json> AnswerSizes(const Command& command, std::optional<int64_t> added) {
  if (command.name == "query-hotpluggable-cpus") {
    json cpus = json::array();
    for (int core = 3; core >= 0; --core) {
      json cpu = {{"type", "max-x86_64-cpu"}, {"props", {{"core-id", core}}}};
      if (core < 2) cpu["qom-path"] = "/machine/unattached/device[0]";
      cpus.push_back(std::move(cpu));
    }
    return {Return(std::move(cpus))};
  }
  if (command.name == "qom-get") return {Return({{"size", kGiB}, {"max-size", 4 * kGiB}})};
  if (command.name == "query-memory-devices") {
    json devices = json::array();
    if (added.has_value()) {
      const json data = {{"id", "hotmem-device"}, {"size", *added}, {"requested-size", 2 * *added}};
      devices.push_back({{"type", "virtio-mem"}, {"data", data}});
    }
    return {Return(std::move(devices))};
  }
  return {Return()};
}

TEST_F(VmTest, TellsItsSize) {
  FakeQmp server([](const Command& command) { return AnswerSizes(command, 64 << 20); });
  auto vm = Attach(server);
  const auto size = Await(context_, vm->GetSize());
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(size->vcpus, 2u);
  EXPECT_EQ(size->max_vcpus, 4u);
  EXPECT_EQ(size->memory_bytes, static_cast<uint64_t>(kGiB + (64 << 20)));
  EXPECT_EQ(size->requested_memory_bytes, static_cast<uint64_t>(kGiB + (128 << 20)));
  EXPECT_EQ(size->boot_memory_bytes, static_cast<uint64_t>(kGiB));
  EXPECT_EQ(size->max_memory_bytes, static_cast<uint64_t>(4 * kGiB));
}

TEST_F(VmTest, GrowsForTheFirstTime) {
  FakeQmp server([](const Command& command) { return AnswerSizes(command, std::nullopt); });
  auto vm = Attach(server);
  ASSERT_TRUE(Await(context_, vm->Resize(3, kGiB + 1)).ok());
  EXPECT_THAT(Names(server),
              ElementsAre("qom-get", "query-memory-devices", "query-hotpluggable-cpus",
                          "device_add", "object-add", "device_add"));
  const auto commands = server.commands();
  EXPECT_EQ(commands[4].arguments["driver"], "max-x86_64-cpu");
  EXPECT_EQ(commands[4].arguments["core-id"], 2);
  EXPECT_EQ(commands[5].arguments["size"], 3 * kGiB);
  EXPECT_EQ(commands[5].arguments["reserve"], false);
  EXPECT_EQ(commands[6].arguments["bus"], "memport");
  EXPECT_EQ(commands[6].arguments["requested-size"], kMemoryStep);
}

TEST_F(VmTest, ShrinksToWhatItBootedWith) {
  FakeQmp server([](const Command& command) { return AnswerSizes(command, 64 << 20); });
  auto vm = Attach(server);
  ASSERT_TRUE(Await(context_, vm->Resize(1, kGiB / 2)).ok());
  ASSERT_EQ(server.commands().back().name, "qom-set");
  EXPECT_EQ(server.commands().back().arguments["value"], 0);
}

TEST_F(VmTest, DoesNotGrowBeyondWhatItCanHave) {
  FakeQmp server([](const Command& command) { return AnswerSizes(command, std::nullopt); });
  auto vm = Attach(server);
  EXPECT_TRUE(absl::IsOutOfRange(Await(context_, vm->Resize(5, kGiB))));
  EXPECT_TRUE(absl::IsOutOfRange(Await(context_, vm->Resize(1, 5 * kGiB))));
  EXPECT_THAT(Names(server), testing::Not(testing::Contains("device_add")));
}

TEST_F(VmTest, TakesBackTheBackendOfAMemoryDeviceThatIsRefused) {
  FakeQmp server([](const Command& command) -> std::vector<json> {
    if (command.name == "device_add") return {Error("GenericError", "no")};
    return AnswerSizes(command, std::nullopt);
  });
  auto vm = Attach(server);
  EXPECT_FALSE(Await(context_, vm->Resize(1, 2 * kGiB)).ok());
  EXPECT_EQ(server.commands().back().name, "object-del");
}

TEST_F(VmTest, BadNames) {
  FakeQmp server([](const Command&) -> std::vector<json> { return {Return()}; });
  auto vm = Attach(server);
  for (const char* serial : {"", "a b", "x,serial=y", "123456789012345678901"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        Await(context_, vm->AddDisk({.serial = serial, .fd = disk_.get()}))));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Await(context_, vm->RemoveNic("eth0"))));
}

}  // namespace
}  // namespace magnetar::vmm::qemu
