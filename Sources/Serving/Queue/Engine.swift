// Owns the models and their device: loads the usual one, draws once to be sure, then takes jobs from the queue one at a time, steps
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
    /// Makes what loads models; called once, on the device's thread.
    public typealias LoaderFactory = @Sendable () -> any ModelLoader

    private nonisolated let executor = DeviceExecutor()
    /// Isolates the engine to the device's thread.
    public nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    private let makeLoader: LoaderFactory
    private let configuration: Configuration
    private let catalogue: ModelCatalogue
    private let queue: JobQueue
    private let store: ImageStore
    private let activity: EngineActivity
    private let metrics: Metrics
    private let logger: Logger

    init(
        makeLoader: @escaping LoaderFactory,
        configuration: Configuration,
        catalogue: ModelCatalogue,
        queue: JobQueue,
        store: ImageStore,
        activity: EngineActivity,
        metrics: Metrics,
        logger: Logger
    ) {
        self.makeLoader = makeLoader
        self.configuration = configuration
        self.catalogue = catalogue
        self.queue = queue
        self.store = store
        self.activity = activity
        self.metrics = metrics
        self.logger = logger
    }

    /// Loads the usual model, then serves the queue until it drains.
    ///
    /// - Parameter onReady: called once, when the first picture can be asked for.
    /// - Throws: `LoadFailure`. A failed generation, or another model that does not load, fails its request alone.
    func run(onReady: @Sendable (ModelDescription) async -> Void) async throws {
        let models = LoadedModels(
            makeLoader(),
            configuration: configuration,
            catalogue: catalogue,
            activity: activity,
            logger: logger
        )
        let model = try begin(models)
        // A shutdown may have come while the model was loading.
        guard await queue.startServing(model) else { return }
        await onReady(model)
        while let job = await queue.next() {
            let failure = await perform(job, with: models)
            await queue.finish(job.id, failure)
        }
    }

    // MARK: Loading

    /// Loads the usual model and draws with it.
    private func begin(_ models: LoadedModels) throws -> ModelDescription {
        let start = ContinuousClock.now
        models.readOutlines()
        let generator = try models.generator(named: configuration.model.name)
        let loadSeconds = start.secondsUntilNow
        do {
            try activity.during(.load) { try warmUp(generator) }
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
        return generator.model
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

    /// Makes and keeps the pictures of a job, one after another.
    ///
    /// - Returns: Why not all of them were made; nil when they were.
    private func perform(_ job: JobQueue.Job, with models: LoadedModels) async -> JobFailure? {
        for index in 0..<job.count {
            var request = job.request
            request.seed = request.seed.advanced(by: index)
            do {
                await queue.add(try await picture(request, index, of: job, with: models), to: job.id)
            } catch {
                let failure = Self.failure(error)
                logger.log(level: failure.logLevel, "no picture", metadata: ["reason": "\(error)"])
                return failure
            }
        }
        return nil
    }

    /// Makes and keeps a picture of a job.
    private func picture(
        _ request: GenerationRequest,
        _ index: Int,
        of job: JobQueue.Job,
        with models: LoadedModels
    ) async throws -> FinishedImage {
        let start = ContinuousClock.now
        let name = request.model ?? configuration.model.name
        let generator = try models.generator(named: name)
        let (image, steps) = try await draw(request, index, of: job, with: generator) {
            models.unloadAnother(besides: name)
        }
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
                "id": "\(id.uuidString.lowercased())", "model": "\(name)", "size": "\(image.width)x\(image.height)",
                "steps": "\(steps)", "seed": "\(request.seed)", "seconds": "\(rounded(seconds))",
            ]
        )
        if let truncated = image.truncatedPrompt {
            logger.notice("the prompt was cut", metadata: ["characters_cut": "\(truncated.count)"])
        }
        return FinishedImage(id: id, seed: request.seed, seconds: seconds, truncatedPrompt: image.truncatedPrompt)
    }

    /// Draws a picture, and says in how many steps.
    ///
    /// - Parameter makeRoom: Frees memory; false when there is none to free.
    private func draw(
        _ request: GenerationRequest,
        _ index: Int,
        of job: JobQueue.Job,
        with generator: any ImageGenerator,
        makeRoom: () -> Bool
    ) async throws -> (image: GeneratedImage, steps: Int) {
        let size = request.finalSize(multiple: generator.model.sizeMultiple)
        let pixels = size.width * size.height
        let generation = try activity.during(.prepare, pixels: pixels) {
            while true {
                do {
                    return try generator.prepare(request)
                } catch let error as GenerationError where error.isLackOfMemory && makeRoom() {
                    continue
                }
            }
        }
        let steps = generation.totalSteps
        while await queue.advance(job.id, step: index * steps + generation.completedSteps, of: job.count * steps) {
            guard generation.completedSteps < steps else { break }
            try activity.during(.step, pixels: pixels) { try generation.step() }
            metrics.countStep()
        }
        guard generation.completedSteps == steps else { throw JobFailure.cancelled }
        let image = try activity.during(.decode, pixels: pixels) { try generation.decode() }
        return (image, steps)
    }

    private static func failure(_ error: any Error) -> JobFailure {
        switch error {
        case let error as JobFailure: error
        case let error as GenerationError: .generation(error)
        case let error as LoadFailure: .model(reason: error.description)
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
        case .generation(.invalid), .generation(.doesNotFit), .cancelled, .queueFull, .loading, .shuttingDown,
            .keyReused:
            .info
        case .generation, .model, .storage, .internal: .error
        }
    }
}

extension GenerationError {
    /// Whether it might go better with other models gone.
    fileprivate var isLackOfMemory: Bool {
        switch self {
        case .doesNotFit, .outOfDeviceMemory: true
        case .invalid, .deviceFailed, .nonFinite: false
        }
    }
}

/// Seconds with three decimals, for logs.
private func rounded(_ seconds: Double) -> Double {
    (seconds * 1000).rounded() / 1000
}
