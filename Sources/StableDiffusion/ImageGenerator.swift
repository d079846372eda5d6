// What the serving side sees of a model: a request, a generation that is stepped, and the picture it ends in.
// Serving is written against these declarations only, so that it is tested without a device.

/// Storage type of weights and activations on the device; accumulation is always 32-bit float.
public enum Precision: String, CaseIterable, Sendable {
    case float32, float16, bfloat16
}

/// The samplers a request can name, spelt as in the configuration and the HTTP API; `SamplerName` knows what else they are called.
public enum Sampler: String, CaseIterable, Sendable {
    case ddim, pndm, euler
    case eulerAncestral = "euler_a"
    case heun, dpm2
    case dpm2Ancestral = "dpm2_a"
    case lms
    case dpmpp2M = "dpmpp_2m"
    case dpmpp2MSDE = "dpmpp_2m_sde"
    case dpmppSDE = "dpmpp_sde"
    case dpmpp2SAncestral = "dpmpp_2s_a"
    case unipc, deis, lcm, tcd
}

/// Which noise levels the steps of a sampler visit.
public enum SigmaSchedule: String, CaseIterable, Sendable {
    /// Those of timesteps spaced evenly.
    case uniform
    /// More of the low ones (Karras and others, 2022).
    case karras
    /// Evenly in their logarithm.
    case exponential
    /// More of both ends (Lee and others, 2024).
    case beta
}

/// How a number of steps is spread over the timesteps of training (table 2 of Lin and others, 2023).
public enum TimestepSpacing: String, CaseIterable, Sendable {
    case leading, trailing, linspace
}

/// Which reference implementation's random numbers a picture's noise reproduces.
public enum NoiseSource: String, CaseIterable, Sendable {
    /// `torch.randn` with a CPU generator (mt19937), as diffusers draws it.
    case torch
    /// `torch.randn` with a CUDA generator (Philox), as AUTOMATIC1111's web UI draws on NVIDIA GPUs and as its source "NV" does anywhere.
    case cuda
    /// TensorFlow's `random_normal` with an operation seed (Philox), as Stable Diffusion's port to Keras draws after its start.
    case tensorflow
    /// NumPy's `RandomState.randn` (mt19937).
    case numpy
}

/// The seed of a generation: any 64-bit integer, signed or unsigned, as `torch.manual_seed` takes it.
///
/// Negative values keep their two's complement bits, which is what PyTorch seeds its generator with.
public struct Seed: Sendable, Hashable, CustomStringConvertible {
    /// The 64 bits given to the random generator.
    public let bits: UInt64
    private let isNegative: Bool

    /// A seed from a signed integer.
    public init(_ value: Int64) {
        bits = UInt64(bitPattern: value)
        isNegative = value < 0
    }

    /// A seed from an unsigned integer.
    public init(_ value: UInt64) {
        bits = value
        isNegative = false
    }

    /// The seed of the picture so many places later in a batch; after the largest comes 0.
    public func advanced(by count: Int) -> Seed {
        let next = bits &+ UInt64(truncatingIfNeeded: count)
        return isNegative && Int64(bitPattern: next) < 0 ? Seed(Int64(bitPattern: next)) : Seed(next)
    }

    /// The number modulo `divisor` as Python takes it: never negative.
    func modulo(_ divisor: UInt64) -> UInt64 {
        guard isNegative else { return bits % divisor }
        // -(bits) as an unsigned number is the distance below zero.
        let remainder = (0 &- bits) % divisor
        return remainder == 0 ? 0 : divisor - remainder
    }

    /// The number as it was given, in decimal.
    public var description: String {
        isNegative ? String(Int64(bitPattern: bits)) : String(bits)
    }

    /// A seed nobody chose, in the range of 32 bits that every other program accepts.
    public static func random() -> Seed {
        Seed(UInt64(UInt32.random(in: .min ... .max)))
    }
}

/// A picture to make a picture from.
public struct SourcePicture: Sendable, Equatable {
    /// Rows of RGB triples, 8 bits a channel, of the size of the picture that is asked for.
    public var pixels: [UInt8]
    /// One byte a pixel: from 128 on it is drawn anew, below it stays; nil draws all of it anew.
    public var mask: [UInt8]?
    /// How far from the picture the drawing begins: above 0, which would change nothing, to 1, which begins with noise.
    public var strength: Double

    /// A picture from its parts.
    public init(pixels: [UInt8], mask: [UInt8]? = nil, strength: Double) {
        self.pixels = pixels
        self.mask = mask
        self.strength = strength
    }
}

/// Everything that determines one picture.
public struct GenerationRequest: Sendable, Equatable {
    /// Name of the model that is to draw, where there are several; nil for the usual one.
    public var model: String?
    /// More layers than any text encoder has.
    public static let maximumClipSkip = 100
    /// The largest guidance scale: far beyond any use, and small enough that latents stay within the range of half floats.
    public static let maximumGuidanceScale = 10_000.0

