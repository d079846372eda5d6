// Owns the model and its device: loads it, draws once to be sure, then takes jobs from the queue one at a time, steps
// each to its end and keeps the picture. Everything here blocks and therefore runs on the device's own thread.

internal import Foundation
internal import Logging
public import StableDiffusion

/// The model could not be loaded, or could not draw its first picture.
public struct LoadFailure: Error, CustomStringConvertible {
    /// What was being done.
    public let attempt: String
    /// Why it failed.
    public let cause: any Error

    /// What failed and why, in one sentence.
    public var description: String { "\(attempt): \(cause)" }
}

/// The owner of the device.
public actor Engine {
    /// Makes the generator; called once, on the device's thread.
    public typealias GeneratorFactory = @Sendable () throws -> any ImageGenerator

    private nonisolated let executor = DeviceExecutor()
    /// Isolates the engine to the device's thread.
    public nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    private let makeGenerator: GeneratorFactory
    private let configuration: Configuration
    private let queue: JobQueue
    private let store: ImageStore
    private let activity: EngineActivity
    private let metrics: Metrics
    private let logger: Logger

    init(
        makeGenerator: @escaping GeneratorFactory,
        configuration: Configuration,
        queue: JobQueue,
        store: ImageStore,
        activity: EngineActivity,
        metrics: Metrics,
        logger: Logger
    ) {
        self.makeGenerator = makeGenerator
        self.configuration = configuration
        self.queue = queue
        self.store = store
        self.activity = activity
        self.metrics = metrics
        self.logger = logger
    }

    /// Loads the model, then serves the queue until it drains.
    ///
    /// - Parameter onReady: called once, when the first picture can be asked for.
    /// - Throws: `LoadFailure`. A failed generation fails its request alone.
    func run(onReady: @Sendable (ModelDescription) async -> Void) async throws {
        let generator = try load()
        let model = generator.model
        // A shutdown may have come while the model was loading.
        guard await queue.startServing(model) else { return }
        await onReady(model)
        while let job = await queue.next() {
            let result = await perform(job, with: generator)
            await queue.finish(job, result)
        }
    }

    // MARK: Loading

    private func load() throws -> any ImageGenerator {
        try activity.during(.load) {
            let start = ContinuousClock.now
            let generator: any ImageGenerator
            do {
                generator = try makeGenerator()
            } catch {
                throw LoadFailure(attempt: "cannot load \(configuration.model.path)", cause: error)
            }
            let loadSeconds = start.secondsUntilNow
            do {
                try warmUp(generator)
            } catch {
                throw LoadFailure(attempt: "\(configuration.model.path) is loaded but cannot draw", cause: error)
            }
            logger.info(
                "model ready",
                metadata: [
                    "model": "\(generator.model.name)", "device": "\(generator.model.deviceName)",
                    "precision": "\(generator.model.precision.rawValue)", "load_seconds": "\(rounded(loadSeconds))",
                    "warm_up_seconds": "\(rounded(start.secondsUntilNow - loadSeconds))",
                ]
            )
            return generator
        }
    }

    /// Draws one small picture in one step with guidance, so that every kernel has run before the first request.
    private func warmUp(_ generator: any ImageGenerator) throws {
        let side = min(generator.model.nativeSize, max(64, generator.model.sizeMultiple))
        let request = GenerationRequest(
            prompt: "",
            width: side,
            height: side,
            steps: 1,
            guidanceScale: 7.5,
            seed: Seed(UInt64(0)),
            sampler: configuration.sampling.sampler,
            schedule: configuration.sampling.schedule,
            spacing: configuration.sampling.spacing(for: configuration.sampling.sampler),
            clipSkip: configuration.sampling.clipSkip
        )
        let generation = try generator.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        _ = try generation.decode()
    }

    // MARK: Drawing

    private func perform(
        _ job: JobQueue.Job,
        with generator: any ImageGenerator
    ) async -> Result<FinishedImage, JobFailure> {
        let request = job.request
        do {
            let start = ContinuousClock.now
            let image = try await draw(job, with: generator)
            let text = ParametersText.text(for: request, model: generator.model)
            let id = try activity.during(.save) {
                let png = try PNGEncoder.encode(
                    pixels: image.pixels,
                    width: image.width,
                    height: image.height,
                    text: (ParametersText.keyword, text)
                )
                return try store.save(png)
            }
            let seconds = start.secondsUntilNow
            metrics.observeGeneration(seconds: seconds)
            logger.info(
                "picture done",
                metadata: [
                    "id": "\(id.uuidString.lowercased())", "size": "\(image.width)x\(image.height)",
                    "steps": "\(request.steps)", "seed": "\(request.seed)", "seconds": "\(rounded(seconds))",
                ]
            )
            if let truncated = image.truncatedPrompt {
                logger.notice("the prompt was cut", metadata: ["characters_cut": "\(truncated.count)"])
            }
            return .success(FinishedImage(id: id, seconds: seconds, truncatedPrompt: image.truncatedPrompt))
        } catch {
            let failure = Self.failure(error)
            logger.log(level: failure.logLevel, "no picture", metadata: ["reason": "\(error)"])
            return .failure(failure)
        }
    }

    private func draw(_ job: JobQueue.Job, with generator: any ImageGenerator) async throws -> GeneratedImage {
        let size = job.request.finalSize(multiple: generator.model.sizeMultiple)
        let pixels = size.width * size.height
        let generation = try activity.during(.prepare, pixels: pixels) { try generator.prepare(job.request) }
        while generation.completedSteps < generation.totalSteps {
            guard await !queue.isCancelled(job.id) else { throw JobFailure.cancelled }
            try activity.during(.step, pixels: pixels) { try generation.step() }
            metrics.countStep()
        }
        return try activity.during(.decode, pixels: pixels) { try generation.decode() }
    }

    private static func failure(_ error: any Error) -> JobFailure {
        switch error {
        case let error as JobFailure: error
        case let error as GenerationError: .generation(error)
        case let error as ImageStoreError: .storage(error)
        case let error as PNGError: .internal("\(error)")
        // Whatever else a pipeline throws comes from below it: the driver.
        default: .generation(.deviceFailed(reason: "\(error)"))
        }
    }
}

extension JobFailure {
    /// What a client did wrong is no trouble of the daemon's.
    fileprivate var logLevel: Logger.Level {
        switch self {
        case .generation(.invalid), .generation(.doesNotFit), .cancelled, .queueFull, .loading, .shuttingDown: .info
        case .generation, .storage, .internal: .error
        }
    }
}

/// Seconds with three decimals, for logs.
private func rounded(_ seconds: Double) -> Double {
    (seconds * 1000).rounded() / 1000
}
