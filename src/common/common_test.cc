#include <gtest/gtest.h>

#include "magnetar/ids.h"

namespace magnetar {
namespace {

TEST(ValidateIdTest, AcceptsContainerdIds) {
  EXPECT_TRUE(ValidateId("a", "id").ok());
  EXPECT_TRUE(ValidateId(std::string(76, 'f'), "id").ok());
  EXPECT_TRUE(ValidateId("a-b_c.d", "id").ok());
}

TEST(ValidateIdTest, RefusesEverythingElse) {
  for (const std::string& id :
       {std::string(), std::string(77, 'f'), std::string(".."), std::string("a/b"),
        std::string("a--b"), std::string("-a"), std::string("a-"), std::string("a\0b", 3)}) {
    EXPECT_EQ(ValidateId(id, "id").code(), absl::StatusCode::kInvalidArgument) << id;
  }
}

}  // namespace
}  // namespace magnetar
