// The pipeline: tokenise -> encode -> denoise step by step -> decode (diffusers' StableDiffusionPipeline with DDIM). A generation is a value
// that is stepped from outside, so that progress, cancellation and sharing the device are the caller's business.

public import Logging
internal import TensorOps

/// A checkpoint on a device, ready to draw.
public final class StableDiffusionPipeline: ImageGenerator {
    /// What is loaded.
    public let model: ModelDescription
    let device: TensorDevice
    let promptEncoder: PromptEncoder
    let unet: UNet2DConditionModel
    let vae: AutoencoderKL
    let configuration: ModelConfiguration
    private let noise: NoiseSource
    /// Picture size that the pool's buffers are for.
    private var pooledSize: [Int] = []
    /// Ways to make the picture asked for last, and what each takes.
    var plans: [PicturePlan] = []

    /// Loads a model: the whole folder is checked before the device is opened, every tensor before it is uploaded.
    ///
    /// - Throws: `ConfigurationFileError`, `WeightsError`, `TokenizerError` for the checkpoint; errors of the device with what to do about
    ///   them.
    public init(_ options: PipelineOptions, logger: Logger) throws {
        let clock = ContinuousClock()
        let start = clock.now
        let path = options.modelPath
        configuration = try ModelConfiguration(folder: path)
        let suffixes = ["", "_2"].prefix(configuration.textEncoders.count)
        let tokenizers = try zip(suffixes, configuration.textEncoders).map {
            try CLIPTokenizer(directory: path + "/tokenizer" + $0, textEncoder: $1)
        }
        let textEncoderFiles = try suffixes.map { try Checkpoint(directory: path + "/text_encoder" + $0) }
        let unetFiles = try Checkpoint(directory: path + "/unet")
        let vaeFiles = try Checkpoint(directory: path + "/vae")

        device = try TensorDevice(options, logger: logger)
        promptEncoder = try PromptEncoder(
            configuration,
            tokenizers: tokenizers,
            checkpoints: textEncoderFiles,
            on: device
        )
        unet = try UNet2DConditionModel(WeightLoader(unetFiles), configuration.unet, on: device)
        // Stable Diffusion XL's overflows in half precision, where activations are that.
        let vaeDevice = configuration.needsFloat32VAE ? device.withFloat32Activations() : device
        vae = try AutoencoderKL(WeightLoader(vaeFiles), configuration.vae, on: vaeDevice)
        // Staging memory of the upload is of no further use.
        try device.finish()
        device.releaseUnusedMemory()

        noise = options.noise
        model = ModelDescription(
            name: path.split(separator: "/").last.map(String.init) ?? path,
            nativeSize: configuration.nativeSize,
            sizeMultiple: configuration.sizeMultiple,
            precision: options.precision,
            deviceName: device.name
        )
        logger.info(
            "model loaded",
            metadata: [
                "model": "\(model.name)", "precision": "\(model.precision.rawValue)", "device": "\(model.deviceName)",
                "seconds": "\((clock.now - start) / .seconds(1))",
            ]
        )
    }

    /// Checks a request against the model and the device, tokenises and encodes its prompts and draws the noise.
    ///
    /// - Throws: `GenerationError`.
    public func prepare(_ request: GenerationRequest) throws -> any Generation {
        // Buffers of another size would only add up: what a daemon holds is to be bounded by its largest picture, not by
        // how many sizes it has drawn.
        let size = [request.width, request.height]
        if size != pooledSize { device.releaseUnusedMemory() }
        pooledSize = size
        return try translatingDeviceErrors(releasing: device) {
            try TextToImageGeneration(request, self)
        }
    }

    /// The initial latents `[1, H, W, C]`, float32.
    func initialLatents(_ request: GenerationRequest, sigma: Double) throws -> Tensor {
        let scale = configuration.vae.scaleFactor
        let (height, width, channels) = (request.height / scale, request.width / scale, configuration.unet.inChannels)
        let values = noise.latents(seed: request.seed, channels: channels, height: height, width: width)
        return try device.tensor(
            sigma == 1 ? values : values.map { $0 * Float(sigma) },
            shape: [1, height, width, channels],
            type: .float32
        )
    }

    /// One step, in place.
    ///
    /// - Parameters:
    ///   - latents: `[1, H, W, C]`, float32.
    ///   - contexts: Of all prompts, or one for each where they differ in length.
    ///   - guidance: The guidance scale; nil without guidance.
    func denoise(
        _ latents: Tensor,
        _ step: SchedulerStep,
        _ contexts: [UNetContext],
        guidance: Float?
    ) throws {
        let copies = (guidance == nil ? 1 : 2) / contexts.count
        let input = try latents.modelInput(scale: Float(step.modelInputScale), copies: copies)
        let outputs = try contexts.map { try unet(input, timestep: step.timestep, $0) }
        let output = try outputs.dropFirst().reduce(outputs[0]) { try $0.appending($1) }
        try latents.guidedStep(
            output: output,
            guidance: guidance,
            sampleScale: Float(step.sample),
            outputScale: Float(step.modelOutput)
        )
    }

