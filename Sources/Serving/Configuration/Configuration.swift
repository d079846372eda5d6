// What the daemon can be told: one property per key of `config.yaml`, with its unit, range and default.
// Everything takes effect at start; a changed file is read by a restart.

public import Logging
public import StableDiffusion

/// The whole configuration.
///
/// The properties' initial values are the defaults of an empty file.
public struct Configuration: Equatable, Sendable {
    /// `server`: where the daemon listens.
    public var server = Server()
    /// `model`: what it draws with when a request names no other.
    public var model = Model()
    /// `models`: what requests may name besides; loaded when the first one does.
    public var models: [Model] = []
    /// `image`: the size of a picture when a request gives none.
    public var image = Image()
    /// `precision`: storage type of weights and activations; `float32`, `float16` or `bfloat16`.
    ///
    /// Default `float16`.
    public var precision = Precision.float16
    /// `device`: the OpenCL device; see `DeviceOptions`.
    ///
    /// Default: the best one, with the faster GEMM.
    public var device = DeviceOptions()
    /// `device.model_memory`: MiB of the device's memory that the weights of loaded models may take together, 64 to 16777216.
    ///
    /// Nil (`auto`, the default) is as much as there is: a model goes when there is no room for another, or for a picture.
    public var modelMemory: Int?
    /// `sampling`: how a picture is drawn when a request does not say.
    public var sampling = Sampling()
    /// `queue`: how many requests may wait.
    public var queue = Queue()
    /// `storage`: where pictures are kept.
    public var storage = Storage()
    /// `kernels`: where the OpenCL kernels come from.
    public var kernels = Kernels()
    /// `cache`: where tuning results are kept.
    public var cache = Cache()
    /// `limits`: what a request may ask for at most.
    public var limits = Limits()
    /// `log`: how much is written to standard error.
    public var log = Log()

    /// Where the daemon listens.
    public struct Server: Equatable, Sendable {
        /// `server.host`: host name or address to bind; `0.0.0.0` for every IPv4 interface.
        ///
        /// Default `127.0.0.1`.
        public var host = "127.0.0.1"
        /// `server.port`: TCP port, 0 to 65535; 0 lets the system choose a free one.
        ///
        /// Default 8000.
        public var port = 8000
    }

    /// A model.
    public struct Model: Equatable, Sendable {
        /// `model.name`: what requests call it, up to 200 characters.
        ///
        /// Nil (`auto`, the default) is the last part of `path`, without a single file's ending. In `models` it is required.
        public var givenName: String?
        /// `model.path`: a checkpoint, a diffusers folder or a single `.safetensors` or `.ckpt` file.
        ///
        /// Relative to the configuration file. Default `Models/demo`.
        public var path = "Models/demo"
        /// `model.vae`: an autoencoder to use instead of the model's own, a folder or a file, relative to the configuration file.
        ///
        /// Nil (`auto`, the default) is the model's own.
        public var vae: String?
        /// `model.prediction_type`: what the model's output means, where the checkpoint does not say or says it wrongly.
        ///
        /// Default `auto`.
        public var prediction = PredictionChoice.auto
        /// `model.loras`: directory whose LoRAs requests may name, relative to the configuration file.
        ///
        /// Nil (`none`, the default) lets them name none.
        public var loras: String?
        /// `model.embeddings`: directory of textual inversions, relative to the configuration file.
        ///
        /// Nil (`none`, the default) has none.
        public var embeddings: String?
        /// `precision` of one of `models`: storage type of its weights and activations.
        ///
        /// Nil (`auto`, the default) is that of the whole configuration, as it always is for `model`.
        public var precision: Precision?

        /// A model with the defaults.
        public init() {}

        /// What requests call it.
        public var name: String { givenName ?? checkpointName(ofFile: path) }
    }

    /// Picture size of a request that names none.
    public struct Image: Equatable, Sendable {
        /// `image.width`: pixels, a multiple of 8 from 8 to `limits.width`; nil (`auto`) is the model's native size.
        public var width: Int?
        /// `image.height`: pixels, a multiple of 8 from 8 to `limits.height`; nil (`auto`) is the model's native size.
        public var height: Int?
    }

