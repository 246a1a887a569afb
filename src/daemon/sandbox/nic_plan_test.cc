#include "src/daemon/sandbox/nic_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string Mac(int index) { return absl::StrCat("02:00:00:00:00:0", index); }

PodInterface Tied(int index) {
  return {.index = index,
          .name = absl::StrCat("net", index),
          .mac = Mac(index),
          .mtu = 1500,
          .tied = true};
}

RecordedNic Nic(uint32_t slot, int index) {
  return {slot, index, absl::StrCat("net", index), Mac(index), 1500, true};
}

PodState State(std::vector<PodInterface> interfaces) {
  PodState state;
  for (const PodInterface& interface : interfaces) {
    if (interface.tied) state.taps[interface.index] = 1500;
    auto& guest = *state.guest.add_interfaces();
    guest.set_name(interface.name);
    state.guest.add_routes()->set_device(interface.name);
    state.guest.add_neighbours()->set_device(interface.name);
  }
  state.interfaces = std::move(interfaces);
  return state;
}

std::vector<uint32_t> Slots(const std::vector<RecordedNic>& nics) {
  std::vector<uint32_t> slots;
  for (const RecordedNic& nic : nics) slots.push_back(nic.slot);
  return slots;
}

TEST(NicPlanTest, NothingToDo) {
  const PodState state = State({Tied(2), Tied(3)});
  const std::vector<RecordedNic> nics = {Nic(0, 2), Nic(1, 3)};
  EXPECT_THAT(ObsoleteNics(nics, state), IsEmpty());
  EXPECT_THAT(MissingNics(nics, state), IsEmpty());
  EXPECT_THAT(StrayTaps(nics, state), IsEmpty());
  EXPECT_EQ(NetworkOf(nics, state).SerializeAsString(), state.guest.SerializeAsString());
}

TEST(NicPlanTest, WhatANicCannotFollow) {
  for (const auto& change : std::vector<std::function<void(PodInterface&)>>{
           [](PodInterface& i) { i.index = 9; }, [](PodInterface& i) { i.mac = "02:ff"; },
           [](PodInterface& i) { i.mtu = 1501; }, [](PodInterface& i) { i.tied = false; }}) {
    PodInterface interface = Tied(2);
    change(interface);
    EXPECT_THAT(Slots(ObsoleteNics({Nic(3, 2)}, State({interface}))), ElementsAre(3));
  }
  // But a smaller MTU, and another name.
  PodInterface interface = Tied(2);
  interface.mtu = 1280;
  interface.name = "other";
  EXPECT_THAT(ObsoleteNics({Nic(3, 2)}, State({interface})), IsEmpty());
}

TEST(NicPlanTest, OneThatWasNotFinishedGoes) {
  RecordedNic half = Nic(1, 3);
  half.plugged = false;
  const PodState state = State({Tied(2), Tied(3)});
  EXPECT_THAT(Slots(ObsoleteNics({Nic(0, 2), half}, state)), ElementsAre(1));
  // And its interface waits for that.
  EXPECT_THAT(MissingNics({Nic(0, 2), half}, state), IsEmpty());
  EXPECT_EQ(NetworkOf({Nic(0, 2), half}, state).interfaces_size(), 1);
}

TEST(NicPlanTest, NewOnesTakeTheFreeSlots) {
  const PodState state = State({Tied(2), Tied(5), Tied(7)});
  const std::vector<RecordedNic> nics = {Nic(1, 5)};
  const std::vector<RecordedNic> missing = MissingNics(nics, state);
  ASSERT_THAT(Slots(missing), ElementsAre(0, 2));
  EXPECT_EQ(missing[0].interface, 2);
  EXPECT_EQ(missing[1].mac, Mac(7));
  EXPECT_FALSE(missing[1].plugged);
  // One that the guest does not let go of holds its slot.
  const std::vector<RecordedNic> full = {Nic(0, 3), Nic(1, 4), Nic(2, 6)};
  EXPECT_THAT(Slots(MissingNics(full, state)), ElementsAre(3));
}

TEST(NicPlanTest, TapsOfNobody) {
  PodState state = State({Tied(2)});
  state.taps[8] = 1500;
  EXPECT_THAT(StrayTaps({Nic(0, 2)}, state), ElementsAre(8));
}

TEST(NicPlanTest, AVmOfAnEarlierDaemon) {
  PodState state = State({Tied(2), Tied(5)});
  state.taps[4] = 1400;  // its interface went while no daemon was there
  const std::vector<RecordedNic> nics = AdoptNics(state);
  ASSERT_THAT(Slots(nics), ElementsAre(0, 1, 2));
  EXPECT_EQ(nics[1].interface, 4);
  EXPECT_EQ(nics[2].mac, Mac(5));
  EXPECT_THAT(Slots(ObsoleteNics(nics, state)), ElementsAre(1));
}

TEST(NicPlanTest, TheGuestIsToldOfWhatItsNicsCarry) {
  const agent::v1::Network network = NetworkOf({Nic(0, 2)}, State({Tied(2), Tied(3)}));
  ASSERT_EQ(network.interfaces_size(), 1);
  EXPECT_EQ(network.interfaces(0).name(), "net2");
  EXPECT_EQ(network.routes_size(), 1);
  EXPECT_EQ(network.neighbours_size(), 1);
}

}  // namespace
}  // namespace magnetar::daemon
