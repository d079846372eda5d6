// The cache of built programs: what is kept comes back, and whatever is wrong with an entry costs a compilation, never a wrong result.

import Foundation
import Logging
import Synchronization
import TestSupport
import Testing

@testable import OpenCLRuntime

/// A directory that is not there yet, and is removed with the last reference.
private final class CacheDirectory {
    private let parent: TemporaryDirectory
    var path: String { parent.path + "/programs" }
    var entries: [String] { (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? [] }

    init() throws {
        parent = try TemporaryDirectory()
    }
}

/// Counts messages of level warning and above.
private final class WarningCounter: LogHandler, Sendable {
    let count = Mutex(0)

    func log(event: LogEvent) {
        if event.level >= .warning { count.withLock { $0 += 1 } }
    }

    subscript(metadataKey _: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }

    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }

    var logLevel: Logger.Level {
        get { .debug }
        set {}
    }
}

private let key = ProgramKey(
    source: "__kernel void f() {}",
    options: "-DA=1",
    platformName: "platform",
    platformVersion: "OpenCL 3.0",
    deviceName: "device",
    deviceVersion: "OpenCL 3.0 x",
    driverVersion: "1.2.3",
    capabilities: "8 cl_khr_fp16"
)
private let binary: [UInt8] = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * $0 >> 3) }

private func makeCache(_ directory: CacheDirectory, byteLimit: Int = 1 << 20) -> ProgramCache {
    ProgramCache(directory: directory.path, byteLimit: byteLimit, logger: testLogger)
}

struct ProgramCacheTests {
    @Test func keepsAndGivesBack() throws {
        let directory = try CacheDirectory()
        #expect(makeCache(directory).binary(for: key) == nil)
        makeCache(directory).store(binary, for: key)
        #expect(makeCache(directory).binary(for: key) == binary)
        makeCache(directory).store([7], for: key)
        #expect(makeCache(directory).binary(for: key) == [7])
        #expect(directory.entries.count == 1, "no temporary file is left")
    }

    @Test func everyIngredientCounts() throws {
        let directory = try CacheDirectory()
        let cache = makeCache(directory)
        cache.store(binary, for: key)
        let ingredients: [WritableKeyPath<ProgramKey, String>] = [
            \.source, \.options, \.platformName, \.platformVersion, \.deviceName, \.deviceVersion, \.driverVersion,
            \.capabilities,
        ]
        #expect(ingredients.count == Mirror(reflecting: key).children.count)
        for ingredient in ingredients {
            var other = key
            other[keyPath: ingredient] += "x"
            #expect(cache.binary(for: other) == nil)
            // Even under its name an entry is not taken for another program's.
            try? FileManager.default.copyItem(atPath: cache.path(of: key), toPath: cache.path(of: other))
            #expect(cache.binary(for: other) == nil)
        }
        var moved = key
        moved.source.removeLast()
        moved.options = "}" + moved.options
        #expect(moved.bytes != key.bytes)
        #expect(cache.binary(for: key) == binary)
    }