    /// The sampler's steps for a request, after its size and steps have been checked.
    func scheduler(_ request: GenerationRequest) throws -> any Scheduler {
        let multiple = configuration.sizeMultiple
        for (field, value) in [("width", request.width), ("height", request.height)]
        where value < multiple || value % multiple != 0 {
            throw GenerationError.invalid(field: field, reason: "\(value) is not a positive multiple of \(multiple)")
        }
        for (field, value) in [("width", request.width), ("height", request.height)] where value > 1 << 20 {
            throw GenerationError.invalid(field: field, reason: "\(value) is more than \(1 << 20)")
        }
        guard request.guidanceScale <= GenerationRequest.maximumGuidanceScale else {
            throw GenerationError.invalid(
                field: "scale",
                reason: "\(request.guidanceScale) is more than \(GenerationRequest.maximumGuidanceScale)"
            )
        }
        return try request.sampler.scheduler(configuration: configuration.scheduler, steps: request.steps)
    }
}

extension GenerationRequest {
    /// Whether the model runs twice a step, as diffusers decides it.
    var usesGuidance: Bool { guidanceScale > 1 }
}

extension TensorDevice {
    /// Opens the device of a pipeline's options, and chooses what multiplies its matrices.
    convenience init(_ options: PipelineOptions, logger: Logger) throws {
        try self.init(
            platform: options.device.platform,
            index: options.device.index,
            precision: ElementType(options.precision),
            kernelsDirectory: options.kernelsDirectory,
            cacheDirectory: options.cacheDirectory,
            logger: logger
        )
        switch options.device.gemm {
        case .auto: try chooseGEMM(cacheDirectory: options.cacheDirectory)
        case .clblast: useGEMM(.clblast)
        case .builtin: useGEMM(.builtin)
        }
    }
}

extension ElementType {
    /// The storage type of a precision.
    init(_ precision: Precision) {
        switch precision {
        case .float32: self = .float32
        case .float16: self = .float16
        case .bfloat16: self = .bfloat16
        }
    }
}

/// One picture being made.
final class TextToImageGeneration: Generation {
    private let request: GenerationRequest
    private let pipeline: StableDiffusionPipeline
    private let scheduler: any Scheduler
    private let contexts: [UNetContext]
    private let plan: PicturePlan
    private let truncatedPrompt: String?
    /// `[1, H, W, C]`, float32.
    private(set) var latents: Tensor
    private(set) var completedSteps = 0

    var totalSteps: Int { scheduler.steps.count }

    init(_ request: GenerationRequest, _ pipeline: StableDiffusionPipeline) throws {
        self.request = request
        self.pipeline = pipeline
        scheduler = try pipeline.scheduler(request)
        // Said now rather than after all the steps.
        plan = try pipeline.plan(for: request)
        let prompts = try pipeline.promptEncoder(request)
        truncatedPrompt = prompts.truncatedPrompt
        contexts = try prompts.batches.map {
            try pipeline.unet.context(of: $0, height: request.height, width: request.width)
        }
        latents = try pipeline.initialLatents(request, sigma: scheduler.initNoiseSigma)
    }

    func step() throws {
        precondition(completedSteps < totalSteps, "step beyond the last")
        try translatingDeviceErrors(releasing: pipeline.device) {
            let step = scheduler.steps[completedSteps]
            precondition(step.noise == 0, "DDIM without eta adds no noise")
            try pipeline.denoise(
                latents,
                step,
                contexts,
                guidance: request.usesGuidance ? Float(request.guidanceScale) : nil
            )
            try pipeline.device.finish()
        }
        completedSteps += 1
    }

    func decode() throws -> GeneratedImage {
        precondition(completedSteps == totalSteps, "decode before the last step")
        return try translatingDeviceErrors(releasing: pipeline.device) {
            let picture = try pipeline.vae.decode(latents, bands: plan.bands)
            // As bytes it would be a black picture like any other.
            guard try picture.floats().allSatisfy(\.isFinite) else {
                throw GenerationError.nonFinite(
                    reason: "the model's numbers overflow, in precision \(pipeline.model.precision.rawValue); "
                        + "precision: float32 has the widest range, and weights that overflow there are damaged"
                )
            }
            let pixels = try picture.rgb8()
            return GeneratedImage(
                width: request.width,
                height: request.height,
                pixels: pixels,
                truncatedPrompt: truncatedPrompt
            )
        }
    }
}

/// Runs `body` and turns failures of the device into errors for the person who asked.
///
/// After a failure unused memory goes back to the device, so that the next, smaller request finds it.
private func translatingDeviceErrors<Result>(releasing device: TensorDevice, _ body: () throws -> Result) throws
    -> Result
{
    do {
        return try body()
    } catch {
        switch DeviceFailure(error) {
        case .outOfMemory(let bytes, let reason):
            device.releaseUnusedMemory()
            throw GenerationError.outOfDeviceMemory(bytes: bytes, reason: reason)
        case .failed(let reason):
            device.releaseUnusedMemory()
            throw GenerationError.deviceFailed(reason: reason)
        case nil: throw error
        }
    }
}
