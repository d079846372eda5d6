// From the YAML tree to a `Configuration`: every key is asked for by name, with its type and range, and what nobody
// asked for is an unknown key. The wording of the messages lives here.

internal import Logging
internal import StableDiffusion

/// Decodes one configuration file.
struct ConfigurationDecoder {
    /// The file's name for messages.
    let file: String
    /// Directory that relative paths start from.
    let directory: String

    /// Fills in what the file says; what it leaves out keeps the value of `defaults`.
    func decode(_ root: YAMLNode?, defaults: Configuration) throws(ConfigurationError) -> Configuration {
        var result = defaults
        guard let root, !root.isNull else { return result }
        let top = try ConfigurationSection(
            path: nil,
            node: root,
            file: file,
            keys: [
                "server", "model", "models", "image", "precision", "device", "sampling", "queue", "storage", "kernels",
                "cache",
                "limits", "log",
            ]
        )

        // The limits come first because other keys must stay below them.
        if let limits = try top.section(
            "limits",
            keys: ["width", "height", "steps", "count", "prompt_characters", "body_bytes"]
        ) {
            try limits.size("width", atMost: Self.largestSize, into: &result.limits.width)
            try limits.size("height", atMost: Self.largestSize, into: &result.limits.height)
            try limits.integer("steps", in: 1...1000, into: &result.limits.steps)
            try limits.integer("count", in: 1...1000, into: &result.limits.count)
            try limits.integer("prompt_characters", in: 1...1_000_000, into: &result.limits.promptCharacters)
            try limits.integer("body_bytes", in: 1024...67_108_864, into: &result.limits.bodyBytes)
        }
        if let server = try top.section("server", keys: ["host", "port"]) {
            try server.text("host", into: &result.server.host)
            try server.integer("port", in: 0...65535, into: &result.server.port)
        }
        if let model = try top.section("model", keys: Self.modelKeys) { try decode(model, into: &result.model) }
        for section in try top.sections("models", keys: Self.modelKeys + ["precision"]) {
            var model = Configuration.Model()
            try section.require("name")
            try section.require("path")
            try decode(section, into: &model)
            try section.choice("precision", orWord: "auto", into: &model.precision)
            guard !result.allModels.contains(where: { $0.name == model.name }) else {
                throw section.failure("name", allowed: "a name that no other model has")
            }
            result.models.append(model)
        }
        if let image = try top.section("image", keys: ["width", "height"]) {
            try image.size("width", atMost: result.limits.width, orWord: "auto", into: &result.image.width)
            try image.size("height", atMost: result.limits.height, orWord: "auto", into: &result.image.height)
        }
        try top.choice("precision", into: &result.precision)
        if let device = try top.section("device", keys: ["platform", "index", "gemm", "model_memory"]) {
            try device.text("platform", orWord: "auto", into: &result.device.platform)
            try device.integer("index", in: 0...255, orWord: "auto", into: &result.device.index)
            try device.choice("gemm", into: &result.device.gemm)
            try device.integer("model_memory", in: 64...1 << 24, orWord: "auto", into: &result.modelMemory)
        }
        let samplingKeys = [
            "sampler", "schedule", "spacing", "steps", "scale", "rng", "prompt_syntax", "clip_skip",
        ]
        if let sampling = try top.section("sampling", keys: samplingKeys) {
            try sampling.sampler("sampler", into: &result.sampling.sampler, schedule: &result.sampling.schedule)
            try sampling.choice("schedule", orWord: "auto", into: &result.sampling.schedule)
            if let schedule = result.sampling.schedule {
                try sampling.check(schedule, of: result.sampling.sampler)
            }
            try sampling.choice("prompt_syntax", into: &result.sampling.promptSyntax)
            try sampling.integer(
                "clip_skip",
                in: 1...GenerationRequest.maximumClipSkip,
                into: &result.sampling.clipSkip
            )
            try sampling.choice("spacing", orWord: "auto", into: &result.sampling.spacing)
            try sampling.integer("steps", in: 1...result.limits.steps, into: &result.sampling.steps)
            try sampling.number(
                "scale",
                atMost: GenerationRequest.maximumGuidanceScale,
                into: &result.sampling.scale
            )
            try sampling.choice("rng", into: &result.sampling.noise)
        }
        if let queue = try top.section("queue", keys: ["capacity", "on_disconnect"]) {
            try queue.integer("capacity", in: 1...10_000, into: &result.queue.capacity)
            try queue.choice("on_disconnect", into: &result.queue.onDisconnect)
        }
        if let storage = try top.section("storage", keys: ["directory"]) {
            try storage.path("directory", from: directory, into: &result.storage.directory)
        }
        if let kernels = try top.section("kernels", keys: ["directory"]) {
            try kernels.path("directory", from: directory, orWord: "embedded", into: &result.kernels.directory)
        }
        if let cache = try top.section("cache", keys: ["directory"]) {
            try cache.path("directory", from: directory, orWord: "auto", into: &result.cache.directory)
        }
        if let log = try top.section("log", keys: ["level"]) {
            try log.choice("level", into: &result.log.level)
        }
        return result
    }

    private static let modelKeys = ["name", "path", "vae", "prediction_type", "loras", "embeddings"]

    private func decode(_ section: ConfigurationSection, into model: inout Configuration.Model)
        throws(ConfigurationError)
    {
        try section.text("name", orWord: "auto", atMost: 200, into: &model.givenName)
        try section.path("path", from: directory, into: &model.path)
        try section.path("vae", from: directory, orWord: "auto", into: &model.vae)
        try section.choice("prediction_type", into: &model.prediction)
        try section.path("loras", from: directory, orWord: "none", into: &model.loras)
        try section.path("embeddings", from: directory, orWord: "none", into: &model.embeddings)
    }

    /// Largest picture side that `limits` may allow, in pixels.
    static let largestSize = 16384
}
