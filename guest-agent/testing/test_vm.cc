#include "guest-agent/testing/test_vm.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdlib>
#include <cstring>
#include <future>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/ports.h"
#include "magnetar/streaming/frames.h"

namespace magnetar::guest::testing {
namespace {

[[noreturn]] void Die(const std::string& message) {
  std::cerr << message << std::endl;
  std::abort();
}

void Check(const absl::Status& status, const std::string& what) {
  if (!status.ok()) Die(absl::StrCat(what, ": ", status.ToString()));
}

pid_t Launch(const std::vector<std::string>& argv, const std::vector<int>& inherited,
             const std::string& output) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int out = ::open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  const int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, 0);
  ::dup2(out, 1);
  ::dup2(out, 2);
  for (const int fd : inherited) ::fcntl(fd, F_SETFD, 0);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

constexpr char kMachine[] =
    "q35,sata=off,smbus=off,i8042=off,hpet=off,vmport=off,usb=off,graphics=off,smm=off,"
    "memory-backend=ram";
constexpr char kCommandLine[] =
    "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr "
    "cryptomgr.notests norandmaps random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1 "
    "magnetar.transport=mux magnetar.log=debug";

}  // namespace

TestVm::TestVm(const std::string& guest, std::string extra_command_line) {
  char name[] = "/tmp/magnetar-vm-XXXXXX";
  if (::mkdtemp(name) == nullptr) Die("mkdtemp");
  directory_ = name;
  shared_ = absl::StrCat(directory_, "/shared");
  ::mkdir(shared_.c_str(), 0755);

  const std::string share_socket = absl::StrCat(directory_, "/virtiofs.sock");
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, share_socket.c_str(), sizeof(address.sun_path) - 1);
  if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener.get(), 1) != 0) {
    Die("listen for virtiofs");
  }
  virtiofsd_ =
      Launch({"/usr/lib/qemu/virtiofsd", absl::StrCat("--fd=", listener.get()), "-o",
              absl::StrCat("source=", shared_,
                           ",cache=always,timeout=1,xattr,announce_submounts,log_level=warn")},
             {listener.get()}, absl::StrCat(directory_, "/virtiofsd.log"));

  const std::string disk = absl::StrCat(directory_, "/disk.ext4");
  MakeBusyboxRoot(absl::StrCat(directory_, "/disk"));
  const std::string make = absl::StrCat("truncate -s 32M ", disk, " && mke2fs -q -F -t ext4 -d ",
                                        directory_, "/disk ", disk);
  if (std::system(make.c_str()) != 0) Die("mke2fs");

  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) Die("socketpair");
  UniqueFd far(pair[1]);
  qemu_ =
      Launch({"/usr/bin/qemu-system-x86_64",
              "-nodefaults",
              "-no-user-config",
              "-display",
              "none",
              "-no-reboot",
              "-machine",
              kMachine,
              "-accel",
              "tcg,thread=multi,tb-size=128",
              "-cpu",
              "max,-erms,-fsrm",
              "-smp",
              "cpus=1",
              "-m",
              "size=256M",
              "-object",
              "memory-backend-memfd,id=ram,size=256M,share=on",
              "-kernel",
              absl::StrCat(guest, "/vmlinux"),
              "-initrd",
              absl::StrCat(guest, "/initrd.img"),
              "-append",
              absl::StrCat(kCommandLine, " ", extra_command_line),
              "-serial",
              "stdio",
              "-object",
              "rng-builtin,id=rng",
              "-device",
              "virtio-rng-pci,rng=rng",
              "-drive",
              absl::StrCat("file=", guest, "/root.erofs,format=raw,if=none,id=root,readonly=on"),
              "-device",
              "virtio-blk-pci,drive=root,serial=magnetar-root",
              "-device",
              "virtio-scsi-pci,id=scsi0",
              "-drive",
              absl::StrCat("file=", disk, ",format=raw,if=none,id=testdisk"),
              "-device",
              "scsi-hd,bus=scsi0.0,drive=testdisk,serial=testdisk",
              "-chardev",
              absl::StrCat("socket,id=mux,fd=", far.get()),
              "-device",
              "virtio-serial-pci,id=serial0,max_ports=2",
              "-device",
              absl::StrCat("virtserialport,bus=serial0.0,nr=1,chardev=mux,name=", kMuxPortName),
              "-chardev",
              absl::StrCat("socket,id=shared,path=", share_socket),
              "-device",
              "vhost-user-fs-pci,chardev=shared,tag=shared",
              "-netdev",
              "user,id=n0,restrict=on",
              "-device",
              "virtio-net-pci,netdev=n0,mac=02:00:00:00:00:01,romfile="},
             {far.get()}, absl::StrCat(directory_, "/console.log"));
  far.reset();

  mux_ = mux::Host::Create(UniqueFd(pair[0]));
  asio::co_spawn(context_, mux_->Run(), asio::detached);
  thread_ = std::thread([this] {
    const auto work = asio::make_work_guard(context_);
    context_.run();
  });
  const auto started = std::chrono::steady_clock::now();
  const absl::Status ready = Run(mux_->Ready());
  if (!ready.ok()) Die(absl::StrCat("VM: ", ready.ToString(), "\n", Console()));
  std::cerr << "ready after "
            << std::chrono::duration_cast<std::chrono::milliseconds>(
                   std::chrono::steady_clock::now() - started)
                   .count()
            << " ms" << std::endl;
}

