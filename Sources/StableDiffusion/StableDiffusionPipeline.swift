// The pipeline: tokenise -> encode -> denoise step by step -> decode (diffusers' StableDiffusionPipeline). A generation is a value
// that is stepped from outside, so that progress, cancellation and sharing the device are the caller's business.

internal import Foundation
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
    /// The autoencoder's other half; nil until a picture is to be made from a picture.
    private(set) var encoder: AutoencoderKLEncoder?
    private let vaeFiles: Checkpoint
    private let vaeDevice: TensorDevice
    let configuration: ModelConfiguration
    /// The model's layers, and what LoRAs add to them.
    let adapters = AdapterList()
    private let loras: LoRADirectory
    /// The adapters uploaded last, which the next request may want as well.
    private var uploaded: (loras: [UploadedLoRA], adapters: AdapterSet)?
    /// Picture size that the pool's buffers are for.
    private var pooledSize: [Int] = []
    /// For each of the last two shapes of picture asked for, the ways to make it and what each takes.
    var knownPlans: [[PicturePlan]] = []

    /// Loads a model: files, configurations, names and shapes are checked before the device is opened, the numbers of every tensor before it
    /// is uploaded.
    ///
    /// - Throws: `ConfigurationFileError`, `WeightsError`, `TokenizerError` for the checkpoint; errors of the device with what to do about
    ///   them.
    public convenience init(_ options: PipelineOptions, logger: Logger) throws {
        try self.init(options, logger: logger) { try TensorDevice(options, logger: logger) }
    }

    /// The same.
    ///
    /// - Parameter openDevice: Opens the device, or gives one that other models use too.
    init(_ options: PipelineOptions, logger: Logger, on openDevice: () throws -> TensorDevice) throws {
        let clock = ContinuousClock()
        let start = clock.now
        try options.checkDirectories()
        let path = options.modelPath
        let source = try ModelSource(path: path, vae: options.vaePath, prediction: options.prediction)
        configuration = try ModelConfiguration(source)
        loras = LoRADirectory(options.lorasDirectory, LoRATargets(configuration))
        let suffixes = ["", "_2"].prefix(configuration.textEncoders.count)
        let tokenizers = try zip(suffixes, configuration.textEncoders).map {
            try source.tokenizer("tokenizer" + $0, textEncoder: $1)
        }
        let textEncoderFiles = try suffixes.map { try source.checkpoint("text_encoder" + $0) }
        let unetFiles = try source.checkpoint("unet")
        vaeFiles = try source.checkpoint("vae")
        let parts =
            zip(textEncoderFiles, configuration.textEncoders.map(\.tensors))
            + [(unetFiles, configuration.unet.tensors), (vaeFiles, configuration.vae.decoderTensors)]
        for (files, tensors) in parts {
            for tensor in tensors { try files.check(tensor.name, shape: tensor.shape) }
        }

        device = try openDevice()
        promptEncoder = try PromptEncoder(
            configuration,
            tokenizers: tokenizers,
            checkpoints: textEncoderFiles,
            adapters: adapters,
            embeddingsDirectory: options.embeddingsDirectory,
            on: device
        )
        unet = try UNet2DConditionModel(
            WeightLoader(unetFiles, adaptation: (adapters, .unet)),
            configuration.unet,
            on: device
        )
        // Stable Diffusion XL's overflows in half precision, where activations are that.
        vaeDevice = configuration.needsFloat32VAE ? device.withFloat32Activations() : device
        vae = try AutoencoderKL(WeightLoader(vaeFiles), configuration.vae, on: vaeDevice)
        // Staging memory of the upload is of no further use.
        try device.finish()
        device.releaseUnusedMemory()

        model = ModelDescription(
            name: source.name,
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
        if let hires = request.hires { return try HiresGeneration(request, hires, self) }
        return try prepareOnePass(request)
    }

    /// Prepares a request without a second pass.
    func prepareOnePass(_ request: GenerationRequest) throws -> PictureGeneration {
        let program = try program(request)
        try request.checkSource()
        return try planned(request, program) { request, adapters, plan in
            try PictureGeneration(request, program, self, adapters: adapters, bands: plan.bands)
        }
    }

    /// Finds what would keep a request from being drawn, and how many steps it takes; the pixels of its source make no difference.
    func check(_ request: GenerationRequest) throws -> Int {
        let program = try program(request)
        return try planned(request, program) { _, _, _ in program.steps.count }
    }

    /// Loads and plans what a request needs, and runs `body` with it, the adapters of its LoRAs in effect.
    private func planned<Result>(
        _ request: GenerationRequest,
        _ program: SamplerProgram,
        _ body: (GenerationRequest, AdapterSet?, PicturePlan) throws -> Result
    ) throws -> Result {
        let request = try request.takingTags()
        // Buffers of another size would only add up: what a daemon holds is to be bounded by its largest picture, not by
        // how many sizes it has drawn.
        let size = [request.width, request.height]
        if size != pooledSize { device.releaseUnusedMemory() }
        pooledSize = size
        return try translatingDeviceErrors(releasing: device) {
            if request.source != nil || configuration.isInpainting { try loadEncoder() }
            let set = try adapterSet(for: request)
            return try adapters.with(set) {
                // Said now rather than after all the steps.
                let plan: PicturePlan
                do {
                    plan = try self.plan(for: request, program)
                } catch GenerationError.doesNotFit where set == nil && uploaded != nil {
                    // What another request's LoRAs hold may be what is lacking.
                    uploaded = nil
                    plan = try self.plan(for: request, program)
                }
                return try body(request, set, plan)
            }
        }
    }

    /// A LoRA whose adapters are uploaded.
    private struct UploadedLoRA: Equatable {
        let file: LoRADirectory.Identity
        let weight: Double
    }

    /// What the LoRAs of a request add to the model, uploaded unless the last request's are the same; nil for nothing.
    ///
    /// Only one request's are kept: another's take a moment to upload, and the model itself stays as it is.
    func adapterSet(for request: GenerationRequest) throws -> AdapterSet? {
        let found = try loras(request.loras)
        let wanted = zip(found, request.loras).map { UploadedLoRA(file: $0.0, weight: $1.weight) }
        guard wanted.contains(where: { $0.weight != 0 }) else { return nil }
        if let uploaded, uploaded.loras == wanted { return uploaded.adapters }
        uploaded = nil
        let set = try AdapterSet(
            zip(found, request.loras).map { ($0.1, $1.weight) },
            for: adapters,
            on: device
        )
        uploaded = (wanted, set)
        // Files may have changed under the same names.
        knownPlans = []
        return set
    }

    /// A request's prompts, encoded.
    func encode(_ request: GenerationRequest) throws -> PromptEncoder.Output {
        try promptEncoder(request, usesGuidance: usesGuidance(request))
    }

    /// What the UNet is told of a request's prompts: of all, or of each where they differ in length.
    func contexts(_ prompts: PromptEncoder.Output, _ request: GenerationRequest) throws -> [UNetContext] {
        try prompts.batches.map { try unet.context(of: $0, height: request.height, width: request.width) }
    }

    /// The shape of a picture's latents, `[1, H, W, C]`.
    func latentShape(_ request: GenerationRequest) -> [Int] {
        let scale = configuration.vae.scaleFactor
        return [1, request.height / scale, request.width / scale, configuration.vae.latentChannels]
    }

    /// The next noise of a picture, times a deviation: `[1, H, W, C]`, float32.
    func noise(_ generator: inout NoiseGenerator, for request: GenerationRequest, deviation: Double = 1) throws
        -> Tensor
    {
        let shape = latentShape(request)
        // Values are of no use where nothing is computed.
        if device.isDryRun { return try Tensor(shape, .float32, on: device) }
        let values = generator.latents(channels: shape[3], height: shape[1], width: shape[2])
        return try device.tensor(
            deviation == 1 ? values : values.map { $0 * Float(deviation) },
            shape: shape,
            type: .float32
        )
    }

    /// Reads the autoencoder's encoder, which text to image does without, when it is first needed.
    private func loadEncoder() throws {
        guard encoder == nil else { return }
        do {
            for tensor in configuration.vae.encoderTensors { try vaeFiles.check(tensor.name, shape: tensor.shape) }
            encoder = try AutoencoderKLEncoder(WeightLoader(vaeFiles), configuration.vae, on: vaeDevice)
        } catch let error as WeightsError {
            throw GenerationError.invalid(field: "image", reason: "the model cannot read pictures: \(error)")
        }
        try device.finish()
        device.releaseUnusedMemory()
        knownPlans = []
    }

    /// The latents of a picture, drawn from the distribution that the encoder gives: `[1, H, W, C]`, float32, times the scaling factor.
    ///
    /// - Parameter pixels: RGB of the request's size, -1 ... 1.
    func latents(
        of pixels: @autoclosure () -> [Float],
        _ generator: inout NoiseGenerator,
        for request: GenerationRequest
    ) throws -> Tensor {
        guard let encoder else { preconditionFailure("a picture before the encoder was loaded") }
        let shape = latentShape(request)
        let pictureShape = [1, request.height, request.width, 3]
        // Values are of no use where nothing is computed.
        if device.isDryRun {
            _ = try encoder(Tensor(pictureShape, .float32, on: device)).converted(to: .float32)
            return try Tensor(shape, .float32, on: device)
        }
        let moments = try encoder(device.tensor(pixels(), shape: pictureShape, type: .float32)).floats()
        let channels = shape[3]
        var latents = generator.latents(channels: channels, height: shape[1], width: shape[2])
        let scale = Float(configuration.vae.scalingFactor)
        for index in latents.indices {
            let start = index / channels * 2 * channels + index % channels
            // Clamped as diffusers' `DiagonalGaussianDistribution` does.
            let deviation = exp(0.5 * min(max(moments[start + channels], -30), 20))
            latents[index] = (moments[start] + deviation * latents[index]) * scale
        }
        guard latents.allSatisfy(\.isFinite) else {
            throw GenerationError.nonFinite(reason: "the autoencoder's numbers overflow on the picture given")
        }
        return try device.tensor(latents, shape: shape, type: .float32)
    }

    /// Whether the model runs twice a step, as diffusers decides it: not for a scale of 1 or less, nor with a model that is told the scale.
    func usesGuidance(_ request: GenerationRequest) -> Bool {
        request.guidanceScale > 1 && configuration.unet.timeCondProjDim == nil
    }

    /// What the model makes of latents, after guidance: `[1, H, W, C]`, float32.
    ///
    /// - Parameters:
    ///   - latents: `[1, H, W, C]`, float32.
    ///   - contexts: Of the prompt, or with guidance of the negative prompt and the prompt; see `contexts(_:_:)`.
    ///   - conditioning: `[1, H, W, 1 + C]`, what models for inpainting are given besides; nil for others.
    func predict(
        _ latents: Tensor,
        _ evaluation: SamplerProgram.Evaluation,
        _ contexts: [UNetContext],
        conditioning: Tensor?,
        for request: GenerationRequest
    ) throws -> Tensor {
        let usesGuidance = usesGuidance(request)
        let copies = (usesGuidance ? 2 : 1) / contexts.count
        var input = try latents.modelInput(scale: Float(evaluation.inputScale), copies: copies)
        if let conditioning {
            input = try input.concatenated(with: conditioning.modelInput(scale: 1, copies: copies))
        }
        let timestep = evaluation.timestep
        let outputs = try contexts.map {
            try unet(input, timestep: timestep, $0, guidanceScale: request.guidanceScale)
        }
        let output = try outputs.dropFirst().reduce(outputs[0]) { try $0.appending($1) }
        return try usesGuidance
            ? output.guided(scale: Float(request.guidanceScale)) : output.converted(to: .float32)
    }

    /// The sampler's steps for a request, after everything that can be checked without the device has been.
    func program(_ request: GenerationRequest) throws -> SamplerProgram {
        let multiple = configuration.sizeMultiple
        for (field, value) in [("width", request.width), ("height", request.height)]
        where value < multiple || value % multiple != 0 {
            throw GenerationError.invalid(field: field, reason: "\(value) is not a positive multiple of \(multiple)")
        }
        for (field, value) in [("width", request.width), ("height", request.height)] where value > 1 << 20 {
            throw GenerationError.invalid(field: field, reason: "\(value) is more than \(1 << 20)")
        }
        let largest = GenerationRequest.maximumGuidanceScale
        guard -largest...largest ~= request.guidanceScale else {
            throw GenerationError.invalid(
                field: "scale",
                reason: "\(request.guidanceScale) is not from -\(largest) to \(largest)"
            )
        }
        var setup = try SamplerSetup(
            request.sampler,
            configuration: configuration.scheduler,
            steps: request.steps,
            schedule: request.schedule,
            spacing: request.spacing,
            eta: request.eta
        )
        setup.firstStep = try request.firstStep()
        return try setup.program()
    }
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
        try useGEMM(options)
    }

    /// Chooses what multiplies the matrices of weights made afterwards.
    func useGEMM(_ options: PipelineOptions) throws {
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

/// Runs `body` and turns failures of the device into errors for the person who asked.
///
/// After a failure unused memory goes back to the device, so that the next, smaller request finds it.
func translatingDeviceErrors<Result>(releasing device: TensorDevice, _ body: () throws -> Result) throws
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
