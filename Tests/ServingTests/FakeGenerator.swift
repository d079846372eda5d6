// A generator without a device: draws a gradient, as slowly or as badly as a test wants.

import Foundation
import Logging
import StableDiffusion
import Synchronization

@testable import Serving

/// What a fake generator does; shared with the test, which may hold it at a step.
final class FakeDevice: Sendable {
    private struct State {
        var isHeld = false
        var prepared: [GenerationRequest] = []
        var failures: [String: GenerationError] = [:]
    }

    private let state = Mutex(State())
    let nativeSize: Int
    /// Opens when the model may finish loading.
    let mayLoad = DispatchSemaphore(value: 0)
    private let gate = NSCondition()

    init(nativeSize: Int = 64) {
        self.nativeSize = nativeSize
    }

    /// Requests that were begun, without the warm-up.
    var prepared: [GenerationRequest] { state.withLock { Array($0.prepared.dropFirst()) } }
    /// The request the engine warmed up with.
    var warmUp: GenerationRequest? { state.withLock { $0.prepared.first } }

    /// Makes generations of a prompt fail.
    func fail(_ prompt: String, with error: GenerationError) {
        state.withLock { $0.failures[prompt] = error }
    }

    /// Stops every generation at its next step.
    func hold() {
        state.withLock { $0.isHeld = true }
    }

    /// Lets held generations go on.
    func release() {
        state.withLock { $0.isHeld = false }
        gate.withLock { gate.broadcast() }
    }

    fileprivate func begin(_ request: GenerationRequest) throws {
        let failure = state.withLock { state in
            state.prepared.append(request)
            return state.failures[request.prompt]
        }
        if let failure { throw failure }
    }

    fileprivate func waitAtStep() {
        gate.withLock {
            while state.withLock({ $0.isHeld }) { gate.wait() }
        }
    }
}

/// Draws a gradient on a fake device.
final class FakeGenerator: ImageGenerator {
    let device: FakeDevice

    init(_ device: FakeDevice) {
        self.device = device
    }

    var model: ModelDescription {
        ModelDescription(name: "fake", nativeSize: device.nativeSize, precision: .float32, deviceName: "no device")
    }

    func prepare(_ request: GenerationRequest) throws -> any Generation {
        try device.begin(request)
        return FakeGeneration(request, device)
    }
}

private final class FakeGeneration: Generation {
    private let request: GenerationRequest
    private let device: FakeDevice
    private(set) var completedSteps = 0
    var totalSteps: Int { request.steps }

    init(_ request: GenerationRequest, _ device: FakeDevice) {
        self.request = request
        self.device = device
    }

    func step() throws {
        device.waitAtStep()
        completedSteps += 1
    }

    func decode() throws -> GeneratedImage {
        var pixels: [UInt8] = []
        for y in 0..<request.height {
            for x in 0..<request.width {
                pixels += [UInt8(x & 255), UInt8(y & 255), UInt8(truncatingIfNeeded: request.seed.bits)]
            }
        }
        let cut = request.prompt.hasPrefix("long") ? " the end" : nil
        return GeneratedImage(width: request.width, height: request.height, pixels: pixels, truncatedPrompt: cut)
    }
}

/// A directory that goes away with the test.
final class TemporaryDirectory {
    let path = FileManager.default.temporaryDirectory.path + "/diffused-test-\(UUID().uuidString)"

    init() throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
    }
}

/// A logger that says nothing.
let silentLogger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

/// A daemon with a fake device, its engine running.
func withDaemon<Result: Sendable>(
    _ device: FakeDevice = FakeDevice(),
    configure: (inout Configuration) -> Void = { _ in },
    swaggerDirectories: [String] = [],
    isLoaded: Bool = true,
    _ body: @Sendable (Daemon) async throws -> Result
) async throws -> Result {
    let directory = try TemporaryDirectory()
    var configuration = Configuration()
    configuration.storage.directory = directory.path
    configuration.sampling.steps = 2
    configure(&configuration)
    let daemon = try Daemon(
        configuration: configuration,
        logger: silentLogger,
        swaggerDirectories: swaggerDirectories
    ) {
        device.mayLoad.wait()
        return FakeGenerator(device)
    }
    if isLoaded { device.mayLoad.signal() }
    let (ready, markReady) = AsyncStream<Void>.makeStream()
    let engine = Task {
        try await daemon.engine.run { _ in markReady.finish() }
    }
    if isLoaded {
        for await _ in ready {}
    }
    defer {
        // Whatever state the test left, the engine's thread must come to its end.
        device.mayLoad.signal()
        device.release()
    }
    let result: Swift.Result<Result, any Error>
    do {
        result = .success(try await body(daemon))
    } catch {
        result = .failure(error)
    }
    device.mayLoad.signal()
    device.release()
    _ = await daemon.queue.drain()
    _ = try? await engine.value
    withExtendedLifetime(directory) {}
    return try result.get()
}

/// Waits until a condition holds, which it must soon.
func eventually(_ condition: @Sendable () async -> Bool) async -> Bool {
    for _ in 0..<500 {
        if await condition() { return true }
        try? await Task.sleep(for: .milliseconds(10))
    }
    return false
}