    /// What the picture should show.
    ///
    /// Any text; beyond the text encoder's limit it is cut and the cut is reported.
    public var prompt: String
    /// What the picture should not show; empty for none.
    public var negativePrompt: String
    /// Picture size in pixels, before a second pass; multiples of 8.
    public var width: Int
    /// Likewise.
    public var height: Int
    /// Number of denoising steps, 1 to 1000.
    public var steps: Int
    /// Classifier-free guidance scale, at most `maximumGuidanceScale`; 1 or less runs the model without guidance, as
    /// diffusers does.
    public var guidanceScale: Double
    /// Seed of the noise.
    public var seed: Seed
    /// Whose random numbers the noise reproduces.
    public var noise: NoiseSource
    /// The sampling algorithm.
    public var sampler: Sampler
    /// Which noise levels its steps visit; nil is what the checkpoint says, else `uniform`.
    public var schedule: SigmaSchedule?
    /// How its timesteps are spaced; nil is what the checkpoint says, else the sampler's own way.
    public var spacing: TimestepSpacing?
    /// How much of the noise that is taken away at a step is replaced by fresh noise, 0 to 1; nil is the sampler's default.
    public var eta: Double?
    /// How the prompts are read.
    public var promptSyntax: PromptSyntax
    /// Which layer of the text encoder conditions the picture: 1 is the one the model was trained with, 2 the one before it.
    ///
    /// At least 1.
    public var clipSkip: Int
    /// LoRAs to draw with, at most `LoRAReference.maximumCount` together with those in the prompt.
    public var loras: [LoRAReference]
    /// What the picture is made from; nil for noise.
    public var source: SourcePicture?
    /// The second pass, at a larger size; nil for none.
    public var hires: HiresPass?

    /// A request with every parameter given; the defaults of a service belong to its configuration.
    public init(
        model: String? = nil,
        prompt: String,
        negativePrompt: String = "",
        width: Int,
        height: Int,
        steps: Int,
        guidanceScale: Double,
        seed: Seed,
        noise: NoiseSource = .torch,
        sampler: Sampler = .ddim,
        schedule: SigmaSchedule? = nil,
        spacing: TimestepSpacing? = nil,
        eta: Double? = nil,
        promptSyntax: PromptSyntax = .plain,
        clipSkip: Int = 1,
        loras: [LoRAReference] = [],
        source: SourcePicture? = nil,
        hires: HiresPass? = nil
    ) {
        self.model = model
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.width = width
        self.height = height
        self.steps = steps
        self.guidanceScale = guidanceScale
        self.seed = seed
        self.noise = noise
        self.sampler = sampler
        self.schedule = schedule
        self.spacing = spacing
        self.eta = eta
        self.promptSyntax = promptSyntax
        self.clipSkip = clipSkip
        self.loras = loras
        self.source = source
        self.hires = hires
    }
}

/// Why a generation could not be made; the message is fit for the person who asked.
public enum GenerationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A parameter is outside what this model or device can do.
    case invalid(field: String, reason: String)
    /// A picture of the size asked for does not fit the memory.
    case doesNotFit(PictureMemory)
    /// The device refused an allocation; `bytes` is what the request needed in that one allocation, nil when the driver
    /// did not tell which it was.
    case outOfDeviceMemory(bytes: Int?, reason: String)
    /// The device or its driver failed.
    case deviceFailed(reason: String)
    /// The model computed infinities or what is no number.
    case nonFinite(reason: String)

    /// The reason in one sentence.
    public var description: String {
        switch self {
        case .invalid(let field, let reason): "\(field): \(reason)"
        case .doesNotFit(let memory): memory.description
        case .outOfDeviceMemory(nil, let reason): "not enough device memory (\(reason))"
        case .outOfDeviceMemory(let bytes?, let reason):
            "not enough device memory: an allocation of \(bytes) bytes was refused (\(reason))"
        case .deviceFailed(let reason): "the device failed: \(reason)"
        case .nonFinite(let reason): "no picture came of it: \(reason)"
        }
    }
}

/// What a loaded model is, for defaults, limits, logs and `/health/ready`.
public struct ModelDescription: Sendable, Equatable {
    /// Folder or file name of the checkpoint, without its directory.
    public var name: String
    /// Picture width and height the model was trained for, in pixels.
    public var nativeSize: Int
    /// What the width and height of every picture are multiples of, in pixels: 8, or more where one latent is larger.
    public var sizeMultiple: Int
    /// Storage precision in use.
    public var precision: Precision
    /// Name of the OpenCL device that runs it.
    public var deviceName: String

    /// A description from its parts.
    public init(name: String, nativeSize: Int, sizeMultiple: Int = 8, precision: Precision, deviceName: String) {
        self.name = name
        self.nativeSize = nativeSize
        self.sizeMultiple = sizeMultiple
        self.precision = precision
        self.deviceName = deviceName
    }
}

/// A finished picture and what is worth telling about it.
public struct GeneratedImage: Sendable, Equatable {
    /// Width in pixels.
    public var width: Int
    /// Height in pixels.
    public var height: Int
    /// Rows of RGB triples, 8 bits a channel, top row first, no padding: `width * height * 3` bytes.
    public var pixels: [UInt8]
    /// The end of the prompt that did not fit the text encoder, if any was cut.
    public var truncatedPrompt: String?

    /// A picture from its pixels.
    public init(width: Int, height: Int, pixels: [UInt8], truncatedPrompt: String? = nil) {
        self.width = width
        self.height = height
        self.pixels = pixels
        self.truncatedPrompt = truncatedPrompt
    }
}

/// A model ready to draw.
///
/// Implementations own a device and are used from one executor only, never concurrently.
public protocol ImageGenerator: AnyObject {
    /// What is loaded.
    var model: ModelDescription { get }

    /// Tokenises and encodes the prompt and draws the noise.
    ///
    /// - Throws: `GenerationError`.
    func prepare(_ request: GenerationRequest) throws -> any Generation
}

/// One picture being made.
///
/// Stepped by the owner of the device, which may stop at any step and drop it.
public protocol Generation: AnyObject {
    /// Steps that `step()` has done.
    var completedSteps: Int { get }
    /// Steps after which `decode()` may be called.
    var totalSteps: Int { get }

    /// Denoises once and waits for the device. Blocking: call it off the cooperative pool.
    ///
    /// - Throws: `GenerationError`.
    func step() throws

    /// Decodes the latents into a picture. Blocking.
    ///
    /// - Throws: `GenerationError`.
    func decode() throws -> GeneratedImage
}
