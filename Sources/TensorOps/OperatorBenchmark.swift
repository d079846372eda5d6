// Times operators on made-up operands: each call as a model makes it, on tensors of its shapes that are already on the device.

/// The time that a call of an operator takes.
public struct OperatorTime: Sendable, Equatable {
    /// Seconds of one call, the median of the samples.
    public let seconds: Double
    /// How many samples there are; 1 where a call is so long that more would not pay.
    public let samples: Int
}

/// Runs operators on made-up operands and takes their time.
///
/// Weights are small random numbers, activations random numbers between 0.5 and 1 of either sign. A call is measured again and again on the
/// same tensors, so that weights which fit a cache are read from there, where a model would read them from memory.
public final class OperatorBenchmark {
    /// The device.
    public let device: TensorDevice
    /// Seconds after which a call is not sampled again.
    private let budgetSeconds: Double
    /// Bits of small bfloat16 numbers, the beginnings of all weights.
    private var weightBits: [UInt16] = []

    /// A benchmark on a device.
    ///
    /// - Parameter budgetSeconds: Time for the samples of one call.
    public init(_ device: TensorDevice, budgetSeconds: Double) {
        self.device = device
        self.budgetSeconds = budgetSeconds
    }

    /// Times a call.
    ///
    /// - Throws: `OpenCLError`, `KernelError`.
    public func measure(_ call: OperatorCall) throws -> OperatorTime {
        let run = try prepare(call)
        // Buffers of other shapes would only add up.
        defer { device.releaseUnusedMemory() }
        // The first run builds the kernels and takes memory from the device.
        _ = try device.secondsUntilFinished(run)
        let first = try device.secondsUntilFinished(run)
        guard first < budgetSeconds else { return OperatorTime(seconds: first, samples: 1) }
        // As in a model, a call is enqueued while the one before it runs; and a sample outlasts the noise of the clock.
        let calls = min(max(Int(0.004 / max(first, 1e-7)), 1), 200)
        let count = min(max(Int(budgetSeconds / (first * Double(calls))), 3), 15)
        let samples = try (0..<count).map { _ in
            try device.secondsUntilFinished { for _ in 0..<calls { try run() } } / Double(calls)
        }
        return OperatorTime(seconds: samples.sorted()[count / 2], samples: count)
    }

    /// Puts a call's operands on the device and returns what enqueues the call.
    private func prepare(_ call: OperatorCall) throws -> () throws -> Void {
        switch call {
        case .convolution: try prepareConvolution(call)
        case .linear: try prepareLinear(call)
        case .attention: try prepareAttention(call)
        case .groupNorm, .layerNorm: try prepareNorm(call)
        case .concatenation, .modelInput, .guidance, .weightedSum, .embedding, .rgb8: try preparePass(call)
        }
    }

    private func prepareConvolution(_ call: OperatorCall) throws -> () throws -> Void {
        guard
            case .convolution(
                let batch,
                let height,
                let width,
                let inChannels,
                let outChannels,
                let kernelSize,
                let stride,
                let isUpsampled,
                let hasChannelBias,
                let hasResidual,
                let source
            ) = call
        else { preconditionFailure("\(call) is no convolution") }
        let size = isUpsampled ? [(height + 1) / 2, (width + 1) / 2] : [height, width]
        let x = try tensor([batch] + size + [inChannels], source)
        let weights = try weights(inChannels, outChannels, kernelSize: kernelSize)
        let channelBias = hasChannelBias ? try tensor([batch, outChannels]) : nil
        let pixels = OperatorCall.outputPixels(height, width, stride)
        let residual = hasResidual ? try tensor([batch, pixels, outChannels]) : nil
        return {
            _ = try x.convolution(
                weights,
                stride: stride,
                upsampledTo: isUpsampled ? (height, width) : nil,
                channelBias: channelBias,
                residual: residual
            )
        }
    }

    private func prepareLinear(_ call: OperatorCall) throws -> () throws -> Void {
        guard
            case .linear(
                let rows,
                let inChannels,
                let outChannels,
                let isGEGLU,
                let function,
                let hasResidual,
                let source,
                let result
            ) = call
        else { preconditionFailure("\(call) is no linear layer") }
        let x = try tensor([rows, inChannels], source)
        let weights = try weights(inChannels, outChannels * (isGEGLU ? 2 : 1), isGEGLU: isGEGLU, isLinear: true)
        let residual = hasResidual ? try tensor([rows, outChannels]) : nil
        let type = result == .operand ? device.operandType : nil
        return { _ = try x.linear(weights, function: function, residual: residual, as: type) }
    }

