// The models on the device: loads what a job asks for, and lets go of what there is no room for. Blocks, and belongs to the engine's thread; as
// that draws one picture after another, no model goes in the middle of one.

internal import Logging
internal import StableDiffusion

/// What is loaded, and how to load what is not.
final class LoadedModels {
    private let loader: any ModelLoader
    private let configuration: Configuration
    private let catalogue: ModelCatalogue
    private let activity: EngineActivity
    private let logger: Logger
    private var generators: [String: any ImageGenerator] = [:]
    private var residency: ModelResidency
    /// What drew last.
    private var current: String?

    init(
        _ loader: any ModelLoader,
        configuration: Configuration,
        catalogue: ModelCatalogue,
        activity: EngineActivity,
        logger: Logger
    ) {
        self.loader = loader
        self.configuration = configuration
        self.catalogue = catalogue
        self.activity = activity
        self.logger = logger
        residency = ModelResidency(budget: configuration.modelMemory.map { $0 << 20 })
    }

    /// Reads what every model's files say of its pictures; one that cannot be read is refused to those who ask for it, and the others draw.
    func readOutlines() {
        for model in configuration.allModels {
            let outline = Result { try loader.outline(configuration.pipelineOptions(for: model)) }
            catalogue.note(model.name, outline: outline)
            if case .failure(let error) = outline, model.name != configuration.model.name {
                logger.error("a model cannot be used", metadata: ["model": "\(model.name)", "reason": "\(error)"])
            }
        }
    }

    /// The model of a name, loaded if it is not.
    ///
    /// - Throws: `LoadFailure`.
    func generator(named name: String) throws -> any ImageGenerator {
        // What another model's pictures took would only add up.
        if let current, current != name { loader.releaseUnusedMemory() }
        current = name
        let bytes = catalogue.entries.first { $0.name == name }?.outline?.weightBytes ?? 0
        if let generator = generators[name] {
            residency.use(name, bytes: bytes)
            return generator
        }
        guard let model = configuration.allModels.first(where: { $0.name == name }) else {
            preconditionFailure("no model is called \(name)")
        }
        while !residency.hasRoom(for: bytes, available: loader.availableBytes), unloadAnother(besides: name) {}
        let generator = try load(model)
        residency.use(name, bytes: bytes)
        generators[name] = generator
        catalogue.note(name, loaded: generator.model)
        return generator
    }

    private func load(_ model: Configuration.Model) throws -> any ImageGenerator {
        try activity.during(.load) {
            while true {
                do {
                    return try loader.load(configuration.pipelineOptions(for: model))
                } catch GenerationError.outOfDeviceMemory(_, _) where unloadAnother(besides: model.name) {
                    continue
                } catch {
                    throw LoadFailure(attempt: "cannot load \(model.path)", cause: error)
                }
            }
        }
    }

    /// Lets go of the model that has not been used for longest, and of what its pictures left.
    ///
    /// - Returns: Whether there was another.
    func unloadAnother(besides name: String) -> Bool {
        guard let other = residency.leastRecentlyUsed(besides: name) else { return false }
        residency.remove(other)
        generators[other] = nil
        loader.releaseUnusedMemory()
        catalogue.note(other, loaded: nil)
        logger.info("model unloaded", metadata: ["model": "\(other)", "for": "\(name)"])
        return true
    }
}
