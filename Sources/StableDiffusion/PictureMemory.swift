// What a picture takes of the device's memory, known before its first step: the models are run dry, with allocations counted and nothing
// computed, once for each way to decode. The thriftiest that is worth its while is chosen, and what cannot be made is refused with the
// largest size that can.

internal import Foundation
internal import TensorOps

/// Why a picture does not fit the memory, and what would.
public struct PictureMemory: Sendable, Equatable, CustomStringConvertible {
    /// A width and a height.
    public struct Size: Sendable, Equatable {
        /// In pixels.
        public var width: Int
        /// In pixels.
        public var height: Int

        /// A size from its parts.
        public init(width: Int, height: Int) {
            self.width = width
            self.height = height
        }
    }

    /// What was asked for.
    public var size: Size
    /// The size of the first of two passes where this is the second's; nil for a picture in one.
    public var enlargedFrom: Size?
    /// Bytes it takes besides the model, or in one allocation.
    public var neededBytes: Int
    /// Bytes there are for it.
    public var availableBytes: Int
    /// Whether the numbers are those of one allocation, which the device limits, rather than of the whole.
    public var isOneAllocation: Bool
    /// The largest size of the same shape that fits now; nil if none does.
    public var largest: Size?
    /// Whether it fits neither when nothing else uses the memory.
    public var isPermanent: Bool

    /// A finding from its parts.
    public init(
        size: Size,
        neededBytes: Int,
        availableBytes: Int,
        isOneAllocation: Bool,
        largest: Size?,
        isPermanent: Bool
    ) {
        self.size = size
        self.neededBytes = neededBytes
        self.availableBytes = availableBytes
        self.isOneAllocation = isOneAllocation
        self.largest = largest
        self.isPermanent = isPermanent
    }

    /// What it takes, what there is, and what would fit, in one sentence.
    public var description: String {
        let needed = PictureMemory.text(neededBytes)
        let available = PictureMemory.text(availableBytes)
        let need =
            if isOneAllocation {
                "takes a single allocation of \(needed), the device's largest is \(available)"
            } else if isPermanent {
                "takes \(needed) of memory besides the model, the device has \(available)"
            } else {
                "takes \(needed) of memory besides the model, \(available) are free at present"
            }
        let advice =
            largest.map { "the largest of this shape that fits is \($0.width)x\($0.height)" }
            ?? "not even the smallest of this shape fits"
        let scale = enlargedFrom.flatMap { first in largest.map { Double($0.width) / Double(first.width) } }
        let enlargement =
            scale.map {
                $0 > 1 ? "; that is a scale of \(String(format: "%.4g", $0))" : "; this size cannot be enlarged"
            } ?? ""
        return "a picture of \(size.width)x\(size.height) pixels \(need); \(advice)\(enlargement)"
    }

    private static func text(_ bytes: Int) -> String {
        bytes >= 1 << 30
            ? String(format: "%.2f GiB", Double(bytes) / 0x1p30) : String(format: "%.1f MiB", Double(bytes) / 0x1p20)
    }
}

/// A way to make a picture.
struct PicturePlan: Sendable, Equatable {
    /// What the need depends on.
    struct Shape: Sendable, Equatable {
        let width: Int
        let height: Int
        /// Tokens of each prompt.
        let tokens: [Int]
        /// Latents, outputs and noise that the sampler keeps while the model runs.
        let heldLatents: Int
        /// LoRAs, whose intermediate results take memory too.
        let loras: [LoRAReference]
        /// Whether it is made from a picture, and whether with a mask.
        let source: [Bool]
    }

    let shape: Shape
    /// How the latents are decoded; nil on the whole.
    let bands: DecoderBands?
    /// What it takes besides the model.
    let need: MemoryNeed
}

extension StableDiffusionPipeline {
    /// The way a request's picture will be made.
    ///
    /// On the whole where memory is plentiful; else in the way that takes least, as bands cost little time.
    /// - Parameter program: The request's.
    /// - Throws: `GenerationError.doesNotFit`.
    func plan(for request: GenerationRequest, _ program: SamplerProgram) throws -> PicturePlan {
        let shape = try shape(of: request, program)
        let plans = try knownPlans.first { $0.first?.shape == shape } ?? plans(request, program, shape)
        // Two passes are of two shapes.
        knownPlans = [plans] + knownPlans.filter { $0.first?.shape != shape }.prefix(1)
        let available = device.availableBytes
        if let whole = plans.first, whole.need.peakBytes <= device.comfortableBytes, fits(whole, in: available) {
            return whole
        }
        // The first of ways that are about equal is the quickest.
        let fitting = plans.filter { fits($0, in: available) }
        let chosen = fitting.dropFirst().reduce(fitting.first) { best, plan in
            best.map { 20 * plan.need.peakBytes < 19 * $0.need.peakBytes ? plan : $0 }
        }
        if let chosen { return chosen }
        throw GenerationError.doesNotFit(try memoryLacking(for: request, program, plans, available))
    }