    private func prepareAttention(_ call: OperatorCall) throws -> () throws -> Void {
        guard
            case .attention(
                let batch,
                let queries,
                let keys,
                let heads,
                let headSize,
                let isSelf,
                let isCausal
            ) = call
        else { preconditionFailure("\(call) is no attention") }
        let width = heads * headSize
        let q = try tensor([batch, queries, (isSelf ? 3 : 1) * width], .operand)
        let kv = isSelf ? q : try tensor([batch, keys, 2 * width], .operand)
        let first = isSelf ? width : 0
        return {
            _ = try attention(
                queries: Columns(q),
                keys: Columns(kv, offset: first),
                values: Columns(kv, offset: first + width),
                heads: heads,
                headSize: headSize,
                isCausal: isCausal
            )
        }
    }

    private func prepareNorm(_ call: OperatorCall) throws -> () throws -> Void {
        switch call {
        case .groupNorm(let batch, let pixels, let channels, let groups, let function):
            let x = try tensor([batch, pixels, channels])
            let weights = try normWeights(channels)
            return { _ = try x.groupNorm(weights, groups: groups, epsilon: 1e-5, function: function) }
        case .layerNorm(let rows, let channels):
            let x = try tensor([rows, channels])
            let weights = try normWeights(channels)
            return { _ = try x.layerNorm(weights, epsilon: 1e-5) }
        default: preconditionFailure("\(call) is no normalisation")
        }
    }

    /// The passes over memory that multiply no matrices.
    private func preparePass(_ call: OperatorCall) throws -> () throws -> Void {
        switch call {
        case .concatenation(let rows, let channels, let otherChannels):
            let x = try tensor([rows, channels])
            let other = try tensor([rows, otherChannels])
            return { _ = try x.concatenated(with: other) }
        case .modelInput(let count, let copies):
            let latents = try device.randomTensor([1, count], .float32)
            return { _ = try latents.modelInput(scale: 0.5, copies: copies) }
        case .guidance(let count):
            let output = try tensor([2, count])
            return { _ = try output.guided(scale: 1.5) }
        case .weightedSum(let count, let terms):
            let operands = try (0..<terms).map { _ in
                (factor: Float(0.5), tensor: try device.randomTensor([1, count], .float32))
            }
            return { _ = try Tensor.weightedSum(operands) }
        case .embedding(let batch, let tokens, let channels, let vocabulary):
            let device = device
            let weights = try withWeightBits(vocabulary * channels) {
                try EmbeddingWeights(
                    table: WeightSource(bytes: $0, type: .bfloat16, outChannels: vocabulary),
                    positions: [Float](repeating: 0.5, count: tokens * channels),
                    channels: channels,
                    on: device
                )
            }
            let ids = (0..<batch).map { row in (0..<tokens).map { Int32((row * tokens + $0) * 617 % vocabulary) } }
            return { _ = try device.embedding(ids, weights) }
        case .rgb8(let height, let width):
            let picture = try tensor([1, height, width, 3])
            return { _ = try picture.rgb8() }
        default: preconditionFailure("\(call) has weights that are multiplied by")
        }
    }

    private func tensor(_ shape: [Int], _ role: StorageRole = .activation) throws -> Tensor {
        try device.randomTensor(shape, role == .operand ? device.operandType : device.activationType)
    }

    private func normWeights(_ channels: Int) throws -> NormWeights {
        try NormWeights(
            gamma: [Float](repeating: 1, count: channels),
            beta: [Float](repeating: 0, count: channels),
            on: device
        )
    }

    private func weights(
        _ inChannels: Int,
        _ rows: Int,
        kernelSize: Int = 1,
        isGEGLU: Bool = false,
        isLinear: Bool = false
    ) throws -> ConvolutionWeights {
        try withWeightBits(rows * inChannels * kernelSize * kernelSize) {
            try ConvolutionWeights(
                [WeightSource(bytes: $0, type: .bfloat16, outChannels: rows)],
                bias: [Float](repeating: 0.1, count: rows),
                inChannels: inChannels,
                kernelSize: kernelSize,
                isGEGLU: isGEGLU,
                isLinear: isLinear,
                on: device
            )
        }
    }

    /// Gives the first `count` of the weights' bits to `body`.
    private func withWeightBits<Result>(
        _ count: Int,
        _ body: (UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        var state = UInt32(truncatingIfNeeded: weightBits.count) &* 2_654_435_761 | 1
        weightBits.reserveCapacity(count)
        while weightBits.count < count {
            // Marsaglia's xorshift; 1/64 ... 1/32 of either sign: sums over the widest layers stay within half precision.
            state ^= state << 13
            state ^= state >> 17
            state ^= state << 5
            weightBits.append(UInt16(0x3c80 | state >> 16 & 0x807f))
        }
        return try weightBits.withUnsafeBytes {
            try body(UnsafeRawBufferPointer(rebasing: $0[..<(count * MemoryLayout<UInt16>.size)]))
        }
    }
}