TestVm::~TestVm() {
  asio::post(context_, [this] {
    mux_->Close();
    agent_.reset();
  });
  if (qemu_ > 0) {
    ::kill(qemu_, SIGKILL);
    ::waitpid(qemu_, nullptr, 0);
  }
  ::kill(virtiofsd_, SIGKILL);
  ::waitpid(virtiofsd_, nullptr, 0);
  asio::post(context_, [this] { context_.stop(); });
  thread_.join();
  if (std::getenv("MAGNETAR_TEST_KEEP") == nullptr) RemoveTree(directory_).IgnoreError();
}

std::string TestVm::Console() const {
  const auto text = ReadFile(absl::StrCat(directory_, "/console.log"));
  return text.ok() ? *text : "";
}

bool TestVm::WaitExit(std::chrono::seconds timeout) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, qemu_, 0)));
  pollfd waiting = {pidfd.get(), POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(timeout.count() * 1000)) != 1) return false;
  ::waitpid(qemu_, nullptr, 0);
  qemu_ = -1;
  return true;
}

UniqueFd TestVm::DialRaw(uint32_t port) {
  absl::StatusOr<UniqueFd> fd = Run(mux_->Connect(port));
  if (!fd.ok()) Die(absl::StrCat("dial ", port, ": ", fd.status().ToString()));
  ::fcntl(fd->get(), F_SETFL, ::fcntl(fd->get(), F_GETFL) & ~O_NONBLOCK);
  return *std::move(fd);
}

std::shared_ptr<ttrpc::Client> TestVm::Dial(uint32_t port) {
  auto fd = std::make_shared<UniqueFd>(DialRaw(port));
  std::promise<std::shared_ptr<ttrpc::Client>> made;
  asio::post(context_, [this, fd, &made] {
    made.set_value(ttrpc::Client::Create(context_.get_executor(), std::move(*fd)));
  });
  return made.get_future().get();
}

Co<void> TestVm::AnswerHostRequests(TestVm* self, std::shared_ptr<ttrpc::Stream> stream) {
  while (true) {
    auto receive = stream->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    if (!message.ok() || !message->has_value()) co_return;
    agent::v1::HostRequest request;
    if (!request.ParseFromString(**message)) Die("host request");
    agent::v1::HostResponse response;
    response.set_id(request.id());
    if (request.has_event()) {
      self->events.push_back(request.event());
      continue;
    }
    if (request.has_prepare()) {
      const auto it = self->prepared.find(request.prepare().container_id());
      if (it == self->prepared.end()) {
        response.set_code(5);
        response.set_message("no such container");
      } else {
        *response.mutable_prepared() = it->second;
      }
    } else {
      self->released.push_back(request.release().container_id());
      response.mutable_released();
    }
    auto send = stream->Send(response.SerializeAsString());
    const absl::Status sent = co_await std::move(send);
    if (!sent.ok()) co_return;
  }
}