    @Test func damagedEntriesAreMisses() throws {
        let directory = try CacheDirectory()
        let cache = makeCache(directory)
        cache.store(binary, for: key)
        let path = cache.path(of: key)
        let entry = try [UInt8](Data(contentsOf: URL(fileURLWithPath: path)))
        let header = 32
        #expect(entry.count == header + key.bytes.count + binary.count)
        let lengths = [
            0, 1, 7, 8, 11, 12, 15, 16, 23, 24, 31, header, header + 5, entry.count - binary.count, entry.count - 1,
        ]
        var damaged = lengths.map { Array(entry[..<$0]) }
        damaged += [entry + [0], Array("#!/bin/sh".utf8), [UInt8](repeating: 0xff, count: entry.count)]
        var generator = SystemRandomNumberGenerator()
        for count in [10, header, entry.count, 100_000] {
            damaged.append((0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) })
        }
        for position in entry.indices {
            var flipped = entry
            flipped[position] ^= 1 << UInt8(position % 8)
            damaged.append(flipped)
        }
        // Lengths beyond the file, whose sum overflows.
        var long = entry
        for position in 16..<32 { long[position] = 0xff }
        damaged.append(long)
        for bytes in damaged {
            let handle = try #require(fopen(path, "w"))
            fwrite(bytes, 1, bytes.count, handle)
            fclose(handle)
            #expect(cache.binary(for: key) == nil, "\(bytes.count) bytes, \(bytes.prefix(40))")
        }
        cache.store(binary, for: key)
        #expect(cache.binary(for: key) == binary)
    }

    @Test func whatIsNoFileIsAMiss() throws {
        let directory = try CacheDirectory()
        let cache = makeCache(directory)
        try FileManager.default.createDirectory(atPath: cache.path(of: key), withIntermediateDirectories: true)
        #expect(cache.binary(for: key) == nil)
        try FileManager.default.removeItem(atPath: cache.path(of: key))
        #expect(mkfifo(cache.path(of: key), 0o600) == 0)
        #expect(cache.binary(for: key) == nil, "a pipe is not waited for")
    }

    @Test func whatOthersCanWriteIsAMiss() throws {
        let directory = try CacheDirectory()
        let cache = makeCache(directory)
        cache.store(binary, for: key)
        #expect(chmod(cache.path(of: key), 0o666) == 0)
        #expect(cache.binary(for: key) == nil)
        cache.store(binary, for: key)
        #expect(cache.binary(for: key) == binary, "and is replaced")
    }

    @Test func readersSeeWholeEntries() async throws {
        let directory = try CacheDirectory()
        let path = directory.path
        let seen = await withTaskGroup(of: Bool.self) { group in
            for writer in 0..<4 {
                // Each has its own cache, as processes have.
                group.addTask {
                    let cache = ProgramCache(directory: path, logger: testLogger)
                    return (0..<50).allSatisfy { round in
                        cache.store([UInt8](repeating: UInt8(writer), count: 20_000 + writer), for: key)
                        guard let found = cache.binary(for: key), let first = found.first else { return false }
                        return found == [UInt8](repeating: first, count: 20_000 + Int(first))
                    }
                }
            }
            return await group.reduce(true) { $0 && $1 }
        }
        #expect(seen)
        #expect(directory.entries.count == 1)
    }

    @Test func unwritableDirectoryIsSaidOnce() throws {
        let directory = try CacheDirectory()
        #expect(FileManager.default.createFile(atPath: directory.path, contents: Data()))
        let counter = WarningCounter()
        let cache = ProgramCache(
            directory: directory.path + "/programs",
            logger: Logger(label: "test", factory: { _ in counter })
        )
        for _ in 0..<3 {
            cache.store(binary, for: key)
            #expect(cache.binary(for: key) == nil)
        }
        #expect(counter.count.withLock { $0 } == 1)
    }

    @Test func entriesUsedLongestAgoGoFirst() throws {
        let directory = try CacheDirectory()
        let cache = makeCache(directory, byteLimit: 4000)
        func other(_ number: Int) -> ProgramKey {
            var other = key
            other.options = "-DA=\(number)"
            return other
        }
        func age(_ number: Int, hours: Int) {
            var times = [timeval](repeating: timeval(tv_sec: time(nil) - hours * 3600, tv_usec: 0), count: 2)
            #expect(utimes(cache.path(of: other(number)), &times) == 0)
        }
        // An entry takes 1000 bytes and its key; three fit.
        for number in 2...4 {
            cache.store(binary, for: other(number))
            age(number, hours: 10 - number)
        }
        #expect(cache.binary(for: other(2)) == binary, "which makes it the one used last")
        let leftBehind = cache.path(of: key) + ".abcdef"
        #expect(FileManager.default.createFile(atPath: leftBehind, contents: Data()))
        var times = [timeval](repeating: timeval(tv_sec: time(nil) - 7200, tv_usec: 0), count: 2)
        #expect(utimes(leftBehind, &times) == 0)
        cache.store(binary, for: other(5))
        #expect(cache.binary(for: other(3)) == nil)
        for number in [2, 4, 5] { #expect(cache.binary(for: other(number)) == binary, "entry \(number)") }
        #expect(directory.entries.count == 3)
    }
}