    /// How a picture is drawn when a request does not say.
    public struct Sampling: Equatable, Sendable {
        /// `sampling.sampler`: the sampling algorithm, by any name `SamplerName` knows.
        ///
        /// A schedule in the name is that of `sampling.schedule` unless the file names another. Default `ddim`.
        public var sampler = Sampler.ddim
        /// `sampling.steps`: denoising steps, 1 to `limits.steps`.
        ///
        /// Default 50.
        public var steps = 50
        /// `sampling.scale`: classifier-free guidance scale, at most 10000; 1 or less is no guidance.
        ///
        /// Default 7.5.
        public var scale = 7.5
        /// `sampling.schedule`: which noise levels the steps visit, for samplers that have that schedule.
        ///
        /// Nil (`auto`, the default) is what the checkpoint says, else `uniform`.
        public var schedule: SigmaSchedule?
        /// `sampling.spacing`: how timesteps are spaced, for samplers that space them.
        ///
        /// Nil (`auto`, the default) is what the checkpoint says, else the sampler's own way.
        public var spacing: TimestepSpacing?
        /// `sampling.prompt_syntax`: how prompts are read.
        ///
        /// Default `plain`.
        public var promptSyntax = PromptSyntax.plain
        /// `sampling.clip_skip`: which layer of the text encoder conditions the picture, 1 to 100; 1 is the one the model was trained with.
        ///
        /// Default 1.
        public var clipSkip = 1
        /// `sampling.rng`: whose random numbers the noise reproduces.
        ///
        /// Default `torch`.
        public var noise = NoiseSource.torch

        /// The schedule of a request that names none: the configured one, where its sampler has it.
        public func schedule(for sampler: Sampler) -> SigmaSchedule? {
            schedule.flatMap { sampler.schedules.contains($0) ? $0 : nil }
        }

        /// The spacing of a request that names none: the configured one, where its sampler spaces timesteps.
        public func spacing(for sampler: Sampler) -> TimestepSpacing? {
            sampler.isDistilled ? nil : spacing
        }
    }

    /// The queue in front of the device.
    public struct Queue: Equatable, Sendable {
        /// `queue.capacity`: requests that may wait behind the running one, 1 to 10000.
        ///
        /// Default 64.
        public var capacity = 64
        /// `queue.on_disconnect`: what becomes of a job whose client waited for it and went away.
        ///
        /// Default `finish`.
        public var onDisconnect = Disconnect.finish

        /// See `onDisconnect`.
        public enum Disconnect: String, CaseIterable, Sendable {
            /// Its pictures are made and kept.
            case finish
            /// It is cancelled, as with `DELETE /jobs/{id}`.
            case cancel
        }
    }

    /// Where pictures are kept.
    public struct Storage: Equatable, Sendable {
        /// `storage.directory`: directory of the pictures, made when missing.
        ///
        /// Relative to the configuration file. Default: systemd's `$STATE_DIRECTORY` when that is set, else `data`.
        public var directory = "data"
    }

    /// Where the OpenCL kernels come from.
    public struct Kernels: Equatable, Sendable {
        /// `kernels.directory`: directory of `.cl` files, relative to the configuration file; nil (`embedded`, the
        /// default) uses the ones inside the program.
        public var directory: String?
    }

    /// Where tuning results are kept.
    public struct Cache: Equatable, Sendable {
        /// `cache.directory`: relative to the configuration file; `auto`, the default, is systemd's `$CACHE_DIRECTORY`,
        /// else `$XDG_CACHE_HOME/diffused`, else `~/.cache/diffused`.
        ///
        /// Nil when none of them is known: nothing is kept.
        public var directory: String?
    }

    /// What a request may ask for at most; more is refused with 422.
    public struct Limits: Equatable, Sendable {
        /// `limits.width`: pixels, a multiple of 8 from 8 to 16384.
        ///
        /// Default 2048.
        public var width = 2048
        /// `limits.height`: pixels, a multiple of 8 from 8 to 16384.
        ///
        /// Default 2048.
        public var height = 2048
        /// `limits.steps`: denoising steps, 1 to 1000.
        ///
        /// Default 1000.
        public var steps = 1000
        /// `limits.count`: pictures of a request, 1 to 1000.
        ///
        /// Default 16.
        public var count = 16
        /// `limits.prompt_characters`: Unicode scalars of a prompt, 1 to 1000000.
        ///
        /// Default 10000; a text encoder reads a few hundred at once.
        public var promptCharacters = 10_000
        /// `limits.body_bytes`: bytes of a request body, 1024 to 67108864.
        ///
        /// Default 16777216.
        public var bodyBytes = 16 << 20
    }

    /// How much is written to standard error.
    public struct Log: Equatable, Sendable {
        /// `log.level`: `trace`, `debug`, `info`, `notice`, `warning`, `error` or `critical`.
        ///
        /// Default `info`.
        public var level = Logger.Level.info
    }

    /// The defaults of an empty file, without any environment.
    public init() {}

    /// Every model that can be asked for; the first is the one that draws when a request names none.
    public var allModels: [Model] { [model] + models }

    /// What the pipeline has to know of the usual model.
    public var pipelineOptions: PipelineOptions { pipelineOptions(for: model) }

    /// What the pipeline has to know of a model.
    public func pipelineOptions(for model: Model) -> PipelineOptions {
        PipelineOptions(
            modelPath: model.path,
            vaePath: model.vae,
            prediction: model.prediction,
            precision: model.precision ?? precision,
            device: device,
            lorasDirectory: model.loras,
            embeddingsDirectory: model.embeddings,
            kernelsDirectory: kernels.directory,
            cacheDirectory: cache.directory
        )
    }
}
