// A generator without a device: draws a gradient, as slowly or as badly as a test wants.

import Foundation
import Logging
import StableDiffusion
import Synchronization
import TestSupport

@testable import Serving

/// What a fake generator does; shared with the test, which may hold it at a step.
final class FakeDevice: Sendable {
    private struct State {
        var isHeld = false
        var prepared: [GenerationRequest] = []
        var failures: [String: GenerationError] = [:]
        var loads: [String] = []
        var loaded: [String] = []
    }

    private let state = Mutex(State())
    let nativeSize: Int
    /// Models that fit it at a time; all weigh the same.
    let room: Int
    /// Opens when the model may finish loading.
    let mayLoad = DispatchSemaphore(value: 0)
    private let gate = NSCondition()

    init(nativeSize: Int = 64, room: Int = 100) {
        self.nativeSize = nativeSize
        self.room = room
    }

    /// Every model that was loaded, by its path, in order.
    var loads: [String] { state.withLock { $0.loads } }
    /// What is loaded now.
    var loaded: [String] { state.withLock { $0.loaded } }

    fileprivate func load(_ path: String) throws {
        try state.withLock { state in
            guard state.loaded.count < room else {
                throw GenerationError.outOfDeviceMemory(bytes: 1 << 20, reason: "full")
            }
            state.loads.append(path)
            state.loaded.append(path)
        }
    }

    fileprivate func unload(_ path: String) {
        state.withLock { $0.loaded.removeAll { $0 == path } }
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

/// Loads models onto a fake device: any path but those that say "missing", which are not there, and "damaged", which do not load.
final class FakeLoader: ModelLoader {
    private let device: FakeDevice
    private let waits: Bool

    /// - Parameter waits: Whether the first model waits until it may load.
    init(_ device: FakeDevice, waits: Bool = true) {
        self.device = device
        self.waits = waits
    }

    func outline(_ options: PipelineOptions) throws -> ModelOutline {
        if options.modelPath.contains("missing") {
            throw ConfigurationFileError(file: options.modelPath, found: "it is not there", allowed: "a model")
        }
        let side = options.modelPath.contains("large") ? 2 * device.nativeSize : device.nativeSize
        return ModelOutline(name: options.modelPath, nativeSize: side, weightBytes: 1 << 20)
    }

    func load(_ options: PipelineOptions) throws -> any ImageGenerator {
        if waits, device.loads.isEmpty { device.mayLoad.wait() }
        if options.modelPath.contains("damaged") { throw GenerationError.nonFinite(reason: "weights are damaged") }
        try device.load(options.modelPath)
        return FakeGenerator(device, path: options.modelPath)
    }

    var availableBytes: Int? { (device.room - device.loaded.count) << 20 }

    func releaseUnusedMemory() {}
}

/// Draws a gradient on a fake device.
final class FakeGenerator: ImageGenerator {
    let device: FakeDevice
    private let path: String

    init(_ device: FakeDevice, path: String) {
        self.device = device
        self.path = path
    }

    deinit {
        device.unload(path)
    }

    var model: ModelDescription {
        ModelDescription(
            name: path.split(separator: "/").last.map(String.init) ?? path,
            nativeSize: device.nativeSize,
            precision: .float32,
            deviceName: "no device"
        )
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
        FakeLoader(device)
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

extension GenerateSchema {
    /// A schema for one model.
    init(configuration: Configuration, nativeSize: Int?, sizeMultiple: Int = 8) {
        let model = Model(name: "demo", nativeSize: nativeSize, sizeMultiple: sizeMultiple)
        self.init(configuration: configuration, usualModel: model)
    }
}