private let source = ProgramSource(
    file: "test.cl",
    text: "__kernel void fill(__global int* y, const int value) { y[get_global_id(0)] = value + ADD; }",
    options: "-DADD=1"
)

/// On whatever device there is, PoCL as well, for which the daemon does not use the cache.
@Suite(.requiresDevice)
@DeviceActor
struct KeptProgramTests {
    private let queue: CommandQueue
    private let directory: CacheDirectory
    private let cache: ProgramCache
    private let deviceKey: ProgramKey

    init() throws {
        queue = try CommandQueue(device: testDevice.get(), logger: testLogger)
        directory = try CacheDirectory()
        cache = makeCache(directory, byteLimit: 64 << 20)
        deviceKey = ProgramKey(source: source.text, options: source.options, device: queue.device)
    }

    /// Builds `fill` as the daemon does and returns what it writes for 5, and whether the cache had it.
    private func run(_ source: ProgramSource = source) throws -> (value: Int32, isFromCache: Bool) {
        let build = ProgramBuild(source, ProgramCompiler(queue, cache: cache))
        let handle = try KernelLibrary.handle("fill", of: build, argumentCount: 2)
        let kernel = Kernel(name: "fill", queue: queue) { handle }
        try kernel.prepare()
        let buffer = try Buffer(queue, byteCount: 16)
        try kernel.enqueue([.buffer(buffer), .int(5)], global: [4], local: [1])
        var values = [Int32](repeating: 0, count: 4)
        try values.withUnsafeMutableBytes { try queue.read(buffer, into: $0) }
        #expect(Set(values).count == 1)
        return (values[0], try build.program().isFromCache)
    }

    @Test func secondStartCompilesNothing() throws {
        #expect(try run() == (6, false))
        #expect(try run() == (6, true))
        #expect(directory.entries.count == 1)
    }

    @Test func refusedBinaryIsCompiledAndReplaced() throws {
        for binary in [[UInt8](repeating: 0, count: 64), Array("garbage".utf8), (0..<5000).map { UInt8($0 % 251) }] {
            // A right entry around it: the driver is who has to refuse it.
            cache.store(binary, for: deviceKey)
            #expect(try run() == (6, false))
            #expect(try run() == (6, true))
        }
    }

    @Test func binaryWithoutTheKernelIsCompiledAndReplaced() throws {
        let other = ProgramSource(
            file: "other.cl",
            text: "__kernel void other(__global int* y) { y[0] = 3; }",
            options: ""
        )
        _ = try ProgramCompiler(queue, cache: cache).build(other)
        let otherKey = ProgramKey(source: other.text, options: other.options, device: queue.device)
        cache.store(try #require(cache.binary(for: otherKey)), for: deviceKey)
        #expect(try run() == (6, false))
        #expect(try run() == (6, true))
    }

    @Test func otherOptionsAreOtherPrograms() throws {
        #expect(try run() == (6, false))
        let changed = ProgramSource(file: source.file, text: source.text, options: "-DADD=10")
        #expect(try run(changed) == (15, false))
        #expect(try run(changed) == (15, true))
    }

    @Test func unwritableDirectoryIsNoFailure() throws {
        #expect(FileManager.default.createFile(atPath: directory.path, contents: Data()))
        #expect(try run() == (6, false))
    }

    @Test func poclKeepsItsOwn() throws {
        guard queue.device.isPoCL else { return }
        let library = KernelLibrary(queue, cache: cache)
        _ = try library.kernel("image_to_rgb8", file: "image_conversion.cl", macros: [:], argumentCount: 3)
        #expect(directory.entries.isEmpty)
    }
}
