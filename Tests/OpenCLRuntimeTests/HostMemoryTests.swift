// What the host has left, from files as Linux writes them.

import TestSupport
import Testing

@testable import OpenCLRuntime

struct HostMemoryTests {
    private let machine = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    1000000 kB\n"

    @Test func thisMachineHasSomeLeft() throws {
        let bytes = try #require(HostMemory.availableBytes())
        #expect(bytes > 1 << 20)
    }

    @Test func withoutALimitTheMachineDecides() throws {
        let root = try TemporaryDirectory()
        try root.write(machine, to: "proc/meminfo")
        #expect(HostMemory.availableBytes(root: root.path) == 1_024_000_000)
        try root.write("0::/system.slice/diffused.service\n", to: "proc/self/cgroup")
        try root.write("max\n", to: "sys/fs/cgroup/system.slice/diffused.service/memory.max")
        try root.write("5\n", to: "sys/fs/cgroup/system.slice/diffused.service/memory.current")
        #expect(HostMemory.availableBytes(root: root.path) == 1_024_000_000)
    }

    /// The limit of a group above counts as well, and its page cache does not.
    @Test(arguments: ["", "/system.slice", "/system.slice/diffused.service"])
    func theControlGroupsLimitDecidesWhereItIsLess(_ group: String) throws {
        let root = try TemporaryDirectory()
        try root.write(machine, to: "proc/meminfo")
        try root.write("0::/system.slice/diffused.service\n", to: "proc/self/cgroup")
        try root.write("500000000\n", to: "sys/fs/cgroup\(group)/memory.max")
        try root.write("400000000\n", to: "sys/fs/cgroup\(group)/memory.current")
        #expect(HostMemory.availableBytes(root: root.path) == 100_000_000)
        try root.write(
            "anon 1\nfile 300\ninactive_file 50000000\nactive_file 7\n",
            to: "sys/fs/cgroup\(group)/memory.stat"
        )
        #expect(HostMemory.availableBytes(root: root.path) == 150_000_007)
    }

    @Test func nothingKnownIsNil() throws {
        #expect(HostMemory.availableBytes(root: try TemporaryDirectory().path) == nil)
    }
}