    /// Every way to make a picture and what it takes; the first is the quickest.
    private func plans(
        _ request: GenerationRequest,
        _ program: SamplerProgram,
        _ shape: PicturePlan.Shape
    ) throws -> [PicturePlan] {
        // A dry run of very many bands would take long. Input and intermediate result of the decoder's last blocks are all alive at once in any
        // way of decoding; where these alone are too much, nothing else has to be known.
        let channels = 2 * (configuration.vae.blockOutChannels.first ?? 1)
        let picture = shape.width * shape.height * channels * device.activationType.byteCount
        if picture > device.activationBytes {
            let need = MemoryNeed(peakBytes: picture, largestAllocation: picture)
            return [PicturePlan(shape: shape, bands: nil, need: need)]
        }
        var plans: [PicturePlan] = []
        for bands in [nil] + vae.bandings.map({ Optional($0) }) {
            // Thinner bands are for devices that grant no allocation of the size of thicker ones; they save nothing else.
            let isThinner = bands.map { $0.rows < DecoderBands.usualRows } ?? false
            if isThinner && plans.contains(where: { $0.need.largestAllocation <= device.maxAllocationBytes }) { break }
            plans.append(PicturePlan(shape: shape, bands: bands, need: try need(request, program, bands: bands)))
        }
        return plans
    }

    /// What a picture takes: a dry run of its generation, up to the step at which the sampler keeps most, with the adapters in effect.
    func need(_ request: GenerationRequest, _ program: SamplerProgram, bands: DecoderBands?) throws -> MemoryNeed {
        var need = try device.memoryNeed {
            let generation = try PictureGeneration(request, program, self, adapters: adapters.active, bands: bands)
            for _ in 0...program.mostHeld.step { try generation.step() }
            let picture = try generation.decodedLatents()
            // As `PictureGeneration.decode` reads it.
            _ = try picture.converted(to: .float32)
            _ = try Tensor([(picture.count + 3) / 4], .float32, on: device)
            withExtendedLifetime(generation) {}
        }
        // The pixels as floats, as bytes, and as a PNG under way.
        if device.sharesHostMemory {
            need.peakBytes += request.width * request.height * configuration.vae.outChannels * 8
        }
        return need
    }

    private func shape(of request: GenerationRequest, _ program: SamplerProgram) throws -> PicturePlan.Shape {
        PicturePlan.Shape(
            width: request.width,
            height: request.height,
            tokens: try promptEncoder.tokenCounts(request, usesGuidance: usesGuidance(request)),
            heldLatents: program.mostHeld.values,
            loras: request.loras,
            source: request.source.map { [$0.mask != nil, $0.strength == 1] } ?? []
        )
    }

    private func fits(_ plan: PicturePlan, in bytes: Int) -> Bool {
        plan.need.peakBytes <= bytes && plan.need.largestAllocation <= device.maxAllocationBytes
    }

    private func memoryLacking(
        for request: GenerationRequest,
        _ program: SamplerProgram,
        _ plans: [PicturePlan],
        _ available: Int
    ) throws -> PictureMemory {
        let allocation = device.maxAllocationBytes
        let granted = plans.filter { $0.need.largestAllocation <= allocation }
        let isPermanent = !plans.contains { fits($0, in: device.activationBytes) }
        let isOneAllocation = granted.isEmpty && plans.contains { $0.need.peakBytes <= available }
        let needs =
            isOneAllocation
            ? plans.map(\.need.largestAllocation) : (granted.isEmpty ? plans : granted).map(\.need.peakBytes)
        return PictureMemory(
            size: .init(width: request.width, height: request.height),
            neededBytes: needs.min() ?? 0,
            availableBytes: isOneAllocation ? allocation : isPermanent ? device.activationBytes : available,
            isOneAllocation: isOneAllocation,
            largest: try largestFitting(request, program, in: available),
            isPermanent: isPermanent
        )
    }

    /// The largest size of a request's shape that fits, found by halving: a larger picture never takes less.
    private func largestFitting(
        _ request: GenerationRequest,
        _ program: SamplerProgram,
        in available: Int
    ) throws -> PictureMemory.Size? {
        let multiple = configuration.sizeMultiple
        let (longer, shorter) = (max(request.width, request.height), min(request.width, request.height))
        func size(_ count: Int) -> PictureMemory.Size {
            let long = count * multiple
            let short =
                max(1, Int((Double(long) * Double(shorter) / Double(longer) / Double(multiple)).rounded())) * multiple
            return request.width >= request.height
                ? .init(width: long, height: short) : .init(width: short, height: long)
        }
        var (fitting, tooLarge) = (0, longer / multiple)
        while tooLarge - fitting > 1 {
            let middle = (fitting + tooLarge) / 2
            let candidate = size(middle)
            let smaller = request.resized(candidate)
            let plans = try plans(smaller, program, shape(of: smaller, program))
            if plans.contains(where: { fits($0, in: available) }) { fitting = middle } else { tooLarge = middle }
        }
        return fitting == 0 ? nil : size(fitting)
    }
}

extension GenerationRequest {
    /// The same for a picture of another size, whose contents make no difference.
    fileprivate func resized(_ size: PictureMemory.Size) -> GenerationRequest {
        var result = self
        (result.width, result.height) = (size.width, size.height)
        result.source?.pixels = [UInt8](repeating: 0, count: size.width * size.height * 3)
        if source?.mask != nil { result.source?.mask = [UInt8](repeating: 255, count: size.width * size.height) }
        return result
    }
}
