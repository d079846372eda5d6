// How a pipeline is set up: which checkpoint, which device, which precision. Filled from `config.yaml` or the command line.

internal import Glibc

/// Which GEMM implementation multiplies matrices.
public enum GEMMChoice: String, CaseIterable, Sendable {
    /// Measured on the device at first start, per class of shapes.
    case auto
    /// CLBlast.
    case clblast
    /// The project's own kernels.
    case builtin
}

/// Which OpenCL device runs the model.
public struct DeviceOptions: Sendable, Equatable {
    /// Part of a platform's name, without regard to case; nil chooses the best device of all platforms.
    public var platform: String?
    /// Index of the device within the chosen platform, or among all devices when no platform is named; nil chooses.
    public var index: Int?
    /// GEMM implementation.
    public var gemm: GEMMChoice

    /// Options from their parts.
    public init(platform: String? = nil, index: Int? = nil, gemm: GEMMChoice = .auto) {
        self.platform = platform
        self.index = index
        self.gemm = gemm
    }
}

/// Everything needed to load a model onto a device.
public struct PipelineOptions: Sendable, Equatable {
    /// A diffusers folder, or a single `.safetensors` or `.ckpt` file.
    public var modelPath: String
    /// An autoencoder to use instead of the model's own, a folder or a file; nil uses the model's.
    public var vaePath: String?
    /// What the model's output means.
    public var prediction: PredictionChoice
    /// Storage precision of weights and activations.
    public var precision: Precision
    /// Device choice.
    public var device: DeviceOptions
    /// Directory whose LoRAs requests may name; nil for none.
    public var lorasDirectory: String?
    /// Directory whose textual inversions prompts may name; nil for none.
    public var embeddingsDirectory: String?
    /// Directory of `.cl` files to use instead of the embedded ones, for work on kernels.
    public var kernelsDirectory: String?
    /// Directory for tuning results and built kernels; nil keeps none.
    public var cacheDirectory: String?

    /// Options from their parts.
    public init(
        modelPath: String,
        vaePath: String? = nil,
        prediction: PredictionChoice = .auto,
        precision: Precision = .float16,
        device: DeviceOptions = DeviceOptions(),
        lorasDirectory: String? = nil,
        embeddingsDirectory: String? = nil,
        kernelsDirectory: String? = nil,
        cacheDirectory: String? = nil
    ) {
        self.modelPath = modelPath
        self.vaePath = vaePath
        self.prediction = prediction
        self.precision = precision
        self.device = device
        self.lorasDirectory = lorasDirectory
        self.embeddingsDirectory = embeddingsDirectory
        self.kernelsDirectory = kernelsDirectory
        self.cacheDirectory = cacheDirectory
    }
}

extension PipelineOptions {
    /// Refuses directories of LoRAs and embeddings that are not there: a request that names a file would only say that it is not found.
    func checkDirectories() throws(ConfigurationFileError) {
        for (key, path) in [("loras", lorasDirectory), ("embeddings", embeddingsDirectory)] {
            var status = stat()
            guard let path, stat(path, &status) != 0 || status.st_mode & S_IFMT != S_IFDIR else { continue }
            throw ConfigurationFileError(
                file: path,
                found: "\(key) names it, and there is no such folder",
                allowed: "a folder, which may be empty, or none"
            )
        }
    }
}
