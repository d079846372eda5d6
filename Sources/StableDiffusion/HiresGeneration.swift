// A picture in two passes: drawn at a size the model was trained for, enlarged, and drawn again from there for the detail of the larger size (the
// web UI's "hires. fix"). What is enlarged are pixels rather than latents: enlarged latents decode to a blur that only high strengths draw over, and
// with pixels the second pass is image to image and nothing else.

/// The second pass over a picture.
public struct HiresPass: Sendable, Equatable {
    /// How many times as wide and high the picture becomes: above 1, at most `maximumScale`.
    public var scale: Double
    /// How far from the enlarged picture the second pass begins, above 0 to 1.
    public var strength: Double
    /// Steps of which the second pass does those that its strength leaves; nil is as many as the first pass has.
    public var steps: Int?

    /// Why it is not for pictures made from a picture; the end of a sentence about it.
    public static let reasonAgainstSources =
        "it is for pictures drawn from noise; what is made from an image is enlarged by width and height"

    /// The largest scale: beyond it a picture repeats itself.
    public static let maximumScale = 4.0
    /// The strength where none is given: enough to draw what Lanczos leaves soft, too little to compose anew.
    public static let usualStrength = 0.6

    /// A pass from its parts.
    public init(scale: Double = 2, strength: Double = usualStrength, steps: Int? = nil) {
        self.scale = scale
        self.strength = strength
        self.steps = steps
    }
}

extension GenerationRequest {
    /// The size of the picture when all is done, in pixels.
    ///
    /// - Parameter multiple: What the model takes the sides of pictures in multiples of.
    public func finalSize(multiple: Int) -> (width: Int, height: Int) {
        guard let hires else { return (width, height) }
        func side(_ pixels: Int) -> Int {
            max(1, Int((Double(pixels) * hires.scale / Double(multiple)).rounded())) * multiple
        }
        return (side(width), side(height))
    }

    /// The first pass as a request of its own.
    fileprivate var firstPass: GenerationRequest {
        var pass = self
        pass.hires = nil
        return pass
    }

    /// Likewise the second, without the picture that it begins with.
    fileprivate func secondPass(_ hires: HiresPass, multiple: Int) -> GenerationRequest {
        var pass = firstPass
        (pass.width, pass.height) = finalSize(multiple: multiple)
        pass.steps = hires.steps ?? steps
        pass.source = SourcePicture(pixels: [], strength: hires.strength)
        return pass
    }
}

/// One picture being made in two passes.
final class HiresGeneration: Generation {
    private let pipeline: StableDiffusionPipeline
    private let secondPass: GenerationRequest
    /// Steps of the first pass.
    private let firstSteps: Int
    /// Nil once its picture has been enlarged.
    private var first: PictureGeneration?
    /// Nil before.
    private var second: PictureGeneration?
    let totalSteps: Int

    /// Checks both passes, the memory of the second included, and prepares the first.
    ///
    /// - Throws: `GenerationError`; whatever is wrong with the second pass alone is a matter of the field `hires`.
    init(_ request: GenerationRequest, _ hires: HiresPass, _ pipeline: StableDiffusionPipeline) throws {
        guard request.source == nil else {
            throw GenerationError.invalid(field: "hires", reason: HiresPass.reasonAgainstSources)
        }
        guard hires.scale > 1, hires.scale <= HiresPass.maximumScale else {
            throw GenerationError.invalid(
                field: "hires",
                reason: "a scale of \(hires.scale) is not above 1 and at most \(Int(HiresPass.maximumScale))"
            )
        }
        self.pipeline = pipeline
        firstSteps = try pipeline.program(request.firstPass).steps.count
        secondPass = request.secondPass(hires, multiple: pipeline.configuration.sizeMultiple)
        do {
            totalSteps = try firstSteps + pipeline.check(secondPass)
        } catch GenerationError.invalid(let field, let reason)
            where ["image", "strength", "steps", "width", "height"].contains(field)
        {
            throw GenerationError.invalid(field: "hires", reason: "the second pass's \(field): \(reason)")
        } catch GenerationError.doesNotFit(var memory) {
            memory.enlargedFrom = .init(width: request.width, height: request.height)
            throw GenerationError.doesNotFit(memory)
        }
        first = try pipeline.prepareOnePass(request.firstPass)
    }

    var completedSteps: Int { (first?.completedSteps ?? firstSteps) + (second?.completedSteps ?? 0) }

    func step() throws {
        precondition(completedSteps < totalSteps, "step beyond the last")
        if completedSteps < firstSteps {
            try first?.step()
        } else {
            if second == nil { try beginSecond() }
            try second?.step()
        }
    }

    private func beginSecond() throws {
        var request = secondPass
        request.source?.pixels = try enlarged()
        // What it holds is room for the second.
        first = nil
        second = try pipeline.prepareOnePass(request)
    }

    private func enlarged() throws -> [UInt8] {
        guard let first else { preconditionFailure("the second pass begins twice") }
        let picture = try first.decode()
        return Lanczos.resized(
            picture.pixels,
            channels: 3,
            from: (picture.width, picture.height),
            to: (secondPass.width, secondPass.height)
        )
    }

    func decode() throws -> GeneratedImage {
        guard let second else { preconditionFailure("decode before the last step") }
        return try second.decode()
    }
}
