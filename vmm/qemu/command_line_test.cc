#include "vmm/qemu/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/qemu/virtiofsd.h"

namespace magnetar::vmm::qemu {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

Machine Example() {
  Machine m;
  m.program = "/usr/bin/qemu-system-x86_64";
  m.sandbox_id = "3f2a";
  m.vcpus = 2;
  m.memory_mib = 512;
  m.max_vcpus = 8;
  m.max_memory_mib = 2048;
  m.kernel = "/proc/self/fd/10";
  m.initrd = "/proc/self/fd/11";
  m.image_fd = 12;
  m.qmp_fd = 13;
  m.mux_fd = 14;
  m.virtiofs_fd = 15;
  m.nics = {{.id = "nic0", .mac = "02:00:00:00:00:01", .mtu = 1400, .tap_fd = 16}};
  m.extra_cmdline = "magnetar.log=debug";
  return m;
}

TEST(CommandLine, Golden) {
  EXPECT_THAT(
      CommandLine(Example()),
      ElementsAre(
          "/usr/bin/qemu-system-x86_64",                                              //
          "-name", "guest=3f2a",                                                      //
          "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",         //
          "-sandbox",                                                                 //
          "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",  //
          "-machine",
          "q35,sata=off,smbus=off,i8042=off,hpet=off,vmport=off,usb=off,graphics=off,smm=off,"
          "memory-backend=ram",
          "-accel", "tcg,thread=multi,tb-size=128",                     //
          "-cpu", "max,-erms,-fsrm",                                    //
          "-smp", "cpus=2,maxcpus=8",                                   //
          "-m", "size=512M,slots=1,maxmem=2048M",                       //
          "-object", "memory-backend-memfd,id=ram,size=512M,share=on",  //
          "-kernel", "/proc/self/fd/10",                                //
          "-initrd", "/proc/self/fd/11",                                //
          "-append",
          "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check "
          "cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1 "
          "mitigations=off nokaslr norandmaps rodata=off initcall_blacklist=tracer_init_tracefs,"
          "init_kprobe_trace,slab_sysfs_init,crypto_kdf108_init,load_system_certificate_list "
          "magnetar.transport=mux memhp_default_state=online "
          "memory_hotplug.online_policy=auto-movable swiotlb=noforce magnetar.log=debug",
          "-chardev", "stdio,id=console,signal=off",              //
          "-serial", "chardev:console",                           //
          "-chardev", "socket,id=qmp,fd=13,server=on,wait=off",   //
          "-mon", "chardev=qmp,mode=control",                     //
          "-object", "rng-builtin,id=rng",                        //
          "-device", "virtio-rng-pci,rng=rng,disable-legacy=on",  //
          "-add-fd", "fd=12,set=1,opaque=root",                   //
          "-blockdev",
          "driver=raw,node-name=root,read-only=on,file.driver=file,file.filename=/dev/fdset/1,"
          "file.read-only=on",
          "-device", "virtio-blk-pci,id=root0,drive=root,serial=magnetar-root,disable-legacy=on",
          "-device", "virtio-scsi-pci,id=scsi0,disable-legacy=on",                                //
          "-chardev", "socket,id=mux,fd=14",                                                      //
          "-device", "virtio-serial-pci,id=serial0,max_ports=2,disable-legacy=on,ioeventfd=off",  //
          "-device", "virtserialport,bus=serial0.0,nr=1,chardev=mux,name=io.magnetar.mux",
          "-chardev", "socket,id=shared,fd=15",                                 //
          "-device", "vhost-user-fs-pci,id=shared0,chardev=shared,tag=shared",  //
          "-device", "pcie-root-port,id=nicport0,bus=pcie.0,chassis=1,addr=0x10.0,multifunction=on",
          "-device", "pcie-root-port,id=nicport1,bus=pcie.0,chassis=2,addr=0x10.1", "-device",
          "pcie-root-port,id=nicport2,bus=pcie.0,chassis=3,addr=0x10.2", "-device",
          "pcie-root-port,id=nicport3,bus=pcie.0,chassis=4,addr=0x10.3", "-device",
          "pcie-root-port,id=memport,bus=pcie.0,chassis=5,addr=0x10.4", "-netdev",
          "tap,id=nic0-tap,fd=16,vhost=off",  //
          "-device",
          "virtio-net-pci,id=nic0,netdev=nic0-tap,bus=nicport0,mac=02:00:00:00:00:01,"
          "host_mtu=1400,romfile="));
}

TEST(CommandLine, OnlyEmulatedKernelsAreTrimmed) {
  Machine m = Example();
  m.acceleration = Acceleration::kTcg;
  m.tsc_khz = 2596000;
  EXPECT_THAT(KernelCommandLine(m), HasSubstr(" mitigations=off "));
  EXPECT_THAT(KernelCommandLine(m), HasSubstr(" tsc_early_khz=2596000"));
  m.acceleration = Acceleration::kKvm;
  EXPECT_THAT(KernelCommandLine(m), Not(HasSubstr("mitigations")));
  EXPECT_THAT(KernelCommandLine(m), Not(HasSubstr("tsc_early_khz")));
}

TEST(CommandLine, KvmAndVhost) {
  Machine m = Example();
  m.acceleration = Acceleration::kKvm;
  m.mux_fd = -1;
  m.vsock = Machine::Vsock{.cid = 77, .vhost_fd = 20, .ready_port = 5000};
  m.nics[0].vhost_fd = 21;
  const std::vector<std::string> argv = CommandLine(m);
  EXPECT_THAT(argv, Contains("kvm"));
  EXPECT_THAT(argv, Contains("host"));
  EXPECT_THAT(argv, Contains("vhost-vsock-pci,id=vsock0,guest-cid=77,vhostfd=20"));
  EXPECT_THAT(argv, Contains("tap,id=nic0-tap,fd=16,vhostfd=21"));
  EXPECT_THAT(argv, Not(Contains(HasSubstr("virtserialport"))));
  EXPECT_THAT(KernelCommandLine(m), HasSubstr(" magnetar.transport=vsock magnetar.ready=5000"));
}

TEST(CommandLine, WithoutSharingMemoryIsPrivate) {
  Machine m = Example();
  m.virtiofs_fd = -1;
  const std::vector<std::string> argv = CommandLine(m);
  EXPECT_THAT(argv, Not(Contains(HasSubstr("memory-backend"))));
  EXPECT_THAT(argv, Not(Contains(HasSubstr("vhost-user-fs"))));
}

TEST(CommandLine, NicsSitOnTheirOwnPorts) {
  EXPECT_EQ(NicIndex("nic0").value(), 0u);
  EXPECT_EQ(NicIndex("nic3").value(), 3u);
  for (const char* bad : {"", "nic", "nic4", "nic10", "eth0", "nic-1", "nic 1"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(NicIndex(bad).status())) << bad;
  }
}

TEST(Virtiofsd, SpeaksToEitherProgram) {
  const auto legacy = VirtiofsdProcess("/usr/lib/qemu/virtiofsd", "/run/s/shared", 33);
  EXPECT_THAT(legacy.argv(),
              ElementsAre("/usr/lib/qemu/virtiofsd", "--fd=10", "--rlimit-nofile=0", "-o",
                          "source=/run/s/shared,cache=always,timeout=1,xattr,announce_submounts,"
                          "sandbox=namespace,log_level=warn"));
  EXPECT_EQ(legacy.descriptors(0).source(), 33);
  EXPECT_EQ(legacy.descriptors(0).target(), 10);
  EXPECT_FALSE(legacy.vmm());
  EXPECT_TRUE(legacy.capabilities_outlast_uid());
  const auto rust = VirtiofsdProcess("/usr/libexec/virtiofsd", "/run/s/shared", 33);
  EXPECT_THAT(rust.argv(), Contains("--shared-dir=/run/s/shared"));
}

}  // namespace
}  // namespace magnetar::vmm::qemu