void TestVm::ConnectDaemon() {
  agent_ = Dial(kAgentPort);
  timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  agent::v1::HelloRequest hello;
  hello.set_protocol(kAgentProtocol);
  hello.set_daemon_version("test");
  hello.set_host_time_ns(int64_t{now.tv_sec} * 1000000000 + now.tv_nsec);
  const auto hi = Call<agent::v1::HelloResponse>(agent_, "magnetar.agent.v1.Agent", "Hello", hello);
  Check(hi.status(), "Hello");
  std::cerr << "guest kernel " << hi->kernel_release() << " memory " << hi->memory_total_bytes()
            << std::endl;
  agent::v1::SetupSandboxRequest setup;
  setup.set_sandbox_id("test");
  setup.set_vmm_pid(kVmmPid);
  setup.set_hostname("guesthost");
  setup.set_hosts("127.0.0.1 localhost\n");
  setup.set_resolv_conf("nameserver 10.0.2.3\n");
  setup.set_shared_tag("shared");
  setup.set_entropy("0123456789abcdef0123456789abcdef");
  (*setup.mutable_sysctls())["net.ipv4.ip_unprivileged_port_start"] = "80";
  agent::v1::Interface& nic = *setup.mutable_network()->add_interfaces();
  nic.set_name("net7");
  nic.set_mac("02:00:00:00:00:01");
  nic.set_mtu(1400);
  nic.add_addresses("10.0.2.15/24");
  nic.add_addresses("fd00::2/64");
  agent::v1::Route& route = *setup.mutable_network()->add_routes();
  route.set_destination("0.0.0.0/0");
  route.set_gateway("10.0.2.2");
  route.set_device("net7");
  agent::v1::Route& route6 = *setup.mutable_network()->add_routes();
  route6.set_destination("::/0");
  route6.set_gateway("fd00::1");
  route6.set_device("net7");
  agent::v1::Neighbour& neighbour = *setup.mutable_network()->add_neighbours();
  neighbour.set_device("net7");
  neighbour.set_address("10.0.2.77");
  neighbour.set_mac("02:00:00:00:00:77");
  for (int i = 0; i < 2; ++i) {
    const auto done = Call<agent::v1::SetupSandboxResponse>(agent_, "magnetar.agent.v1.Agent",
                                                            "SetupSandbox", setup);
    Check(done.status(), "SetupSandbox");
  }
  auto stream = Run(agent_->OpenStream("magnetar.agent.v1.Agent", "HostRequests"));
  Check(stream.status(), "HostRequests");
  asio::co_spawn(context_, AnswerHostRequests(this, *stream), asio::detached);
}

void TestVm::DisconnectDaemon() {
  asio::post(context_, [agent = agent_] { agent->Close(); });
}

TestStream::TestStream(TestVm& vm, const std::string& id) : vm_(vm), client_(vm.Dial(kTaskPort)) {
  auto stream = vm.Run(client_->OpenStream("containerd.services.streaming.v1.Streaming", "Stream"));
  Check(stream.status(), "open stream");
  stream_ = *stream;
  Check(vm.Run(stream_->Send(streaming::StreamInitFrame(id))), "StreamInit");
  const auto accepted = vm.Run(stream_->Receive());
  Check(accepted.status(), "accept");
  if (!accepted->has_value() || **accepted != streaming::AcceptedFrame()) Die("accept");
}

Co<std::string> TestStream::Collect(size_t at_least) {
  std::string out = std::exchange(rest_, "");
  while (out.size() < at_least) {
    if (window_ < 65536) {
      auto grant = stream_->Send(streaming::WindowUpdateFrame(65536));
      const absl::Status granted = co_await std::move(grant);
      static_cast<void>(granted);
      window_ += 65536;
    }
    auto receive = stream_->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    if (!message.ok()) {
      out += absl::StrCat("<", message.status().ToString(), ">");
      break;
    }
    if (!message->has_value()) break;
    const auto data = streaming::ParseData(**message);
    if (!data.ok()) {
      out += absl::StrCat("<", data.status().ToString(), ">");
      break;
    }
    window_ -= static_cast<int64_t>(data->size());
    out += *data;
  }
  co_return out;
}

std::string TestStream::ReadAll() {
  std::string all = vm_.Run(Collect(std::string::npos));
  const absl::Status closed = vm_.Run(stream_->CloseSend());
  static_cast<void>(closed);
  return all;
}

std::string TestStream::ReadSome(size_t n) { return vm_.Run(Collect(n)); }

Co<absl::Status> TestStream::Send(std::string data, bool end) {
  while (!data.empty()) {
    while (window_ <= 0) {
      auto receive = stream_->Receive();
      absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
      if (!message.ok()) co_return message.status();
      if (!message->has_value()) co_return absl::OutOfRangeError("ended");
      const auto update = streaming::ParseWindowUpdate(**message);
      if (!update.ok()) co_return update.status();
      window_ += *update;
    }
    const size_t n = std::min({data.size(), size_t{32768}, static_cast<size_t>(window_)});
    auto send = stream_->Send(streaming::DataFrame(absl::string_view(data).substr(0, n)));
    const absl::Status sent = co_await std::move(send);
    if (!sent.ok()) co_return sent;
    window_ -= static_cast<int64_t>(n);
    data.erase(0, n);
  }
  if (end) {
    auto close = stream_->CloseSend();
    co_return co_await std::move(close);
  }
  co_return absl::OkStatus();
}

absl::Status TestStream::WriteAll(const std::string& data, bool end) {
  return vm_.Run(Send(data, end));
}

}  // namespace magnetar::guest::testing
