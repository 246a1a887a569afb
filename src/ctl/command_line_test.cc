#include "src/ctl/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"
#include "src/ctl/render.h"
#include "src/ctl/testing.h"

namespace magnetar::ctl {
namespace {

using ::testing::HasSubstr;

class CommandLineTest : public RunDirectoryTest {
 protected:
  int Call(std::vector<std::string> words) {
    std::vector<const char*> argv = {"magnetarctl", "--run-dir", run_dir_.c_str()};
    for (const std::string& word : words) argv.push_back(word.c_str());
    std::ostringstream out, err;
    const int status = ctl::Run(static_cast<int>(argv.size()), argv.data(), out, err);
    out_ = out.str();
    err_ = err.str();
    return status;
  }
  std::string out_, err_;
};

TEST_F(CommandLineTest, List) {
  Write(LivingRecord("abc1"));
  EXPECT_EQ(Call({"list"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("SANDBOX"));
  EXPECT_THAT(out_, HasSubstr("abc1"));
  EXPECT_THAT(out_, HasSubstr("shop"));
  EXPECT_THAT(out_, HasSubstr("PIDS"));
  EXPECT_THAT(out_, HasSubstr(absl::StrCat("qemu:", ::getpid(), "\n")));
  EXPECT_EQ(Call({"list", "--json"}), 0) << err_;
  const auto json = nlohmann::json::parse(out_);
  ASSERT_EQ(json.size(), 1u);
  EXPECT_EQ(json[0]["id"], "abc1");
  EXPECT_EQ(json[0]["pod"], "web");
  EXPECT_EQ(json[0]["state"], "ready");
  EXPECT_GT(json[0]["pss_bytes"].get<uint64_t>(), 0u);
  EXPECT_EQ(json[0]["pid"], ::getpid());
  EXPECT_EQ(json[0]["processes"][0]["pid"], ::getpid());
}

TEST_F(CommandLineTest, Inspect) {
  daemon::Record record = LivingRecord("abc1");
  record.nics = {{0, 2, "eth0", "02:00:00:00:00:01", 1500, true},
                 {1, 5, "net1", "02:00:00:00:00:02", 1500, false}};
  Write(record);
  EXPECT_EQ(Call({"inspect", "abc"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("shop/web"));
  EXPECT_THAT(out_, HasSubstr("eth0 02:00:00:00:00:01\n"));
  EXPECT_THAT(out_, HasSubstr("net1 02:00:00:00:00:02 not plugged in\n"));
  EXPECT_EQ(Call({"--json", "inspect", "abc1"}), 0) << err_;
  const auto json = nlohmann::json::parse(out_);
  EXPECT_EQ(json["labels"]["app"], "web");
  EXPECT_EQ(json["nics"][1]["interface"], "net1");
  EXPECT_EQ(json["nics"][1]["plugged"], false);
}

TEST_F(CommandLineTest, NothingFromOutsideDrivesTheTerminal) {
  daemon::Record record = LivingRecord("abc1");
  runtime::v1::PodSandboxConfig pod;
  pod.mutable_metadata()->set_name(
      "web\x1b[2J\xc2\x9b"
      "2J\nnext");
  pod.mutable_metadata()->set_namespace_("sh\xc3\xb6p");
  record.pod_config = pod.SerializeAsString();
  record.exited_at_ns = 1700000000000000000;
  record.exit_reason = "killed\r\x9b by\x1b]0;me\x07";
  Write(record);
  Put("bad/sandbox.json", "{");
  EXPECT_EQ(Call({"list"}), 1);
  EXPECT_THAT(out_, HasSubstr("web?[2J?2J?next"));
  EXPECT_THAT(out_, HasSubstr("sh\xc3\xb6p"));
  EXPECT_EQ(Call({"inspect", "abc1"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("web?[2J?2J?next"));
  // The record, which is JSON, holds no byte that is not UTF-8.
  EXPECT_THAT(out_, HasSubstr("killed\xef\xbf\xbd by?]0;me?"));
  Put("log",
      "2026-11-23T22:00:00.123+0000 info \xc2\x9b"
      "2J sandbox=gone\n");
  EXPECT_EQ(Call({"logs", "gone", "--log-file", run_dir_ + "/log"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("info ?2J sandbox"));
}

TEST(PrintableTest, KeepsUtf8AndNothingElse) {
  const std::string kept = "a\tb\n\xc2\xa0\xe2\x82\xac\xf0\x9f\x98\x80";
  EXPECT_EQ(Printable(kept), kept);
  EXPECT_EQ(Printable(absl::string_view("a\0b\x7f", 4)), "a?b?");
  // C1, lone continuation, overlong, surrogate, beyond U+10FFFF, cut off.
  EXPECT_EQ(Printable("\xc2\x80\xc2\x9f"), "??");
  EXPECT_EQ(Printable("\x9bx"), "?x");
  EXPECT_EQ(Printable("\xc0\xaf"), "??");
  EXPECT_EQ(Printable("\xed\xa0\x80"), "???");
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "????");
  EXPECT_EQ(Printable("x\xe2\x82"), "x??");
  EXPECT_EQ(PrintableLine("a\tb\r\n"), "a?b?");
}

TEST_F(CommandLineTest, LogsFromAFile) {
  Put("log", "2026-11-23T22:00:00.123+0000 info vm started sandbox=gone pid=7\n");
  EXPECT_EQ(Call({"logs", "gone", "--log-file", run_dir_ + "/log"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("vm started"));
  EXPECT_EQ(Call({"--json", "logs", "gone", "--log-file", run_dir_ + "/log"}), 0) << err_;
  EXPECT_EQ(nlohmann::json::parse(out_)[0]["level"], "info");
}

TEST_F(CommandLineTest, Errors) {
  EXPECT_NE(Call({}), 0);
  EXPECT_NE(Call({"inspect"}), 0);
  EXPECT_EQ(Call({"inspect", "none"}), 1);
  EXPECT_THAT(err_, HasSubstr("no sandbox \"none\""));
  Write(LivingRecord("abc1"));
  EXPECT_EQ(Call({"console", "abc1"}), 1);
  EXPECT_THAT(err_, HasSubstr("supervisor"));
  EXPECT_EQ(Call({"--help"}), 0);
}

TEST_F(CommandLineTest, ConsoleComesFromTheSupervisorWithoutControlCharacters) {
  Write(LivingRecord("abc1"));
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (run_dir_ + "/abc1/supervisor.sock").c_str(),
               sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(listener.get(), 4), 0);
  auto services = std::make_shared<ttrpc::Services>();
  services->Add<supervisor::v1::ConsoleRequest, supervisor::v1::ConsoleResponse>(
      "magnetar.supervisor.v1.Supervisor", "Console",
      [](ttrpc::CallContext,
         supervisor::v1::ConsoleRequest) -> Co<absl::StatusOr<supervisor::v1::ConsoleResponse>> {
        supervisor::v1::ConsoleResponse response;
        response.set_data("Linux\r\n\x1b[2Jbye\n");
        co_return response;
      });
  std::thread server([&] {
    for (int i = 0; i < 2; ++i) {
      UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      asio::io_context context(1);
      std::shared_ptr<const ttrpc::Services> shared = services;
      auto serve = ttrpc::ServeConnection(std::move(socket), shared);
      asio::co_spawn(context, std::move(serve), asio::detached);
      context.run_for(std::chrono::seconds(10));
    }
  });
  EXPECT_EQ(Call({"console", "abc1"}), 0) << err_;
  EXPECT_EQ(out_, "Linux\n?[2Jbye\n");
  EXPECT_EQ(Call({"console", "abc1", "--json"}), 0) << err_;
  EXPECT_EQ(nlohmann::json::parse(out_)["console"], "Linux\r\n\x1b[2Jbye\n");
  server.join();
}

}  // namespace
}  // namespace magnetar::ctl
