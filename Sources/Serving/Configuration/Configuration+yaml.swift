// The configuration written out, as `check-config` shows what a file and the environment come to.

internal import JSON
internal import Logging
internal import StableDiffusion

extension Configuration {
    /// Every key with its present value, as YAML that reads back as this configuration.
    public var yaml: String {
        """
        server:
          host: \(quoted(server.host))
          port: \(server.port)
        model:
          \(lines(of: model))
        models:\(modelList)
        image:
          width: \(image.width.map(String.init) ?? "auto")
          height: \(image.height.map(String.init) ?? "auto")
        precision: \(precision.rawValue)
        device:
          platform: \(device.platform.map(quoted) ?? "auto")
          index: \(device.index.map(String.init) ?? "auto")
          gemm: \(device.gemm.rawValue)
          model_memory: \(modelMemory.map(String.init) ?? "auto")
        sampling:
          sampler: \(sampling.sampler.rawValue)
          schedule: \(sampling.schedule?.rawValue ?? "auto")
          prompt_syntax: \(sampling.promptSyntax.rawValue)
          clip_skip: \(sampling.clipSkip)
          spacing: \(sampling.spacing?.rawValue ?? "auto")
          steps: \(sampling.steps)
          scale: \(shortNumber(sampling.scale))
          rng: \(sampling.noise.rawValue)
        queue:
          capacity: \(queue.capacity)
          on_disconnect: \(queue.onDisconnect.rawValue)
        storage:
          directory: \(quoted(storage.directory))
        kernels:
          directory: \(kernels.directory.map(quoted) ?? "embedded")
        cache:
          directory: \(cache.directory.map(quoted) ?? "auto")
        limits:
          width: \(limits.width)
          height: \(limits.height)
          steps: \(limits.steps)
          count: \(limits.count)
          prompt_characters: \(limits.promptCharacters)
          body_bytes: \(limits.bodyBytes)
        log:
          level: \(log.level.rawValue)

        """
    }

    private func lines(of model: Model) -> String {
        let lines = [
            "name: \(model.givenName.map(quoted) ?? "auto")", "path: \(quoted(model.path))",
            "vae: \(model.vae.map(quoted) ?? "auto")",
            "prediction_type: \(model.prediction.rawValue)", "loras: \(model.loras.map(quoted) ?? "none")",
            "embeddings: \(model.embeddings.map(quoted) ?? "none")",
        ]
        return lines.joined(separator: "\n  ")
    }

    private var modelList: String {
        if models.isEmpty { return " []" }
        return models.map { model in
            let lines = lines(of: model).replacing("\n", with: "\n  ")
            return "\n  - \(lines)\n    precision: \(model.precision?.rawValue ?? "auto")"
        }.joined()
    }

    /// A JSON string is a YAML string.
    private func quoted(_ text: String) -> String {
        JSONValue.string(text).serialized
    }
}
